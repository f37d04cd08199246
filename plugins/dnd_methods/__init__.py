"""The rivals: CLIP-Dissect, Network Dissection and MILAN, on the probing pass, the store and the targets of a run."""

from __future__ import annotations

from collections.abc import Iterable

from dnd import api
from dnd_methods.broden import BrodenSet
from dnd_methods.clip_dissect import ClipDissect
from dnd_methods.dissection import NetworkDissection
from dnd_methods.milan import Milan


@api.hookimpl
def register_methods() -> Iterable[type[api.Method]]:
    return [ClipDissect, NetworkDissection, Milan]


@api.hookimpl
def register_probing_sets() -> Iterable[type[api.ProbingSet]]:
    return [BrodenSet]

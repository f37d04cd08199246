"""The hooks: each takes nothing and returns the classes a plugin offers.

A plugin is a module (or object) named by an entry point of the group `dnd`; it implements any of these
with `@dnd.api.hookimpl`. Backends are chosen by name, so the order of plugins never matters.
"""

from __future__ import annotations

from collections.abc import Iterable

import pluggy

from dnd.api import Captioner, Encoder, Generator, Method, ProbingSet, Scorer, Summarizer, Target

hookspec = pluggy.HookspecMarker("dnd")


@hookspec
def register_captioners() -> Iterable[type[Captioner]]:
    """Offer captioners: images in, one caption per image out."""
    raise NotImplementedError


@hookspec
def register_summarizers() -> Iterable[type[Summarizer]]:
    """Offer summarizers: captions of a unit in, candidate concepts out."""
    raise NotImplementedError


@hookspec
def register_generators() -> Iterable[type[Generator]]:
    """Offer generators: a concept and a seed in, one image out."""
    raise NotImplementedError


@hookspec
def register_scorers() -> Iterable[type[Scorer]]:
    """Offer scorers: the evidence of a unit in, a score per candidate out."""
    raise NotImplementedError


@hookspec
def register_encoders() -> Iterable[type[Encoder]]:
    """Offer encoders: images and texts in, vectors of one space out."""
    raise NotImplementedError


@hookspec
def register_targets() -> Iterable[type[Target]]:
    """Offer targets: networks under study, by name."""
    raise NotImplementedError


@hookspec
def register_probing_sets() -> Iterable[type[ProbingSet]]:
    """Offer probing sets: images to show to a target, by name."""
    raise NotImplementedError


@hookspec
def register_methods() -> Iterable[type[Method]]:
    """Offer methods: other ways from the probing pass to labels than the core's own."""
    raise NotImplementedError

"""A contract run without pytest."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dnd import api
from dnd.testing.backends import (
    CaptionerContract,
    EncoderContract,
    GeneratorContract,
    ScorerContract,
    SummarizerContract,
)
from dnd.testing.contract import BrokenRule, Contract
from dnd.testing.inputs import MethodContract, ProbingSetContract, TargetContract

CONTRACTS: Mapping[str, type[Contract]] = {
    contract.kind: contract
    for contract in (
        CaptionerContract,
        SummarizerContract,
        GeneratorContract,
        ScorerContract,
        EncoderContract,
        TargetContract,
        ProbingSetContract,
        MethodContract,
    )
}
"""By kind."""


@dataclass(frozen=True)
class Outcome:
    """What became of one rule."""

    rule: str
    """In words: "answers come in order"."""
    broken: str = ""
    """Why; "" where the rule is kept."""


def run_contract(
    kind: str, backend: type[api.Plugin], config: Mapping[str, Any], runtime: api.Runtime
) -> Iterator[Outcome]:
    """Check a class against each rule of its kind, in order."""
    attributes = {"backend": backend, "config": dict(config), "runtime": runtime}
    yield from outcomes(type("Checked", (CONTRACTS[kind],), attributes))


def outcomes(contract: type[Contract]) -> Iterator[Outcome]:
    """Run each rule of a filled-in contract on an instance of its own."""
    for name in _rules(contract):
        try:
            getattr(contract(), name)()
        except BrokenRule as error:
            yield Outcome(_words(name), str(error))
        except Exception as error:
            yield Outcome(_words(name), _explain(error))
        else:
            yield Outcome(_words(name))


def _rules(contract: type[Contract]) -> list[str]:
    """Names of the methods, the common rules first, each in the order it is written in."""
    names = [name for cls in reversed(contract.__mro__) for name in vars(cls) if name.startswith("test_")]
    return list(dict.fromkeys(names))


def _words(name: str) -> str:
    return name.removeprefix("test_").replace("_", " ")


def _explain(error: Exception) -> str:
    """The error in one line, with the place in the plugin's code: the last one outside of this package."""
    here = str(Path(__file__).parent)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(here)]
    where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    text = " ".join(str(error).split())
    hint = f" {error.hint}" if isinstance(error, api.DndError) and error.hint else ""
    return f"{type(error).__name__}: {text}{where}{hint}"

"""Contract tests and small stand-ins for those who write plugins.

A test class that inherits one of the contracts and names its backend gets a test for each rule that the core
relies on:

    class TestMeanColour(CaptionerContract):
        backend = MeanColour
        config = {"article": "the"}

The classes are plain: pytest runs them, `dnd plugins check NAME` does so without it.
"""

from __future__ import annotations

from dnd.testing.backends import (
    BackendContract,
    CaptionerContract,
    EncoderContract,
    GeneratorContract,
    ScorerContract,
    SummarizerContract,
)
from dnd.testing.contract import BrokenRule, Contract
from dnd.testing.fakes import evidence, image_requests, images, picture, runtime, summary_requests
from dnd.testing.inputs import MethodContract, ProbingSetContract, TargetContract
from dnd.testing.run import CONTRACTS, Outcome, run_contract
from dnd.testing.study import FakeStudy

__all__ = [
    "CONTRACTS",
    "BackendContract",
    "BrokenRule",
    "CaptionerContract",
    "Contract",
    "EncoderContract",
    "FakeStudy",
    "GeneratorContract",
    "MethodContract",
    "Outcome",
    "ProbingSetContract",
    "ScorerContract",
    "SummarizerContract",
    "TargetContract",
    "evidence",
    "image_requests",
    "images",
    "picture",
    "run_contract",
    "runtime",
    "summary_requests",
]

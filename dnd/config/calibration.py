"""Confidence: how likely a label is right, read off its score by a curve that was fitted where the truth was known.

A score's meaning is its scorer's, so a calibration holds for one scorer with its settings and is refused for any
other. It cannot know of other captioners, targets or images: docs/evaluate.md says how far it carries.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pydantic

from dnd.api import Config
from dnd.errors import UsageError
from dnd.files import PACKAGE, place_of, read_text

_FIT = "Fit one on a run whose truth you know: dnd calibrate RUN --truth FILE --out FILE."

Knots = tuple[tuple[float, float], ...]
"""(score, probability), both ascending; between them a straight line, beyond them the last value."""


class Source(Config):
    """A run that it was fitted on."""

    target: str
    digest: str
    """Of the target's weights and preprocessing."""
    truth: str
    """sha256 of the truth file."""
    seed: int
    units: int
    """How many had a label to judge."""


class Fitted(Config):
    """How it came about."""

    kind: Literal["isotonic", "platt"]
    version: str
    """Of dnd."""
    date: str
    sources: tuple[Source, ...]


class Calibration(Config):
    """A calibration file."""

    format: Literal[1] = 1
    scorer: dict[str, Any]
    """Its table in the run file: `backend` and the settings."""
    first: Knots
    """For a unit's first label."""
    later: Knots
    """For the second and third, whose scores say what they add to the first."""
    fitted: Fitted

    @pydantic.field_validator("first", "later")
    @classmethod
    def _rises(cls, knots: Knots) -> Knots:
        scores, chances = np.array(knots, np.float64).reshape(-1, 2).T
        if not len(scores) or not np.isfinite(scores).all() or (np.diff(scores) <= 0).any():
            raise ValueError("scores that rise from knot to knot")
        if not ((chances >= 0) & (chances <= 1)).all() or (np.diff(chances) < 0).any():
            raise ValueError("probabilities in 0..1 that never fall")
        return knots

    def confidences(self, scores: Sequence[float]) -> tuple[float, ...]:
        """Of a unit's labels, best first: the probability that each is right."""
        curves = [self.first, *[self.later] * len(scores)]
        return tuple(read_off(curve, score) for curve, score in zip(curves, scores, strict=False))


def read_off(knots: Knots, score: float) -> float:
    """The curve's value at a score."""
    scores, chances = zip(*knots, strict=True)
    return float(np.interp(score, scores, chances))


@dataclass(frozen=True)
class CalibrationFile:
    """Where a calibration is kept; read when it is asked for."""

    name: str
    """A path, or `package:NAME/FILE`."""

    @property
    def path(self) -> Path:
        return place_of(self.name, "labels.calibration")

    @cached_property
    def content(self) -> Calibration:
        try:
            return Calibration.model_validate_json(read_text(self.path))
        except (OSError, UnicodeDecodeError) as error:
            what = getattr(error, "strerror", None) or error
            raise UsageError(f"labels.calibration: cannot read {self.path}: {what}", _FIT) from error
        except pydantic.ValidationError as error:
            fault = error.errors(include_url=False)[0]
            place = ".".join(map(str, fault["loc"]))
            raise UsageError(f"{self.path} is no calibration: {place}: {fault['msg']}", _FIT) from error

    def check(self, backend: str, config: Config) -> None:
        """UsageError unless it was fitted for this scorer with these settings."""
        wanted = dict(self.content.scorer)
        name = wanted.pop("backend", None)
        if name != backend:
            raise self._refused(f"the scorer {name!r}", repr(backend))
        try:
            known = type(config).model_validate(wanted)  # what was not a setting then has its default
        except pydantic.ValidationError as error:
            raise self._refused(f"other settings of the scorer {name!r}", f"those it has here ({error})") from error
        ours, theirs = scorer_settings(config), scorer_settings(known)
        for setting in ours:
            if ours[setting] != theirs[setting]:
                raise self._refused(f"scorer.{setting} = {theirs[setting]!r}", repr(ours[setting]))

    def _refused(self, fitted: str, given: str) -> UsageError:
        return UsageError(
            f"labels.calibration: {self.name} was fitted for {fitted}, not for {given}",
            f"{_FIT} Or go without: --set labels.calibration=none.",
        )


def scorer_settings(config: Config) -> dict[str, Any]:
    """The settings that scores depend on."""
    unkeyed: frozenset[str] = getattr(config, "unkeyed", frozenset())
    return {name: value for name, value in config.model_dump(mode="json").items() if name not in unkeyed}


def absolute(name: str) -> str:
    """As a run file keeps it, so that it can be repeated from another folder."""
    return name if name.startswith(PACKAGE) else os.path.abspath(Path(name).expanduser())

"""What backends answered, checked: PluginError for what is no answer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import copy
from dataclasses import is_dataclass
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt

from dnd.api import Bound, Evidence, Label
from dnd.errors import PluginError

if TYPE_CHECKING:
    from PIL.Image import Image

T = TypeVar("T")
_LONGEST_CAPTION, _LONGEST_CONCEPT = 2000, 100
"""In characters."""
_LEAST_SIDE, _MOST_SIDE = 8, 8192
"""Of a synthetic image, in pixels."""


def handed(items: Sequence[T]) -> list[T]:
    """Items as a backend gets them: records of its own in a list of its own, whatever it does to them."""
    return [copy(one) if is_dataclass(one) else one for one in items]


def counted(answers: Sequence[T], n: int) -> Sequence[T]:
    """The answers, if there are n."""
    if isinstance(answers, str) or not hasattr(answers, "__len__"):
        raise PluginError(f"not a list of answers but {type(answers).__name__}")
    if len(answers) != n:
        raise PluginError(f"{len(answers)} answers came back for {n} items")
    return answers


def checked_captions(answers: Sequence[str], n: int) -> list[str]:
    """n texts, stripped."""
    for answer in counted(answers, n):
        if not _is_text(answer, _LONGEST_CAPTION):
            raise PluginError(f"not a caption: {_shown(answer)}")
    return [answer.strip() for answer in answers]


def checked_concepts(answer: Sequence[str], at_most: int) -> list[str]:
    """The distinct candidates of one unit."""
    distinct = list(islice(dict.fromkeys(answer), at_most)) if isinstance(answer, list | tuple) else []
    if not distinct or not all(_is_text(concept, _LONGEST_CONCEPT) for concept in distinct):
        raise PluginError(f"not a list of candidate concepts: {_shown(answer)}")
    return distinct


def checked_seen(answer: object, one: Evidence) -> npt.NDArray[np.bool_]:
    """(n_concepts, n_exemplars) of one unit."""
    found = np.asarray(answer)
    if found.shape != (len(one.concepts), len(one.exemplars)) or found.dtype != bool:
        raise PluginError(f"not whether each candidate is seen on each exemplar: {_shown(answer)}")
    return found


def checked_images(answers: Sequence[Image | None], n: int) -> list[Image | None]:
    """n images as RGB; None for those that there are not."""
    from PIL import Image

    for answer in counted(answers, n):
        if answer is None:
            continue
        if not isinstance(answer, Image.Image):
            raise PluginError(f"not an image but {type(answer).__name__}")
        if min(answer.size) < _LEAST_SIDE or max(answer.size) > _MOST_SIDE:
            raise PluginError(f"not an image of a usable size: {answer.width}x{answer.height}")
    return [answer and answer.convert("RGB") for answer in answers]


def checked_scores(answer: Sequence[float], n: int) -> list[float]:
    """A finite score for each of a unit's n candidates."""
    if len(answer) != n or not np.isfinite(answer).all():
        raise PluginError(f"not one finite score per candidate: {_shown(answer)}")
    return [float(value) for value in answer]


def checked_bounds(answer: Sequence[Bound], n: int) -> list[Bound]:
    """A bound for each of a unit's n candidates; infinite where nothing is known."""
    scores = [one.score for one in answer if isinstance(one, Bound)]
    if len(scores) != n or any(math.isnan(score) or score == -math.inf for score in scores):
        raise PluginError(f"not one bound per candidate: {_shown(answer)}")
    return [Bound(float(one.score), bool(one.open)) for one in answer]


def checked_label(label: Label) -> Label:
    """A method's word on a unit."""
    given = label.labels if isinstance(label, Label) else None
    if not isinstance(given, tuple) or label.fault() or not all(map(_is_scored, given)):
        raise PluginError(f"not a label: {_shown(label)}")
    return label


def _is_scored(pair: object) -> bool:
    """A concept with its score."""
    if not isinstance(pair, tuple) or len(pair) != 2 or not isinstance(pair[1], int | float | np.number):
        return False
    return _is_text(pair[0]) and bool(np.isfinite(pair[1]))


def _is_text(answer: object, longest: int | None = None) -> bool:
    """Whether something is said, in letters that can be written to a file."""
    if not isinstance(answer, str) or not answer.strip() or (longest is not None and len(answer) > longest):
        return False
    return not any("\ud800" <= letter <= "\udfff" for letter in answer)


def _shown(answer: object) -> str:
    text = repr(answer)
    return text if len(text) <= 80 else f"{text[:77]}..."

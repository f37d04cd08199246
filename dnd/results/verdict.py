"""What `dnd verify` found of a unit's first label: `verdict` in its line of labels.jsonl."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import BaseModel, Field, PlainSerializer

Word = Literal["verified", "too narrow", "too broad", "one of several", "not driven", "not tested"]
Relation = Literal["broader", "narrower", "same", "other"]
Figure = Annotated[float, PlainSerializer(lambda value: round(value, 4), when_used="json")]
Strength = Annotated[float, PlainSerializer(lambda value: float(f"{value:.4g}"), when_used="json")]


class Neighbour(BaseModel, frozen=True, strict=True):
    """Another name that was tested beside the label."""

    concept: str
    relation: Relation
    """To the label."""
    auc: Figure
    """As the label's."""
    strength: Strength = math.nan
    """As the label's; not a number where an earlier version tested it."""
    needed: Figure | None = None
    """As the label's."""


class Verdict(BaseModel, frozen=True, strict=True, populate_by_name=True, ser_json_inf_nan="constants"):
    word: Word
    concept: str
    """The label that it is of."""
    because: str = ""
    """The name that decided it, or why it was not tested."""
    n_images: int = Field(default=0, alias="images")
    """Fresh images of the label."""
    auc: Figure | None = None
    """Of them, against fresh images of other units' labels."""
    auc_random: Figure | None = None
    """Of them, against held-out probing images."""
    strength: Strength | None = None
    """The activation on the median of them, above that on the median held-out probing image."""
    needed: Figure | None = None
    """Share of what activates the unit most, its exemplars and the strongest held-out images, on which CLIP sees it."""
    correlation: Figure | None = None
    """On held-out probing images, of CLIP's likeness of image and label with the activation."""
    auprc: Figure | None = None
    """Likewise: average precision of the likeness for the images on which the unit is active."""
    auprc_chance: Figure | None = None
    """The share of these images."""
    tested: tuple[Neighbour, ...] = ()

    @property
    def text(self) -> str:
        """The word with the name that decided it, and the AUC."""
        because = f" ({self.because})" if self.because else ""
        return self.word + because + (f", AUC {self.auc:.2f} on new images" if self.auc is not None else "")

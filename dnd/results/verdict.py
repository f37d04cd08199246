"""What `dnd verify` found of a unit's first label: a line of verify.jsonl."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, Field, PlainSerializer, ValidationError

from dnd.api import Unit
from dnd.errors import DamagedError
from dnd.files import read_text
from dnd.store.files import write_atomic

Word = Literal["verified", "too narrow", "too broad", "one of several", "not driven", "not tested"]
Relation = Literal["broader", "narrower", "same", "other"]
FILE = "verify.jsonl"
Figure = Annotated[float, PlainSerializer(lambda value: round(value, 4), when_used="json")]


class Neighbour(BaseModel, frozen=True, strict=True):
    """Another name that was tested beside the label."""

    concept: str
    relation: Relation
    """To the label."""
    auc: Figure
    """As the label's."""
    against: Figure
    """AUC of its images against the label's: 0.5 where they activate the unit alike."""


class Verdict(BaseModel, frozen=True, strict=True, populate_by_name=True):
    layer: str
    index: int = Field(alias="unit")
    concept: str
    """The unit's first label."""
    verdict: Word
    reason: str = ""
    """The name that decided it, or why it was not tested."""
    images: int = 0
    """Fresh images of the label."""
    auc: Figure | None = None
    """Of them, against fresh images of other units' labels."""
    auc_random: Figure | None = None
    """Of them, against held-out probing images."""
    correlation: Figure | None = None
    """On held-out probing images, of CLIP's likeness of image and label with the activation."""
    auprc: Figure | None = None
    """Likewise: average precision of the likeness for the images on which the unit is active."""
    auprc_chance: Figure | None = None
    """The share of these images."""
    tested: tuple[Neighbour, ...] = ()

    @property
    def unit(self) -> Unit:
        return Unit(self.layer, self.index)


def write_verdicts(folder: Path, verdicts: Iterable[Verdict]) -> Path:
    lines = (verdict.model_dump_json(by_alias=True) + "\n" for verdict in verdicts)
    write_atomic(folder / FILE, (line.encode() for line in lines))
    return folder / FILE


def read_verdicts(folder: Path) -> dict[Unit, Verdict]:
    """By unit; nothing where `dnd verify` has not been run. Raises DamagedError."""
    file = folder / FILE
    if not file.is_file():
        return {}
    try:
        found = [Verdict.model_validate_json(line) for line in read_text(file).splitlines()]
    except (OSError, ValidationError) as error:
        raise DamagedError(f"{file} cannot be read: {error}", "`dnd verify` writes it again.") from error
    return {verdict.unit: verdict for verdict in found}

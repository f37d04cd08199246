"""Labels in the formats that other tools read."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from dnd.results.export.dataset import write_dataset
from dnd.results.export.neuronpedia import neuronpedia_jsonl
from dnd.results.export.parquet import write_parquet
from dnd.results.export.tables import (
    labels_jsonl,
    labels_table,
    latex_table,
    markdown_table,
    reference_csv,
    spreadsheet_table,
)
from dnd.results.run import RunFolder
from dnd.store.files import write_atomic

_TEXTS: dict[str, Callable[[RunFolder], Iterable[str]]] = {
    "csv": labels_table,
    "jsonl": labels_jsonl,
    "markdown": markdown_table,
    "latex": latex_table,
    "reference": reference_csv,
    "neuronpedia": neuronpedia_jsonl,
}
FORMATS = (*_TEXTS, "parquet", "hf")


def as_text(run: RunFolder, kind: str, *, for_spreadsheets: bool = False) -> Iterable[str]:
    """The run's labels in one of the formats that are text, in parts; `for_spreadsheets` goes for CSV."""
    return spreadsheet_table(run) if for_spreadsheets else _TEXTS[kind](run)


def export(run: RunFolder, kind: str, file: Path, *, images: bool = True, for_spreadsheets: bool = False) -> None:
    """Write the run's labels to a file, with "hf" to a folder, whole or not at all; `images` goes for Parquet and hf,
    `for_spreadsheets` for CSV."""
    if kind == "parquet":
        write_parquet(run, file, images=images)
    elif kind == "hf":
        write_dataset(run, file, images=images)
    else:
        write_atomic(file, (part.encode() for part in as_text(run, kind, for_spreadsheets=for_spreadsheets)))

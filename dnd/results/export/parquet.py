"""Labels with their images in one Parquet file, which pandas, polars and `datasets` open.

Images are structs of `bytes` (a PNG file) and `path`, as `datasets` keeps its own, and the schema says so under the
key `huggingface`: `datasets.load_dataset("parquet", data_files=FILE)` then gives PIL images. Written a row group at
a time, so that memory does not grow with the run.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dnd.api import N_LABELS
from dnd.errors import DamagedError, StoreError, UsageError
from dnd.files import put_in_place
from dnd.results.run import RunFolder
from dnd.results.unit import StoredImage, UnitResult

_ROWS = 32
"""Units in a row group: some megabytes with images."""
_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_PLAIN: dict[str, pa.DataType] = {
    "layer": pa.string(),
    "unit": pa.int32(),
    "status": pa.string(),
    **{
        name: kind
        for n in ("", *(f"_{n}" for n in range(2, N_LABELS + 1)))
        for name, kind in ((f"label{n}", pa.string()), (f"score{n}", pa.float32()))
    },
    "reason": pa.string(),
    "meaning": pa.string(),
    "verdict": pa.string(),
    "captions": pa.list_(pa.string()),
    "sources": pa.list_(pa.string()),
    "boxes": pa.list_(pa.list_(pa.float32())),
    "activations": pa.list_(pa.float32()),
    "candidates": pa.list_(pa.string()),
    "candidate_scores": pa.list_(pa.float32()),
    "candidate_aucs": pa.list_(pa.float32()),
}
_IMAGES = {"exemplars": pa.list_(_IMAGE), "synthetic": pa.list_(_IMAGE)}
"""Strongest first; the synthetic ones are those of the first label."""


def write_parquet(
    run: RunFolder, file: Path, records: Iterator[UnitResult] | None = None, *, images: bool = True
) -> None:
    """Write the run's units, or these of them, to `file`, whole or not at all. Raises UsageError where its images are
    gone."""
    columns = {**_PLAIN, **(_IMAGES if images else {})}
    about = json.dumps({"info": {"features": {name: _feature(kind) for name, kind in columns.items()}}})
    schema = pa.schema(list(columns.items()), metadata={"huggingface": about})
    temporary = file.parent / f".{file.name}.{uuid.uuid4().hex}.tmp"
    records = run.records() if records is None else records
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
            for group in _groups(records):
                writer.write_table(pa.Table.from_pylist([_row(run, record, images) for record in group], schema))
        put_in_place(temporary, file)
    except OSError as error:
        raise StoreError(
            f"cannot write {file}: {error.strerror or error}", "Free some space or choose another file with --out."
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _groups(records: Iterator[UnitResult]) -> Iterator[list[UnitResult]]:
    while group := list(islice(records, _ROWS)):
        yield group


def _row(run: RunFolder, record: UnitResult, images: bool) -> dict[str, Any]:
    given = record.labels if record.status == "labelled" else ()
    row: dict[str, Any] = {"layer": record.layer, "unit": record.index, "status": record.status}
    for n, one in enumerate(given, start=1):
        end = f"_{n}" if n > 1 else ""
        row |= {f"label{end}": one.concept, f"score{end}": one.score}
    shown = record.exemplars
    row |= {
        "reason": record.reason,
        "meaning": record.meaning or None,
        "verdict": record.verdict.word if record.verdict else None,
        "captions": [one.caption or "" for one in shown],
        "sources": [one.source for one in shown],
        "boxes": [list(one.box or ()) for one in shown],
        "activations": [one.activation for one in shown],
        "candidates": [one.concept for one in record.candidates],
        "candidate_scores": [one.score for one in record.candidates],
        "candidate_aucs": [one.auc for one in record.candidates],
    }
    if images:
        synthetic = sorted(record.best.images, key=lambda one: -one.activation) if record.best else []
        row |= {"exemplars": [_image(run, one) for one in shown], "synthetic": [_image(run, one) for one in synthetic]}
    return row


def _image(run: RunFolder, shown: StoredImage) -> Mapping[str, Any]:
    """Its file's bytes, once they are known to be the image: another file or a link in its place is not read."""
    try:
        run.store.picture(shown.digest).open()
        return {"bytes": run.store.image_path(shown.digest).read_bytes(), "path": f"{shown.digest}.png"}
    except (DamagedError, OSError) as error:
        raise UsageError(
            f"the run's images are not all in its store: {error}",
            "Set DND_STORE to where they are, run again, or leave them out with --no-images.",
        ) from error


def _feature(kind: pa.DataType) -> Any:
    """What `datasets` calls the type; lists as they are written since its first releases."""
    if kind == _IMAGE:
        return {"_type": "Image"}
    if pa.types.is_list(kind):
        return [_feature(kind.value_type)]
    return {"dtype": "float32" if kind == pa.float32() else str(kind), "_type": "Value"}

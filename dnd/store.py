"""The store: durable tables of stage results and images kept once by content.

    <store>/<stage>-<key>/part-*.parquet   rows of a finished batch each; a column `key` names the item
    <store>/images/ab/cdef....png          named by the sha256 of mode, size and pixels

Every file is written beside its place and renamed into it, so that a kill at any moment leaves whole files
only; tables are flushed to disk first, images are not (there are thousands, and a flush each takes longer than
drawing some). Parts are only ever added, under names that cannot clash: any number of processes
may share a store.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dnd.api import Picture
from dnd.errors import StoreError

if TYPE_CHECKING:
    import pyarrow as pa
    from PIL.Image import Image

_MANY_PARTS = 64
"""A finished stage of more parts than this is rewritten as one."""


def digest_of(value: object) -> str:
    """sha256 of a JSON-able value, key order aside."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def derive_seed(*parts: object) -> int:
    """A seed, 0 to 2**63 - 1, from what identifies an item: the same parts, the same seed, anywhere."""
    return int(digest_of([str(p) for p in parts])[:16], 16) >> 1


def write_atomic(path: Path, data: bytes, *, flush: bool = True) -> None:
    """Write a whole file or nothing; raises StoreError where the disk will not have it.

    Without `flush` a power cut, though not a kill, may lose what was written in the last seconds.
    """
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex}.tmp"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            if flush:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise StoreError(
            f"cannot write {path}: {error.strerror or error}",
            "Free some space or choose another folder with --out; what is computed is kept, the same command goes on.",
        ) from error


class Table:
    """Rows of one stage, each under the key of its item."""

    def __init__(self, folder: Path, schema: pa.Schema) -> None:
        """`schema` has a string column `key` besides the payload's columns."""
        self.folder = folder
        self.schema = schema

    def _parts(self) -> list[Path]:
        return sorted(self.folder.glob("part-*.parquet"))

    def keys(self) -> set[str]:
        """The items that are done."""
        import pyarrow.parquet as pq

        found: set[str] = set()
        for part in self._parts():
            found.update(pq.read_table(part, columns=["key"]).column("key").to_pylist())
        return found

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Make a batch of rows durable, all or none."""
        import pyarrow as pa

        if rows:
            self._write(pa.Table.from_pylist(list(rows), schema=self.schema))

    def _write(self, table: pa.Table) -> None:
        import pyarrow.parquet as pq

        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd", write_page_checksum=True)
        write_atomic(self.folder / f"part-{uuid.uuid4().hex}.parquet", buffer.getvalue())

    def read(self, keys: set[str] | None = None) -> Iterator[dict[str, Any]]:
        """Rows, of these keys only if given, each key once; one part in memory at a time, in no set order."""
        import pyarrow.parquet as pq

        seen: set[str] = set()
        for part in self._parts():
            for row in pq.read_table(part, page_checksum_verification=True).to_pylist():
                if row["key"] not in seen and (keys is None or row["key"] in keys):
                    seen.add(row["key"])
                    yield row

    def clear(self) -> None:
        """Forget all rows."""
        for part in self._parts():
            part.unlink(missing_ok=True)

    def compact(self) -> None:
        """Join many small parts into one; a reader beside us may see a row twice, never none."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        parts = self._parts()
        if len(parts) > _MANY_PARTS:
            self._write(pa.concat_tables([pq.read_table(part) for part in parts]))
            for part in parts:
                part.unlink(missing_ok=True)


class Store:
    """A folder that holds the tables of all stages, and the images."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def table(self, stage: str, key: str, schema: pa.Schema) -> Table:
        """The table of a stage under its key (see `stage_key`)."""
        return Table(self.folder / f"{stage}-{key[:24]}", schema)

    def put_image(self, image: Image) -> Picture:
        """Keep an RGB image, once by content."""
        head = f"{image.mode} {image.width} {image.height}\n".encode()
        digest = hashlib.sha256(head + image.tobytes()).hexdigest()
        path = self.image_path(digest)
        if not path.exists():
            buffer = io.BytesIO()
            image.save(buffer, "PNG", compress_level=1)
            write_atomic(path, buffer.getvalue(), flush=False)
        return self.picture(digest)

    def image_path(self, digest: str) -> Path:
        return self.folder / "images" / digest[:2] / f"{digest[2:]}.png"

    def picture(self, digest: str) -> Picture:
        """An image of the store by its digest; opening one that is gone raises StoreError."""
        return Picture(digest, lambda: self._open(digest))

    def _open(self, digest: str) -> Image:
        from PIL import Image

        path = self.image_path(digest)
        try:
            with Image.open(path) as image:
                return image.convert("RGB")
        except (OSError, ValueError, SyntaxError) as error:
            raise StoreError(f"cannot read {path}: {error}", "Delete that file and run again with --fresh.") from error


def stage_key(stage: str, version: int, parts: Mapping[str, Any]) -> str:
    """sha256 over all that changes a stage's answers, its items aside. Same key, same results: reuse."""
    return digest_of({"stage": stage, "version": version, **parts})

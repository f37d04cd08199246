"""Durable tables of stage results.

    <store>/<stage>-<key>/part-<sha256>.parquet   rows of a finished batch each; a column `key` names the item

Parts are named by their content and never changed: any number of processes may share them. One that is not what its
name says was damaged: it is set aside as `damaged-...`, and its items are computed again.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from dnd.store.digests import sha256_of
from dnd.store.files import raise_unless_damaged, set_aside, write_atomic

if TYPE_CHECKING:
    import pyarrow as pa

_MANY_PARTS = 64
"""Of a finished stage with more small parts than this, the small ones are joined."""
_SMALL = 32 << 20
"""Bytes of a small part."""
_ROWS_AT_ONCE, _BYTES_AT_ONCE = 1024, 8 << 20
_PAGE = 1 << 20
"""Bytes that a writer takes in at once, about."""


class _GoneError(Exception):
    """A part under our eyes was joined by a process beside us. No OSError: who writes takes those for the disk's."""


class Table:
    """Rows of one stage, each under the key of its item."""

    def __init__(self, folder: Path, schema: pa.Schema) -> None:
        """`schema` has a string column `key` besides the payload's columns."""
        self.folder = folder
        self.schema = schema

    def _parts(self) -> list[Path]:
        return sorted(self.folder.glob("part-*.parquet"))

    def _sound_parts(self) -> Iterator[Path]:
        """Every part whose content matches its name; where another process joins parts meanwhile, also the
        joined ones."""
        tried: set[Path] = set()
        while parts := [part for part in self._parts() if part not in tried]:
            for part in parts:
                tried.add(part)
                if _is_sound(part):
                    yield part

    def _batches(self, **options: Any) -> Iterator[pa.RecordBatch]:
        for part in self._sound_parts():
            with suppress(FileNotFoundError):
                yield from _rows_of(part, **options)

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Make a batch of rows durable, all or none."""
        import pyarrow as pa

        if rows:
            self._write([pa.Table.from_pylist(list(rows), schema=self.schema)])

    def _write(self, tables: Iterable[pa.Table]) -> Path:
        """A part of these rows, at least one, in memory one table at a time."""
        import pyarrow.parquet as pq

        others = iter(tables)
        first = next(others)

        def write(file: BinaryIO) -> None:
            # Large rows one by one: a batch is copied several times.
            at_once = min(max(1, first.num_rows * _PAGE // max(first.nbytes, 1)), _ROWS_AT_ONCE)
            with pq.ParquetWriter(file, self.schema, compression="zstd", write_batch_size=at_once) as writer:
                for table in chain([first], others):
                    writer.write_table(table, row_group_size=4 * _ROWS_AT_ONCE)

        return write_atomic(lambda digest: self.folder / f"part-{digest}.parquet", write, below=self.folder.parent)

    def rows(
        self, columns: Sequence[str] | None = None, keys: Container[str] | None = None
    ) -> Iterator[dict[str, Any]]:
        """Rows, of these keys only if given, few of them in memory at a time, in no set order; where processes beside
        us did the same work, or join parts, a row may come twice."""
        for batch in self._batches(columns=columns):
            if keys is not None:
                batch = batch.filter([key in keys for key in batch.column("key").to_pylist()])
            yield from batch.to_pylist()

    def keys(self, wanted: Container[str]) -> set[str]:
        """Those of the keys of which there is a row."""
        return {row["key"] for row in self.rows(["key"], wanted)}

    def columns(self, keys: Container[str]) -> pa.Table:
        """The rows of these keys in Arrow's columns, which take less memory than objects. A row may come twice."""
        import pyarrow as pa

        batches = (
            batch.filter(pa.array([key in keys for key in batch.column("key").to_pylist()], pa.bool_()))
            for batch in self._batches()
        )
        return pa.Table.from_batches(batches, self.schema).combine_chunks()

    def clear(self) -> None:
        """Forget all rows."""
        for part in self._parts():
            part.unlink(missing_ok=True)

    def forget(self, keys: set[str]) -> None:
        """Forget the rows of these keys."""
        import pyarrow as pa
        import pyarrow.compute as pc
        import pyarrow.parquet as pq

        lost = pa.array(list(keys), pa.string())
        for part in list(self._sound_parts()) if keys else []:
            with suppress(FileNotFoundError):
                table = pq.read_table(part)
                kept = table.filter(pc.invert(pc.is_in(table.column("key"), lost)))
                if len(kept) < len(table):
                    if len(kept):
                        self._write([kept])
                    part.unlink()

    def compact(self) -> None:
        """Join small parts, if there are many, to bigger ones; a reader beside us may see a row twice, never none."""
        with suppress(FileNotFoundError, _GoneError):  # another process removed it
            sizes = {part: part.stat().st_size for part in self._parts()}
            small = [part for part, size in sizes.items() if size < _SMALL]
            while len(small) > _MANY_PARTS:
                group, total = [], 0
                while small and total < 2 * _SMALL:
                    group.append(small.pop())
                    total += sizes[group[-1]]
                sound = [part for part in group if _is_sound(part)]
                joined = self._write(_joined(sound)) if sound else None
                for part in group:
                    if part != joined:
                        part.unlink(missing_ok=True)


def _rows_of(part: Path, **options: Any) -> Iterator[pa.RecordBatch]:
    """A part's rows, few at a time where they are large."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(part) as file:
        size = sum(file.metadata.row_group(i).total_byte_size for i in range(file.num_row_groups))
        rows = _BYTES_AT_ONCE * file.metadata.num_rows // max(size, 1)
        yield from file.iter_batches(min(max(rows, 1), _ROWS_AT_ONCE), **options)


def _joined(parts: Iterable[Path]) -> Iterator[pa.Table]:
    """The rows of some parts in tables of some size."""
    import pyarrow as pa

    group: list[pa.RecordBatch] = []
    total = 0
    try:
        for batch in (batch for part in parts for batch in _rows_of(part)):
            group.append(batch)
            total += batch.nbytes
            if total > _BYTES_AT_ONCE:
                yield pa.Table.from_batches(group)
                group, total = [], 0
    except FileNotFoundError as error:
        raise _GoneError from error
    if group:
        yield pa.Table.from_batches(group)


def _is_sound(part: Path) -> bool:
    """Whether a part is there and its content matches its name; one that is not is set aside."""
    try:
        if sha256_of(part) == part.stem.removeprefix("part-"):
            return True
    except FileNotFoundError:
        return False
    except OSError as error:
        raise_unless_damaged(error, part)
    set_aside(part)
    return False

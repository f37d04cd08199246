"""The store: durable tables of stage results and images kept once by content.

    <store>/<stage>-<key>/part-<sha256>.parquet   rows of a finished batch each; a column `key` names the item
    <store>/images/ab/cdef....png                 named by the sha256 of mode, size and pixels

Every file is written beside its place and renamed into it, so that a kill at any moment leaves whole files
only; tables are flushed to disk first, images are not (there are thousands, and a flush each takes longer than
drawing some). Parts are named by their content and never changed: any number of processes may share a store.
A file that is not what its name says was damaged: it is set aside as `damaged-...`, and its items are asked for again.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import logging
import os
import uuid
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache, partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from dnd.api import Picture
from dnd.errors import DamagedError, StoreError
from dnd.offline import raise_if_tried

if TYPE_CHECKING:
    import pyarrow as pa
    from PIL.Image import Image

    from dnd.scratch import Ledger

_MANY_PARTS = 64
"""Of a finished stage with more small parts than this, the small ones are joined."""
_SMALL = 32 << 20
"""Bytes of a small part."""
_ROWS_AT_ONCE, _BYTES_AT_ONCE = 1024, 8 << 20
_PAGE = 1 << 20
"""Bytes that a writer takes in at once, about."""
_IMAGES_REMEMBERED = 1 << 16
_LOG = logging.getLogger(__name__)


def digest_of(value: object) -> str:
    """sha256 of a JSON-able value, key order aside."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def derive_seed(*parts: object) -> int:
    """A seed, 0 to 2**63 - 1, from what identifies an item: the same parts, the same seed, anywhere."""
    return int(digest_of([str(p) for p in parts])[:16], 16) >> 1


def write_atomic(
    path: Path | Callable[[str], Path],
    data: bytes | Iterable[bytes] | Callable[[BinaryIO], None],
    *,
    flush: bool = True,
) -> Path:
    """Write a whole file or nothing; raises StoreError where the disk will not have it.

    `path` may follow from the sha256 of what is written. `data` is given as a whole, in parts, or by who writes it
    into the file. Without `flush` a power cut, though not a kill, may lose what was written in the last seconds.
    """
    raise_if_tried()  # what was made while somebody reached for the network is not kept
    shown = path if isinstance(path, Path) else path("...")
    temporary = shown.parent / f".{shown.name[:64]}.{uuid.uuid4().hex}.tmp"
    try:
        shown.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            if callable(data):
                data(file)
            else:
                file.writelines([data] if isinstance(data, bytes) else data)
            if flush:
                file.flush()
                os.fsync(file.fileno())
        final = path if isinstance(path, Path) else path(_sha256_of(temporary))
        os.replace(temporary, final)
    except OSError as error:
        raise StoreError(
            f"cannot write {shown}: {error.strerror or error}",
            "Free some space or choose another --out, then give the command again: what is computed is kept.",
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    return final


def _sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Table:
    """Rows of one stage, each under the key of its item."""

    def __init__(self, folder: Path, schema: pa.Schema) -> None:
        """`schema` has a string column `key` besides the payload's columns."""
        self.folder = folder
        self.schema = schema

    def _parts(self) -> list[Path]:
        return sorted(self.folder.glob("part-*.parquet"))

    def _sound_parts(self) -> Iterator[Path]:
        """Every part that is what its name says; where a process beside us joins parts meanwhile, also what they
        became."""
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

        return write_atomic(lambda digest: self.folder / f"part-{digest}.parquet", write)

    def rows(
        self, columns: Sequence[str] | None = None, keys: Container[str] | None = None
    ) -> Iterator[dict[str, Any]]:
        """Rows, of these keys only if given, few of them in memory at a time, in no set order; where processes beside
        us did the same work, or join parts, a row may come twice."""
        for batch in self._batches(columns=columns):
            if keys is not None:
                batch = batch.filter([key in keys for key in batch.column("key").to_pylist()])
            yield from batch.to_pylist()

    def fill(self, items: Ledger, answer: Callable[[dict[str, Any]], object]) -> None:
        """Give those items an answer of which there is a row: what `answer` makes of it."""
        for row in self.rows(keys=items):
            if items.lacks(row["key"]):
                items.settle(row["key"], answer(row))

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
        with suppress(FileNotFoundError):  # somebody else is at it
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
    for batch in (batch for part in parts for batch in _rows_of(part)):
        group.append(batch)
        total += batch.nbytes
        if total > _BYTES_AT_ONCE:
            yield pa.Table.from_batches(group)
            group, total = [], 0
    if group:
        yield pa.Table.from_batches(group)


def _is_sound(part: Path) -> bool:
    """Whether a part is there and is what its name says; one that is not is set aside."""
    try:
        if _sha256_of(part) == part.stem.removeprefix("part-"):
            return True
    except FileNotFoundError:
        return False
    except OSError as error:
        _raise_unless_damaged(error, part)
    _set_aside(part)
    return False


def _raise_unless_damaged(error: Exception, path: Path) -> None:
    """StoreError where a file cannot be read for another reason than what is in it: permissions, too many open."""
    if isinstance(error, OSError) and error.errno not in (None, errno.EIO):
        raise StoreError(f"cannot read {path}: {error.strerror}", "Check its permissions.") from error


def _set_aside(path: Path) -> None:
    """Take a damaged file out of use, but leave it for whoever wants to know what became of the disk."""
    _LOG.warning("%s is damaged: it is set aside, and what it held is computed again", path)
    try:
        path.replace(path.with_name(f"damaged-{path.name}"))
    except FileNotFoundError:
        pass  # by a process beside us
    except OSError as error:
        raise StoreError(
            f"{path} is damaged and cannot be set aside: {error.strerror or error}", "Delete it, then run again."
        ) from error


class Store:
    """A folder that holds the tables of all stages, and the images."""

    def __init__(self, folder: Path, *, look: bool = False) -> None:
        """With `look`, an image counts as there only once it has been read."""
        self.folder, self.look = folder, look

    def table(self, stage: str, key: str, schema: pa.Schema) -> Table:
        """The table of a stage under its key (see `stage_key`)."""
        return Table(self.folder / f"{stage}-{key[:24]}", schema)

    def put_image(self, image: Image) -> Picture:
        """Keep an RGB image, once by content."""
        digest = _image_digest(image)
        path = self.image_path(digest)
        if self._lacks(digest):
            buffer = io.BytesIO()
            image.save(buffer, "PNG", compress_level=1)
            write_atomic(path, buffer.getvalue(), flush=False)
        return self.picture(digest)

    def image_path(self, digest: str) -> Path:
        return self.folder / "images" / digest[:2] / f"{digest[2:]}.png"

    def picture(self, digest: str) -> Picture:
        """An image of the store by its digest; opening one that is gone or damaged raises DamagedError."""
        return Picture(digest, partial(self._open, digest))  # unlike a lambda, it can go to another process

    def _open(self, digest: str) -> Image:
        from PIL import Image

        path = self.image_path(digest)
        try:
            if path.exists() and not path.is_file():
                raise ValueError("a pipe, say, which would be waited for")
            with Image.open(path) as image:
                image.load()
            if image.mode == "RGB" and _image_digest(image) == digest:
                return image
        except FileNotFoundError:
            raise DamagedError(f"{path} is gone", _AGAIN) from None
        except MemoryError:
            raise
        except Exception as error:  # a decoder of damaged bytes raises anything
            _raise_unless_damaged(error, path)
        _set_aside(path)
        raise DamagedError(f"{path} was damaged", _AGAIN)

    def mend(self, table: Table, keys: Container[str], columns: Sequence[str]) -> None:
        """Forget those rows that name images, in these columns, that are gone."""
        lacks = lru_cache(_IMAGES_REMEMBERED)(self._lacks)

        def is_whole(row: Mapping[str, Any]) -> bool:
            named = (row[name] for name in columns)
            return not any(
                one and lacks(one) for given in named for one in ([given] if isinstance(given, str) else given)
            )

        gone = {row["key"] for row in table.rows(["key", *columns], keys) if not is_whole(row)}
        if gone:
            _LOG.warning("images are gone from %s: what %d rows name is made again", self.folder / "images", len(gone))
            table.forget(gone)

    def _lacks(self, digest: str) -> bool:
        if not self.look:
            return not self.image_path(digest).exists()
        try:
            self._open(digest)
        except DamagedError:
            return True
        return False


def _image_digest(image: Image) -> str:
    head = f"{image.mode} {image.width} {image.height}\n".encode()
    return hashlib.sha256(head + image.tobytes()).hexdigest()


_AGAIN = "Do the run again, `dnd run RUN/run.toml --out RUN`: what is gone is made once more, the rest is kept."


def stage_key(stage: str, version: int, parts: Mapping[str, Any]) -> str:
    """sha256 over all that changes a stage's answers, its items aside. Same key, same results: reuse."""
    return digest_of({"stage": stage, "version": version, **parts})

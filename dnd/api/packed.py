"""Images inside other files: WebDataset's tar shards, and the Parquet and Arrow files of `datasets`.

Nothing is unpacked: images are read from where they lie, any of them at any time. Of a tar only regular files count,
never links; of a dataset only images whose bytes are in it, never a path beside them.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from pathlib import Path, PurePosixPath
from threading import Lock
from typing import Any, Generic, TypeVar

from dnd.errors import UsageError
from dnd.files import open_regular

_LARGEST = 1 << 28
"""Bytes of one image's file."""
_GROUP = 1 << 31
"""Bytes of images in one row group of a Parquet file, which is read as a whole."""
_ROWS = 64
"""Of a Parquet file that are decoded at a time: one image in all rows of a group has but its own bytes in the file."""
_CLASS = 1024
"""Bytes of the file that names an image's class."""
T = TypeVar("T")


class Packed(ABC):
    """One file with images in it, of which `names` are in their order."""

    names: list[str]

    @abstractmethod
    def read(self, place: int) -> bytes:
        """An image's file; OSError or ValueError where it cannot be had."""

    @abstractmethod
    def label(self, place: int) -> str | None:
        """Its class, where the file says it."""


def is_packed(path: str) -> bool:
    """Whether a file may hold images, by its name. What `datasets` keeps of earlier work beside its files does not."""
    suffix, name = PurePosixPath(path).suffix.lower(), PurePosixPath(path).name
    return suffix in (".tar", ".parquet") or (suffix == ".arrow" and not name.startswith("cache-"))


def open_packed(file: Path, suffixes: Collection[str]) -> Packed | None:
    """None where the file has no images; `suffixes` are those of image files. UsageError where it is damaged."""
    kind: Callable[[], Packed] = {
        ".tar": lambda: Shard(file, suffixes),
        ".parquet": lambda: ParquetFile(file),
        ".arrow": lambda: ArrowFile(file),
    }[file.suffix.lower()]
    try:
        found = kind()
    except UsageError:
        raise
    except Exception as error:  # readers of damaged files raise anything
        what = " ".join(str(error).split())[:200]
        raise UsageError(f"{file} cannot be read: {what}", "Fetch it again, or leave it out of the folder.") from error
    return found if found.names else None


class Shard(Packed):
    """A tar of files; KEY.cls beside KEY.jpg has the class, as in WebDataset."""

    def __init__(self, file: Path, suffixes: Collection[str]) -> None:
        import tarfile

        self._file = file
        self._at: list[tuple[int, int]] = []
        self.names = []
        classes: dict[str, tuple[int, int]] = {}
        with open_regular(file) as opened, tarfile.open(fileobj=opened, mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # or memory grows with the shard
                path = PurePosixPath(member.name)
                if not member.isreg() or member.issparse() or path.name.startswith("."):
                    continue
                if path.suffix.lower() in suffixes:
                    self.names.append(member.name)
                    self._at.append((member.offset_data, member.size))
                elif path.suffix == ".cls":
                    classes[str(path.with_suffix(""))] = (member.offset_data, member.size)
        self._classes = [classes.get(str(PurePosixPath(name).with_suffix(""))) for name in self.names]

    def read(self, place: int) -> bytes:
        return self._bytes(*self._at[place])

    def _bytes(self, start: int, size: int) -> bytes:
        _check_size(size)
        with open_regular(self._file) as opened:
            opened.seek(start)
            found = opened.read(size)
        if len(found) < size:
            raise ValueError(f"{self._file.name} ends in the middle of it")
        return found

    def label(self, place: int) -> str | None:
        if (at := self._classes[place]) is not None:
            return self._bytes(at[0], min(at[1], _CLASS)).decode("utf-8", "replace").strip() or None
        folder = PurePosixPath(self.names[place]).parts[:-1]
        return folder[0] if folder else None


class _Rows(Packed):
    """Rows of a table, of which a column has images and another, perhaps, classes."""

    def __init__(self, file: Path, schema: Any) -> None:
        self._file, features = file, _features(schema)
        self._column = _image_column(schema, features)
        self._classes, self._class_names = _class_column(schema, features)
        if any(len(schema.get_all_field_indices(name)) > 1 for name in self._columns):
            raise ValueError(f"it has several columns called {' or '.join(self._columns)}")
        self.names = []

    @property
    def _columns(self) -> list[str]:
        return [name for name in (self._column, self._classes) if name]

    @abstractmethod
    def _row(self, place: int) -> tuple[Any, int]:
        """A table with the row, and its number there."""

    def read(self, place: int) -> bytes:
        table, row = self._row(place)
        found = table.column(self._column)[row].as_py()
        data = found.get("bytes") if isinstance(found, dict) else found
        if not isinstance(data, bytes) or not data:
            raise ValueError("the dataset does not have its bytes, but a path at most")
        _check_size(len(data))
        return data

    def label(self, place: int) -> str | None:
        if not self._classes:
            return None
        table, row = self._row(place)
        value = table.column(self._classes)[row].as_py()
        named = isinstance(value, int) and 0 <= value < len(self._class_names)
        return self._class_names[value] if named else None if value is None else str(value)


class ParquetFile(_Rows):
    """Of `datasets`, or any other with a column of images."""

    def __init__(self, file: Path) -> None:
        import pyarrow.parquet as pq

        with open_regular(file) as opened:
            about = pq.ParquetFile(opened)
            super().__init__(file, about.schema_arrow)
            if not self._column:
                return
            if about.metadata.num_rows > file.stat().st_size:
                raise ValueError(f"it has {about.metadata.num_rows:,} rows in fewer bytes")
            groups = [about.metadata.row_group(number) for number in range(about.metadata.num_row_groups)]
        largest = max((_column_bytes(group, self._column) for group in groups), default=0)
        if largest > _GROUP:
            raise UsageError(
                f"{file} has row groups of {largest / 1e9:.1f} GB, each of which must be read as a whole",
                "Write it again with smaller ones, such as row_group_size=1000.",
            )
        self._places = [(number, row) for number, group in enumerate(groups) for row in range(group.num_rows)]
        self.names = [f"{place:06d}" for place in range(len(self._places))]
        self._groups = _Recent[Any](2)

    def _row(self, place: int) -> tuple[Any, int]:
        group, row = self._places[place]
        return self._groups.get(group, lambda: self._read(group)), row

    def _read(self, group: int) -> Any:
        import pyarrow as pa
        import pyarrow.parquet as pq

        found, size = [], 0
        with open_regular(self._file) as opened:
            for rows in pq.ParquetFile(opened).iter_batches(_ROWS, row_groups=[group], columns=self._columns):
                size += rows.nbytes
                if size > _GROUP:
                    raise ValueError(f"its row group has more than {_GROUP / 1e9:.1f} GB")
                found.append(rows)
        return pa.Table.from_batches(found)


class ArrowFile(_Rows):
    """As `Dataset.save_to_disk` writes it, mapped from disk."""

    def __init__(self, file: Path) -> None:
        import pyarrow as pa

        with open_regular(file) as opened:
            is_stream = opened.read(6) != b"ARROW1"  # `datasets` writes streams, others files
        mapped = pa.memory_map(str(file))
        self._table = (pa.ipc.open_stream if is_stream else pa.ipc.open_file)(mapped).read_all()
        super().__init__(file, self._table.schema)
        for name in self._columns:
            self._table.column(name).validate(full=True)  # offsets of a damaged file may lead anywhere
        self.names = [f"{row:06d}" for row in range(self._table.num_rows)] if self._column else []

    def _row(self, place: int) -> tuple[Any, int]:
        return self._table, place


class _Recent(Generic[T]):
    """The things of a few numbers, as they were made last; for several threads."""

    def __init__(self, room: int) -> None:
        self._room = room
        self._found: OrderedDict[int, T] = OrderedDict()
        self._lock = Lock()

    def get(self, number: int, make: Callable[[], T]) -> T:
        with self._lock:
            if number not in self._found:
                self._found[number] = make()
                if len(self._found) > self._room:
                    self._found.popitem(last=False)
            self._found.move_to_end(number)
            return self._found[number]


def _check_size(size: int) -> None:
    if size > _LARGEST:
        raise ValueError(f"its file has {size:,} bytes, more than {_LARGEST:,}")


def _features(schema: Any) -> Mapping[str, Any]:
    """What `datasets` has written of the columns; nothing where it was not `datasets`."""
    try:
        found = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: feature for name, feature in found.items() if isinstance(feature, dict)}
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}


def _image_column(schema: Any, features: Mapping[str, Any]) -> str:
    """The first column of images: as `datasets` says, else structs with bytes, else bytes by a usual name; or ""."""
    import pyarrow as pa

    declared = [name for name in schema.names if features.get(name, {}).get("_type") == "Image"]
    structs = [one.name for one in schema if pa.types.is_struct(one.type) and one.type.get_field_index("bytes") >= 0]
    usual = ("image", "img", "jpg", "jpeg", "png", "webp")
    plain = [one.name for one in schema if one.name.lower() in usual and _is_binary(one.type)]
    return str(next(iter([*declared, *structs, *plain]), ""))


def _is_binary(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _class_column(schema: Any, features: Mapping[str, Any]) -> tuple[str, list[str]]:
    """The column of classes, or "", and the names that its numbers stand for."""
    for name in schema.names:
        if (feature := features.get(name, {})).get("_type") == "ClassLabel":
            return str(name), [str(one) for one in feature.get("names") or []]
    return ("label" if "label" in schema.names else ""), []


def _column_bytes(group: Any, column: str) -> int:
    """Of one column of a row group, as it is in memory."""
    parts = (group.column(place) for place in range(group.num_columns))
    return sum(part.total_uncompressed_size for part in parts if part.path_in_schema.split(".")[0] == column)

"""The probing set `broden`: a folder in Broden's layout, images with concept masks.

    FOLDER/index.csv     image,split,ih,iw,sh,sw,color,object,part,material,scene,texture
    FOLDER/label.csv     number,name,category,...
    FOLDER/images/...    what `image` names; a mask column holds files, ';' between them, or label numbers

A mask file is a PNG of (sh, sw) whose pixel means the label number red + 256 * green, 0 for none; a plain number
labels the whole image. Categories are the columns after `sw`.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from dnd import api
from dnd.api import read_image

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL.Image import Image

_FIXED = ("image", "split", "ih", "iw", "sh", "sw")


class BrodenConfig(api.Config):
    folder: str
    """Holds index.csv, label.csv and images/."""
    split: str | None = None
    """Only rows of this split ("train", "val"); None takes all."""


class BrodenSet(api.ProbingSet):
    name = "broden"
    Config = BrodenConfig

    @property
    def _folder(self) -> Path:
        return Path(self.config.folder).expanduser()

    @cached_property
    def _rows(self) -> list[dict[str, str]]:
        rows = _read(self._folder / "index.csv", _FIXED[:1])
        chosen = [row for row in rows if self.config.split in (None, row.get("split"))]
        if not chosen:
            raise api.UsageError(f"{self._folder / 'index.csv'} has no row of split {self.config.split!r}")
        return chosen

    @cached_property
    def _labels(self) -> dict[int, str]:
        rows = _read(self._folder / "label.csv", ("number", "name"))
        return {int(row["number"]): row["name"] for row in rows if _is_number(row["number"])}

    def __len__(self) -> int:
        return len(self._rows)

    def image_name(self, index: int) -> str:
        return self._rows[index]["image"]

    def open(self, index: int) -> Image:
        return read_image(self._inside(self.image_name(index)))

    def masks(self, index: int) -> Mapping[str, Mapping[str, npt.NDArray[np.bool_]]]:
        """Category -> concept -> (sh, sw), or (1, 1) for a label of the whole image."""
        import numpy as np

        found: dict[str, dict[str, npt.NDArray[np.bool_]]] = {}
        for category, cell in self._rows[index].items():
            if category in _FIXED or not cell:
                continue
            concepts = found.setdefault(category, {})
            for part in cell.split(";"):
                if _is_number(part):
                    concepts[self._name(int(part))] = np.ones((1, 1), np.bool_)
                    continue
                numbers = self._numbers(part)
                for number in np.unique(numbers[numbers > 0]).tolist():
                    name, mask = self._name(number), numbers == number
                    concepts[name] = concepts[name] | mask if name in concepts else mask
        return found

    def digest(self) -> str:
        """Of both tables and of every file they name, by size, inode and times of change: they are very many."""
        digest = hashlib.sha256((self._folder / "label.csv").read_bytes())
        for row in self._rows:
            digest.update(repr(sorted(row.items())).encode())
            for category, cell in row.items():
                for part in cell.split(";") if category == "image" or category not in _FIXED else ():
                    if part and not _is_number(part):
                        digest.update(f"{part} {_state(self._inside(part))}".encode())
        return digest.hexdigest()

    def _name(self, number: int) -> str:
        try:
            return self._labels[number]
        except KeyError:
            raise api.UsageError(f"{self._folder / 'label.csv'} has no label number {number}") from None

    def _numbers(self, name: str) -> npt.NDArray[np.int64]:
        import numpy as np
        from PIL import Image

        path = self._inside(name)
        try:
            with Image.open(path) as image:
                pixels = np.asarray(image.convert("RGB"), np.int64)
        except Exception as error:  # decoders raise anything of damaged bytes
            raise api.UsageError(f"cannot read the label image {path}: {error}") from error
        return pixels[:, :, 0] + 256 * pixels[:, :, 1]

    def _inside(self, name: str) -> Path:
        """A file under images/; UsageError for a name that leads elsewhere."""
        root = self._folder / "images"
        path = root / name
        if not path.resolve().is_relative_to(root.resolve()):
            raise api.UsageError(f"{self._folder / 'index.csv'} names a file outside the folder: {name!r}")
        return path


def _state(path: Path) -> str:
    try:
        found = path.stat()
    except OSError:
        return "missing"
    return f"{found.st_size} {found.st_ino} {found.st_mtime_ns} {found.st_ctime_ns}"


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 10


def _read(path: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error) as error:
        raise api.UsageError(
            f"cannot read {path}: {getattr(error, 'strerror', None) or error}",
            "Set probing.folder to a folder in Broden's layout: index.csv, label.csv, images/.",
        ) from error
    missing = [column for column in columns if not rows or column not in rows[0]]
    if missing:
        raise api.UsageError(f"{path} has no column {missing[0]!r}")
    return [{key: value or "" for key, value in row.items() if key is not None} for row in rows]

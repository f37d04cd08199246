"""Multi-band tiles as a probing set: a folder of .npy or .tif arrays, seen by people in RGB and by the target whole.

`open` gives an RGB image, which is what captioners, scorers and pages look at; all bands travel with it in
`image.info["bands"]`, float32 (h, w, b), and attention crops carry their part. A target's preprocess reads them with
`bands_of`, which also makes something of images that have no more than RGB: synthetic ones.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pydantic

from dnd import api

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL.Image import Image

DND_API = 1

_ENDINGS = (".npy", ".tif", ".tiff")
_LARGEST = 2**28
"""Values in a tile."""
_FAINTEST, _BRIGHTEST = 2, 98
"""Percentiles that become black and white where no range is given."""


class TilesConfig(api.Config):
    folder: Annotated[str, pydantic.AfterValidator(lambda text: os.path.abspath(Path(text).expanduser()))]
    """Searched at any depth; the first folder on the way to a tile is its class."""
    rgb: tuple[int, int, int] = (0, 1, 2)
    """Which bands are red, green and blue, from 0; (3, 2, 1) for Sentinel-2's usual order."""
    range: tuple[float, float] | None = None
    """What is black and what is white in RGB, in the tiles' own units. Without it 0 to 255 for 8-bit tiles, and for
    others the 2nd and 98th percentile of each tile."""
    axis: Literal["auto", "first", "last"] = "auto"
    """Where the bands are: (b, h, w) or (h, w, b); "auto" takes the shorter of the two ends, the last where equal."""


class Tiles(api.ProbingSet):
    """Multi-band tiles of a folder, sorted by their path."""

    name = "tiles"
    Config = TilesConfig

    @cached_property
    def _paths(self) -> list[str]:
        folder = Path(self.config.folder)
        if not folder.is_dir():
            what = "is a file, not a folder" if folder.exists() else "does not exist"
            raise api.UsageError(
                f"the folder of tiles {folder} {what}", "Set probing.folder to a folder of .npy or .tif."
            )
        found = []
        for where, folders, files in os.walk(folder):
            folders[:] = [name for name in folders if not name.startswith(".")]
            found += [
                Path(where, name).relative_to(folder).as_posix()
                for name in files
                if not name.startswith(".") and name.lower().endswith(_ENDINGS)
            ]
        if not found:
            raise api.UsageError(f"no tiles in {folder}", "Set probing.folder to a folder of .npy or .tif.")
        return sorted(found)

    def __len__(self) -> int:
        return len(self._paths)

    def image_name(self, index: int) -> str:
        return os.fsencode(self._paths[index]).decode("utf-8", "replace")

    def label(self, index: int) -> str | None:
        return self.image_name(index).split("/")[0] if "/" in self._paths[index] else None

    def open(self, index: int) -> Image:
        from PIL import Image as images

        bands, eight_bit = read_tile(Path(self.config.folder, self._paths[index]), self.config.axis)
        image = images.fromarray(to_rgb(bands, self.config.rgb, (0, 255) if eight_bit else None, self.config.range))
        image.info["bands"] = bands
        return image

    def digest(self) -> str:
        """sha256 over every tile's path and content, and the settings that change what is seen."""
        settings = self.config.model_dump_json(exclude={"folder"})
        total = hashlib.sha256(settings.encode())
        for path in self._paths:
            total.update(os.fsencode(path) + b"\0")
            try:
                with Path(self.config.folder, path).open("rb") as file:
                    total.update(hashlib.file_digest(file, "sha256").digest())
            except OSError:
                total.update(b"unreadable")
        return total.hexdigest()


def read_tile(path: Path, axis: str = "auto") -> tuple[npt.NDArray[np.float32], bool]:
    """All bands, (h, w, b), and whether they were 8-bit. Raises OSError or ValueError for what is no tile; nothing
    pickled is read."""
    import numpy as np

    found = np.lib.format.open_memmap(path, "r") if path.suffix.lower() == ".npy" else _read_tif(path)
    if found.ndim == 2:
        found = found[:, :, None]
    if found.ndim != 3 or not 0 < found.size <= _LARGEST:
        raise ValueError(f"an array of shape {found.shape} is no tile: it needs height, width and bands")
    if found.dtype.kind not in "uif":
        raise ValueError(f"its values are {found.dtype}, not numbers")
    if axis == "first" or (axis == "auto" and found.shape[0] < found.shape[2]):
        found = np.moveaxis(found, 0, 2)
    bands = np.ascontiguousarray(found, dtype=np.float32)
    if not np.isfinite(bands).all():
        raise ValueError("holds values that are not finite")
    return bands, found.dtype == np.uint8


def _read_tif(path: Path) -> Any:
    import tifffile

    try:
        with tifffile.TiffFile(path) as file:
            series = file.series[0]
            if series.size > _LARGEST:
                raise ValueError(f"an array of shape {series.shape} is too large for a tile")
            return series.asarray()
    except (OSError, ValueError, MemoryError):
        raise
    except Exception as error:  # tifffile raises anything for a file that is damaged
        raise ValueError(f"{type(error).__name__}: {error}") from error


def to_rgb(
    bands: npt.NDArray[np.float32],
    rgb: Sequence[int],
    usual: tuple[float, float] | None = None,
    given: tuple[float, float] | None = None,
) -> npt.NDArray[np.uint8]:
    """(h, w, b) -> (h, w, 3), black and white as TilesConfig.range says; `usual` is the range where none is given."""
    import numpy as np

    wrong = [band for band in rgb if not 0 <= band < bands.shape[2]]
    if wrong:
        raise ValueError(f"it has {bands.shape[2]} bands, and none of number {wrong[0]}")
    seen = bands[:, :, list(rgb)]
    low, high = given or usual or np.percentile(seen, (_FAINTEST, _BRIGHTEST))
    span = (high - low) or 1.0
    return np.asarray(np.clip((seen - low) / span * 255, 0, 255).round(), np.uint8)


def bands_of(
    image: Image,
    count: int,
    *,
    rgb: Sequence[int] = (0, 1, 2),
    range: tuple[float, float] = (0.0, 255.0),
    fill: Sequence[float] | None = None,
) -> npt.NDArray[np.float32]:
    """What a preprocess makes of an image: all its bands, float32 (h, w, count).

    An image that has no more than RGB gets its colours, 0 to 255 stretched to `range`, at the bands `rgb`; the other
    bands are `fill`, one value each (their means in training, say), or else the mean of the three.
    """
    import numpy as np

    bands = image.info.get("bands")
    if bands is not None:
        if bands.shape[2] != count:
            raise api.UsageError(
                f"a tile has {bands.shape[2]} bands, the target takes {count}", "Are these tiles of its sensor?"
            )
        return np.asarray(bands, np.float32)
    low, high = range
    colours = np.asarray(image.convert("RGB"), np.float32) / 255 * (high - low) + low
    if fill is None:
        made = np.repeat(colours.mean(2, keepdims=True), count, 2)
    else:
        made = np.broadcast_to(np.asarray(fill, np.float32), (*colours.shape[:2], count)).copy()
    made[:, :, list(rgb)] = colours
    return made


@api.hookimpl
def register_probing_sets() -> Iterable[type[api.ProbingSet]]:
    return [Tiles]

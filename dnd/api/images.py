"""Any image file as RGB, upright, 8 bits a channel; and folders of them."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt

from dnd.api.packed import Packed, is_packed, open_packed
from dnd.api.plugins import ProbingSet
from dnd.errors import UsageError
from dnd.files import files_below, open_regular

if TYPE_CHECKING:
    from PIL.Image import Image

_KINDS = frozenset(
    ("AVIF", "BMP", "DIB", "GIF", "HEIF", "ICO", "JPEG", "JPEG2000", "PCX", "PNG", "PPM", "SGI", "TGA", "TIFF", "WEBP")
)
"""Of Pillow's decoders, those for pictures: others hand the file to another program (EPS to Ghostscript, whatever the
file is called), or are hardly ever tried."""
_SURE = _KINDS - {"DIB", "PCX", "SGI", "TGA"}
"""Those whose files say what they are in their first bytes."""
_NARROW = 32
"""Of 256 steps: an image of 12 bits or fewer in 16, or of 8 bits in 32, has less between its darkest and brightest."""
_UNREADABLE = b"unreadable"
_ROWS = 256
"""Of a grey image that are converted at a time."""
_BIG = 1 << 24
"""Pixels above which images are decoded one at a time."""
_one_big_at_a_time = Lock()


def read_image(source: Path | bytes) -> Image:
    """The first frame of an image file, or of what is in one; raises OSError or ValueError where it cannot be read.

    Transparent parts become white, 16-bit and float greys are scaled to 8 bits, EXIF rotation is applied. One of 16 or
    32 bits that uses less than an eighth of them has `.info["narrow"]`: hardly anything of it can be seen.
    A picture above Pillow's decompression-bomb limit (89 million pixels) counts as unreadable.
    """
    from PIL import Image as images
    from PIL import ImageOps, UnidentifiedImageError

    try:
        opened = io.BytesIO(source) if isinstance(source, bytes) else open_regular(source)
        with opened as file, images.open(file, formats=_decoders()) as image:
            pixels, limit = image.width * image.height, images.MAX_IMAGE_PIXELS
            if limit is not None and pixels > limit:
                raise ValueError(f"{image.width}x{image.height} is more than {limit} pixels")
            is_deep = image.mode.startswith("I") or ";16" in str(image.tile)
            with _one_big_at_a_time if pixels > _BIG else nullcontext():
                image.load()
                upright: Image = image
                with suppress(Exception):  # A broken EXIF block is no reason to do without the image.
                    upright = ImageOps.exif_transpose(image)
                found = to_rgb(upright)
                if is_deep and _spread(found) < _NARROW:
                    found.info["narrow"] = True
                return found
    except UnidentifiedImageError:
        raise ValueError("it is no image of a kind that is read") from None
    except (OSError, ValueError, MemoryError):
        raise
    except Exception as error:  # Decoders raise anything: SyntaxError, struct.error, IndexError, ...
        raise ValueError(f"{type(error).__name__}: {error}") from error


def _spread(image: Image) -> int:
    """From the least value to the greatest in any channel, 0..255."""
    edges = np.array(image.getextrema())
    return int(edges.max() - edges.min())


def _decoders(kinds: frozenset[str] = _KINDS) -> list[str]:
    """Those that this Pillow has."""
    from PIL import Image as images

    images.init()
    return sorted(kinds & images.OPEN.keys())


def to_rgb(image: Image) -> Image:
    """RGB of an image of any mode, on white."""
    from PIL import Image as images

    if image.mode.startswith("I") or image.mode == "F":
        values, clear = np.asarray(image), image.info.get("transparency")
        grey = _grey(values)
        if isinstance(clear, int):  # of a PNG with 16 bits
            grey[values == clear] = 255
        image = images.fromarray(grey)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return images.alpha_composite(images.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _grey(values: npt.NDArray[np.generic]) -> npt.NDArray[np.uint8]:
    """Greys of 16 or 32 bits or floats as 0..255.

    Floats: 0..1 or 0..255 as they stand; integers: 0..65535; anything else from its smallest to its largest.
    """
    low, high = float(values.min()), float(values.max())
    if not np.isfinite(high - low):
        raise ValueError("holds values that are not finite")
    tops = (1.0, 255.0) if values.dtype.kind == "f" else (65535.0,)
    top = next((top for top in tops if high <= top), None)
    zero = 0.0
    if low < 0 or top is None:
        zero, top = low, (high - low) or 1.0
    found = np.empty(values.shape, np.uint8)
    for row in range(0, len(values), _ROWS):  # as float64 the whole would be eight times as large
        found[row : row + _ROWS] = ((values[row : row + _ROWS].astype(np.float64) - zero) * (255 / top)).round()
    return found


class ImageFolder(ProbingSet):
    """The images below a folder, whatever the depth, sorted by their path.

    Files count by their extension, those without one by their first bytes; hidden ones do not. Links to folders are
    followed, but not in circles. Where there are none, those in tar shards, Parquet and Arrow files (`dnd.api.packed`).
    """

    name = "folder"
    hint: ClassVar[str] = "Give a folder of images: JPEG, PNG, WebP, ..."

    def __init__(self, folder: Path) -> None:
        """Raises UsageError for a folder that is missing or has no images."""
        self.folder = folder
        if not os.path.isdir(folder):  # noqa: PTH112, Path.is_dir raises for a name that is too long
            what = "is a file, not a folder" if os.path.lexists(folder) else "does not exist"
            raise UsageError(f"the folder of images {folder} {what}", self.hint)
        self.paths, others = _images_below(folder)
        """Relative to the folder, POSIX; of an image in another file that file's path, and its name there."""
        self.folder = Path(os.path.abspath(folder))  # whatever becomes of the current one
        self._files = self.paths
        self._packed: dict[str, tuple[Packed, int]] = {}
        if not self.paths:
            self._open_packed([path for path in others if is_packed(path)])
        if not self.paths:
            seen = f"its {len(others)} files are of other kinds" if others else "it has no files"
            raise UsageError(f"no images in {folder}: {seen}", self.hint)

    def _open_packed(self, files: list[str]) -> None:
        suffixes = _suffixes()
        opened = ((path, open_packed(self.folder / path, suffixes)) for path in files)
        found = {path: packed for path, packed in opened if packed}
        self._files = list(found)
        for path, packed in found.items():
            for place, name in enumerate(packed.names):
                key = f"{path}/{name}"
                self._packed[f"{key}#{place}" if key in self._packed else key] = (packed, place)
        self.paths = list(self._packed)

    def __len__(self) -> int:
        return len(self.paths)

    def image_name(self, index: int) -> str:
        return os.fsencode(self.paths[index]).decode("utf-8", "replace")

    def open(self, index: int) -> Image:
        return read_image(self._source(self.paths[index]))

    def _source(self, path: str) -> Path | bytes:
        packed, place = self._packed.get(path, (None, 0))
        return packed.read(place) if packed else self.folder / path

    def label(self, index: int) -> str | None:
        """The first folder on the way to the image; or what the file that it is in says."""
        packed, place = self._packed.get(self.paths[index], (None, 0))
        if packed:
            return packed.label(place)
        return self.image_name(index).split("/")[0] if "/" in self.paths[index] else None

    def digest(self) -> str:
        """sha256 over every file's path and sha256; a file that cannot be read counts as such."""
        files = self._files if self._packed else self.paths
        total = hashlib.sha256()
        for path, content in zip(files, self.digests_of(files), strict=True):
            total.update(os.fsencode(path) + b"\0" + content)
        for path in self._packed and self.paths:  # some of those in the files, perhaps
            total.update(os.fsencode(path) + b"\n")
        return total.hexdigest()

    def halves(self) -> tuple[list[int], list[int]]:
        """Indices of the images to probe with, and of those to test candidates by where a generator shows images of the
        folder: by each file's sha256, so that copies of a file are in one half. Unreadable files are to be probed."""
        halves: tuple[list[int], list[int]] = [], []
        for index, content in enumerate(self.contents()):
            halves[content != _UNREADABLE and content[-1] % 2].append(index)
        return halves

    def contents(self) -> Iterator[bytes]:
        """Each image file's sha256."""
        if not self._packed:
            yield from self.digests_of(self.paths)
            return
        for packed, place in map(self._packed.__getitem__, self.paths):
            try:
                yield hashlib.sha256(packed.read(place)).digest()
            except (OSError, ValueError):
                yield _UNREADABLE

    def digests_of(self, paths: Sequence[str]) -> Iterator[bytes]:
        """Each file's sha256."""
        for path in paths:
            yield file_digest(self.folder / path)


def file_digest(path: Path) -> bytes:
    """sha256 of a file; "unreadable" of one that cannot be read."""
    try:
        with open_regular(path) as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError:
        return _UNREADABLE


def _suffixes() -> set[str]:
    """Of files that Pillow reads."""
    from PIL import Image as images

    kinds = {*_decoders(), "MPO"}  # several JPEGs in one file, of which the first is read
    return {suffix for suffix, kind in images.registered_extensions().items() if kind in kinds}


def _images_below(folder: Path) -> tuple[list[str], list[str]]:
    """Relative POSIX paths, sorted: of the image files, and of the files besides."""
    readable = _suffixes()
    found: tuple[list[str], list[str]] = [], []
    for path in files_below(folder):
        suffix = os.path.splitext(path)[1].lower()  # noqa: PTH122
        is_image = suffix in readable or (not suffix and _looks_like_an_image(path))
        found[not is_image].append(os.path.relpath(path, folder).replace(os.sep, "/"))
    return sorted(found[0]), sorted(found[1])


def _looks_like_an_image(path: str) -> bool:
    from PIL import Image as images

    try:
        with open_regular(Path(path)) as file, images.open(file, formats=_decoders(_SURE)):
            return True
    except Exception:  # decoders raise anything
        return False

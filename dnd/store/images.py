"""The store: the tables of all stages (dnd/store/table.py), and images kept once by content.

    <store>/images/ab/cdef....png   named by the sha256 of mode, size and pixels

Every file is written beside its place and renamed into it, so that a kill at any moment leaves whole files
only; tables are flushed to disk first, images are not (there are thousands, and a flush each takes longer than
generating some). An image whose content does not match its name was damaged: it is set aside, and made again.
"""

from __future__ import annotations

import hashlib
import io
import logging
import zlib
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dnd.api import Picture
from dnd.errors import DamagedError
from dnd.files import open_regular
from dnd.store.files import raise_unless_damaged, set_aside, write_atomic
from dnd.store.table import Table

if TYPE_CHECKING:
    import pyarrow as pa
    from PIL.Image import Image

MAX_PIXELS = 1 << 22
"""Of an image in the store, such as 2048 x 2048: a unit's images are in memory together, and a hostile PNG of a few
kilobytes could hold hundreds of megabytes. No captioner or scorer sees more than a fraction of these."""
_IMAGES_REMEMBERED = 1 << 16
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Store:
    """A folder that holds the tables of all stages, and the images."""

    folder: Path
    verify: bool = field(default=False, kw_only=True)
    """Whether an image is read before it counts as present."""

    def table(self, stage: str, key: str, schema: pa.Schema) -> Table:
        """The table of a stage under its key (see `stage_key`)."""
        return Table(self.folder / f"{stage}-{key[:24]}", schema)

    @property
    def digests(self) -> Path:
        """A file that remembers the digests of probing images (`dnd.store.digests`)."""
        return self.folder / "digests.sqlite"

    def put_image(self, image: Image) -> Picture:
        """Keep an RGB image, once by content; one of more than `MAX_PIXELS` at a smaller size."""
        image = _reduced(image)
        digest = _image_digest(image)
        path = self.image_path(digest)
        if self._is_missing(digest):
            buffer = io.BytesIO()
            image.save(buffer, "PNG", compress_level=1, compress_type=zlib.Z_RLE)
            write_atomic(path, buffer.getvalue(), flush=False, below=self.folder)
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
            with open_regular(path) as file, Image.open(file, formats=("PNG",)) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise ValueError("no image of a store is so large")
                image.load()
            if image.mode == "RGB" and _image_digest(image) == digest:
                return image
        except FileNotFoundError:
            raise DamagedError(f"{path} is gone", _AGAIN) from None
        except MemoryError:
            raise
        except Exception as error:  # a decoder of damaged bytes raises anything
            raise_unless_damaged(error, path)
        set_aside(path)
        raise DamagedError(f"{path} was damaged", _AGAIN)

    def mend(
        self,
        table: Table,
        keys: Container[str],
        column: str,
        images: Callable[[Any], Iterable[str]] = lambda value: [value],
    ) -> None:
        """Forget those rows that name images that are gone; `images` are the digests in what a row has in `column`."""
        is_missing = lru_cache(_IMAGES_REMEMBERED)(self._is_missing)
        rows = table.rows(["key", column], keys)
        gone = {row["key"] for row in rows if any(is_missing(digest) for digest in images(row[column]))}
        if gone:
            _LOG.warning("images are gone from %s: what %d rows name is made again", self.folder / "images", len(gone))
            table.forget(gone)

    def _is_missing(self, digest: str) -> bool:
        if not self.verify:
            return not self.image_path(digest).exists()
        try:
            self._open(digest)
        except DamagedError:
            return True
        return False


def _reduced(image: Image) -> Image:
    pixels = image.width * image.height
    if pixels <= MAX_PIXELS:
        return image
    from PIL.Image import Resampling

    scale = (MAX_PIXELS / pixels) ** 0.5
    width = max(1, int(image.width * scale))
    height = max(1, min(int(image.height * scale), MAX_PIXELS // width))
    return image.resize((min(width, MAX_PIXELS // height), height), Resampling.LANCZOS)


def _image_digest(image: Image) -> str:
    head = f"{image.mode} {image.width} {image.height}\n".encode()
    return hashlib.sha256(head + image.tobytes()).hexdigest()


_AGAIN = "Do the run again, `dnd run RUN/run.toml --out RUN`: what is gone is made once more, the rest is kept."

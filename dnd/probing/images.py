"""Any image file as RGB, upright, 8 bits a channel."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps


def read_image(path: Path) -> Image.Image:
    """The first frame of an image file; raises OSError or ValueError where it cannot be read.

    Transparent parts become white, 16-bit and float greys are scaled to 8 bits, EXIF rotation is applied.
    A picture above Pillow's decompression-bomb limit (89 million pixels) counts as unreadable.
    """
    if path.exists() and not path.is_file():
        raise ValueError("it is no regular file")  # to open a pipe would wait for ever
    try:
        with Image.open(path) as image:
            limit = Image.MAX_IMAGE_PIXELS
            if limit is not None and image.width * image.height > limit:
                raise ValueError(f"{image.width}x{image.height} is more than {limit} pixels")
            image.load()
            upright: Image.Image = image
            with suppress(Exception):  # A broken EXIF block is no reason to do without the image.
                upright = ImageOps.exif_transpose(image)
            return to_rgb(upright)
    except (OSError, ValueError, MemoryError):
        raise
    except Exception as error:  # Decoders raise anything: SyntaxError, struct.error, IndexError, ...
        raise ValueError(f"{type(error).__name__}: {error}") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """RGB of an image of any mode, on white."""
    if image.mode.startswith("I") or image.mode == "F":
        image = Image.fromarray(_grey(np.asarray(image)))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _grey(values: npt.NDArray[np.generic]) -> npt.NDArray[np.uint8]:
    """Greys of 16 or 32 bits or floats as 0..255.

    Floats: 0..1 or 0..255 as they stand; integers: 0..65535; anything else from its smallest to its largest.
    """
    wide = values.astype(np.float64)
    low, high = float(wide.min()), float(wide.max())
    if not np.isfinite(high - low):
        raise ValueError("holds values that are not finite")
    tops = (1.0, 255.0) if values.dtype.kind == "f" else (65535.0,)
    top = next((top for top in tops if high <= top), None)
    if low < 0 or top is None:
        wide, top = wide - low, (high - low) or 1.0
    return (wide * (255 / top)).round().astype(np.uint8)

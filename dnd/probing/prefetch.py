"""Images read and prepared by threads, a bounded number ahead of who needs them, in order."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from dnd.errors import DndError, UsageError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from dnd.api import ProbingSet
    from dnd.target.hooked import HookedTarget

T = TypeVar("T")
R = TypeVar("R")


def map_ahead(work: Callable[[T], R], items: Iterable[T], workers: int, ahead: int) -> Iterator[R]:
    """`map` by threads, at most `ahead` results waiting."""
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


@dataclass(frozen=True)
class Loaded:
    """One probing image, or why it cannot be read."""

    index: int
    content: int = 0
    """64 bits that name the pixels."""
    tensor: Tensor | None = None
    """The target's input (C, H, W)."""
    problem: str = ""
    narrow: bool = False
    """As `dnd.api.read_image` says: it uses little of its 16 or 32 bits."""


def load_ahead(probing: ProbingSet, hooked: HookedTarget, indices: Iterable[int], workers: int) -> Iterator[Loaded]:
    """Each image's input for the target; images that cannot be read come with their problem."""

    def load(index: int) -> Loaded:
        try:
            image = probing.open(index)
        except (OSError, ValueError) as error:
            return Loaded(index, problem=str(error) or type(error).__name__)
        except Exception as error:
            error.add_note(f"in the probing set {probing.name!r}, when it opened {probing.image_name(index)}")
            raise
        content = int.from_bytes(name_of_pixels(image)[:8], "little")
        try:
            return Loaded(index, content, hooked.prepare(image), narrow=bool(image.info.get("narrow")))
        except (DndError, MemoryError):
            raise
        except Exception as error:  # of the user's own code: this image is skipped and listed
            return Loaded(index, problem=f"the target's preprocess: {type(error).__name__}: {error}")

    return map_ahead(load, indices, workers, hooked.batch_size + workers)


def name_of_pixels(image: Image) -> bytes:
    """sha256 of all that can be seen of an image."""
    head = f"{image.mode} {image.size}".encode()
    bands = image.info.get("bands")  # of a multi-band tile, whose RGB may be another's
    return hashlib.sha256(head + image.tobytes() + (b"" if bands is None else bands.tobytes())).digest()


def prepare(hooked: HookedTarget, image: Image, name: str) -> Tensor:
    """The target's input for one image; an error in the user's preprocess names the image."""
    try:
        return hooked.prepare(image)
    except Exception as error:
        error.add_note(f"in the target's preprocess, for {name} ({image.width}x{image.height})")
        raise


def open_again(probing: ProbingSet, index: int) -> Image:
    """An image that could be read before."""
    try:
        return probing.open(index)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"the probing set changed under the run: {probing.image_name(index)} cannot be read any more ({error})",
            "Leave the images alone and run again; what did not change is reused.",
        ) from error

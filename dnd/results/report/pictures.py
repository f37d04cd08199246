"""Small copies of the store's images for the report, each once, made in threads."""

from __future__ import annotations

import io
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from dnd.errors import StoreError

if TYPE_CHECKING:
    from PIL.Image import Image

    from dnd.store.images import Store

SMALL, LARGE = 256, 640
"""Pixels along the longer edge at most: of the copy in the page, and of the one behind a click."""
_WORTH = 1.25
"""An image that is larger than `SMALL` by less than this has no second copy."""
_TINY = 128
"""An image of at most this many pixels keeps its colours at full resolution."""
_QUALITY = 82

Copy = tuple[str, int, int, int]
"""Name without suffix, width, height of the small copy; 1 where there is a large one."""


@dataclass
class Missing:
    """Images that the report does without."""

    count: int = 0
    first: str = ""
    """Why the first could not be read."""


class Pictures:
    """`with Pictures(folder) as pictures:` copies images into `folder`; what was requested is there at the end."""

    def __init__(self, folder: Path, workers: int) -> None:
        self.folder = folder
        self.missing = Missing()
        self._pool = ThreadPoolExecutor(workers)
        self._done: dict[str, Copy | None] = {}
        self._waiting: dict[str, Future[Copy | str]] = {}
        folder.mkdir(parents=True)

    def __enter__(self) -> Pictures:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

    def request(self, store: Store, digests: Iterable[str]) -> None:
        """Begin to copy some images; `get` waits for them."""
        for digest in digests:
            if digest not in self._done and digest not in self._waiting:
                self._waiting[digest] = self._pool.submit(self._copy, store, digest)

    def get(self, digest: str) -> Copy | None:
        """The copy of a requested image; None where the store does not have it whole."""
        if digest in self._waiting:
            found = self._waiting.pop(digest).result()
            if isinstance(found, str):
                self.missing.count += 1
                self.missing.first = self.missing.first or found
            self._done[digest] = None if isinstance(found, str) else found
        return self._done[digest]

    def _copy(self, store: Store, digest: str) -> Copy | str:
        try:
            image = store.picture(digest).open()
        except Exception as error:  # decoders raise anything for a damaged file
            return str(error) or type(error).__name__
        name = digest[:24]
        width, height = image.size
        large = max(width, height) > SMALL * _WORTH
        if large:
            image.thumbnail((LARGE, LARGE))
            self._write(image, f"{name}-large")
        image.thumbnail((SMALL, SMALL))
        self._write(image, name)
        return name, image.width, image.height, int(large)

    def _write(self, image: Image, name: str) -> None:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=_QUALITY, subsampling=0 if max(image.size) <= _TINY else 2)
        file = self.folder / f"{name}.jpg"
        try:
            file.write_bytes(buffer.getvalue())
        except OSError as error:
            raise StoreError(f"cannot write {file}: {error.strerror}", "Free some space, or choose --out.") from error

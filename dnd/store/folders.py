"""Where dnd keeps things: every folder and file that an environment variable may move."""

from __future__ import annotations

import os
from pathlib import Path


def results_folder(run_folder: Path) -> Path:
    """The store of images and stage results of a run: $DND_STORE, or .dnd-store beside the run's folder."""
    return Path(os.path.abspath(os.environ.get("DND_STORE") or run_folder.parent / ".dnd-store"))


def store_folder() -> Path:
    """The store of models: $DND_MODELS, or the platform's folder for a user's data."""
    import platformdirs

    return Path(os.environ.get("DND_MODELS") or platformdirs.user_data_path("dnd", appauthor=False) / "models")


def cache_folder() -> Path:
    """What may be deleted at any time: $DND_CACHE, or the platform's cache folder."""
    import platformdirs

    return Path(os.environ.get("DND_CACHE") or platformdirs.user_cache_path("dnd", appauthor=False))


def digests_path() -> Path:
    """Digests of the models' files."""
    return cache_folder() / "digests.sqlite"


def lock_path() -> Path:
    """The lock file: $DND_LOCK, else models.lock of the checkout, or in the installed package."""
    if named := os.environ.get("DND_LOCK"):
        return Path(named)
    here = Path(__file__).parent.parent
    installed = here / "models.lock"
    return installed if installed.exists() else here.parent / "models.lock"


def own_lock_path() -> Path | None:
    """The user's own entries, which add to those of `lock_path` and win; none where $DND_LOCK is given."""
    return None if os.environ.get("DND_LOCK") else store_folder() / "models.lock"

"""Everything that can go wrong by a user's or a backend's doing. A bug is any other exception."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


class DndError(Exception):
    """Something its reader can mend: what is wrong, and in `hint` the next thing to do."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint
        if hint:
            self.add_note(f"Hint: {hint}")  # for a traceback, in a notebook, say


class UsageError(DndError):
    """A name, setting or value that does not exist or does not fit."""


class PluginError(DndError):
    """A plugin that cannot be loaded, clashes with another, or breaks its interface."""


class ModelError(DndError):
    """A model that is not in models.lock, not in the store, or not what its digest says."""


class StoreError(DndError):
    """The run folder or the store cannot be read or written."""


class DamagedError(StoreError):
    """A file of the store is gone or not what it was. Doing the stages over makes it anew."""


class StoppedError(DndError):
    """Somebody asked the run to stop; what is finished is kept."""


class NotYetError(DndError):
    """A share of a run is done, and what comes next needs the shares of others."""


class DeviceError(DndError):
    """A device that is gone, or has too little memory: no fault of the items at hand."""


class OfflineError(DndError):
    """Somebody asked for the network in a process that is to stay offline. What was made meanwhile is not kept."""


class ItemError(DndError):
    """One item (a caption, a unit, an image) has no valid answer: that item fails, the rest go on."""


def raise_together(errors: Sequence[DndError], kind: type[DndError], what: str) -> None:
    """One as it is; several as a list, "3 `what`:"."""
    if len(errors) == 1:
        raise errors[0]
    if errors:
        lines = [f"\n  {error}" + (f". {error.hint}" if error.hint else "") for error in errors]
        raise kind(f"{len(errors)} {what}:{''.join(lines)}")


def first_fault(error: ValidationError) -> str:
    """The first thing that pydantic found wrong, with its place; without the value, which may be anything."""
    fault = error.errors(include_url=False, include_input=False)[0]
    where, what = ".".join(map(str, fault["loc"])), fault["msg"].removeprefix("Value error, ")
    return f"{where}: {what}" if where else what


class NoAnswerError(Exception):
    """The process was lost over these items."""


class TooSlowError(NoAnswerError):
    """It was killed, since it took longer than it may."""

"""What is wrong with a run file, collected so that all of it is reported at once."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import pydantic

from dnd.api import Config
from dnd.errors import DndError, UsageError, raise_together
from dnd.text import suggest

_LOG = logging.getLogger(__name__)
C = TypeVar("C", bound=pydantic.BaseModel)


class Problems:
    """Collects what is wrong with a run file, so that all of it is reported at once."""

    def __init__(self) -> None:
        self.found: list[DndError] = []

    def add(self, problem: DndError | str, hint: str = "") -> None:
        self.found.append(problem if isinstance(problem, DndError) else UsageError(problem, hint))

    def table(self, section: str, value: object) -> dict[str, Any]:
        if isinstance(value, dict):
            return value
        self.add(f"{section}: a table of settings is wanted, not {value!r}")
        return {}

    def check(self, section: str, cls: type[C], values: Mapping[str, Any], also: Iterable[str] = ()) -> C | None:
        """`values` as a `cls`, or None and one problem per setting at fault. `also`: names that would have fitted.

        Former settings are logged as warnings, which Python prints on stderr where nothing else is set up.
        """
        for note in cls.notes(values) if issubclass(cls, Config) else ():
            _LOG.warning("%s", _dotted(section, [note]))
        try:
            config = cls.model_validate(values)
        except pydantic.ValidationError as error:
            for fault in error.errors(include_url=False):
                self.add(_in_words(section, fault, [*cls.model_fields, *also]))
            return None
        endless = [key for key, value in config if isinstance(value, float) and not math.isfinite(value)]
        for key in endless:
            self.add(f"{_dotted(section, [key])}: a finite number is wanted")
        return None if endless else config

    def raise_if_any(self) -> None:
        """One problem as it is; several as a list."""
        raise_together(self.found, UsageError, "things are wrong with this run")


def _dotted(section: str, place: Sequence[object]) -> str:
    return ".".join(str(part) for part in (section, *place) if part != "")


def _in_words(section: str, fault: Any, known: Iterable[str]) -> DndError:
    """One line for one of pydantic's errors: the setting, what was given, what is wanted."""
    place = _dotted(section, fault["loc"])
    if fault["type"] == "extra_forbidden":
        hint = suggest(str(fault["loc"][-1]), known) if len(fault["loc"]) == 1 else ""
        return UsageError(f"{place}: there is no such setting", hint)
    if fault["type"] == "missing":
        return UsageError(f"{place}: this setting is required")
    wanted = fault["msg"].removeprefix("Input should be ").removeprefix("Value error, ").partition(", unable to")[0]
    return UsageError(f"{place}: {fault['input']!r} does not fit; wanted: {wanted}")

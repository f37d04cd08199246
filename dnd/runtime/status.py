"""status.json, which a run's heartbeat writes (dnd/runtime/heartbeat.py), read from another process."""

from __future__ import annotations

import json
import os
import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from pydantic import AwareDatetime, BaseModel, Field, ValidationError

from dnd.errors import StoreError, UsageError, first_fault
from dnd.runtime.heartbeat import STATUS
from dnd.runtime.progress import spell_seconds
from dnd.text import plain

SILENCE = 60.0
"""Seconds without a sign of life after which a run counts as dead."""


Seconds = Annotated[float, Field(ge=0, lt=1e10)]
Count = Annotated[int, Field(ge=0, lt=2**63)]


class _Stage(BaseModel):
    name: str
    done: Count
    total: Count
    seconds: Seconds | None


class _Status(BaseModel):
    """What is printed of status.json (`Heartbeat._record` writes it); there may be more."""

    state: str
    pid: Annotated[int, Field(gt=0, lt=2**31)]
    updated: AwareDatetime
    host: str = ""
    seconds: Seconds = 0
    message: str = ""
    stages: list[_Stage] = []
    rate: Annotated[float, Field(allow_inf_nan=False)] | None = None
    eta: Seconds | None = None
    units: dict[str, Count] = {}
    failures: Count = 0


def read_status(folder: Path) -> dict[str, Any]:
    """status.json, with "dead" as the state of a run that stopped without a word."""
    file = folder / STATUS
    if not file.is_file():
        raise UsageError(f"no run has begun in {folder}", "Name the folder that `dnd run` was given as --out.")
    try:
        found: dict[str, Any] = json.loads(file.read_text("utf-8"))
        updated = _Status.model_validate(found).updated
    except ValidationError as error:
        what = f"{file} is no status of a run: {first_fault(error)}"
        raise StoreError(what, "The run's next sign of life replaces it.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise StoreError(f"cannot read {file}: {error}", "The run's next sign of life replaces it.") from error
    if found["state"] == "running":
        silent = abs((datetime.now(UTC) - updated).total_seconds())  # in the future: another machine's clock is wrong
        here = found.get("host") == socket.gethostname()
        if (here and not _alive(found["pid"])) or silent > SILENCE:
            found |= {"state": "dead", "message": f"its last sign of life was at {found['updated']}"}
    return found


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def tell(run: str, found: dict[str, Any]) -> str:
    """The same in a few lines, without what would steer a terminal."""
    took = spell_seconds(float(found.get("seconds") or 0))
    lines = [f"{run}: {found['state']}, process {found['pid']} on {found.get('host')}, for {took}"]
    if found.get("message"):
        lines.append(f"  {found['message']}")
    for stage in found.get("stages") or ():
        line = f"  {stage['name']:<14} {stage['done']:>8} of {stage['total']}"
        if stage["seconds"] is not None:
            line += f", {spell_seconds(stage['seconds'])}"
        elif found["state"] == "running" and stage is found["stages"][-1] and found.get("rate"):
            line += f", {found['rate']:.3g} per second, {spell_seconds(found.get('eta') or 0)} left"
        lines.append(line)
    if found.get("units"):
        lines.append("  " + ", ".join(f"{count} {status}" for status, count in found["units"].items()))
    if found.get("failures"):
        lines.append(f"  {found['failures']} items without an answer")
    return plain("\n".join(lines))

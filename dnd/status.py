"""What a run's heartbeat says to somebody else (dnd/heartbeat.py)."""

from __future__ import annotations

import json
import os
import socket
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dnd.errors import StoreError, UsageError
from dnd.heartbeat import BEAT_SECONDS, STATUS
from dnd.progress import spell_seconds

SILENCE = 60.0
"""Seconds without a sign of life after which a run counts as dead."""


def read_status(folder: Path) -> dict[str, Any]:
    """status.json, with "dead" as the state of a run that stopped without a word."""
    file = folder / STATUS
    try:
        found: dict[str, Any] = json.loads(file.read_text("utf-8"))
        known = isinstance(found, dict) and isinstance(found["pid"], int) and isinstance(found["state"], str)
        updated = datetime.fromisoformat(found["updated"])
    except FileNotFoundError:
        hint = "Name the folder that `dnd run` was given as --out."
        raise UsageError(f"no run has begun in {folder}", hint) from None
    except (KeyError, TypeError):
        raise StoreError(f"{file} is no status of a run", "The run's next sign of life replaces it.") from None
    except (OSError, ValueError) as error:
        raise StoreError(f"cannot read {file}: {error}", "The run's next sign of life replaces it.") from error
    if not known or updated.tzinfo is None:
        raise StoreError(f"{file} is no status of a run", "The run's next sign of life replaces it.")
    if found["state"] == "running":
        # Nobody's clock is trusted alone: a beat that seems to come from the future may be as old as one can be.
        silent = (datetime.now(UTC) - updated).total_seconds()
        here = found.get("host") == socket.gethostname()
        if (here and not _alive(found["pid"])) or (abs(silent) > SILENCE and not _beats(file)):
            found |= {"state": "dead", "message": f"its last sign of life was at {found['updated']}"}
    return found


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


def _beats(file: Path) -> bool:
    """Whether the file is written while one watches: what the clocks say does not matter."""
    before, until = file.stat(), time.monotonic() + 3 * BEAT_SECONDS
    while time.monotonic() < until:
        time.sleep(BEAT_SECONDS / 4)
        now = file.stat()
        if (now.st_mtime_ns, now.st_ino) != (before.st_mtime_ns, before.st_ino):
            return True
    return False


def tell(run: str, found: dict[str, Any]) -> str:
    """The same in a few lines."""
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
    return "\n".join(lines)

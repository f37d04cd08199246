"""`dnd doctor`: can this run work here? Looked at before any GPU time, and all of it, whatever is wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dnd.config.read import examine_run
from dnd.doctor.check import Check, Context, Look
from dnd.errors import DndError
from dnd.models.weights import Weights
from dnd.plugin.registry import Registry


def examine(
    source: str | None,
    *,
    options: Mapping[str, Any],
    settings: Sequence[str],
    out: Path,
    store: Path,
    fresh: bool = False,
    quick: bool = False,
    watch: Callable[[str], None] = lambda name: None,
) -> Iterator[Check]:
    """Every check of the run that `read_run` would give. `watch` hears which check begins."""
    registry = Registry.load()
    run, problems = examine_run(source, registry, options=options, settings=settings)
    for number, problem in enumerate(problems, 1):
        yield Check.of("run" if len(problems) == 1 else f"run.{number}", problem)
    if not problems:
        yield Check("run", "ok", source or "the run file that `dnd run` takes by itself")
    try:
        weights = Weights.default()
    except DndError as error:
        yield Check.of("models.lock", error)
        return
    context = Context(run, registry, weights, out, store, whole=not problems, fresh=fresh, quick=quick)
    for name, look in _looks().items():
        watch(name)
        yield from _look(name, look, context)


def _looks() -> dict[str, Look]:
    """In the order of the table; those that use what others learn come after them."""
    from dnd.doctor import inputs as work
    from dnd.doctor import machine
    from dnd.doctor import plugins as parts
    from dnd.doctor import space as room

    return {
        "python": machine.check_python,
        "torch": machine.check_torch,
        "device": machine.check_devices,
        "network": machine.check_network,
        "plugins": parts.check_plugins,
        "backends": parts.check_backends,
        "models": parts.check_models,
        "probing": work.check_probing,
        "target": work.check_target,
        "memory": room.check_memory,
        "disk": room.check_disk,
        "folders": room.check_folders,
        "run-folder": room.check_run_folder,
    }


def _look(name: str, look: Look, context: Context) -> Iterator[Check]:
    """One check; a check that breaks is reported as a fault."""
    try:
        yield from look(context)
    except DndError as error:
        yield Check.of(name, error)
    except Exception as error:
        remedy = "This is a bug in dnd: please report it with this line."
        yield Check(name, "fault", f"the check itself failed: {type(error).__name__}: {error}", remedy)


def to_json(checks: Sequence[Check]) -> list[dict[str, str]]:
    return [asdict(check) for check in checks]


def would_fail(checks: Sequence[Check]) -> bool:
    return any(check.state == "fault" for check in checks)

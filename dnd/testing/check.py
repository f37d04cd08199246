"""The contract run on what is installed: `dnd plugins check`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from dnd.api import model_names
from dnd.config.problems import Problems
from dnd.config.tables import parse_setting
from dnd.errors import UsageError
from dnd.models.weights import Weights
from dnd.plugin.registry import KINDS, Entry, Registry
from dnd.plugin.requirements import check_packages
from dnd.testing.fakes import runtime
from dnd.testing.run import Outcome, run_contract
from dnd.text import suggest


def check_plugin(
    name: str, kind: str | None, settings: Sequence[str], device: str
) -> Iterator[tuple[Entry, Iterator[Outcome]]]:
    """Each plugin of that name with the outcome of every rule.

    Raises before the first rule where it cannot be tried: an unknown name, a wrong setting, a missing model.
    """
    registry = Registry.load()
    entries = _entries(registry, name, kind)
    if settings and len(entries) > 1:
        kinds = ", ".join(entry.kind for entry in entries)
        raise UsageError(f"{name!r} is the name of several: {kinds}", "Say which the settings are for with --kind.")
    check_packages(entries)
    for entry in entries:
        assert entry.cls is not None
        given = dict(parse_setting(text) for text in settings)
        values = {key.removeprefix(f"{entry.kind}."): value for key, value in given.items()}
        problems = Problems()
        config = problems.check(entry.kind, entry.cls.Config, values)
        problems.raise_if_any()
        assert config is not None
        Weights.default().check(model_names(config))
        yield entry, run_contract(entry.kind, entry.cls, values, runtime(device))


def _entries(registry: Registry, name: str, kind: str | None) -> list[Entry]:
    kinds = [kind] if kind else [one for one in KINDS if name in registry.names(one)]
    if kinds:
        return [registry.find(one, name) for one in kinds]
    for entry in registry.entries:
        if entry.name == name:
            registry.find(entry.kind or next(iter(KINDS)), name)  # raises with the reason it is broken
    known = [entry.name for entry in registry.entries if entry.state == "ok"]
    raise UsageError(f"no plugin is named {name!r}", suggest(name, known))

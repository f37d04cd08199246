"""Plugins, the packages they need, what they find out themselves; and the models."""

from __future__ import annotations

from collections.abc import Iterator

from dnd.doctor.check import Check, Context, gigabytes
from dnd.errors import DndError, ModelError
from dnd.models.weights import Weights
from dnd.plugin.requirements import check_packages, faults_of


def check_plugins(context: Context) -> Iterator[Check]:
    """Plugins that the run does not use count as warnings: the run's own are in their sections."""
    wrong = [entry for entry in context.registry.entries if entry.state != "ok"]
    for entry in wrong:
        what = f"{entry.kind} {entry.name}" if entry.kind else entry.name
        detail = f"{what} ({entry.distribution} {entry.version}) is {entry.state}: {entry.reason}"
        remedy = f"pip uninstall {entry.distribution}, or mend it; `dnd plugins` shows all."
        yield Check(f"plugin.{entry.kind or 'unknown'}.{entry.name}", "warning", detail, remedy)
    usable = len(context.registry.entries) - len(wrong)
    yield Check("plugins", "ok", f"{usable} usable" + (f", {len(wrong)} not" if wrong else ""))


def check_backends(context: Context) -> Iterator[Check]:
    """Each backend, and the method where that is a plugin: its packages, then what it says itself."""
    for section, choice in context.helpers().items():
        entry = context.registry.find(choice.kind, choice.name)
        try:
            check_packages([entry])
            problems = faults_of(context.builder.plugin(choice))
        except DndError as error:
            problems = [error]
        for number, problem in enumerate(problems, 1):
            yield Check.of(section if number == 1 else f"{section}.{number}", problem)
        if not problems:
            yield Check(section, "ok", f"{choice.name} of {entry.distribution} {entry.version}")


def check_models(context: Context) -> Iterator[Check]:
    """Every model that the run names: in the lock, pinned, here, and what its digests say."""
    faults = dict(_roles(context))
    for name, sections in context.run.models().items():
        if name in faults:
            context.bad_models.add(name)
            yield Check.of(f"model.{name}", faults[name])
            continue
        try:
            if context.quick:
                looked = _compare_sizes(context.weights, name)
            else:
                context.weights.resolve(name)
                looked = "every digest is right"
            size = gigabytes(context.weights.find(name).size)
            yield Check(f"model.{name}", "ok", f"{size} for {', '.join(sections)}; {looked}")
        except ModelError as error:
            context.bad_models.add(name)
            yield Check.of(f"model.{name}", error)


def _roles(context: Context) -> Iterator[tuple[str, ModelError]]:
    """Models that a setting names for what they are not."""
    for name, setting, roles in context.run.model_uses():
        try:
            context.weights.check_role(name, setting, roles)
        except ModelError as error:
            yield name, error


def _compare_sizes(weights: Weights, name: str) -> str:
    """As `Weights.resolve`, but believes what has the right size."""
    folder = weights.folder(name)
    for file in weights.find(name).files:
        path = folder / file.path
        if not path.is_file() or file.sha256 is None or path.stat().st_size != file.size:
            weights.resolve(name)  # says what is wrong
    return "sizes are right, nothing was hashed"

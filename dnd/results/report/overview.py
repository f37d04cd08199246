"""The page's overview of a run: how it was made, how good its labels are, histograms of activations."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dnd.api import Unit
from dnd.results.report.rows import kind_of_reason, number, shown
from dnd.results.run import RunFolder, as_mapping
from dnd.results.unit import UnitResult

_KINDS = ("captioner", "summarizer", "generator", "scorer", "method")
_BINS = 24


class Overview:
    """Takes in a run's units one by one; `record` is what became of them."""

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        self.facts, self.settings, self.evaluation = run.facts, run.settings, run.evaluation
        self.statuses: Counter[str] = Counter()
        self.reasons: Counter[tuple[str, str]] = Counter()
        self._values: dict[str, dict[str, list[float]]] = {}

    def add(self, record: UnitResult) -> None:
        self.statuses[record.status] += 1
        if record.status != "labelled":
            self.reasons[record.status, kind_of_reason(record.reason)] += 1
        best = record.best
        found: dict[str, Sequence[float | None]] = {
            "exemplar": [e.activation for e in record.exemplars][:1],
            "sample": [record.baseline.median] if record.baseline else [],
            "synthetic": [_median(d.activation for d in best.images)] if best else [],
            "score": [named.score for named in record.labels][:1] if record.status == "labelled" else [],
            "auc": [best.auc] if best else [],
        }
        layer = self._values.setdefault(record.layer, {})
        for name, values in found.items():
            layer.setdefault(name, []).extend(v for v in values if v is not None and math.isfinite(v))

    def truth(self, unit: Unit) -> dict[str, Any] | None:
        """What the target itself knows of a unit: its kind, and what the label should have been where it is wrong."""
        kinds, wrong = (as_mapping(as_mapping(self.facts.get("truth")).get(name)) for name in ("kinds", "wrong"))
        if str(unit) not in kinds and str(unit) not in wrong:
            return None
        meant = shown(str(wrong[str(unit)])) if str(unit) in wrong else None
        return {"kind": shown(str(kinds.get(str(unit), ""))), "right": meant is None, "meant": meant}

    @property
    def title(self) -> str:
        """The target and its layers."""
        target = as_mapping(self.settings.get("target"))
        name, layers = target.get("name"), [str(layer) for layer in _sequence(target.get("layers"))]
        more = [f"{len(layers) - 2} more layers"] if len(layers) > 3 else layers[2:]
        return shown(" · ".join([str(name), ", ".join([*layers[:2], *more])])) if name and layers else self.run.name

    def record(self) -> dict[str, Any]:
        """As JSON; names that come from outside are in pairs, never keys."""
        facts = self.facts
        return {
            "name": self.run.name,
            "title": self.title,
            "folder": str(self.run.folder),
            "statuses": dict(self.statuses),
            "reasons": [[status, reason, n] for (status, reason), n in self.reasons.most_common(50)],
            "layers": [[layer, self._histograms(values)] for layer, values in self._values.items()],
            "settings": _settings(self.settings),
            "facts": _facts(facts),
            "models": _pairs(facts.get("models")),
            "versions": _pairs(facts.get("versions")),
            "stages": _stages(facts.get("stages")),
            "quality": _quality(facts.get("truth")),
            "figures": _figures(self.evaluation),
            "unreadable": _pairs(as_mapping(facts.get("probing")).get("unreadable"))[:200],
        }

    @staticmethod
    def _histograms(values: Mapping[str, Sequence[float]]) -> dict[str, Any]:
        """Activations on one axis, so that their histograms can be compared; scores and AUCs on their own."""
        together = [v for name in ("exemplar", "sample", "synthetic") for v in values.get(name, ())]
        spans = {name: (min(together), max(together)) for name in ("exemplar", "sample", "synthetic") if together}
        spans["auc"] = (0.0, 1.0)
        return {name: histogram(found, spans.get(name)) for name, found in values.items() if found}


def histogram(values: Sequence[float], span: tuple[float, float] | None = None) -> dict[str, Any]:
    """Counts in bins of equal width over `span`, or from the least value to the greatest."""
    low, high = span or (min(values), max(values))
    counts = [0] * (_BINS if high > low else 1)
    width = high / 2 - low / 2  # halves: the difference of two finite numbers may be no finite one
    for value in values:
        place = (value / 2 - low / 2) / width * _BINS if high > low else 0
        counts[min(max(int(place), 0), len(counts) - 1)] += 1
    return {"low": low, "high": high, "counts": counts}


def _median(values: Iterable[float | None]) -> float | None:
    ordered = sorted(value for value in values if value is not None and math.isfinite(value))
    return ordered[len(ordered) // 2] if ordered else None


def _sequence(value: object) -> Sequence[Any]:
    return value if isinstance(value, list) else ()


def _pairs(value: object) -> list[list[Any]]:
    return [[shown(str(name)), _plain(one)] for name, one in as_mapping(value).items()]


def _plain(value: object) -> Any:
    """A number as it is, all else as text, in a run file's words."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return number(value)
    if isinstance(value, bool):
        return str(value).lower()
    return shown(", ".join(map(str, value)) if isinstance(value, list) else str(value))


def _figure(value: object) -> float | None:
    return value if isinstance(value, int | float) and abs(value) < 1e300 else None


def _settings(settings: Mapping[str, Any]) -> list[list[Any]]:
    """Each table of the run file with its settings; those of backends first."""
    tables = {name: table for name, table in settings.items() if isinstance(table, dict)}
    order = ["target", "probing", *_KINDS]
    names = [name for name in order if name in tables] + [name for name in tables if name not in order]
    loose = {name: value for name, value in settings.items() if name not in tables}
    return [[name, _pairs(tables[name])] for name in names] + ([["run", _pairs(loose)]] if loose else [])


def _facts(facts: Mapping[str, Any]) -> list[list[Any]]:
    probing, hardware = as_mapping(facts.get("probing")), as_mapping(facts.get("hardware"))
    devices = _sequence(hardware.get("devices")) or [
        f"{hardware.get('cpus', '?')} CPUs ({hardware.get('machine', '?')})"
    ]
    found = {
        "fingerprint of the target": facts.get("target"),
        **{f"layer {layer}": reading for layer, reading in as_mapping(facts.get("layers")).items()},
        "probing images": probing.get("images"),
        "unreadable images": len(as_mapping(probing.get("unreadable"))) or None,
        "hardware": ", ".join(map(str, devices)) if hardware else None,
        "seconds": facts.get("seconds"),
        "no attention crops": facts.get("no_crops"),
        "notes": "; ".join(map(str, _sequence(facts.get("notes")))) or None,
    }
    return [[name, _plain(value)] for name, value in found.items() if value not in (None, "")]


def _stages(stages: object) -> list[list[Any]]:
    """[name, key, items, computed, failed, seconds]."""
    columns = ("key", "items", "computed", "failed", "seconds")
    rows = ((name, as_mapping(stage)) for name, stage in as_mapping(stages).items())
    return [[name, *(_plain(stage.get(column, "")) for column in columns)] for name, stage in rows]


def _quality(truth: object) -> dict[str, Any] | None:
    """How many labels are right by kind of unit, and what chance gives."""
    grades = [as_mapping(grade) for grade in _sequence(as_mapping(truth).get("grades"))]
    if not grades:
        return None
    rows = [[_plain(grade.get(name, "")) for name in ("kind", "right", "total")] for grade in grades]
    return {"grades": rows, "controls": _pairs(as_mapping(truth).get("controls"))}


def _figures(evaluation: Mapping[str, Any]) -> list[list[Any]]:
    """Of `dnd eval`: [name, higher is better, value, low, high, shuffled, best constant]."""
    found = []
    for name, figure in as_mapping(evaluation.get("figures")).items():
        own, controls = as_mapping(as_mapping(figure).get("own")), as_mapping(as_mapping(figure).get("controls"))
        values = [own.get("value"), own.get("low"), own.get("high")]
        values += [as_mapping(controls.get(control)).get("value") for control in ("shuffled", "constant")]
        found.append([shown(name), bool(as_mapping(figure).get("higher_is_better", True)), *map(_figure, values)])
    return found

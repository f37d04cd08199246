"""The bench as tables: Markdown, and cells for the HTML page."""

from __future__ import annotations

import re
from collections.abc import Sequence

from dnd.bench.compare import Bench
from dnd.bench.outcome import Outcome
from dnd.evaluation.intervals import FEW, Estimate

_SHORT = {"match.graded": "right", "match.exact_of_all": "exact", "text.cosine": "text cosine"}
_MEANS = {
    "match.graded": "share of units that the target itself calls right, which knows more names for the same thing",
    "match.exact_of_all": "share of all units whose label is a true text, word by word, or that rightly have none",
    "text.cosine": "how near the label is to the truth in meaning, of units that have both",
}


def columns(bench: Bench) -> list[str]:
    kinds = [f"{kind}" for kind in kinds_of(bench)]
    figures = [_SHORT.get(figure, figure) for figure in _ordered(bench)]
    reference = ["against the reference"] if bench.metric else []
    return ["", "combination", *figures, *kinds, "no label", *reference, "s alone", "s here", "images", "tokens", "MB"]


def rows(bench: Bench) -> list[list[str]]:
    """Best first by the metric, numbered as in the plot; failed ones last, of three cells with their reason."""
    return [[str(place), *_row(bench, outcome)] for place, outcome in enumerate(ranked(bench), 1)] + [
        ["", outcome.name, f"failed: {outcome.reason}"] for outcome in bench.failed
    ]


def ranked(bench: Bench) -> list[Outcome]:
    done = [outcome for outcome in bench.outcomes if not outcome.failed]
    levels = bench.figures.get(bench.metric or "", {})
    return sorted(done, key=lambda o: -levels[o.name].value if o.name in levels else 1)


def kinds_of(bench: Bench) -> list[str]:
    return list(dict.fromkeys(kind for outcome in bench.outcomes for kind in outcome.kinds))


def _ordered(bench: Bench) -> list[str]:
    """Figures, the metric first."""
    return sorted(bench.figures, key=lambda figure: (figure != bench.metric, figure))


def _row(bench: Bench, outcome: Outcome) -> list[str]:
    cost = bench.costs[outcome.name]
    figures = [_estimate(bench.figures[figure].get(outcome.name)) for figure in _ordered(bench)]
    kinds = [_share(outcome.kinds.get(kind)) for kind in kinds_of(bench)]
    silent = f"{outcome.counts.get('uninterpretable', 0)}/{outcome.units}"
    if outcome.counts.get("failed"):
        silent += f", {outcome.counts['failed']} failed"
    name = outcome.name + (" *" if outcome.name in bench.front else "")
    return [
        name,
        *figures,
        *kinds,
        silent,
        *([_against(bench, outcome)] if bench.metric else []),
        "?" if cost.alone is None else f"{cost.alone:.1f}",
        f"{cost.here:.1f}",
        f"{cost.images:,}",
        "" if cost.tokens is None else f"{cost.tokens:,}",
        f"{max(outcome.peak, outcome.device_peak) / 1e6:,.0f}" + (" (GPU)" if outcome.device_peak else ""),
    ]


def _estimate(estimate: Estimate | None) -> str:
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]" if estimate else ""


def _share(share: tuple[int, int] | None) -> str:
    return f"{share[0]}/{share[1]}" if share else ""


def _against(bench: Bench, outcome: Outcome) -> str:
    if outcome.name == bench.reference:
        return "(reference)"
    found = bench.against(outcome.name)
    if found is None:
        return ""
    value, low, high = (round(x, 3) + 0.0 for x in (found.estimate.value, found.estimate.low, found.estimate.high))
    sign = {"better": "better", "worse": "worse"}.get(found.verdict, "open")
    return f"{value:+.3f} [{low:+.3f}, {high:+.3f}] {sign}"


def stage_rows(bench: Bench) -> list[list[str]]:
    found = bench.record()["stages"]
    return [
        [name, *(f"{one[c]:,}" for c in ("combinations", "keys", "items", "computed")), f"{one['seconds']:,.1f}"]
        for name, one in found.items()
    ]


STAGE_COLUMNS = ["stage", "combinations", "distinct", "items asked for", "computed", "seconds"]


def notes(bench: Bench) -> list[str]:
    """What the columns mean, in the order they stand."""
    lines = [f"{_SHORT[name]}: {_MEANS[name]} (`{name}`)." for name in _ordered(bench) if name in _MEANS]
    lines.append("Intervals: 95 % over units: Wilson's for shares, the bootstrap's for other means.")
    fewest = min((e.n for levels in bench.figures.values() for e in levels.values()), default=FEW)
    if fewest < FEW:
        lines.append(f"Some figures are of only {fewest} units: differences between so few must be large to show.")
    if kinds_of(bench):
        lines.append(f"{', '.join(kinds_of(bench))}: how many units of the kind are right.")
    lines.append("no label: units called uninterpretable.")
    if bench.metric:
        lines.append(
            f"Ranked by `{bench.metric}`. against the reference: the mean difference from `{bench.reference}`, unit by "
            "unit; better, worse: p < 0.05 by McNemar's exact test (0 or 1) or the paired t-test, corrected by "
            "Holm for the number of pairs; open: not shown. `*`: none is both better and cheaper."
        )
    lines += [
        "The first column numbers the dots of the plot.",
        "s here: seconds it took, with what earlier combinations had left in the store. s alone: what it would have "
        "taken with an empty store, by what this bench has measured of its stages; ? where a stage was in the store "
        "before.",
        "images, tokens: what its candidates needed, shared ones too.",
        "MB: the most memory in use meanwhile, by the one process that runs them all, what earlier combinations left "
        "in it included.",
    ]
    return lines + [f"{outcome.name}: {outcome.note}" for outcome in bench.outcomes if outcome.note]


def csv_table(bench: Bench) -> list[list[object]]:
    """Heads, then a line per combination: numbers as they are, for other programs."""
    figures, kinds = _ordered(bench), kinds_of(bench)
    axes = list(dict.fromkeys(axis for outcome in bench.outcomes for axis in outcome.variants))
    heads = [f"{figure}{end}" for figure in figures for end in ("", "_low", "_high")]
    heads += [f"{kind}_{what}" for kind in kinds for what in ("right", "total")]
    costs = ("seconds_alone", "seconds_here", "seconds_per_right_unit", "images", "tokens")
    lines: list[list[object]] = [["combination", *axes, "failed", "labelled", "units", *heads, *costs]]
    for outcome in bench.outcomes:
        cost, found = bench.costs.get(outcome.name), [bench.figures[figure].get(outcome.name) for figure in figures]
        shares = [outcome.kinds.get(kind, ("", "")) for kind in kinds]
        right = sum(share[0] for share in outcome.kinds.values())
        alone = cost.alone if cost else None
        lines.append(
            [
                *(outcome.name, *(outcome.variants.get(axis, "") for axis in axes), outcome.reason),
                *(outcome.counts.get("labelled", 0), outcome.units),
                *(value for one in found for value in ((one.value, one.low, one.high) if one else ("", "", ""))),
                *(number for share in shares for number in share),
                *("" if alone is None else round(alone, 3), round(cost.here, 3) if cost else ""),
                "" if alone is None or not right else round(alone / right, 4),
                *((cost.images, "" if cost.tokens is None else cost.tokens) if cost else ("", "")),
            ]
        )
    return lines


def markdown(bench: Bench, title: str) -> str:
    parts = [f"# {_cell(title)}", _table(columns(bench), rows(bench)), *notes(bench)]
    parts += ["## Stages", _table(STAGE_COLUMNS, stage_rows(bench))]
    return "\n\n".join(parts) + "\n"


def _table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    texts = [heads, ["---"] * len(heads), *([*line, *[""] * (len(heads) - len(line))] for line in lines)]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in texts)


def _cell(text: str) -> str:
    """No text breaks the table or becomes markup."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(text.split())) if text != "---" else text

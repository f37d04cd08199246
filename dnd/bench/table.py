"""The bench as tables: Markdown, and cells for the HTML page."""

from __future__ import annotations

import re
from collections.abc import Sequence

from dnd.bench.compare import Bench, verdict_of
from dnd.bench.outcome import Outcome
from dnd.evaluation.intervals import FEW, Estimate

_SHORT = {"match.graded": "right", "match.exact_of_all": "exact match", "text.cosine": "text cosine"}
_MEANS = {
    "match.graded": "share of units that the target itself calls right, which knows more names for the same thing",
    "match.exact_of_all": "share of all units whose label is a true text, word by word, or that rightly have none",
    "text.cosine": "how near the label is to the truth in meaning, of units that have both",
}
_COSTS = ["seconds alone", "seconds per right label", "seconds here", "images", "tokens", "MB"]


def columns(bench: Bench) -> list[str]:
    figures = [short(figure) for figure in figures_of(bench)]
    reference = [f"against {bench.reference}"] if bench.metric else []
    return ["no.", "combination", *figures, *kinds_of(bench), "without a label", *reference, *_COSTS]


def short(figure: str) -> str:
    """A figure's name in a column's head."""
    return _SHORT.get(figure, figure)


def screen(bench: Bench) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of what a terminal has room for, without columns of nothing; `columns` and `rows` are all."""
    heads = columns(bench)
    kinds = kinds_of(bench)
    lines = [[*row, *[""] * (len(heads) - len(row))] for row in rows(bench)]
    wide = (*kinds, "without a label", *_COSTS[2:])
    kept = [i for i, head in enumerate(heads) if head not in wide and any(line[i] for line in lines)]
    return [heads[i] for i in kept], [[line[i] for i in kept] for line in lines]


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


def figures_of(bench: Bench) -> list[str]:
    """Figures, the metric first."""
    return sorted(bench.figures, key=lambda figure: (figure != bench.metric, figure))


def _row(bench: Bench, outcome: Outcome) -> list[str]:
    cost = bench.costs[outcome.name]
    figures = [_estimate(bench.figures[figure].get(outcome.name)) for figure in figures_of(bench)]
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
        "" if (price := bench.price(outcome.name)) is None else f"{price:.2f}",
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
    return _apart(found.estimate, found.verdict)


def _apart(estimate: Estimate, verdict: str) -> str:
    value, low, high = (round(x, 3) + 0.0 for x in (estimate.value, estimate.low, estimate.high))
    sign = {"better": "better", "worse": "worse"}.get(verdict, "open")
    return f"{value:+.3f} [{low:+.3f}, {high:+.3f}] {sign}"


def stage_rows(bench: Bench) -> list[list[str]]:
    found = bench.record()["stages"]
    return [
        [name, *(f"{one[c]:,}" for c in ("combinations", "keys", "items", "computed")), f"{one['seconds']:,.1f}"]
        for name, one in found.items()
    ]


STAGE_COLUMNS = ["stage", "combinations", "distinct", "items asked for", "computed", "seconds"]


EFFECT_COLUMNS = ["axis", "variant", "mean", "instead of", "mean", "difference", "combinations"]


def effect_rows(bench: Bench) -> list[list[str]]:
    return [
        [
            *(one.axis, one.variant, f"{one.mean:.3f}", one.base, f"{one.base_mean:.3f}"),
            _apart(one.estimate, verdict_of(one.estimate, one.p)),
            f"{one.combinations}",
        ]
        for one in bench.effects
    ]


def notes(bench: Bench) -> list[str]:
    """What the columns mean, in the order they stand."""
    lines = [f"{_SHORT[name]}: {_MEANS[name]} (`{name}`)." for name in figures_of(bench) if name in _MEANS]
    if bench.repeats > 1:
        lines.append(
            f"Each combination was run {bench.repeats} times, with other seeds. Intervals: 95 % over units and seeds. "
            "Counts are of all its runs, costs of one on average."
        )
    else:
        lines.append("Intervals: 95 % over units: Wilson's for shares, the bootstrap's for other means.")
    fewest = min((e.n for levels in bench.figures.values() for e in levels.values()), default=FEW)
    if fewest < FEW:
        lines.append(f"Some figures are of only {fewest} units: differences between so few must be large to show.")
    if kinds_of(bench):
        lines.append(f"{', '.join(kinds_of(bench))}: how many units of the kind are right.")
    lines.append("without a label: units called uninterpretable.")
    if bench.metric:
        test = "McNemar's exact test (0 or 1) or the paired t-test" if bench.repeats == 1 else "a paired t-test"
        lines.append(
            f"Ranked by `{bench.metric}`. against {bench.reference}: the mean difference from it, unit by unit. "
            f"better, worse: p < 0.05 by {test}, corrected by Holm for the number of pairs; open: not shown. "
            "`*`: none is both better and cheaper."
        )
    else:
        lines.append(
            "No truth is known, so nothing is ranked. `dnd report RUN RUN --out FOLDER` shows labels side by side."
        )
    lines += [
        "The first column numbers the dots of the plot.",
        "seconds alone: what a run would have taken with an empty store, by what this bench has measured of its "
        "stages; ? where a stage was in the store before. Per right label: of those. seconds here: what it took, with "
        "what earlier runs had left in the store.",
        "images, tokens: what its candidates needed, shared ones too.",
        "MB: the most memory in use meanwhile, by the one process that runs them all, what earlier combinations left "
        "in it included.",
    ]
    return lines + [f"{outcome.name}: {outcome.note}" for outcome in bench.outcomes if outcome.note]


EFFECT_NOTE = (
    "What a variant gives more than another of its axis, on average over the combinations that differ by nothing else; "
    "corrected by Holm for the number of rows."
)


def markdown(bench: Bench, title: str) -> str:
    parts = [f"# {_cell(title)}", _table(columns(bench), rows(bench)), *notes(bench)]
    if bench.effects:
        parts += ["## Main effects", EFFECT_NOTE, _table(EFFECT_COLUMNS, effect_rows(bench))]
    parts += ["## Stages", _table(STAGE_COLUMNS, stage_rows(bench))]
    return "\n\n".join(parts) + "\n"


def _table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    texts = [heads, ["---"] * len(heads), *([*line, *[""] * (len(heads) - len(line))] for line in lines)]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in texts)


def _cell(text: str) -> str:
    """No text breaks the table or becomes markup."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(text.split())) if text != "---" else text

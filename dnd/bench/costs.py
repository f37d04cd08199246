"""What combinations cost: really, with what others had left behind, and what each would have cost alone.

A stage of one key is shared by combinations that ask it for different items (other concepts to be drawn, say). Alone,
a combination pays for all of its items what it paid itself, if it computed them all; else what one paid that computed
as many of the same key and no fewer; else the price per item over all that the bench has computed of it, loading
included. To that comes its own time outside the stages. A stage that was all in the store before has no price.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from dnd.bench.outcome import Outcome

Stage = tuple[str, str]
"""Name and key."""


@dataclass(frozen=True)
class Cost:
    here: float
    """Seconds that it took."""
    alone: float | None
    """Seconds that it would have taken with an empty store; None where a stage's price is not known."""
    images: int
    """Synthetic images that its candidates need, shared ones too."""
    tokens: int | None
    """Read and written by its language model; None where none tells."""
    computed: int
    """Items, of all stages, that it did not find in the store."""
    items: int


class Prices:
    """Of stages, in seconds or in something that backends say they have used."""

    def __init__(self, outcomes: Sequence[Outcome], of: str = "seconds") -> None:
        self._of = of
        self._spent: defaultdict[Stage, float] = defaultdict(float)
        self._computed: defaultdict[Stage, int] = defaultdict(int)
        self._whole: dict[tuple[Stage, int], float] = {}
        for outcome in outcomes:
            for name, stage in outcome.stages.items():
                amount, key = self._amount(stage), (name, stage["key"])
                if stage["computed"] and amount is not None:
                    self._spent[key] += amount
                    self._computed[key] += stage["computed"]
                    if stage["computed"] == stage["items"]:
                        self._whole.setdefault((key, stage["items"]), amount)

    def _amount(self, stage: Mapping[str, Any]) -> float | None:
        found = stage["seconds"] if self._of == "seconds" else stage.get("used", {}).get(self._of)
        return None if found is None else float(found)

    def of(self, name: str, stage: Mapping[str, Any]) -> float | None:
        """What all items of the stage cost; None where no run has computed any."""
        key, items = (name, stage["key"]), stage["items"]
        if stage["computed"] == items and (own := self._amount(stage)) is not None:
            return own
        if (key, items) in self._whole:
            return self._whole[key, items]
        return items * self._spent[key] / self._computed[key] if key in self._computed else None


def costs(outcomes: Sequence[Outcome]) -> dict[str, Cost]:
    """By the combinations' names, of one run, on average where there are several; where one failed there is none."""
    seconds, tokens = Prices(outcomes), Prices(outcomes, "tokens")
    failed = {outcome.name for outcome in outcomes if outcome.failed}
    found: dict[str, list[Cost]] = {}
    for outcome in outcomes:
        if outcome.name not in failed:
            found.setdefault(outcome.name, []).append(_cost(outcome, seconds, tokens))
    return {name: _mean(own) for name, own in found.items()}


def _mean(own: Sequence[Cost]) -> Cost:
    alone = [cost.alone for cost in own if cost.alone is not None]
    tokens = [cost.tokens for cost in own if cost.tokens is not None]
    return Cost(
        here=fmean(cost.here for cost in own),
        alone=fmean(alone) if len(alone) == len(own) else None,
        images=round(fmean(cost.images for cost in own)),
        tokens=round(fmean(tokens)) if tokens else None,
        computed=round(fmean(cost.computed for cost in own)),
        items=round(fmean(cost.items for cost in own)),
    )


def _cost(outcome: Outcome, seconds: Prices, tokens: Prices) -> Cost:
    stages = outcome.stages
    outside = max(0.0, outcome.seconds - sum(stage["seconds"] for stage in stages.values()))
    paid = [seconds.of(name, stage) for name, stage in stages.items() if stage["items"] > stage["failed"]]
    amounts = [amount for name, stage in stages.items() if (amount := tokens.of(name, stage)) is not None]
    return Cost(
        here=outcome.seconds,
        alone=None if None in paid else outside + sum(amount for amount in paid if amount is not None),
        images=stages.get("images", {}).get("items", 0),
        tokens=round(sum(amounts)) if amounts else None,
        computed=sum(stage["computed"] for stage in stages.values()),
        items=sum(stage["items"] for stage in stages.values()),
    )


def pareto(points: Sequence[tuple[str, float, float]]) -> set[str]:
    """Of (name, cost, quality): those that no other beats in one and equals or beats in the other."""
    return {
        name
        for name, cost, quality in points
        if not any((c <= cost and q >= quality) and (c < cost or q > quality) for _, c, q in points)
    }

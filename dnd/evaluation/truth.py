"""Which row of a label table each truth belongs to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dnd.api import Truth, Unit
from dnd.errors import UsageError
from dnd.evaluation.tables import Row


@dataclass(frozen=True)
class Case:
    """A unit, what is said of it and what is true."""

    row: Row
    truth: Truth | None


def join(rows: Sequence[Row], truths: Mapping[Unit, Truth], layer: str = "") -> list[Case]:
    """Each row with its truth, rows without one left out; UsageError where layers do not let them be matched.

    `layer` is the one of the truth that counts; its units are those of the rows' layer of that name, or of their only
    one.
    """
    if layer:
        rows, truths = _of_layer(rows, truths, layer)
    said, known = {row.unit.layer for row in rows}, {unit.layer for unit in truths}
    if len(said) == 1 and len(known) == 1 and "" in said | known:
        by_index = {unit.index: truth for unit, truth in truths.items()}
        cases = [Case(row, by_index[row.unit.index]) for row in rows if row.unit.index in by_index]
    elif "" in said | known:
        without, layers = ("truth", said) if "" in known else ("label table", known)
        raise UsageError(
            f"the {without} names no layer, and there are several: {', '.join(sorted(layers))}",
            "Add a column `layer` to it, or choose one with --layer." if "" in said else "Add a column `layer` to it.",
        )
    else:
        cases = [Case(row, truths[row.unit]) for row in rows if row.unit in truths]
    if not cases:
        raise UsageError(
            f"the truth is of other units: labels of {_which(r.unit for r in rows)}, truth of {_which(truths)}",
            "Layers must be named alike (--layer chooses one of the truth's), and units counted from 0.",
        )
    return cases


def _of_layer(rows: Sequence[Row], truths: Mapping[Unit, Truth], layer: str) -> tuple[list[Row], dict[Unit, Truth]]:
    """The rows and truths of one layer of the truth, the truths under the rows' name for it."""
    layers = sorted({unit.layer for unit in truths})
    if layer not in layers:
        named = ", ".join(name for name in layers if name) or "none"
        raise UsageError(f"the truth has no layer {layer!r}", f"Its layers are: {named}.")
    said = sorted({row.unit.layer for row in rows})
    if layer not in said and len(said) > 1:
        raise UsageError(f"the labels are of several layers, none of them {layer!r}: {', '.join(said)}")
    name = layer if layer in said else said[0]
    return (
        [row for row in rows if row.unit.layer == name],
        {Unit(name, unit.index): truth for unit, truth in truths.items() if unit.layer == layer},
    )


def _which(units: object) -> str:
    found = sorted(set(units))  # type: ignore[call-overload]
    return f"{found[0]} to {found[-1]}" if found else "none"

"""How good a combination's labels are: a value per unit and figure, so that combinations can be paired."""

from __future__ import annotations

from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dnd.api import read_truth
from dnd.errors import UsageError
from dnd.evaluation.tables import read_labels
from dnd.evaluation.truth import join

if TYPE_CHECKING:
    from dnd.models.encoder import Encoder
    from dnd.results.run import RunFolder

GRADED, EXACT, COSINE = "match.graded", "match.exact_of_all", "text.cosine"
METRICS = (GRADED, EXACT, COSINE)
"""Named as `dnd eval` names them. The first that there is is ranked unless the matrix names another."""
Values = dict[str, dict[str, float]]


class Judge:
    """Measures one combination after another; the encoder reads every distinct text once."""

    def __init__(self, truth: Path | None, encoder: str | None, device: str = "cpu") -> None:
        """Raises UsageError or ModelError where truth or encoder cannot be read."""
        self._truths = read_truth(truth) if truth else {}
        self._encoder: Encoder | None = None
        if encoder:
            if util.find_spec("transformers") is None:
                raise UsageError("an encoder needs the package transformers", "Run: pip install 'dnd-describe[eval]'")
            from dnd.models.encoder import Encoder

            self._encoder = Encoder(encoder, device)

    def values(self, result: RunFolder) -> Values:
        """By the target's own judgement, where it knows its units; by the truth file, where there is one.

        `text.cosine` counts a unit that has a meaning and got no label as 0. The truth file may be of other units than
        those that the target knows.
        """
        graded = _graded(result)
        known = self._truths.keys() & {label.unit for label in result.labels}
        found = {GRADED: graded} | (self._against_truth(result.folder) if known or not graded else {})
        return {figure: values for figure, values in found.items() if values}

    def _against_truth(self, folder: Path) -> Values:
        if not self._truths:
            return {}
        from dnd.evaluation.text import Texts, encoder_figures, exact_figures_of_all

        cases = join(read_labels(folder), self._truths)
        names = [str(case.row.unit) for case in cases]
        exact = exact_figures_of_all(cases)[0].own
        found = {EXACT: dict(zip(names, exact.tolist(), strict=True))}
        if self._encoder is None:
            return found
        places = [i for i, case in enumerate(cases) if case.truth and case.truth.meanings]
        labelled = [i for i in places if cases[i].row.labels]
        cosines = dict.fromkeys((names[i] for i in places), 0.0)
        if labelled:
            texts = Texts([t for i in labelled if (t := cases[i].truth)], [cases[i].row.labels for i in labelled])
            pairs = encoder_figures(texts, self._encoder, 0.0)[0]
            cosines |= dict(zip((names[i] for i in labelled), np.diagonal(pairs.values).tolist(), strict=True))
        return found | {COSINE: cosines}


def _graded(result: RunFolder) -> dict[str, float]:
    """1 where the target calls the label right; nothing where it does not know all of the units."""
    grading = result.grading
    if grading is None or sum(grade.total for grade in grading.grades) != len(result.labels):
        return {}
    return {str(label.unit): float(str(label.unit) not in grading.wrong) for label in result.labels}


def choose_metric(wanted: str | None, known: set[str]) -> str | None:
    """The figure that combinations are ranked by; None where nothing was measured."""
    if wanted is not None and wanted not in METRICS:
        raise UsageError(f"metric: there is no figure {wanted!r}", f"There are: {', '.join(METRICS)}.")
    if wanted in known:
        return wanted
    return next((metric for metric in METRICS if metric in known), None) if wanted is None else None

"""Do the labels say what is true? Figures from comparing texts.

A unit's first label counts. A planted unit of several meanings is compared meaning by meaning, each with the nearest
of the unit's first three labels. A truth of several texts (synonyms, annotators) counts with the mean over them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata  # type: ignore[import-untyped]

from dnd.api import Truth
from dnd.evaluation.bertscore import bertscore_f1, rescale
from dnd.evaluation.estimates import Figure, Numbers, Pairs
from dnd.evaluation.truth import Case
from dnd.models.encoder import Encoder, Floats


class Texts:
    """The distinct texts of some truths and of some units' labels, and how units are compared from them."""

    def __init__(self, truths: Sequence[Truth], labels: Sequence[tuple[str, ...]]) -> None:
        """Each truth has a meaning, and each unit a label; figures that need a unit's own label want both in the
        same order of units."""
        meanings = list(dict.fromkeys(meaning for truth in truths for meaning in truth.meanings))
        self.truths = list(dict.fromkeys(text for meaning in meanings for text in meaning))
        self.constants = sorted({*(those[0] for those in labels), *(meaning[0] for meaning in meanings)})
        """Labels that could be given to every unit: the units' own first ones, and the truths."""
        self.labels = list(dict.fromkeys([text for those in labels for text in those] + self.constants))
        place = {text: i for i, text in enumerate(self.truths)}
        self._of_meaning = [np.array([place[text] for text in meaning]) for meaning in meanings]
        order = {meaning: i for i, meaning in enumerate(meanings)}
        self._meanings = [[order[meaning] for meaning in truth.meanings] for truth in truths]
        place = {text: i for i, text in enumerate(self.labels)}
        # A unit with fewer labels than three has its last once more: the nearest of them stays the same.
        said = [[place[those[min(k, len(those) - 1)]] for k in range(3)] for those in labels]
        self._said = np.array(said, np.int64).reshape(-1, 3)
        self._constant = np.array([place[text] for text in self.constants])
        keys = [frozenset(truth.meanings) for truth in truths]
        known = {key: i for i, key in enumerate(dict.fromkeys(keys))}
        self.truth_of = np.array([known[key] for key in keys])
        """(n_truths,): those with the same number are the same."""

    def compare(self, likeness: Floats, several: Literal["mean", "any"] = "mean") -> tuple[Floats, Floats]:
        """(n_texts, n_label_texts) -> (n_truths, n_units) and, with a constant for all units, (n_truths, n_constants).

        With "any", one of several texts of a meaning is enough, and all meanings are needed.
        """
        texts_to_one, meanings_to_one = (np.mean, np.mean) if several == "mean" else (np.max, np.min)
        by_meaning = np.stack([texts_to_one(likeness[places], axis=0) for places in self._of_meaning])
        first = by_meaning[:, self._said[:, 0]]  # (meanings, n)
        nearest = by_meaning[:, self._said].max(axis=2)
        constant = by_meaning[:, self._constant]
        pairs = np.stack(
            [
                first[those[0]] if len(those) == 1 else meanings_to_one(nearest[those], axis=0)
                for those in self._meanings
            ]
        )
        return pairs, np.stack([meanings_to_one(constant[those], axis=0) for those in self._meanings])


def encoder_figures(texts: Texts, encoder: Encoder, baseline: float) -> list[Pairs]:
    """Cosine of sentence embeddings, discrimination, BERTScore; `baseline` is `unrelated_f1`."""
    truths, labels = encoder.encode(texts.truths), encoder.encode(texts.labels)
    cosines = truths.sentences @ labels.sentences.T
    f1 = bertscore_f1(truths, labels)
    return [
        _pairs("text.cosine", texts, cosines),
        *discrimination(texts, cosines),
        _pairs("text.bertscore_f1", texts, f1),
        _pairs("text.bertscore_f1_rescaled", texts, rescale(f1, baseline)),
    ]


def retrieval_figures(texts: Texts, encoder: Encoder) -> list[Pairs]:
    """`retrieval` by cosine of sentence embeddings, of units with one meaning: two halves of a union are two truths."""
    return retrieval(texts, encoder.encode(texts.truths).sentences @ encoder.encode(texts.labels).sentences.T)


def clip_figures(texts: Texts, embed: Callable[[Sequence[str]], Floats]) -> list[Pairs]:
    """Cosine of CLIP's text tower, whose vectors have length 1."""
    return [_pairs("text.clip_cosine", texts, embed(texts.truths) @ embed(texts.labels).T)]


def exact_figure(texts: Texts) -> Pairs:
    """1 where a label is one of the true texts, but for case, punctuation and articles; of several meanings, all."""
    values, constants = texts.compare(_same(texts), several="any")
    return Pairs("match.exact", values, constants, texts.constants)


def exact_figures_of_all(cases: Sequence[Case]) -> list[Figure]:
    """As `exact_figure` but of all units with a truth: no label is right for a unit that means nothing, and wrong for
    any other. And the same for the units of each planted kind."""
    n = len(cases)
    known = [i for i, case in enumerate(cases) if case.truth and case.truth.meanings]
    noise = np.array([case.truth is not None and not case.truth.meanings for case in cases])
    said = [i for i, case in enumerate(cases) if case.row.labels]
    values = np.zeros((n, n))
    constants, names = np.zeros((n, 0)), []
    if known and said:
        texts = Texts([t for i in known if (t := cases[i].truth)], [cases[i].row.labels for i in said])
        pairs, constant = texts.compare(_same(texts), several="any")
        values[np.ix_(known, said)] = pairs
        constants, names = np.zeros((n, len(texts.constants))), texts.constants
        constants[known] = constant
    silent = np.array([case.row.status == "uninterpretable" for case in cases])  # which a failed unit is not
    values[np.ix_(noise, silent)] = 1
    constants = np.column_stack([constants, noise])
    whole = Pairs("match.exact_of_all", values, constants, [*names, "(no label)"], None)
    kinds = np.array([case.truth.kind if case.truth else "" for case in cases])
    found = [whole.figure(np.array([case.truth is not None for case in cases]))]
    for kind in dict.fromkeys(kinds.tolist()):
        if kind:
            found.append(replace(whole, name=f"match.exact_of_all.{kind}").figure(kinds == kind))
    return found


def _same(texts: Texts) -> Floats:
    truths, labels = [np.array([plain(text) for text in those]) for those in (texts.truths, texts.labels)]
    return np.asarray(truths[:, None] == labels[None], np.float32)


def plain(text: str) -> str:
    """Lower case, words only, without articles."""
    words = re.findall(r"\w+", text.casefold())
    return " ".join(word for word in words if word not in ("a", "an", "the"))


def discrimination(texts: Texts, likeness: Floats) -> list[Pairs]:
    """The chance that a unit's truth is nearer to its own label than to that of a unit with another truth."""
    values, _ = texts.compare(likeness)
    n = len(values)
    same = texts.truth_of[:, None] == texts.truth_of
    if n < 2 or same.all():
        return []
    wins = np.empty((n, n))
    for i, row in enumerate(values):
        others = np.sort(row[~same[i]])
        if not len(others):
            wins[i] = np.nan
            continue
        below = np.searchsorted(others, row, "left") + np.searchsorted(others, row, "right")
        # A label that is itself among the others is not compared with itself.
        wins[i] = (below - ~same[i]) / 2 / np.maximum(1, len(others) - ~same[i])
    tied = np.full((n, 1), 0.5)
    return [Pairs("text.own_vs_other_auc", wins, tied, ["(any: all labels are alike)"], 0.5, chance=0.5)]


_OF_RANKS: dict[str, Callable[[Numbers], Numbers]] = {
    "top1": lambda ranks: np.asarray(ranks <= 1, np.float64),
    "top5": lambda ranks: np.asarray(ranks <= 5, np.float64),
    "mrr": lambda ranks: np.asarray(1 / ranks),
}


def retrieval(texts: Texts, likeness: Floats) -> list[Pairs]:
    """Where the true text comes when all distinct truths are ranked by likeness to the label; ties share ranks."""
    values, constants = texts.compare(likeness)
    _, firsts = np.unique(texts.truth_of, return_index=True)
    n = len(firsts)
    if n < 2:
        return []
    ranks, constant_ranks = (_ranks(both[firsts])[texts.truth_of] for both in (values, constants))
    chance = {"top1": 1 / n, "top5": min(5, n) / n, "mrr": float((1 / np.arange(1, n + 1)).mean())}
    found = [
        Pairs(f"retrieval.{name}", score(ranks), score(constant_ranks), texts.constants, chance=chance[name])
        for name, score in _OF_RANKS.items()
    ]
    median = Pairs(
        "retrieval.median_rank", ranks, constant_ranks, texts.constants, float(n), "median", False, (n + 1) / 2
    )
    return [*found, median]


def _ranks(likeness: Floats) -> npt.NDArray[np.float64]:
    """(n_truths, m) -> the rank of each truth for each label, 1 for the nearest; ties share the middle rank."""
    # Equal texts must tie: the last bits of a product of matrices depend on where in them a row lies.
    return np.asarray(rankdata(-np.round(likeness, 5), axis=0), np.float64)


def _pairs(name: str, texts: Texts, likeness: Floats) -> Pairs:
    values, constants = texts.compare(likeness)
    return Pairs(name, values, constants, texts.constants)

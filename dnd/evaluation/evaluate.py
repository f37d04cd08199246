"""`dnd eval`: labels in, figures with their intervals and controls out."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from importlib import util
from pathlib import Path
from typing import Any

import numpy as np

from dnd.api import Truth, Unit
from dnd.api.truth import read_truth_file
from dnd.errors import DndError, UsageError
from dnd.evaluation.bertscore import unrelated_f1
from dnd.evaluation.clip import Clip, clip_of
from dnd.evaluation.estimates import Figure, Pairs, Summary, spread, summarise
from dnd.evaluation.images import image_figures
from dnd.evaluation.intervals import FEW, tidy
from dnd.evaluation.marks import marks_figure, read_marks
from dnd.evaluation.planted import graded
from dnd.evaluation.reopen import Opened, grader, open_run
from dnd.evaluation.tables import read_label_table
from dnd.evaluation.text import (
    Texts,
    clip_figures,
    encoder_figures,
    exact_figure,
    exact_figures_of_all,
    retrieval_figures,
)
from dnd.evaluation.truth import Case, join
from dnd.models.encoder import Encoder
from dnd.models.weights import Weights
from dnd.pipeline.rates import find_rate, rates_path, read_rates
from dnd.runtime.progress import Meter, spell_seconds

_NEEDS = ("scipy", "transformers")
_NOTHING = "there is nothing to measure the labels against"
FORMAT = 1
"""Of the JSON; raised when a name in it changes its meaning."""


@dataclass
class Evaluation:
    """Figures of one label table."""

    source: Path
    cases: list[Case]
    summaries: list[Summary] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def counts(self) -> dict[str, int]:
        """How many units of each status, and how many of those with a truth that has a meaning were labelled."""
        statuses = Counter(case.row.status for case in self.cases)
        meaningful = [case for case in self.cases if case.truth and case.truth.meanings]
        return {
            "units": len(self.cases),
            **{status: statuses[status] for status in ("labelled", "uninterpretable", "failed")},
            "with_truth": len(meaningful),
            "with_truth_labelled": sum(bool(case.row.labels) for case in meaningful),
            "known_to_mean_nothing": sum(case.truth is not None and not case.truth.meanings for case in self.cases),
            "of_those_labelled": sum(
                case.truth is not None and not case.truth.meanings and bool(case.row.labels) for case in self.cases
            ),
        }

    def record(self) -> dict[str, Any]:
        """As JSON: the figures, and every unit with its own value of each."""
        return {
            "format": FORMAT,
            "source": str(self.source),
            "counts": self.counts(),
            **self.facts,
            "figures": {summary.figure.name: summary.record() for summary in self.summaries},
            "units": [self._unit(i, case) for i, case in enumerate(self.cases)],
            "notes": self.notes,
        }

    def _unit(self, place: int, case: Case) -> dict[str, Any]:
        truth = case.truth
        figures = {
            summary.figure.name: tidy(float(summary.figure.own[place]))
            for summary in self.summaries
            if not np.isnan(summary.figure.own[place])
        }
        return {
            "layer": case.row.unit.layer,
            "unit": case.row.unit.index,
            "status": case.row.status,
            "labels": list(case.row.labels),
            "truth": None if truth is None else [list(meaning) for meaning in truth.meanings],
            "kind": truth.kind if truth else "",
            "figures": figures,
        }


@dataclass(frozen=True)
class Options:
    """What `dnd eval` is asked for."""

    truth: Path | None = None
    layer: str | None = None
    """Of the truth, where it has several."""
    encoder: str | None = None
    clip: str | None = None
    images: int = 0
    generator: str | None = None
    """A run file whose generator makes the images, in place of the run's own."""
    device: str | None = None
    seed: int = 0
    resamples: int = 2000


def evaluate(source: Path, options: Options, meter: Meter) -> Evaluation:
    """All figures that the options and the source allow; UsageError before any work where they do not fit."""
    began = time.perf_counter()
    missing = [module for module in _NEEDS if util.find_spec(module) is None]
    if missing:
        raise UsageError(f"packages are missing: {', '.join(missing)}", "Run: pip install 'dnd-describe[eval]'")
    rows, how = read_label_table(source)
    read = {"labels": how}
    images = options.images if source.is_dir() else 0
    if options.truth is None and not source.is_dir():
        raise UsageError(_NOTHING, "Give --truth FILE: figures on images need a run's folder.")
    if options.layer and options.truth is None:
        raise UsageError("--layer chooses among the layers of a truth", "Give --truth FILE too.")
    cases = [Case(row, None) for row in rows]
    truths, marks = dict[Unit, Truth](), dict[Unit, tuple[str, float]]()
    if options.truth:
        truths, read["truth"] = read_truth_file(options.truth)
        marks = read_marks(options.truth)
        cases = join(rows, truths, options.layer or "") if truths else []
        known = {case.row.unit for case in cases}
        cases += [Case(row, None) for row in rows if row.unit in marks and row.unit not in known]
    if not any(case.row.labels for case in cases):
        raise UsageError(f"none of the {len(cases)} units of {source} has a label", "There is nothing to evaluate.")
    found = Evaluation(source, cases, facts={"read": read})
    figures: list[Figure] = []
    opened = None
    figures += _graded(found, options.seed)
    if options.truth is None and not images and not figures:
        raise UsageError(_NOTHING, "Give --truth FILE, or --images 20: so many images are generated of each label.")
    if source.is_dir() and (source / "run.toml").is_file() and images:
        opened = open_run(source, images=images, meter=meter, generator=options.generator, device=options.device)
    clip_name = options.clip or (clip_of(opened.job.run) if opened else None)
    clip = Clip(clip_name, _device(options.device)) if clip_name else None
    if options.truth is not None:
        known_texts = _against_truth(found, options, clip) if truths else []
        figures = known_texts + marks_figure(cases, marks) + figures
    if opened is not None:
        meter.note(_how_long(opened, cases))
        figures += _on_images(found, opened, clip)
    found.summaries = summarise(figures, options.seed, options.resamples)
    few = sorted({summary.own.n for summary in found.summaries if 0 < summary.own.n < FEW})
    if few:
        found.notes.append(
            f"figures of fewer than {FEW} units (here {', '.join(map(str, few))}) have rough intervals, but for shares"
        )
    found.facts |= {
        "clip": clip and clip.name,
        "interval": {
            "kind": "over units: Wilson's for shares, else expanded bootstrap percentiles",
            "level": 0.95,
            "resamples": options.resamples,
        },
        "seconds": round(time.perf_counter() - began, 2),
    }
    return found


def _against_truth(found: Evaluation, options: Options, clip: Clip | None) -> list[Figure]:
    cases = found.cases
    labelled = [i for i, case in enumerate(cases) if case.row.labels and case.truth and case.truth.meanings]
    figures = exact_figures_of_all(cases)
    if not labelled:
        found.notes.append("no unit with a true meaning has a label: no text was compared")
        return figures
    texts = _texts(cases, labelled)
    meanings = np.array([len(case.truth.meanings) if case.truth else 0 for case in cases])
    silent = np.array([not case.row.labels for case in cases])

    def spread_out(pairs: list[Pairs]) -> list[Figure]:
        return [spread(p.figure(), labelled, len(cases), silent & (meanings > 0)) for p in pairs]

    figures += spread_out([exact_figure(texts)])
    if options.encoder is None:
        known = [model.name for model in Weights.default().by_name.values() if model.role == "encoder"]
        found.notes.append(
            f"texts were not compared by meaning: name an --encoder, one of {', '.join(known)}, or a folder"
        )
        return figures
    encoder = Encoder(options.encoder, _device(options.device))
    baseline = unrelated_f1(encoder)
    found.facts["encoder"] = {"name": encoder.name, "digest": encoder.digest, "bertscore_baseline": tidy(baseline)}
    figures += spread_out(encoder_figures(texts, encoder, baseline))
    if clip is not None:
        figures += spread_out(clip_figures(texts, clip.texts))
    lone = [i for i in labelled if meanings[i] == 1]
    ranks = retrieval_figures(_texts(cases, lone), encoder) if lone else []
    return figures + [spread(p.figure(), lone, len(cases), silent & (meanings == 1)) for p in ranks]


def _how_long(opened: Opened, cases: list[Case]) -> str:
    """What is about to be generated, with the time that it takes at most by the rates of earlier runs."""
    run = opened.job.run
    images = run.images.n * len({case.row.labels[0] for case in cases if case.row.labels})
    rate = find_rate(run, "images", read_rates(rates_path()))
    time = f"{spell_seconds(rate.seconds(images))} at most" if rate else "its time is not known yet"
    return f"{images:,} images of the labels, {time}; those that are stored are reused."


def _texts(cases: list[Case], places: list[int]) -> Texts:
    return Texts([truth for i in places if (truth := cases[i].truth)], [cases[i].row.labels for i in places])


def _on_images(found: Evaluation, opened: Opened, clip: Clip | None) -> list[Figure]:
    """Of all labelled units, with or without a truth."""
    rows = [case.row for case in found.cases]
    labelled = [row for row in rows if row.labels]
    on_images = image_figures(opened, labelled, clip)
    found.notes += on_images.notes
    costs = {
        stats.name: {"items": stats.items, "computed": stats.computed, "seconds": round(stats.seconds, 3)}
        for stats in opened.job.all_stats
    }
    found.facts["images"] = {**on_images.facts, "stages": costs}
    place = {row.unit: i for i, row in enumerate(rows)}
    places = [place[row.unit] for row in on_images.rows]
    # A unit that is known to mean nothing does well to have no label.
    silent = np.array([not case.row.labels and (not case.truth or bool(case.truth.meanings)) for case in found.cases])
    return [spread(p.figure(), places, len(rows), silent) for p in on_images.pairs]


def _graded(found: Evaluation, seed: int) -> list[Figure]:
    """What the run's target itself says of its planted units."""
    if not (found.source / "run.toml").is_file():
        return []
    try:
        grade = grader(found.source)
    except DndError as error:
        found.notes.append(f"the target's own judgement is left out: {error}")
        return []
    figure = grade and graded([case.row for case in found.cases], grade, seed)
    return [figure] if figure else []


def _device(wanted: str | None) -> str:
    """The device of the encoder and of CLIP."""
    from dnd.runtime.devices import find_devices

    return find_devices(wanted or "auto")[0]

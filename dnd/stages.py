"""Stages 2 to 5: each over all units before the next, one heavy model in memory at a time."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dnd.answers import checked_captions, checked_concepts, checked_images, checked_scores, counted
from dnd.api import Backend, Evidence, ImageRequest, Label, Picture, Runtime, SummaryRequest, Unit
from dnd.groups import merge
from dnd.labels import choose, drive
from dnd.mapping import Tally, complete
from dnd.progress import Meter
from dnd.registry import Registry
from dnd.runfile import UNUSED, Run
from dnd.runlog import log_stage
from dnd.spread import Spread
from dnd.store import Store, Table, derive_seed, digest_of, stage_key
from dnd.weights import model_names

if TYPE_CHECKING:
    from PIL.Image import Image

    from dnd.exemplar import Exemplar
    from dnd.exemplars import ExemplarResult
    from dnd.ordinary import Ordinary
    from dnd.watched import Watched

SPREAD = ("captioner", "generator")
"""Kinds of which every device gets one; a summarizer uses several devices by itself."""
CAPTIONS = pa.schema([("key", pa.string()), ("caption", pa.string())])
CONCEPTS = pa.schema([("key", pa.string()), ("concepts", pa.list_(pa.string()))])
IMAGES = pa.schema([("key", pa.string()), ("concept", pa.string()), ("seed", pa.int64()), ("image", pa.string())])
ACTIVATIONS = pa.schema([("key", pa.string()), ("values", pa.binary())])
SCORES = pa.schema([("key", pa.string()), ("scores", pa.list_(pa.float64()))])


@dataclass
class Job:
    """One run under way: what every stage needs, and what has gone wrong so far."""

    run: Run
    registry: Registry
    store: Store
    runtime: Runtime
    meter: Meter
    digest_of_model: Callable[[str], str]
    fresh: bool = False
    tallies: list[Tally] = field(default_factory=list)
    failed: dict[Unit, str] = field(default_factory=dict)

    def backend(self, kind: str) -> tuple[Any, str]:
        """The chosen backend, not yet loaded, and the key of its stage."""
        choice = getattr(self.run, kind)
        entry = self.registry.find(kind, choice.name)
        made: Any = self.registry.make(kind, choice.name, choice.config, self.runtime)
        unkeyed: frozenset[str] = getattr(choice.config, "unkeyed", frozenset())
        chosen = {name: value for name, value in made.chosen().items() if name not in unkeyed}
        if chosen:  # made anew with what "auto" came to: other workers, or less free memory later, must not differ
            known = {name: value for name, value in chosen.items() if name in type(choice.config).model_fields}
            made = self.registry.make(kind, choice.name, choice.config.model_copy(update=known), self.runtime)
        settings = {**choice.config.model_dump(mode="json"), **chosen}
        parts = {
            "backend": [entry.name, entry.distribution, entry.version],
            "settings": {name: value for name, value in settings.items() if name not in unkeyed},
            "models": {name: self.digest_of_model(name) for name in model_names(choice.config)},
            "device": self.runtime.device.partition(":")[0],
        }
        return self._housed(kind, made), stage_key(kind, 1, parts)

    def _housed(self, kind: str, backend: Backend) -> Backend:
        """The backend as it is, or in worker processes where several devices or a time limit want it."""
        devices, timeout = self.run.devices if kind in SPREAD else self.run.devices[:1], self.run.general.timeout
        if len(devices) == 1 and timeout is None:
            return backend
        return Spread(backend, devices, timeout)

    def table(self, tally: Tally, schema: pa.Schema) -> Table:
        table = self.store.table(tally.name, tally.key, schema)
        if self.fresh:
            table.clear()
        return table

    def tally(self, name: str, key: str) -> Tally:
        self.tallies.append(Tally(name, key))
        return self.tallies[-1]

    def map(self, tally: Tally, table: Table, items: Mapping[str, Any], backend: Backend, work: Any, rows: Any) -> None:
        """`complete` under a progress bar."""
        with tally.running(), self.meter.stage(tally.name, len(items)) as advance:
            complete(table, items, backend, work, rows, tally, advance)
        tally.chosen, tally.used = dict(backend.chosen()), dict(backend.used())
        log_stage(tally, backend)


@dataclass(frozen=True)
class Finding:
    """A unit's label with all that led to it: a line of labels.jsonl."""

    label: Label
    exemplars: tuple[Exemplar, ...] = ()
    captions: tuple[str, ...] = ()
    concepts: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()
    drives: tuple[float, ...] = ()
    """Per candidate: see `dnd.labels.drive`."""
    images: tuple[tuple[Picture, ...], ...] = ()
    activations: npt.NDArray[np.float32] | None = None
    """(n_concepts, n_images)."""
    dropped: Mapping[str, str] = field(default_factory=dict)
    """Candidates that could not be judged, and why; they are not among `concepts`."""
    sample: Ordinary | None = None
    """The unit's activations on the random sample."""
    groups: tuple[int, ...] = ()
    """Of each exemplar, where they were put into groups."""
    groups_of_concepts: tuple[tuple[int, ...], ...] = ()
    """Which groups each candidate came from."""


class Findings(Sequence[Finding]):
    """One per unit, each put together anew whenever it is asked for: all at once they would fill the memory."""

    def __init__(self, units: Sequence[Unit], find: Callable[[Unit], Finding]) -> None:
        self._units, self._find = units, find

    def __len__(self) -> int:
        return len(self._units)

    @overload
    def __getitem__(self, place: int) -> Finding: ...
    @overload
    def __getitem__(self, place: slice) -> Findings: ...
    def __getitem__(self, place: int | slice) -> Finding | Findings:
        if isinstance(place, slice):
            return Findings(self._units[place], self._find)
        return self._find(self._units[place])


def caption_stage(job: Job, result: ExemplarResult, units: Sequence[Unit]) -> dict[Unit, tuple[str, ...]]:
    """Caption every distinct exemplar once; units whose captions failed are marked."""
    backend, key = job.backend("captioner")
    tally = job.tally("captions", key)
    table = job.table(tally, CAPTIONS)
    wanted = {unit: [sys.intern(exemplar.digest) for exemplar in result.exemplars(unit)] for unit in units}
    items = {digest: job.store.picture(digest) for digests in wanted.values() for digest in digests}

    def caption(pictures: list[Picture]) -> list[str]:
        return checked_captions(backend.caption([picture.open() for picture in pictures]), len(pictures))

    job.map(tally, table, items, backend, caption, lambda done: [{"key": k, "caption": c} for k, _, c in done])
    captions = {row["key"]: row["caption"] for row in table.read(set(items))}
    return _gather(job, wanted, captions, tally)


def summary_requests(
    job: Job,
    result: ExemplarResult,
    captions: Mapping[Unit, tuple[str, ...]],
    groups: Mapping[Unit, tuple[int, ...]],
) -> dict[Unit, list[SummaryRequest]]:
    """What the summarizer is asked about every unit: its captions or, where there are none, its exemplars; in one
    request, or in one for each group of exemplars."""
    found: dict[Unit, list[SummaryRequest]] = {}
    for unit, texts in captions.items():
        pictures = () if texts else tuple(job.store.picture(e.digest) for e in result.exemplars(unit))
        own = groups.get(unit, ())
        parts = max(own, default=0) + 1
        n = max(1, job.run.concepts.n // parts)
        for group in range(parts):
            seed = derive_seed(job.run.seed, "concepts", unit, *([group] if parts > 1 else []))
            chosen = [place for place in range(len(texts or pictures)) if parts == 1 or own[place] == group]
            request = SummaryRequest(
                tuple(texts[i] for i in chosen if texts), n, seed, tuple(pictures[i] for i in chosen if pictures)
            )
            found.setdefault(unit, []).append(request)
    return found


def concept_stage(
    job: Job, requests: Mapping[Unit, Sequence[SummaryRequest]]
) -> dict[Unit, dict[str, tuple[int, ...]]]:
    """Candidate concepts of every unit, each with the numbers of the unit's requests that it answers."""
    backend, key = job.backend("summarizer")
    tally = job.tally("concepts", key)
    table = job.table(tally, CONCEPTS)
    items = {_request_key(request): request for asked in requests.values() for request in asked}

    def summarize(batch: list[SummaryRequest]) -> list[list[str]]:
        answers = counted(backend.summarize(batch), len(batch))
        return [checked_concepts(answer, request.n_concepts) for answer, request in zip(answers, batch, strict=True)]

    job.map(tally, table, items, backend, summarize, lambda done: [{"key": k, "concepts": c} for k, _, c in done])
    concepts = {row["key"]: tuple(map(sys.intern, row["concepts"])) for row in table.read(set(items))}
    found: dict[Unit, dict[str, tuple[int, ...]]] = {}
    for unit, asked in requests.items():
        keys = [_request_key(request) for request in asked]
        answers = [concepts.get(item, ()) for item in keys]
        if any(answers):
            found[unit] = merge(answers)
        else:
            job.failed[unit] = tally.failures[keys[0]]
    return found


def image_stage(
    job: Job, concepts: Mapping[Unit, tuple[str, ...]]
) -> tuple[dict[str, tuple[Picture, ...]], dict[str, str]]:
    """Synthetic images of every distinct concept; and of a concept that lacks some, why.

    A unit goes on without such candidates; one that has no others is marked failed.
    """
    backend, key = job.backend("generator")
    tally = job.tally("images", key)
    table = job.table(tally, IMAGES)
    wanted = {
        concept: [
            ImageRequest(concept, derive_seed(job.run.seed, "images", concept, number))
            for number in range(job.run.images.n)
        ]
        for concept in dict.fromkeys(c for candidates in concepts.values() for c in candidates)
    }
    items = {f"{r.seed}:{r.concept}": r for requests in wanted.values() for r in requests}
    job.store.mend(table, set(items), ["image"])
    with ThreadPoolExecutor(8) as pool:

        def rows(done: Sequence[tuple[str, ImageRequest, Image]]) -> list[dict[str, Any]]:
            pictures = pool.map(job.store.put_image, [image for _, _, image in done])
            return [
                {"key": k, "concept": r.concept, "seed": r.seed, "image": picture.digest}
                for (k, r, _), picture in zip(done, pictures, strict=True)
            ]

        def generate(batch: list[ImageRequest]) -> list[Image]:
            return checked_images(backend.generate(batch), len(batch))

        job.map(tally, table, items, backend, generate, rows)
    made = {row["key"]: row["image"] for row in table.read(set(items))}
    names = {concept: [f"{r.seed}:{r.concept}" for r in requests] for concept, requests in wanted.items()}
    lacking = {
        concept: tally.failures[next(n for n in keys if n not in made)]
        for concept, keys in names.items()
        if not all(n in made for n in keys)
    }
    for unit, candidates in concepts.items():
        if all(concept in lacking for concept in candidates):
            job.failed[unit] = lacking[candidates[0]]
    images = {c: tuple(job.store.picture(made[n]) for n in keys) for c, keys in names.items() if c not in lacking}
    return images, lacking


class TargetRunner(Backend):
    """The target in a backend's clothes, so that one loop serves both."""

    name = "target"

    def __init__(self, watched: Watched, batch_size: int) -> None:
        self.watched = watched
        self.batch_size = batch_size

    def load(self) -> None:
        self.watched.__enter__()
        self.batch_size = max(self.batch_size, self.watched.batch_size)  # something for every device

    def close(self) -> None:
        self.watched.__exit__(None, None, None)

    def run(self, pictures: list[Picture]) -> list[bytes]:
        """Pooled activations of all units of all layers, joined in the layers' order: float32 bytes per image."""
        pooled = self.watched.pooled_images([picture.open() for picture in pictures])
        joined = np.concatenate([pooled[layer] for layer in self.watched.layers], axis=1)
        return [row.tobytes() for row in joined.astype("<f4")]


def activation_stage(
    job: Job,
    watched: Watched,
    identity: str,
    concepts: Mapping[Unit, tuple[str, ...]],
    images: Mapping[str, tuple[Picture, ...]],
) -> dict[Unit, npt.NDArray[np.float32]]:
    """Each unit's activations on the images of its candidates: (n_concepts, n_images)."""
    parts = {"target": identity, "layers": list(watched.layers), "pooling": watched.pooling}
    key = stage_key("activations", 1, parts)
    tally = job.tally("activations", key)
    table = job.table(tally, ACTIVATIONS)
    runner = TargetRunner(watched, job.run.batch_size)
    units = [unit for unit in concepts if unit not in job.failed]
    items = {picture.digest: picture for unit in units for c in concepts[unit] for picture in images[c]}
    job.map(tally, table, items, runner, runner.run, lambda done: [{"key": k, "values": v} for k, _, v in done])
    starts = dict(zip(watched.layers, np.cumsum([0, *watched.layer_sizes().values()]), strict=False))
    rows: dict[str, list[tuple[Unit, int]]] = {}
    places: dict[str, list[tuple[str, int]]] = {}
    found = {u: np.full((len(concepts[u]), job.run.images.n), np.nan, np.float32) for u in units}
    for unit in units:
        for row, concept in enumerate(concepts[unit]):
            rows.setdefault(concept, []).append((unit, row))
    for concept in rows:
        for column, picture in enumerate(images[concept]):
            places.setdefault(picture.digest, []).append((concept, column))
    for line in table.read(set(items)):
        values = np.frombuffer(line["values"], "<f4")
        for concept, column in places[line["key"]]:
            for unit, row in rows[concept]:
                found[unit][row, column] = values[starts[unit.layer] + unit.index]
    for unit in units:
        missing = tally.failures and [p for c in concepts[unit] for p in images[c] if p.digest in tally.failures]
        if missing:
            job.failed[unit] = tally.failures[missing[0].digest]
    return {unit: values for unit, values in found.items() if unit not in job.failed}


def score_stage(job: Job, units: Iterable[Unit], evidence: Callable[[Unit], Evidence]) -> dict[Unit, tuple[float, ...]]:
    """The scorer's word on every candidate of every unit."""
    backend, key = job.backend("scorer")
    tally = job.tally("scores", key)
    table = job.table(tally, SCORES)
    keys = {unit: _evidence_key(evidence(unit)) for unit in units}
    items = {key: unit for unit, key in keys.items()}

    def score(batch: list[Unit]) -> list[list[float]]:
        whole = [evidence(unit) for unit in batch]
        answers = counted(backend.score(whole), len(whole))
        return [checked_scores(answer, len(one.concepts)) for answer, one in zip(answers, whole, strict=True)]

    job.map(tally, table, items, backend, score, lambda done: [{"key": k, "scores": s} for k, _, s in done])
    scores = {row["key"]: tuple(row["scores"]) for row in table.read(set(items))}
    for unit, item in keys.items():
        if item not in scores:
            job.failed[unit] = tally.failures[item]
    return {unit: scores[item] for unit, item in keys.items() if item in scores}


def find_labels(job: Job, watched: Watched, identity: str, result: ExemplarResult, units: Sequence[Unit]) -> Findings:
    """Stages 2 to 5 over the exemplars of all units, then each unit's label, in the order of `units`."""
    job.failed.update((unit, f"exemplars: {reason}") for unit, reason in result.failed.items())
    silent = {unit for unit in units if result.is_silent(unit)}
    active = [unit for unit in units if unit not in silent and unit not in job.failed]
    groups: dict[Unit, tuple[int, ...]] = {}
    if job.run.concepts.clusters > 1:
        from dnd.grouping import group_stage

        groups = group_stage(job, watched, identity, result, active)
        active = [unit for unit in active if unit in groups]
    captions: dict[Unit, tuple[str, ...]] = dict.fromkeys(active, ())
    if job.run.captioner.name != UNUSED:
        captions = caption_stage(job, result, active)
    answers = concept_stage(job, summary_requests(job, result, captions, groups))
    concepts = {unit: tuple(those) for unit, those in answers.items()}
    if job.run.generator.name == UNUSED:
        images: dict[str, tuple[Picture, ...]] = {c: () for those in concepts.values() for c in those}
        lacking: dict[str, str] = {}
        activations = {unit: np.zeros((len(those), 0), np.float32) for unit, those in concepts.items()}
        drawn = concepts
    else:
        images, lacking = image_stage(job, concepts)
        drawn = {unit: tuple(c for c in candidates if c in images) for unit, candidates in concepts.items()}
        activations = activation_stage(job, watched, identity, drawn, images)
    sample = tuple(job.store.picture(digest) for digest in result.sample)

    def evidence(unit: Unit) -> Evidence:
        return _evidence(job, result, unit, drawn[unit], images, activations[unit], sample)

    scores = score_stage(job, activations, evidence)
    alike = _alike(job, {unit: drawn[unit] for unit in scores})
    calibration = job.run.labels.calibrated

    def find(unit: Unit) -> Finding:
        if unit in silent:
            label = Label(unit, "uninterpretable", (), "it responds to no probing image differently from another")
            return Finding(label, result.exemplars(unit), sample=result.ordinary(unit))
        if unit in job.failed:
            label = Label(unit, "failed", (), job.failed[unit])
            return Finding(
                label,
                result.exemplars(unit),
                captions.get(unit, ()),
                concepts.get(unit, ()),
                sample=result.ordinary(unit),
                groups=groups.get(unit, ()),
            )
        one = evidence(unit)
        drives = tuple(drive(row, one.sample_activations) for row in one.activations if row.size)
        own_groups = tuple(answers[unit][concept] for concept in one.concepts) if unit in groups else ()
        least = job.run.labels
        label = choose(
            unit,
            one.concepts,
            scores[unit],
            drives,
            min_drive=least.min_drive,
            min_score=least.min_score,
            calibration=calibration,
            min_confidence=least.min_confidence,
            groups=own_groups,
            alike=alike.get(unit),
        )
        return Finding(
            label,
            result.exemplars(unit),
            captions[unit],
            one.concepts,
            scores[unit],
            drives,
            one.images,
            one.activations if drives else None,
            {concept: lacking[concept] for concept in concepts[unit] if concept in lacking},
            result.ordinary(unit),
            groups.get(unit, ()),
            own_groups,
        )

    return Findings(units, find)


# --- helpers -----------------------------------------------------------------------------------------


def _request_key(request: SummaryRequest) -> str:
    images = [[picture.digest for picture in request.images]] if request.images else []
    return digest_of([list(request.captions), request.n_concepts, request.seed, *images])


def _alike(job: Job, concepts: Mapping[Unit, tuple[str, ...]]) -> dict[Unit, dict[int, set[int]]]:
    """Per unit and candidate, the others that say nearly the same; nothing where no encoder was chosen."""
    settings = job.run.labels
    if settings.encoder is None or not concepts:
        return {}
    from dnd.evaluation.encoder import Encoder

    encoder, found = Encoder(settings.encoder, job.runtime.device), {}
    encoder.encode(sorted({concept for those in concepts.values() for concept in those}))
    for unit, those in concepts.items():
        vectors = encoder.encode(those).sentences
        near = vectors @ vectors.T > settings.distinct
        found[unit] = {i: {int(j) for j in np.flatnonzero(row) if j != i} for i, row in enumerate(near)}
    return found


def _gather(
    job: Job, wanted: Mapping[Unit, Sequence[str]], found: Mapping[str, str], tally: Tally
) -> dict[Unit, tuple[str, ...]]:
    """Each unit's answers; a unit that lacks one is marked failed with that item's reason."""
    whole: dict[Unit, tuple[str, ...]] = {}
    for unit, keys in wanted.items():
        missing = next((key for key in keys if key not in found), None)
        if missing is None:
            whole[unit] = tuple(found[key] for key in keys)
        else:
            job.failed[unit] = tally.failures[missing]
    return whole


def _evidence(
    job: Job,
    result: ExemplarResult,
    unit: Unit,
    concepts: tuple[str, ...],
    images: Mapping[str, tuple[Picture, ...]],
    activations: npt.NDArray[np.float32],
    sample: tuple[Picture, ...],
) -> Evidence:
    exemplars = result.exemplars(unit)
    return Evidence(
        unit=unit,
        exemplars=tuple(job.store.picture(e.digest) for e in exemplars),
        exemplar_activations=np.array([e.activation for e in exemplars], np.float32),
        concepts=concepts,
        images=tuple(images[c] for c in concepts),
        activations=activations,
        sample=sample,
        sample_activations=result.sample_activations(unit),
    )


def _evidence_key(evidence: Evidence) -> str:
    return digest_of(
        {
            "exemplars": [p.digest for p in evidence.exemplars],
            "concepts": list(evidence.concepts),
            "images": [[p.digest for p in row] for row in evidence.images],
            "activations": [f"{v:.5g}" for row in evidence.activations for v in row],
            "sample": [p.digest for p in evidence.sample],
            "sample_activations": [f"{v:.5g}" for v in evidence.sample_activations],
        }
    )

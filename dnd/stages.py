"""Stages 2 to 5: each over all units before the next, one heavy model in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dnd.api import Backend, Evidence, ImageRequest, Label, Picture, Runtime, SummaryRequest, Unit
from dnd.errors import PluginError
from dnd.labels import choose, drive
from dnd.mapping import Tally, complete
from dnd.progress import Meter
from dnd.registry import Registry
from dnd.runfile import Run
from dnd.store import Store, Table, derive_seed, digest_of, stage_key
from dnd.weights import model_names

if TYPE_CHECKING:
    from PIL.Image import Image

    from dnd.exemplars import Exemplar, ExemplarResult
    from dnd.watched import Watched

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
        settings = choice.config.model_dump(mode="json", exclude={"batch_size"})
        parts = {
            "backend": [entry.name, entry.distribution, entry.version],
            "settings": settings,
            "models": {name: self.digest_of_model(name) for name in model_names(choice.config)},
            "device": self.runtime.device.partition(":")[0],
        }
        return self.registry.make(kind, choice.name, choice.config, self.runtime), stage_key(kind, 1, parts)

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


def caption_stage(job: Job, result: ExemplarResult, units: Sequence[Unit]) -> dict[Unit, tuple[str, ...]]:
    """Caption every distinct exemplar once; units whose captions failed are marked."""
    backend, key = job.backend("captioner")
    tally = job.tally("captions", key)
    table = job.table(tally, CAPTIONS)
    wanted = {unit: [exemplar.digest for exemplar in result.exemplars(unit)] for unit in units}
    items = {digest: job.store.picture(digest) for digests in wanted.values() for digest in digests}

    def caption(pictures: list[Picture]) -> list[str]:
        return _texts(backend.caption([picture.open() for picture in pictures]))

    job.map(tally, table, items, backend, caption, lambda done: [{"key": k, "caption": c} for k, _, c in done])
    captions = {row["key"]: row["caption"] for row in table.read(set(items))}
    return _gather(job, wanted, captions, tally)


def concept_stage(job: Job, captions: Mapping[Unit, tuple[str, ...]]) -> dict[Unit, tuple[str, ...]]:
    """Candidate concepts of every unit from its captions."""
    backend, key = job.backend("summarizer")
    tally = job.tally("concepts", key)
    table = job.table(tally, CONCEPTS)
    requests = {
        unit: SummaryRequest(texts, job.run.concepts.n, derive_seed(job.run.seed, "concepts", unit))
        for unit, texts in captions.items()
    }
    keys = {unit: digest_of([list(r.captions), r.n_concepts, r.seed]) for unit, r in requests.items()}
    items = {keys[unit]: request for unit, request in requests.items()}

    def summarize(batch: list[SummaryRequest]) -> list[list[str]]:
        return [
            _concepts(answer, request.n_concepts)
            for answer, request in zip(backend.summarize(batch), batch, strict=True)
        ]

    job.map(tally, table, items, backend, summarize, lambda done: [{"key": k, "concepts": c} for k, _, c in done])
    concepts = {row["key"]: tuple(row["concepts"]) for row in table.read(set(items))}
    found: dict[Unit, tuple[str, ...]] = {}
    for unit, item in keys.items():
        if item in concepts:
            found[unit] = concepts[item]
        else:
            job.failed[unit] = tally.failures[item]
    return found


def image_stage(job: Job, concepts: Mapping[Unit, tuple[str, ...]]) -> dict[str, tuple[Picture, ...]]:
    """Synthetic images of every distinct concept; those of a concept that failed are missing."""
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
    with ThreadPoolExecutor(8) as pool:

        def rows(done: Sequence[tuple[str, ImageRequest, Image]]) -> list[dict[str, Any]]:
            pictures = pool.map(job.store.put_image, [image.convert("RGB") for _, _, image in done])
            return [
                {"key": k, "concept": r.concept, "seed": r.seed, "image": picture.digest}
                for (k, r, _), picture in zip(done, pictures, strict=True)
            ]

        job.map(tally, table, items, backend, backend.generate, rows)
    made = {row["key"]: row["image"] for row in table.read(set(items))}
    names = {concept: [f"{r.seed}:{r.concept}" for r in requests] for concept, requests in wanted.items()}
    for unit, candidates in concepts.items():
        missing = next((n for c in candidates for n in names[c] if n not in made), None)
        if missing is not None:
            job.failed[unit] = tally.failures[missing]
    return {
        concept: tuple(job.store.picture(made[n]) for n in keys)
        for concept, keys in names.items()
        if all(n in made for n in keys)
    }


class _TargetRunner(Backend):
    """The target in a backend's clothes, so that one loop serves both."""

    name = "target"

    def __init__(self, watched: Watched, batch_size: int) -> None:
        self.watched = watched
        self.batch_size = batch_size

    def load(self) -> None:
        self.watched.__enter__()

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
    runner = _TargetRunner(watched, job.run.batch_size)
    units = [unit for unit in concepts if unit not in job.failed]
    items = {picture.digest: picture for unit in units for c in concepts[unit] for picture in images[c]}
    job.map(tally, table, items, runner, runner.run, lambda done: [{"key": k, "values": v} for k, _, v in done])
    starts = dict(zip(watched.layers, np.cumsum([0, *watched.layer_sizes().values()]), strict=False))
    places: dict[str, list[tuple[Unit, int, int]]] = {}
    found = {u: np.full((len(concepts[u]), job.run.images.n), np.nan, np.float32) for u in units}
    for unit in units:
        for row, concept in enumerate(concepts[unit]):
            for column, picture in enumerate(images[concept]):
                places.setdefault(picture.digest, []).append((unit, row, column))
    for line in table.read(set(items)):
        values = np.frombuffer(line["values"], "<f4")
        for unit, row, column in places[line["key"]]:
            found[unit][row, column] = values[starts[unit.layer] + unit.index]
    for unit in units:
        missing = [p for c in concepts[unit] for p in images[c] if p.digest in tally.failures]
        if missing:
            job.failed[unit] = tally.failures[missing[0].digest]
    return {unit: values for unit, values in found.items() if unit not in job.failed}


def score_stage(job: Job, evidence: Mapping[Unit, Evidence]) -> dict[Unit, tuple[float, ...]]:
    """The scorer's word on every candidate of every unit."""
    backend, key = job.backend("scorer")
    tally = job.tally("scores", key)
    table = job.table(tally, SCORES)
    keys = {unit: _evidence_key(e) for unit, e in evidence.items()}
    items = {keys[unit]: e for unit, e in evidence.items()}

    def score(batch: list[Evidence]) -> list[list[float]]:
        answers = backend.score(batch)
        for answer, one in zip(answers, batch, strict=True):
            if len(answer) != len(one.concepts) or not np.isfinite(answer).all():
                raise PluginError(f"not one finite score per candidate: {answer}")
        return [[float(value) for value in answer] for answer in answers]

    job.map(tally, table, items, backend, score, lambda done: [{"key": k, "scores": s} for k, _, s in done])
    scores = {row["key"]: tuple(row["scores"]) for row in table.read(set(items))}
    for unit, item in keys.items():
        if item not in scores:
            job.failed[unit] = tally.failures[item]
    return {unit: scores[item] for unit, item in keys.items() if item in scores}


def find_labels(
    job: Job, watched: Watched, identity: str, result: ExemplarResult, units: Sequence[Unit]
) -> Iterator[Finding]:
    """Stages 2 to 5 over the exemplars of all units, then each unit's label, in the order of `units`."""
    job.failed.update((unit, f"exemplars: {reason}") for unit, reason in result.failed.items())
    silent = {unit for unit in units if result.is_silent(unit)}
    captions = caption_stage(job, result, [unit for unit in units if unit not in silent and unit not in job.failed])
    concepts = concept_stage(job, captions)
    images = image_stage(job, concepts)
    activations = activation_stage(job, watched, identity, concepts, images)
    evidence = {
        unit: _evidence(job, result, unit, concepts[unit], images, values) for unit, values in activations.items()
    }
    scores = score_stage(job, evidence)
    for unit in units:
        if unit in silent:
            label = Label(unit, "uninterpretable", (), "it responds to no probing image differently from another")
            yield Finding(label, result.exemplars(unit))
        elif unit in job.failed:
            label = Label(unit, "failed", (), job.failed[unit])
            yield Finding(label, result.exemplars(unit), captions.get(unit, ()), concepts.get(unit, ()))
        else:
            one = evidence[unit]
            drives = tuple(drive(row, one.sample_activations) for row in one.activations)
            least = job.run.labels
            label = choose(
                unit, one.concepts, scores[unit], drives, min_drive=least.min_drive, min_score=least.min_score
            )
            yield Finding(
                label,
                result.exemplars(unit),
                captions[unit],
                one.concepts,
                scores[unit],
                drives,
                one.images,
                one.activations,
            )


# --- helpers -----------------------------------------------------------------------------------------


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


def _texts(answers: Sequence[str]) -> list[str]:
    for answer in answers:
        if not isinstance(answer, str) or not answer.strip() or len(answer) > 2000:
            raise PluginError(f"not a caption: {str(answer)[:80]!r}")
    return [answer.strip() for answer in answers]


def _concepts(answers: Sequence[str], at_most: int) -> list[str]:
    distinct = list(islice(dict.fromkeys(answers), at_most))
    if not distinct or not all(isinstance(a, str) and a.strip() and len(a) <= 100 for a in distinct):
        raise PluginError(f"not a list of candidate concepts: {str(answers)[:80]}")
    return distinct


def _evidence(
    job: Job,
    result: ExemplarResult,
    unit: Unit,
    concepts: tuple[str, ...],
    images: Mapping[str, tuple[Picture, ...]],
    activations: npt.NDArray[np.float32],
) -> Evidence:
    exemplars = result.exemplars(unit)
    return Evidence(
        unit=unit,
        exemplars=tuple(job.store.picture(e.digest) for e in exemplars),
        exemplar_activations=np.array([e.activation for e in exemplars], np.float32),
        concepts=concepts,
        images=tuple(images[c] for c in concepts),
        activations=activations,
        sample=tuple(job.store.picture(d) for d in result.sample),
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

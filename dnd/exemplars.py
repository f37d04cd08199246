"""Stage 1: the images, and crops of images, that drive each unit most.

A first pass over the whole probing set keeps each unit's strongest images, a second takes attention crops of
those; images and crops together are ranked again, and the strongest are the unit's exemplars. Equal activations
rank by the order of the probing set, whole images before their crops. Identical images count once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dnd.api import ProbingSet, Unit
from dnd.cropping import CANDIDATES, Candidate, Cropper, Features, read_candidates
from dnd.crops import Box
from dnd.geometry import cut
from dnd.loading import open_again
from dnd.store import Store, Table, derive_seed, digest_of
from dnd.survey import LayerTop, Survey, run_survey
from dnd.watched import Watched

EXEMPLARS = pa.schema(
    [
        ("key", pa.string()),  # str(Unit)
        ("images", pa.list_(pa.string())),  # digests in the store
        ("sources", pa.list_(pa.string())),
        ("boxes", pa.list_(pa.list_(pa.float64()))),  # empty for whole images
        ("activations", pa.list_(pa.float32())),
        ("reason", pa.string()),  # why there are none, or ""
    ]
)
SAMPLE = pa.schema([("key", pa.string()), ("image", pa.string())])
_UNITS_AT_ONCE = 32
"""Units whose exemplars are written together."""
_FEATURES = 32
"""Dimensions of the random projection in which diversity is measured."""


class Settings(Protocol):
    """What of a run file's [exemplars] is read here (`dnd.runfile.Exemplars`)."""

    @property
    def k(self) -> int: ...
    @property
    def crops(self) -> bool: ...
    @property
    def max_crops(self) -> int: ...
    @property
    def sample(self) -> int: ...


@dataclass(frozen=True)
class Exemplar:
    """An image or crop that drives a unit."""

    digest: str
    """In the store."""
    source: str
    """Name of the probing image."""
    box: Box | None
    """The crop in fractions of the source's width and height; None for the whole image."""
    activation: float
    """Pooled."""


class ExemplarResult:
    """What stage 1 found."""

    def __init__(
        self, surveys: Mapping[str, Survey], sample: Sequence[str], rows: Mapping[Unit, dict[str, Any]]
    ) -> None:
        self._surveys, self._rows = surveys, rows
        survey = next(iter(surveys.values()))
        self.sample = tuple(sample)
        """Digests of a random sample of the probing set, in a random order that does not depend on the units."""
        self.unreadable = tuple(survey.unreadable.items())
        """(name, reason) of each image that was skipped."""
        self.n_images = survey.n_images - len(survey.unreadable) - survey.duplicates
        """Distinct images that were seen."""
        self.duplicates = survey.duplicates
        self.failed = {unit: row["reason"] for unit, row in rows.items() if row["reason"]}
        """Units without exemplars, and why."""
        self.computed = 0
        """Units that were not in the store before."""
        self.target_seconds = 0.0
        self.no_crops = ""
        """Why the target's preprocess allows no attention crops, for all or for some sizes of image; or empty."""

    def exemplars(self, unit: Unit) -> tuple[Exemplar, ...]:
        """A unit's exemplars, strongest first; none for a failed unit."""
        row = self._rows[unit]
        columns = (row[name] for name in ("images", "sources", "boxes", "activations"))
        return tuple(Exemplar(d, s, Box(*b) if b else None, a) for d, s, b, a in zip(*columns, strict=True))

    def sample_activations(self, unit: Unit) -> npt.NDArray[np.float32]:
        """Its pooled activation on each image of `sample`: (n_sample,)."""
        survey = self._surveys[unit.layer]
        return survey.layers[unit.layer].sample[survey.sample_order(), unit.index].numpy()

    def is_silent(self, unit: Unit) -> bool:
        """Whether its activation is the same on every image."""
        if unit in self.failed:
            return False
        top = self._surveys[unit.layer].layers[unit.layer]
        return bool(top.values[0, unit.index] <= top.lowest[unit.index])


def find_exemplars(
    watched: Watched,
    probing: ProbingSet,
    units: Mapping[str, Sequence[int]],
    settings: Settings,
    store: Store,
    key: str,
    *,
    seed: int,
    batch_size: int,
    progress: Callable[[int], None],
    workers: int = 4,
    pool: int = 0,
    fresh: bool = False,
) -> ExemplarResult:
    """Exemplars of some units of each watched layer, in the store under `key`.

    `key` stands for the target, the probing set, settings and `pool`, not for the choice of layers and units:
    what is in the store of earlier choices is reused. `progress` is called with the number of images newly seen.
    With `pool` > k the exemplars are k different ones (see `choose`) among the strongest `pool`; crops are taken of
    the k strongest images in either case.
    """
    watched.use_batches_of(batch_size)
    watched.check_units(units)
    wanted = [Unit(layer, index) for layer, indices in units.items() for index in indices]
    tables = [
        store.table(*one)
        for one in (("exemplars", key, EXEMPLARS), ("crops", key, CANDIDATES), ("sample", key, SAMPLE))
    ]
    folder = store.folder / f"survey-{key[:24]}"
    if fresh:
        for table in tables:
            table.clear()
        for file in folder.glob("*.npz"):
            file.unlink(missing_ok=True)
    rows, candidates, sample = tables
    began = watched.seconds
    surveys = _surveys(watched, probing, folder, max(settings.k, pool), settings.sample, seed, workers, progress)
    pictures = _keep_sample(store, sample, probing, next(iter(surveys.values())).sample_images(), workers)
    done = rows.keys()
    todo = [unit for unit in wanted if str(unit) not in done]
    chosen = {unit: _strongest(surveys[unit.layer].layers[unit.layer], unit.index) for unit in todo}
    features = _features(surveys, seed) if pool > settings.k else {}
    max_crops = settings.max_crops if settings.crops else 0
    cropper = Cropper(watched, probing, candidates, max_crops=max_crops, features=features, workers=workers)
    cropper.run({unit: [image for image, _ in images] for unit, images in chosen.items()}, settings.k)
    found = {
        unit: choose(those, settings.k, pool, _ordinary(surveys[unit.layer], unit)) if those else []
        for unit, those in read_candidates(candidates, chosen).items()
    }
    for start in range(0, len(todo), _UNITS_AT_ONCE):
        group = {unit: found[unit] for unit in todo[start : start + _UNITS_AT_ONCE]}
        rows.append(_rows(group, surveys, store, probing, workers))
    result = ExemplarResult(surveys, pictures, _by_unit(rows, wanted))
    result.computed, result.no_crops = len(todo), cropper.geometry.problem
    result.target_seconds = watched.seconds - began
    return result


def choose(candidates: Sequence[Candidate], k: int, pool: int = 0, ordinary: float = -np.inf) -> list[Candidate]:
    """The k strongest candidates, strongest first.

    With `pool` > k, k of the strongest `pool`: the strongest, then each time the one farthest (by Euclid, in the
    layer's standardised activation space) from those already taken: farthest-point sampling, Gonzalez 1985. What is
    weaker than halfway from `ordinary`, the unit's usual activation, to the k-th strongest is left out.
    """
    ranked = sorted(candidates, key=lambda c: (-c.activation, c.box is not None, c.image, c.box or ()))
    if pool <= k or len(ranked) <= k:
        return ranked[:k]
    least = (ordinary + ranked[k - 1].activation) / 2
    ranked = [candidate for candidate in ranked[:pool] if candidate.activation >= least]
    places = np.array([candidate.features for candidate in ranked])  # (at most pool, d)
    taken = [0]
    distance = np.full(len(places), np.inf)
    while len(taken) < min(k, len(places)):
        distance = np.minimum(distance, ((places - places[taken[-1]]) ** 2).sum(1))
        distance[taken] = -1
        taken.append(int(distance.argmax()))
    return [ranked[place] for place in sorted(taken)]


def _surveys(
    watched: Watched,
    probing: ProbingSet,
    folder: Path,
    keep: int,
    sample: int,
    seed: int,
    workers: int,
    progress: Callable[[int], None],
) -> dict[str, Survey]:
    """A finished survey of each layer, from the store or from one pass for all that are missing."""
    sizes = watched.layer_sizes()
    files = {layer: folder / f"{digest_of(layer)[:16]}.npz" for layer in sizes}

    def survey(layers: Iterable[str]) -> Survey:
        return Survey({layer: sizes[layer] for layer in layers}, len(probing), keep, sample, seed)

    found = {layer: survey([layer]).restore(file) for layer, file in files.items()}
    missing = [layer for layer in sizes if not found[layer].done]
    if not missing:
        progress(len(probing))
    else:
        meanwhile = folder / f"partial-{digest_of(missing)[:16]}.npz"
        shared = survey(missing).restore(meanwhile)
        run_survey(shared, watched, probing, meanwhile, workers, progress)
        for layer in missing:
            shared.save(files[layer], [layer])
            found[layer] = shared
        meanwhile.unlink(missing_ok=True)
    return found


def _keep_sample(store: Store, table: Table, probing: ProbingSet, images: Sequence[int], workers: int) -> list[str]:
    """Put the sample's images into the store; their digests."""
    done = {row["key"]: row["image"] for row in table.read()}
    missing = [image for image in images if str(image) not in done]
    with ThreadPoolExecutor(workers) as pool:
        digests = list(pool.map(lambda image: store.put_image(open_again(probing, image)).digest, missing))
    table.append([{"key": str(i), "image": digest} for i, digest in zip(missing, digests, strict=True)])
    done |= {str(image): digest for image, digest in zip(missing, digests, strict=True)}
    return [done[str(image)] for image in images]


def _ordinary(survey: Survey, unit: Unit) -> float:
    """The median of a unit's activations on the random sample."""
    return float(np.nanmedian(survey.layers[unit.layer].sample[survey.sample_order(), unit.index].numpy()))


def _strongest(top: LayerTop, index: int) -> list[tuple[int, float]]:
    """A unit's (image, activation), strongest first; none for a unit that is broken."""
    if top.broken[index] >= 0:
        return []
    pairs = zip(top.images[:, index].tolist(), top.values[:, index].tolist(), strict=True)
    return [(image, value) for image, value in pairs if image >= 0]


def _features(surveys: Mapping[str, Survey], seed: int) -> Features:
    """Activations, each unit scaled by its mean and deviation on the sample, through a random projection."""
    found = {}
    for layer, survey in surveys.items():
        sample = survey.layers[layer].sample[survey.sample_order()].double().numpy()
        sample = np.where(np.isfinite(sample), sample, 0)
        mean, deviation = sample.mean(0), sample.std(0)
        scale = np.divide(1, deviation, out=np.zeros_like(deviation), where=deviation > 1e-6 * (np.abs(mean) + 1e-12))
        project = np.random.default_rng(derive_seed(seed, "diversity", layer)).normal(size=(sample.shape[1], _FEATURES))
        matrix = scale[:, None] * project
        found[layer] = np.concatenate([matrix, -(mean @ matrix)[None]]).astype(np.float32)
    return found


def _rows(
    chosen: Mapping[Unit, Sequence[Candidate]],
    surveys: Mapping[str, Survey],
    store: Store,
    probing: ProbingSet,
    workers: int,
) -> list[dict[str, Any]]:
    """Put the exemplars of some units into the store; the units' rows."""
    wanted: dict[int, set[Box | None]] = {}
    for candidates in chosen.values():
        for candidate in candidates:
            wanted.setdefault(candidate.image, set()).add(candidate.box)

    def put(item: tuple[int, set[Box | None]]) -> list[tuple[tuple[int, Box | None], str]]:
        image = open_again(probing, item[0])
        return [((item[0], box), store.put_image(cut(image, box) if box else image).digest) for box in item[1]]

    with ThreadPoolExecutor(workers) as pool:
        digests = dict(pair for pairs in pool.map(put, wanted.items()) for pair in pairs)
    return [
        {
            "key": str(unit),
            "images": [digests[c.image, c.box] for c in candidates],
            "sources": [probing.image_name(c.image) for c in candidates],
            "boxes": [list(c.box or ()) for c in candidates],
            "activations": [c.activation for c in candidates],
            "reason": "" if candidates else "its activations are not finite (NaN or infinite)",
        }
        for unit, candidates in chosen.items()
    ]


def _by_unit(table: Table, units: Sequence[Unit]) -> dict[Unit, dict[str, Any]]:
    rows = {row["key"]: row for row in table.read({str(unit) for unit in units})}
    return {unit: rows[str(unit)] for unit in units}

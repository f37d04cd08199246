"""Stage 1: the images, and crops of images, that drive each unit most.

A first pass over the whole probing set keeps each unit's strongest images, a second takes attention crops of
those; images and crops together are ranked again, and the strongest are the unit's exemplars. Equal activations
rank by the order of the probing set, whole images before their crops. Identical images count once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dnd.api import ProbingSet, Unit
from dnd.cropping import CANDIDATES, Candidate, Cropper, Features, Stage, read_candidates, unseen
from dnd.errors import DamagedError
from dnd.exemplar import EXEMPLARS, Exemplar, exemplar_of, keep_exemplars
from dnd.loading import open_again
from dnd.ordinary import Ordinary, ordinary
from dnd.shelf import Columns, Shelf
from dnd.store import Store, Table, derive_seed, digest_of
from dnd.survey import LayerTop, Survey, run_survey
from dnd.watched import Watched

SAMPLE = pa.schema([("key", pa.string()), ("image", pa.string())])
_UNITS_AT_ONCE = 32
"""Units whose exemplars are written together."""
_UNITS_A_PASS = 8192
"""Units whose crops are looked for together: with more, images go through the target again, but memory is bounded."""
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


class ExemplarResult:
    """What stage 1 found."""

    def __init__(
        self,
        surveys: Mapping[str, Survey],
        sample: Sequence[str],
        rows: Shelf,
        failed: Mapping[Unit, str],
        folder: Path,
    ) -> None:
        """`rows` has the row of each unit; `folder` is where temporary files may go."""
        self._rows = rows
        survey = next(iter(surveys.values()))
        tops = {layer: one.layers[layer] for layer, one in surveys.items()}
        self._silent = {layer: (top.values[0] <= top.lowest).numpy() for layer, top in tops.items()}
        self._samples = {
            layer: Columns(top.sample.numpy(), surveys[layer].sample_order(), folder) for layer, top in tops.items()
        }
        self.sample = tuple(sample)
        """Digests of a random sample of the probing set, in a random order that does not depend on the units."""
        self.unreadable = tuple(survey.unreadable.items())
        """(name, reason) of each image that was skipped."""
        self.n_images = survey.n_images - len(survey.unreadable) - survey.duplicates
        """Distinct images that were seen."""
        self.duplicates = survey.duplicates
        self.failed = failed
        """Units without exemplars, and why."""
        self.computed = 0
        """Units that were not in the store before."""
        self.target_seconds = 0.0
        self.no_crops = ""
        """Why the target's preprocess allows no attention crops, for all or for some sizes of image; or empty."""

    def exemplars(self, unit: Unit) -> tuple[Exemplar, ...]:
        """A unit's exemplars, strongest first; none for a failed unit."""
        row = self._rows[unit]
        names = ("images", "sources", "boxes", "activations", "views", "attention", "maps", "frames")
        return tuple(exemplar_of(*line) for line in zip(*(row[name] for name in names), strict=True))

    def sample_activations(self, unit: Unit) -> npt.NDArray[np.float32]:
        """Its pooled activation on each image of `sample`: (n_sample,)."""
        return self._samples[unit.layer].column(unit.index)

    def scale(self, layer: str) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Mean and deviation of every unit of the layer on `sample`, (n_units,) each; infinite for a unit that does
        not vary, which so counts for nothing."""
        sample = np.nan_to_num(self._samples[layer].whole().astype(np.float64))
        mean, deviation = sample.mean(0), sample.std(0)
        return mean, np.where(deviation > 1e-6 * (np.abs(mean) + 1e-12), deviation, np.inf)

    def ordinary(self, unit: Unit) -> Ordinary | None:
        """Those activations in a few numbers."""
        return ordinary(self.sample_activations(unit))

    def is_silent(self, unit: Unit) -> bool:
        """Whether its activation is the same on every image."""
        return unit not in self.failed and bool(self._silent[unit.layer][unit.index])


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
    stage: Stage = unseen,
) -> ExemplarResult:
    """Exemplars of some units of each watched layer, in the store under `key`.

    `key` stands for the target, the probing set, settings and `pool`, not for the choice of layers and units:
    what is in the store of earlier choices is reused. `progress` is called with the number of images newly seen.
    With `pool` > k the exemplars are k different ones (see `choose`) among the strongest `pool`; crops are taken of
    the k strongest images in either case. `stage` shows how far what follows the pass is: `Meter.stage`.
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
    store.mend(rows, {str(unit) for unit in wanted}, ["images", "views"])
    store.mend(sample, sample.keys(), ["image"])
    began = watched.seconds
    surveys = _surveys(watched, probing, folder, max(settings.k, pool), settings.sample, seed, workers, progress)
    pictures = _keep_sample(store, sample, probing, next(iter(surveys.values())).sample_images(), workers)
    done = rows.keys()
    todo = [unit for unit in wanted if str(unit) not in done]
    features = _features(surveys, seed) if pool > settings.k else {}
    max_crops = settings.max_crops if settings.crops else 0
    cropper = Cropper(watched, probing, candidates, max_crops=max_crops, features=features, workers=workers)
    for start in range(0, len(todo), _UNITS_A_PASS):
        some = todo[start : start + _UNITS_A_PASS]
        chosen = {unit: _strongest(surveys[unit.layer].layers[unit.layer], unit.index) for unit in some}
        cropper.run({unit: [image for image, _ in images] for unit, images in chosen.items()}, settings.k, stage)
        everything = read_candidates(candidates, chosen)
        found = {
            unit: choose(those, settings.k, pool, _ordinary(surveys[unit.layer], unit)) if those else []
            for unit, those in everything.items()
        }
        with stage("exemplars kept", len(some)) as advance:
            for first in range(0, len(some), _UNITS_AT_ONCE):
                group = {unit: found[unit] for unit in some[first : first + _UNITS_AT_ONCE]}
                rows.append(keep_exemplars(group, everything, store, probing, workers))
                advance(len(group))
    rows.compact()
    result = ExemplarResult(surveys, pictures, *_by_unit(rows, wanted, store), store.folder)
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


def _by_unit(table: Table, units: Sequence[Unit], store: Store) -> tuple[Shelf, dict[Unit, str]]:
    """The row of each unit; and of the units without exemplars, why."""
    names = {str(unit): unit for unit in units}
    rows, failed = Shelf(store.folder), {}
    for row in table.read(set(names)):
        unit = names[row["key"]]
        rows[unit] = row
        if row["reason"]:
            failed[unit] = row["reason"]
    for unit in units:
        if unit not in rows:
            raise DamagedError(f"what was stored of {unit} is gone", "Give the same command again: the rest is kept.")
    return rows, failed

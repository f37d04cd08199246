"""Stage 1: the images, and crops of images, that activate each unit most.

A first pass over the whole probing set keeps each unit's strongest images, a second takes attention crops of
those; images and crops together are ranked again, and the strongest are the unit's exemplars. Equal activations
rank by the order of the probing set, whole images before their crops. Identical images count once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa

from dnd.api import Box, ProbingSet, Unit
from dnd.pipeline.exemplars.answers import Answers
from dnd.pipeline.exemplars.crop import REGIONS, Cropper, Region, Stage, regions_of, unseen
from dnd.pipeline.exemplars.keep import EXEMPLARS, KeptExemplars, exemplar_row, images_named, keep_images
from dnd.pipeline.exemplars.record import Record
from dnd.pipeline.exemplars.sample import SampleActivations, projection
from dnd.pipeline.exemplars.select import choose
from dnd.pipeline.exemplars.shard import Shard, ShardFiles, ShardPass
from dnd.pipeline.exemplars.spread import SpreadPass
from dnd.pipeline.exemplars.topk import TopKPass, check_readable, run_pass
from dnd.probing.prefetch import open_again
from dnd.results.unit import Baseline, baseline
from dnd.store.images import Store
from dnd.store.keys import digest_of
from dnd.store.table import Table
from dnd.target.hooked import HookedTarget

SAMPLE = pa.schema([("key", pa.string()), ("image", pa.string())])
_UNITS_AT_ONCE = 128
"""Units whose exemplars are written together."""
_ROWS_AT_ONCE = 1 << 16
"""Of the table of crops that are in memory together; with fewer, the table is read more often."""
Choice = tuple[Unit, list[Region], list[Region]]
"""A unit, its exemplars, and all regions that they were chosen from."""

LEAST_EXEMPLARS = 2
"""Probing images that a unit must respond to before its exemplars can show what they have in common."""
SILENT = "it responds to no probing image differently from another"
DEAD = "it is a dead latent: it fires on no probing image"
ONE_IMAGE = "it is silent on all probing images but 1, and at least 2 are needed to see what they have in common"


class Settings(Protocol):
    """What of a run file's [exemplars] is read here (`dnd.config.run.Exemplars`)."""

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
        passes: Mapping[str, TopKPass],
        sample: Sequence[str],
        activations: SampleActivations,
        exemplars: KeptExemplars,
        sparse: Collection[str] = (),
    ) -> None:
        """`sparse` are the layers whose units are latents that are zero on most images."""
        self.exemplars = exemplars
        """Of each unit."""
        self.sample_activations = activations.of
        """A unit's pooled activation on each image of `sample`: (n_sample,)."""
        self.sample = tuple(sample)
        """Digests of a random sample of the probing set, in a random order that does not depend on the units."""
        tops = {layer: one.layers[layer] for layer, one in passes.items()}
        self._above_floor = {layer: top.above_floor().numpy() for layer, top in tops.items()}
        self._strongest = {layer: tops[layer].values[0].numpy() for layer in sparse}
        self._fired = {layer: tops[layer].fired.numpy() for layer in sparse}
        first = next(iter(passes.values()))  # all have seen the same images
        self.unreadable = tuple(first.unreadable.items())
        """(name, reason) of each image that was skipped."""
        self.n_images = first.n_images - len(first.unreadable) - first.duplicates
        """Distinct images that were seen."""
        self.duplicates = first.duplicates
        self.narrow = first.narrow
        """Of the distinct images, how many use little of their 16 or 32 bits."""
        self.failed = {unit: reason for unit in exemplars if (reason := exemplars.reason(unit))}
        """Units without exemplars, and why."""
        self.computed = 0
        """Units that were not in the store before."""
        self.target_seconds = 0.0
        self.record: Record | None = None
        """All activations, if they were asked for."""
        self.no_crops = ""
        """Why the target's preprocess allows no attention crops, for all or for some sizes of image; or empty."""

    def images(self, unit: Unit) -> tuple[tuple[str, float], ...]:
        """Digest and pooled activation of each of its exemplars, strongest first."""
        return self.exemplars.images(unit)

    def baseline(self, unit: Unit) -> Baseline | None:
        """Its activations on the sample in a few numbers."""
        return baseline(self.sample_activations(unit), self.sample)

    def above_floor(self, unit: Unit) -> int:
        """On how many probing images it is not silent, counted among those that may become exemplars; 0 where all are
        alike to it."""
        return int(self._above_floor[unit.layer][unit.index])

    def density(self, unit: Unit) -> float | None:
        """The share of the probing images on which a latent fires; None of other units, and where it is not known."""
        fired = int(self._fired[unit.layer][unit.index]) if unit.layer in self._fired else -1
        return fired / self.n_images if fired >= 0 else None

    def fewer_than(self, k: int) -> list[Unit]:
        """Units that can be labelled, but have fewer than k exemplars: no other probing image activates them."""
        able = (unit for unit in self.exemplars if unit not in self.failed and not self.too_few(unit))
        return [unit for unit in able if len(self.images(unit)) < k]

    def too_few(self, unit: Unit) -> str:
        """Why a unit has too few exemplars to be labelled, or ""."""
        count = self.above_floor(unit)
        if unit in self.failed or count >= LEAST_EXEMPLARS:
            return ""
        if count:
            return ONE_IMAGE
        return DEAD if unit.layer in self._strongest and not self._strongest[unit.layer][unit.index] else SILENT


def find_exemplars(
    hooked: HookedTarget,
    probing: ProbingSet,
    units: Sequence[Unit],
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
    shard: Shard | None = None,
    all_activations: bool = False,
    elsewhere: SpreadPass | None = None,
) -> ExemplarResult:
    """Exemplars of some units of the hooked layers, in the store under `key`.

    `key` stands for the target, the probing set, settings and `pool`, not for the choice of layers and units:
    what is in the store of earlier choices is reused. `progress` is called with the number of images newly seen.
    With `pool` > k the exemplars are k different ones (see `choose`) among the strongest `pool`; crops are taken of
    the k strongest images in either case. A `shard` sees its part of the images, and goes on once all parts are there:
    else NotYetError. `stage` shows how far what follows the pass is: `Meter.stage`. With `all_activations`, not for a
    shard, the pass keeps them, see `ExemplarResult.record`. `elsewhere` sees the images in place of this process, but
    for a pass that keeps all activations.
    """
    hooked.use_batches_of(batch_size)
    hooked.check_units(units)
    table, crops = store.table("exemplars", key, EXEMPLARS), store.table("crops", key, REGIONS)
    sample, folder = store.table("sample", key, SAMPLE), store.folder / f"topk-{key[:24]}"
    record = Record(folder, hooked.layer_sizes(), len(probing)) if all_activations else None
    if fresh:
        _clear((table, crops, sample), folder)
    began = hooked.seconds
    answers = Answers(hooked, units if settings.crops or pool > settings.k else ())
    passes = _passes(
        hooked,
        probing,
        folder,
        max(settings.k, pool),
        settings.sample,
        seed,
        workers,
        progress,
        shard,
        record,
        elsewhere,
        answers,
    )
    pictures = _keep_sample(store, sample, probing, next(iter(passes.values())).sample_images(), workers)
    activations = SampleActivations(passes)
    names = {str(unit): unit for unit in units}
    store.mend(table, names, "exemplars", images_named)
    known = table.keys(names)
    missing = [unit for name, unit in names.items() if name not in known]
    features = {layer: projection(activations, layer, seed) for layer in passes} if pool > settings.k else {}
    max_crops = settings.max_crops if settings.crops else 0
    cropper = Cropper(hooked, probing, crops, max_crops=max_crops, features=features, workers=workers, answers=answers)

    def images_of(unit: Unit) -> list[int]:
        return [image for image, _ in _strongest(passes, unit)]

    def choices() -> Iterator[list[Choice]]:
        """The exemplars of the missing units, some units at a time."""
        for some in _groups(missing, max(_UNITS_AT_ONCE, _ROWS_AT_ONCE // max(settings.k, pool))):
            rows = cropper.rows(some, images_of)
            for group in _groups(some, _UNITS_AT_ONCE):
                regions = ((unit, regions_of(unit, _strongest(passes, unit), rows)) for unit in group)
                yield [
                    (unit, _best(unit, of_unit, passes, activations, settings.k, pool), of_unit)
                    for unit, of_unit in regions
                ]

    if missing:
        cropper.run(missing, images_of, settings.k, stage)
        parts = _parts(choices())
        with stage("exemplars kept", len(parts)) as advance:
            digests = keep_images(parts, store, probing, workers, advance)
        for group in choices():
            table.append(
                [
                    exemplar_row(unit, best, regions, _is_broken(passes, unit), digests, probing)
                    for unit, best, regions in group
                ]
            )
    table.compact()
    sparse = [layer for layer, reading in hooked.readings.items() if reading.latents and reading.latents.is_sparse]
    result = ExemplarResult(passes, pictures, activations, KeptExemplars(units, table.columns(names)), sparse)
    result.record = record
    result.computed, result.no_crops = len(missing), cropper.geometry.problem
    result.target_seconds = hooked.seconds - began
    return result


def _parts(choices: Iterable[Sequence[Choice]]) -> dict[int, set[Box | None]]:
    """What becomes an exemplar of some unit: crops of each image, None for the whole."""
    wanted: dict[int, set[Box | None]] = {}
    for group in choices:
        for _, best, _ in group:
            for region in best:
                wanted.setdefault(region.image, set()).add(region.box)
    return wanted


def _clear(tables: Iterable[Table], folder: Path) -> None:
    """Remove what earlier runs kept of the stage."""
    for table in tables:
        table.clear()
    for file in (*folder.glob("*.npz"), *folder.glob("*.f32")):
        file.unlink(missing_ok=True)


def _best(
    unit: Unit,
    regions: Sequence[Region],
    passes: Mapping[str, TopKPass],
    activations: SampleActivations,
    k: int,
    pool: int,
) -> list[Region]:
    """A unit's exemplars: `choose` among the regions above its floor."""
    floor = _floor(passes, unit)
    above = [region for region in regions if region.activation > floor]
    return choose(above, k, pool, float(np.nanmedian(activations.of(unit)))) if above else []


def _groups(units: Sequence[Unit], n: int) -> Iterator[Sequence[Unit]]:
    return (units[start : start + n] for start in range(0, len(units), n))


def _passes(
    hooked: HookedTarget,
    probing: ProbingSet,
    folder: Path,
    keep: int,
    sample: int,
    seed: int,
    workers: int,
    progress: Callable[[int], None],
    shard: Shard | None,
    record: Record | None,
    elsewhere: SpreadPass | None,
    answers: Answers,
) -> dict[str, TopKPass]:
    """A finished pass of each layer, from the store or from one pass for all that are missing."""
    sizes = hooked.layer_sizes()
    files = {layer: folder / f"{digest_of(layer)[:16]}.npz" for layer in sizes}

    def pass_over(layers: Iterable[str]) -> TopKPass:
        return TopKPass({layer: sizes[layer] for layer in layers}, len(probing), keep, sample, seed)

    def part_of(layers: Sequence[str]) -> Callable[[range], ShardPass]:
        own = {layer: sizes[layer] for layer in layers}
        return lambda images: ShardPass(own, len(probing), keep, sample, seed, images)

    def agree() -> bool:
        """Whether the layers have the same sample: an image may have become readable between their passes."""
        return len({tuple(one.sample_images()) for one in found.values()}) < 2

    stored = {layer: pass_over([layer]).restore(file) for layer, file in files.items() if file.exists()}
    found = {layer: one for layer, one in stored.items() if one.done and (record is None or record.has(layer))}
    if len(found) == len(sizes) and agree():
        progress(len(probing))
    while len(found) < len(sizes) or not agree():
        missing = [layer for layer in sizes if layer not in found] or list(sizes)
        tag = digest_of(missing)[:16]
        partial = folder / f"{'recorded' if record else 'partial'}-{tag}.npz"
        shared, shards = pass_over(missing), ShardFiles(folder, tag, part_of(missing), len(probing))
        if shard:
            shards.run(shard, hooked, probing, workers, progress)
            shards.check(shard)
        elif elsewhere and not record:
            own = {layer: sizes[layer] for layer in missing}
            elsewhere(shards, own, keep, sample, probing, progress)
        if record or not shards.merge(shared):
            run_pass(shared.restore(partial), hooked, probing, partial, workers, progress, record, answers.observe)
        check_readable(shared)
        for layer in missing:
            if record:
                record.finish(layer)
            shared.save(files[layer], [layer])
            found[layer] = shared
        partial.unlink(missing_ok=True)
    return {layer: found[layer] for layer in sizes}


def _keep_sample(store: Store, table: Table, probing: ProbingSet, images: Sequence[int], workers: int) -> list[str]:
    """Put the sample's images into the store; their digests."""
    wanted = {str(image) for image in images}
    store.mend(table, wanted, "image")
    done = {row["key"]: row["image"] for row in table.rows(keys=wanted)}
    missing = [image for image in images if str(image) not in done]
    with ThreadPoolExecutor(workers) as pool:
        digests = list(pool.map(lambda image: store.put_image(open_again(probing, image)).digest, missing))
    table.append([{"key": str(i), "image": digest} for i, digest in zip(missing, digests, strict=True)])
    done |= {str(image): digest for image, digest in zip(missing, digests, strict=True)}
    return [done[str(image)] for image in images]


def _strongest(passes: Mapping[str, TopKPass], unit: Unit) -> list[tuple[int, float]]:
    """A unit's (image, activation), strongest first, those at its floor left out; none for a unit that is broken."""
    if _is_broken(passes, unit):
        return []
    top, floor = passes[unit.layer].layers[unit.layer], _floor(passes, unit)
    pairs = zip(top.images[:, unit.index].tolist(), top.values[:, unit.index].tolist(), strict=True)
    return [(image, value) for image, value in pairs if image >= 0 and value > floor]


def _floor(passes: Mapping[str, TopKPass], unit: Unit) -> float:
    """The activation at which it is silent, as on several images; else -inf."""
    return float(passes[unit.layer].layers[unit.layer].floor(unit.index))


def _is_broken(passes: Mapping[str, TopKPass], unit: Unit) -> bool:
    """Whether its activation was not finite on some image."""
    return bool(passes[unit.layer].layers[unit.layer].broken[unit.index] >= 0)

"""What a method other than the core's own works with: the units, the probing pass, the store."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dnd.api import Backend, Box, Label, Picture, Study, Unit
from dnd.errors import PluginError
from dnd.pipeline.activations import TargetRunner
from dnd.pipeline.captions import caption_stage
from dnd.pipeline.job import Job
from dnd.pipeline.label import SILENT
from dnd.plugin.validate import checked_label
from dnd.probing.prefetch import Loaded, load_ahead
from dnd.results.unit import Finding
from dnd.store.keys import digest_of, stage_key
from dnd.target.geometry import Geometry
from dnd.target.preprocess import stack

if TYPE_CHECKING:
    from dnd.api import ProbingSet
    from dnd.pipeline.exemplars.find import ExemplarResult
    from dnd.target.hooked import HookedTarget

_ARRAYS = pa.schema([("key", pa.string()), ("values", pa.binary())])
T = TypeVar("T")


class RunStudy(Study):
    """The probing pass of one run, for a method to draw labels from."""

    def __init__(
        self,
        job: Job,
        hooked: HookedTarget,
        identity: str,
        probing: ProbingSet,
        result: ExemplarResult,
        units: list[Unit],
    ) -> None:
        self.units = tuple(units)
        self.probing = probing
        unreadable = {name for name, _ in result.unreadable}
        self.images = [i for i in range(len(probing)) if probing.image_name(i) not in unreadable]
        self.seed = job.run.seed
        self.failed = job.failed
        """Units without a label, and why."""
        self.captioned: dict[Unit, tuple[str, ...]] = {}
        """Captions that were asked for; they are told with the label."""
        self._job, self._watched, self._identity, self._result = job, hooked, identity, result
        self._geometry = Geometry(hooked.prepare)

    # --- what stands for a unit ---

    def exemplars(self, unit: Unit) -> tuple[tuple[Picture, float], ...]:
        return tuple((self._job.store.picture(digest), value) for digest, value in self._result.images(unit))

    @property
    def sample(self) -> tuple[Picture, ...]:
        return tuple(self._job.store.picture(digest) for digest in self._result.sample)

    def captions(self) -> dict[Unit, tuple[str, ...]]:
        captions_of = caption_stage(self._job, self._result, self.units)
        self.captioned = {unit: captions_of(unit) for unit in self.units if unit not in self.failed}
        return self.captioned

    # --- the target over the probing set ---

    def activations(self, layer: str) -> npt.NDArray[np.float32]:
        hooked, place = self._watched, {image: row for row, image in enumerate(self.images)}
        parts = {"target": self._identity, "layers": list(hooked.layers), "pooling": hooked.pooling}
        runner = TargetRunner(hooked)

        def run(indices: Sequence[int]) -> list[npt.NDArray[np.float32]]:
            return [np.frombuffer(row, "<f4") for row in runner.run([self._picture(index) for index in indices])]

        sizes = hooked.layer_sizes()
        start = sum(sizes[name] for name in list(hooked.layers)[: list(hooked.layers).index(layer)])
        with tempfile.TemporaryFile(dir=self._job.store.folder) as file:
            found = np.memmap(file, np.float32, "w+", shape=(len(place), sizes[layer]))

        def put(key: str, values: npt.NDArray[np.float32]) -> None:
            found[place[int(key)]] = values[start : start + sizes[layer]]

        self._complete(
            "probing-activations",
            {**parts, "probing": self.probing.digest()},
            {str(i): i for i in place},
            runner,
            run,
            put,
        )
        return found

    def _picture(self, index: int) -> Picture:
        return Picture(str(index), lambda: self.probing.open(index))

    def map_shape(self, layer: str) -> tuple[int, ...]:
        return self._watched.map_shape(layer)

    def maps(self, units: Sequence[Unit], name: str) -> Iterator[tuple[list[int], npt.NDArray[np.float32]]]:
        layer, indices = units[0].layer, [unit.index for unit in units]
        stats = self._job.stats(name, "")
        stats.items = stats.computed = len(self.images)
        with stats.running(), self._job.meter.stage(name, len(self.images)) as advance, self._watched as hooked:
            began = hooked.seconds
            for batch in self._batches():
                inputs = stack([one.tensor for one in batch if one.tensor is not None])
                wanted = [(row, unit) for row in range(len(batch)) for unit in indices]
                maps = hooked.maps(inputs, {layer: wanted})[layer]
                yield [one.index for one in batch], maps.reshape(len(batch), len(indices), *maps.shape[1:])
                advance(len(batch))
            stats.backend_seconds += hooked.seconds - began

    def _batches(self) -> Iterator[list[Loaded]]:
        batch: list[Loaded] = []
        for loaded in load_ahead(self.probing, self._watched, self.images, self._job.run.workers):
            if loaded.tensor is not None:
                batch.append(loaded)
            if len(batch) == self._watched.batch_size:
                yield batch
                batch = []
        if batch:
            yield batch

    def frame(self, index: int) -> Box | None:
        """What the target sees of a probing image, in fractions of its width and height; None where that is not a
        rectangle (dnd/target/geometry.py)."""
        return self._geometry.frame(self.probing.open(index).size)

    # --- durable work ---

    def backend(self, kind: str) -> tuple[Any, str]:
        choice = getattr(self._job.run, kind)
        made = self._job.registry.make(kind, choice.name, choice.config, self._job.runtime)
        return made, self._job.backend(kind)[1]

    def digest_of_model(self, name: str) -> str:
        return self._job.digest_of_model(name)

    def key_of(self, *parts: str) -> str:
        return digest_of(list(parts))

    def arrays(
        self,
        name: str,
        parts: Mapping[str, object],
        items: Mapping[str, T],
        backend: Backend,
        work: Callable[[Sequence[T]], Sequence[npt.NDArray[np.float32]]],
    ) -> dict[str, npt.NDArray[np.float32]]:
        found: dict[str, npt.NDArray[np.float32]] = {}
        self._complete(name, parts, items, backend, work, found.__setitem__)
        return found

    def _complete(
        self,
        name: str,
        parts: Mapping[str, object],
        items: Mapping[str, T],
        backend: Backend,
        work: Callable[[Sequence[T]], Sequence[npt.NDArray[np.float32]]],
        put: Callable[[str, npt.NDArray[np.float32]], None],
    ) -> None:
        """`put` gets every item's key and vector."""
        stats = self._job.stats(name, stage_key(name, 1, parts))
        ledger = self._job.ledger()
        for key in items:
            ledger.add(key, key)

        def rows(done: Sequence[tuple[str, str, npt.NDArray[np.float32]]]) -> list[dict[str, object]]:
            return [{"key": key, "values": np.asarray(value, "<f4").tobytes()} for key, _, value in done]

        self._job.map(
            stats,
            self._job.table(stats, _ARRAYS),
            ledger,
            backend,
            lambda keys: work([items[key] for key in keys]),
            rows,
            lambda row: put(row["key"], np.frombuffer(row["values"], "<f4")),
        )
        if stats.failures:
            key, reason = next(iter(stats.failures.items()))
            raise PluginError(f"{name} failed for {len(stats.failures)} of {len(items)} items, first {key}: {reason}")


def label_by(
    job: Job, hooked: HookedTarget, identity: str, probing: ProbingSet, result: ExemplarResult, units: Sequence[Unit]
) -> Iterator[Finding]:
    """Labels of all units by the run's method, in the order of `units`."""
    job.failed.update((unit, f"exemplars: {reason}") for unit, reason in result.failed.items())
    silent = {unit for unit in units if result.is_silent(unit)}
    active = [unit for unit in units if unit not in silent and unit not in job.failed]
    choice = job.run.method
    method: Any = job.registry.make("method", choice.name, choice.config, job.runtime)
    study = RunStudy(job, hooked, identity, probing, result, active)
    found = {label.unit: label for label in map(checked_label, method.describe(study))} if active else {}
    for unit in units:
        if unit in silent:
            label = Label(unit, "uninterpretable", (), SILENT)
        elif unit in found:
            label = found[unit]
        else:
            label = Label(unit, "failed", (), job.failed.get(unit, f"{choice.name} gave no label"))
        captions = study.captioned.get(unit, ())
        yield Finding(label, result.exemplars(unit), captions, sample=result.ordinary(unit))

"""What a method other than the core's own works with: the units, the probing pass, the store."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dnd.api import Box, Label, Method, Picture, Plugin, Study, Unit
from dnd.errors import PluginError
from dnd.pipeline.captions import caption_stage
from dnd.pipeline.job import Job
from dnd.pipeline.label import captioned
from dnd.plugin.guard import guard
from dnd.plugin.validate import checked_label
from dnd.probing.prefetch import Loaded, load_ahead
from dnd.probing.sets import code_of
from dnd.results.unit import UnitResult
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
    """The probing pass of one run, from which a method makes labels."""

    def __init__(
        self,
        job: Job,
        hooked: HookedTarget,
        probing: ProbingSet,
        result: ExemplarResult,
        units: list[Unit],
    ) -> None:
        self.units = tuple(units)
        self.probing = probing
        unreadable = {name for name, _ in result.unreadable}
        self.images = (
            result.record.images()
            if result.record
            else [i for i in range(len(probing)) if probing.image_name(i) not in unreadable]
        )
        self.seed = job.run.seed
        self.failed = job.failed
        """Units without a label, and why."""
        self.captioned: dict[Unit, tuple[str | None, ...]] = {}
        """Captions that the method used; they are written with the label."""
        self._job, self._hooked, self._result = job, hooked, result
        self._method: Plugin = job.builder.plugin(job.run.method)
        self._geometry = Geometry(hooked.prepare)

    # --- what stands for a unit ---

    def exemplars(self, unit: Unit) -> tuple[tuple[Picture, float], ...]:
        return tuple((self._job.store.picture(digest), value) for digest, value in self._result.images(unit))

    @property
    def sample(self) -> tuple[Picture, ...]:
        return tuple(self._job.store.picture(digest) for digest in self._result.sample)

    def captions(self) -> dict[Unit, tuple[str, ...]]:
        self.captioned = caption_stage(self._job, self._result, self.units)
        return {unit: tuple(text for text in own if text is not None) for unit, own in self.captioned.items()}

    # --- the target over the probing set ---

    def activations(self, layer: str) -> npt.NDArray[np.float32]:
        if self._result.record is None:
            raise PluginError("a method asks for all activations that does not say so", "Set `all_activations = True`.")
        rows = self._result.record.of(layer)
        return (rows if len(self.images) == len(rows) else rows[self.images])[:, :-1]

    def map_shape(self, layer: str) -> tuple[int, ...]:
        return self._hooked.map_shape(layer)

    def maps(self, units: Sequence[Unit], name: str) -> Iterator[tuple[list[int], npt.NDArray[np.float32]]]:
        layer, indices = units[0].layer, [unit.index for unit in units]
        stats = self._job.stats(name, "")
        stats.items = stats.computed = len(self.images)
        with stats.running(), self._job.meter.stage(name, len(self.images)) as advance, self._hooked as hooked:
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
        for loaded in load_ahead(self.probing, self._hooked, self.images, self._job.run.workers):
            if loaded.tensor is not None:
                batch.append(loaded)
            if len(batch) == self._hooked.batch_size:
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
        return self._job.backend(kind)

    def digest_of_model(self, name: str) -> str:
        return self._job.digest_of_model(name)

    def key_of(self, *parts: str) -> str:
        return digest_of(list(parts))

    def arrays(
        self,
        name: str,
        parts: Mapping[str, object],
        items: Mapping[str, T],
        backend: AbstractContextManager[object],
        work: Callable[[Sequence[Any]], Sequence[npt.NDArray[np.float32]]],
        *,
        batch_size: int | None = None,
        ahead: Callable[[T], object] | None = None,
    ) -> dict[str, npt.NDArray[np.float32]]:
        plugins = [self._method, backend] if isinstance(backend, Plugin) else [self._method]
        own = {
            "parts": parts,
            "content": [self._job.content(plugin) for plugin in plugins],
            "probing": code_of(self.probing),
        }
        stats = self._job.stats(name, stage_key(name, 1, own))
        found: dict[str, npt.NDArray[np.float32]] = self._job.map(
            stats,
            self._job.table(stats, _ARRAYS),
            items,
            backend,
            lambda batch: [np.asarray(value, "<f4").tobytes() for value in work(batch)],
            answer=lambda row: np.frombuffer(row["values"], "<f4"),
            batch_size=None if batch_size is None else lambda: batch_size,
            ahead=ahead,
        )
        if stats.failures:
            key, reason = next(iter(stats.failures.items()))
            raise PluginError(f"{name} failed for {len(stats.failures)} of {len(items)} items, first {key}: {reason}")
        return found


def label_by(
    job: Job,
    hooked: HookedTarget,
    probing: ProbingSet,
    method: Method,
    result: ExemplarResult,
    units: Sequence[Unit],
) -> Iterator[UnitResult]:
    """Labels of all units by the run's method, in the order of `units`."""
    job.failed.update((unit, f"exemplars: {reason}") for unit, reason in result.failed.items())
    too_few = {unit: reason for unit in units if (reason := result.too_few(unit))}
    active = [unit for unit in units if unit not in too_few and unit not in job.failed]
    study = RunStudy(job, hooked, probing, result, active)
    answers = guard(method.name, method.describe)(study) if active else ()
    found = {label.unit: label for label in map(checked_label, answers)}
    missing = f"{method.name} gave no label"

    def labelled(unit: Unit) -> UnitResult:
        if unit in too_few:
            label = Label(unit, "uninterpretable", (), too_few[unit])
        else:
            label = found.get(unit) or Label(unit, "failed", (), job.failed.get(unit, missing))
        exemplars = captioned(result.exemplars[unit], study.captioned.get(unit, ()))
        evidence = {"baseline": result.baseline(unit), "density": result.density(unit)}
        return UnitResult.of(label, exemplars=exemplars, **evidence)

    return map(labelled, units)

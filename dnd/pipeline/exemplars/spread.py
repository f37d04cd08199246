"""The first pass on the nodes of a cluster: each sees some of the images, and its part is merged here.

A node builds the target and the probing set by the run file, as a run there would, and proves that they are the same.
"""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dnd.api import ProbingSet, Runtime
from dnd.config.run import Run
from dnd.errors import UsageError
from dnd.models.weights import Weights
from dnd.offline.environment import set_switches
from dnd.pipeline.build import Builder, hook, identify
from dnd.pipeline.exemplars.shard import Shard, ShardFiles, ShardPass
from dnd.pipeline.exemplars.topk import run_pass
from dnd.plugin.registry import Entry, Registry
from dnd.probing.prefetch import name_of_pixels
from dnd.runtime.cluster import Cluster, share
from dnd.store.keys import digest_of

PART = 10_000
"""Images that a node sees at a time at most: where one is lost, or the run is killed, no more are seen again."""
_TRIED = 8
"""Images of a part that must be the same on the node."""


@dataclass(frozen=True)
class SpreadPass:
    """Has the nodes of a cluster see a run's probing images."""

    cluster: Cluster
    run: Run
    entries: tuple[Entry, ...]
    """Plugins of the target and of the probing sets."""
    identity: str
    """The target's, see `identify`."""

    def __call__(
        self,
        files: ShardFiles,
        sizes: Mapping[str, int],
        keep: int,
        sample: int,
        probing: ProbingSet,
        progress: Callable[[int], None],
    ) -> None:
        """Bring all parts of the pass over some layers to their end."""
        n = len(probing)
        count = min(n, max(self.cluster.size, -(-n // PART)))
        missing = files.missing(count)
        progress(n - sum(len(shard.images(n)) for shard in missing))
        asked = {
            shard: pickle.dumps(_Asked(self, dict(sizes), keep, sample, n, shard, _marks(probing, shard.images(n))))
            for shard in missing
        }
        for shard, part in share(self.cluster, see, asked):
            files.put(shard, part)
            progress(len(shard.images(n)))


@dataclass(frozen=True)
class _Asked:
    whole: SpreadPass
    sizes: Mapping[str, int]
    keep: int
    sample: int
    n_images: int
    shard: Shard
    marks: str


def see(message: bytes) -> bytes:
    """The file of a finished `ShardPass`. Runs on a node; UsageError where its target or its images are others."""
    asked: _Asked = pickle.loads(message)
    set_switches()
    run, device, images = asked.whole.run, asked.whole.cluster.device, asked.shard.images(asked.n_images)
    builder = Builder(Registry(asked.whole.entries), Runtime(device, Weights.default().resolve, (device,)))
    probing = builder.probing(run.probing)
    if len(probing) != asked.n_images or _marks(probing, images) != asked.marks:
        raise UsageError(
            "the probing images are not the same on every node",
            "Every node needs them at the same place: on a disk that all nodes see, or copied.",
        )
    target = builder.target(run.target)
    module, preprocess = builder.module(run.target)
    hooked = hook(run, module, preprocess, device)
    with hooked:
        pass  # it knows its readings now
    if identify(target, module, preprocess, hooked.readings) != asked.whole.identity:
        raise UsageError(
            f"the target {run.target.name} is another on a node of the cluster",
            "Every node needs the same code and weights of it, and the same versions of what it uses.",
        )
    with tempfile.TemporaryDirectory() as folder, hooked:
        hooked.use_batches_of(run.batch_size)
        own = ShardPass(asked.sizes, asked.n_images, asked.keep, asked.sample, run.seed, images)
        file = Path(folder) / "part.npz"
        run_pass(own, hooked, probing, file, run.workers, lambda n: None)
        own.save(file, own.layers)
        return file.read_bytes()


def _marks(probing: ProbingSet, images: range) -> str:
    """Names some images of a part by their names and pixels."""
    chosen = np.linspace(images.start, images.stop - 1, min(_TRIED, len(images))).astype(int).tolist()
    return digest_of([[probing.image_name(index), _pixels(probing, index)] for index in chosen])


def _pixels(probing: ProbingSet, index: int) -> str:
    try:
        return name_of_pixels(probing.open(index)).hex()
    except Exception as error:  # one that cannot be read is none of the pass's
        return type(error).__name__

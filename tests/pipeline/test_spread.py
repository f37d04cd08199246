"""The first pass on the nodes of a cluster, which here is this process."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import toys

from dnd.api import Runtime
from dnd.config.read import build_run
from dnd.config.run import Run
from dnd.errors import DeviceError, UsageError
from dnd.pipeline import execute as module
from dnd.pipeline import job as jobs
from dnd.pipeline.build import Builder
from dnd.pipeline.execute import execute
from dnd.pipeline.exemplars import spread
from dnd.pipeline.job import Job
from dnd.results.run import RunFolder
from dnd.runtime.cluster import Cluster
from dnd.runtime.memory import Need
from dnd.runtime.pool import WorkerPool

NET = "import toys\n\ndef net():\n    return toys.Net(), toys.preprocess\n"
Share = Callable[[Cluster, Callable[[bytes], bytes], Mapping[Any, bytes]], Iterator[tuple[Any, bytes]]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Over a target that is imported, and photos of which one is there twice and one is broken."""
    (tmp_path / "spread_nets.py").write_text(NET)
    monkeypatch.syspath_prepend(str(tmp_path))
    photos = toys.make_photos(tmp_path / "photos")
    names = sorted(photos.iterdir())
    names[-1].write_bytes(names[0].read_bytes())
    names[-2].write_bytes(b"broken")
    plain = toys.toy_run(photos)
    tables = plain.to_dict()
    tables["target"] = {**tables["target"], "name": "spread_nets:net"}
    yield build_run(tables, toys.registry())
    sys.modules.pop("spread_nets", None)


def label(run: Run, out: Path, share: Share | None, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """In this process alone, or by a cluster that has but the first pass to do."""
    with monkeypatch.context() as patch:
        if share:
            patch.setattr(spread, "share", share)
            stage = module.exemplar_stage

            def spread_stage(job: Any, hooked: Any, identity: str, *rest: Any, elsewhere: None) -> Any:
                chosen = module._chosen_of(run, toys.registry())
                own = spread.SpreadPass(Cluster("cpu", 3), run, chosen, identity)
                return stage(job, hooked, identity, *rest, elsewhere=own)

            patch.setattr(module, "exemplar_stage", spread_stage)
        return execute(run, out, registry=toys.registry())


def here(cluster: Cluster, task: Callable[[bytes], bytes], asked: Mapping[Any, bytes]) -> Iterator[tuple[Any, bytes]]:
    """The last comes first."""
    for key in reversed(list(asked)):
        yield key, task(asked[key])


def test_the_labels_are_those_of_one_process(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spread, "PART", 7)
    alone = label(run, tmp_path / "alone" / "run", None, monkeypatch)
    shared = label(run, tmp_path / "shared" / "run", here, monkeypatch)
    for name in ("labels.csv", "labels.jsonl"):
        assert (shared.folder / name).read_bytes() == (alone.folder / name).read_bytes()
    probing = [json.loads((one.folder / "run.json").read_text())["probing"] for one in (alone, shared)]
    assert probing[0] == probing[1]
    assert probing[0]["duplicates"] == len(probing[0]["unreadable"]) == 1
    parts = list((tmp_path / "shared" / ".dnd-store").glob("topk-*/shard-*"))
    assert len(parts) == -(-len(list((tmp_path / "photos").iterdir())) // 7)


def test_parts_that_are_there_are_not_asked_for_again(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def lost(cluster: Cluster, task: Callable[[bytes], bytes], parts: Mapping[Any, bytes]) -> Iterator[Any]:
        first, *others = parts
        asked.append(len(parts))
        yield first, task(parts[first])
        if len(asked) == 1:
            raise DeviceError("the cluster is gone")
        yield from ((key, task(parts[key])) for key in others)

    with pytest.raises(DeviceError):
        label(run, tmp_path / "runs" / "run", lost, monkeypatch)
    found = label(run, tmp_path / "runs" / "run", lost, monkeypatch)
    assert asked == [3, 2]
    alone = label(run, tmp_path / "alone" / "run", None, monkeypatch)
    assert (found.folder / "labels.csv").read_bytes() == (alone.folder / "labels.csv").read_bytes()


def test_a_node_with_another_target_or_other_images_is_refused(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(change: Callable[[Any], Any]) -> Share:
        def share(cluster: Cluster, task: Callable[[bytes], bytes], asked: Mapping[Any, bytes]) -> Iterator[Any]:
            import pickle

            for key, message in asked.items():
                yield key, task(pickle.dumps(change(pickle.loads(message))))

        return share

    with pytest.raises(UsageError, match="the target spread_nets:net is another on a node"):
        label(
            run,
            tmp_path / "a" / "run",
            other(lambda one: replace(one, whole=replace(one.whole, identity="0"))),
            monkeypatch,
        )
    with pytest.raises(UsageError, match="probing images are not the same on every node"):
        label(run, tmp_path / "b" / "run", other(lambda one: replace(one, marks="0")), monkeypatch)


@pytest.mark.parametrize("small", [True, False])
def test_on_a_cluster_only_what_leaves_room_for_others_stays_loaded(
    run: Run, monkeypatch: pytest.MonkeyPatch, small: bool
) -> None:
    """Workers are as many as there is room for: a large scorer's would leave the generator none between its rounds. A
    small scorer works here, and then the generator's may stay."""
    nothing: Any = None
    monkeypatch.setattr(jobs, "estimate", lambda *_: Need(1 if small else jobs.SMALL + 1, 1, ""))
    builder = Builder(toys.registry(), Runtime("cpu", Path))
    job = Job(run, builder, nothing, nothing, str, cluster=Cluster("cpu", 1))
    scorer, generator = (job.backend(kind)[0] for kind in ("scorer", "generator"))
    assert job.is_small(scorer) is small
    assert isinstance(scorer, WorkerPool) is not small
    assert isinstance(generator, WorkerPool)
    with job.keeping("scorer"), job.keeping("generator"):
        assert list(job._kept) == (["scorer", "generator"] if small else [])

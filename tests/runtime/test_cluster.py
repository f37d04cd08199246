"""Backends on the nodes of a Ray cluster: the answers of one process, whatever happens to a node."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import awkward
import needs
import pytest
import toys

from dnd import api
from dnd.config.read import build_run
from dnd.errors import OfflineError, UsageError
from dnd.pipeline.execute import execute
from dnd.pipeline.exemplars import find
from dnd.plugin.registry import Entry, Registry
from dnd.runtime import cluster
from dnd.runtime.pool import WorkerPool

pytestmark = needs.ray
REQUESTS = [api.ImageRequest(colour, seed) for seed in range(4) for colour in awkward.COLOURS]


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    """Two nodes of this machine with a CPU each."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_memory_monitor_refresh_ms", "0")  # it kills workers where others fill the memory
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        node = {"num_cpus": 1, "object_store_memory": 100 << 20}
        found = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
        found.add_node(**node)
        yield found
        found.shutdown()


@pytest.fixture
def connected(nodes: Any) -> Iterator[cluster.Cluster]:
    with cluster.connected(nodes.address) as found:
        yield found


def spread(found: cluster.Cluster, **settings: Any) -> WorkerPool:
    backend = awkward.Generator(awkward.FaultConfig(**settings), api.Runtime("cpu", lambda name: Path(name)))
    return WorkerPool(backend, found.workers(), None, cluster.Actors(keeps=False))


def pixels(images: list[Any]) -> list[bytes]:
    return [image.tobytes() for image in images]


def plain() -> list[bytes]:
    runtime = api.Runtime("cpu", lambda name: Path(name))
    return pixels(awkward.Generator(awkward.FaultConfig(), runtime).generate(REQUESTS))


def test_each_cpu_of_the_cluster_gets_a_worker(connected: cluster.Cluster, tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert connected.workers() == ("cpu", "cpu")
    with spread(connected, batch_size=2, log=log) as pool:
        assert pool.batch_size == 8
        assert pixels(pool.generate(REQUESTS)) == plain()
    lines = [line.split() for line in log.read_text().splitlines()]
    assert len({pid for what, _, pid, _ in lines if what == "load"}) == 2


def test_the_next_backend_gets_the_actors_that_are_left(connected: cluster.Cluster, tmp_path: Path) -> None:
    logs, ends = [tmp_path / "one", tmp_path / "two"], cluster.Actors()
    with closing(ends):
        for log in logs:
            backend = awkward.Generator(awkward.FaultConfig(log=log), api.Runtime("cpu", Path))
            with WorkerPool(backend, connected.workers(), None, ends) as pool:
                assert pixels(pool.generate(REQUESTS)) == plain()
    pids = [{line.split()[2] for line in log.read_text().splitlines()} for log in logs]
    assert pids[0] == pids[1]


def test_a_lost_actor_is_asked_again(connected: cluster.Cluster, tmp_path: Path) -> None:
    with spread(connected, batch_size=2, fault="die", once=tmp_path / "once") as pool:
        assert pixels(pool.generate(REQUESTS)) == plain()


def test_a_lost_node_leaves_its_work_to_the_others(
    nodes: Any, connected: cluster.Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    with spread(connected, batch_size=1) as pool:
        assert pixels(pool.generate(REQUESTS[:2])) == plain()[:2]
        monkeypatch.setattr(cluster, "_PATIENCE", 1.0)
        nodes.remove_node(nodes.list_all_nodes()[-1], allow_graceful=False)
        try:
            assert pixels(pool.generate(REQUESTS)) == plain()
        finally:
            nodes.add_node(num_cpus=1, object_store_memory=100 << 20)


class Caller(awkward.Generator):
    def generate(self, requests: Any) -> Any:
        import socket

        socket.create_connection(("192.0.2.1", 80), 0.1)


def test_actors_stay_offline(connected: cluster.Cluster) -> None:
    backend = Caller(awkward.FaultConfig(), api.Runtime("cpu", lambda name: Path(name)))
    with (
        WorkerPool(backend, connected.workers(), None, cluster.Actors(keeps=False)) as pool,
        pytest.raises(OfflineError, match=r"tried to connect to 192\.0\.2\.1"),
    ):
        pool.generate(REQUESTS[:1])


def test_a_node_with_other_code_or_models_is_refused(
    connected: cluster.Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = awkward.Generator(awkward.FaultConfig(), api.Runtime("cpu", lambda name: Path(name)))
    cluster.check_nodes([backend], {})
    monkeypatch.setattr(cluster, "source_digest", lambda cls: "other")
    with pytest.raises(UsageError) as caught:
        cluster.check_nodes([backend], {"nowhere": "0" * 64})
    assert "the code of 'awkward' is another there" in str(caught.value)
    assert "there is no model 'nowhere'" in str(caught.value)


def known() -> Registry:
    kinds = {"captioner": awkward.Captioner, "generator": awkward.Generator, "scorer": awkward.Scorer}
    entries = [Entry(kind, cls.name, cls, "awkward", "1", "ok") for kind, cls in kinds.items()]
    return Registry([*entries, *toys.registry().entries])


def test_a_run_on_a_cluster_has_the_labels_of_a_run_here(nodes: Any, tmp_path: Path) -> None:
    photos, live = toys.make_photos(tmp_path / "photos"), (toys.Net(), toys.preprocess)
    backends = {kind: {"backend": "awkward"} for kind in ("captioner", "generator", "scorer")}
    run = toys.toy_run(photos, known(), **backends)
    here = execute(run, tmp_path / "here" / "run", registry=known(), live=live)
    there = replace(run, general=run.general.model_copy(update={"executor": "ray", "address": nodes.address}))
    found = execute(there, tmp_path / "there" / "run", registry=known(), live=live)
    assert (found.folder / "labels.csv").read_bytes() == (here.folder / "labels.csv").read_bytes()
    again = execute(run, tmp_path / "there" / "run", registry=known(), live=live)
    stages = json.loads((again.folder / "run.json").read_text())["stages"]
    assert {name: stage["computed"] for name, stage in stages.items()} == dict.fromkeys(stages, 0)


def test_the_nodes_see_the_probing_images(nodes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cluster_nets.py").write_text("import toys\n\ndef net():\n    return toys.Net(), toys.preprocess\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    tables = toys.toy_run(toys.make_photos(tmp_path / "photos")).to_dict()
    tables["target"]["name"] = "cluster_nets:net"
    run = build_run(tables, toys.registry())
    here = execute(run, tmp_path / "here" / "run", registry=toys.registry())
    there = replace(run, general=run.general.model_copy(update={"executor": "ray", "address": nodes.address}))
    monkeypatch.setattr(find, "run_pass", None)  # which would see them in this process
    found = execute(there, tmp_path / "there" / "run", registry=toys.registry())
    assert (found.folder / "labels.csv").read_bytes() == (here.folder / "labels.csv").read_bytes()


def test_no_cluster_is_one_clear_message() -> None:
    message = r"no Ray cluster answers at '127\.0\.0\.1:1'"
    with pytest.raises(UsageError, match=message), cluster.connected("127.0.0.1:1"):
        pass


def test_without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match="Ray is not installed"), cluster.connected("auto"):
        pass

"""Workers on the nodes of a Ray cluster: the extra `ray`.

This process owns the store; the actors get batches and give answers. Each node has its own copy of dnd, of the plugins
and of the models, and is asked to prove it before any work starts.
"""

from __future__ import annotations

import pickle
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from dnd.api import Backend, Config, Evidence, Picture, Runtime, SummaryRequest
from dnd.errors import DeviceError, DndError, NoAnswerError, TooSlowError, UsageError
from dnd.offline.block import forbid_network, raise_if_tried
from dnd.offline.environment import collect_rarely
from dnd.offline.hook import allow
from dnd.plugin.requirements import faults_of
from dnd.runtime.devices import reason_of
from dnd.runtime.ends import End, Ends, NoRoomError, WorkerSpec
from dnd.runtime.worker import CLOSE, NO_ROOM, Server, reply_of
from dnd.store.source import source_digest

if TYPE_CHECKING:
    from PIL.Image import Image

_KNOCK = 10.0
"""Seconds in which the cluster's port answers."""
_LOOK = 1.0
"""Seconds after which it is asked whether an actor that has not begun still has room."""
_PATIENCE = 60.0
"""Seconds in which a cluster finds room for an actor and starts it."""
_RETRIES = 8
"""Nodes that may be lost under one task."""
T = TypeVar("T")


@dataclass(frozen=True)
class Cluster:
    """One that this process is connected to."""

    device: str
    """What every worker has: "cuda" where the cluster has GPUs, else "cpu"."""
    size: int
    """Workers that have room at a time: its GPUs, or its CPUs."""

    def workers(self) -> tuple[str, ...]:
        """The device of each worker."""
        return (self.device,) * self.size


@contextmanager
def connected(address: str) -> Iterator[Cluster]:
    """The cluster at "host:port", or for "auto" the one that runs on this machine. UsageError where there is none."""
    try:
        import ray
    except ImportError as error:
        raise UsageError("Ray is not installed", "pip install 'dnd-describe[ray]', on every node.") from error
    ours = not ray.is_initialized()
    try:
        if ours:
            _knock(address)
            ray.init(address=address, log_to_driver=False, logging_level="ERROR", configure_logging=False)
        resources = ray.cluster_resources()
    except Exception as error:
        raise UsageError(
            f"no Ray cluster answers at {address!r}: {reason_of(error)}",
            "Start one with `ray start --head --include-dashboard=false`, and name it: --address HOST:6379.",
        ) from error
    try:
        device, size = ("cuda", resources.get("GPU", 0)) if resources.get("GPU") else ("cpu", resources.get("CPU", 0))
        yield Cluster(device, max(1, int(size)))
    finally:
        _sent.cache_clear()
        if ours:
            ray.shutdown()


def _knock(address: str) -> None:
    """OSError where nobody listens at "host:port": Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if host and "//" not in host:
        allow(host)
        socket.create_connection((host, int(port)), _KNOCK).close()


def check_nodes(backends: Sequence[Backend], models: Mapping[str, str]) -> None:
    """UsageError, naming the node, where one has other code or other models. `models` are digests by name."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    codes = [(type(backend), backend.config, source_digest(type(backend))) for backend in backends]
    asked = {}
    for node in ray.nodes():
        if node["Alive"]:
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            remote = ray.remote(num_cpus=0, scheduling_strategy=there, max_retries=0)(_faults)
            name = f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
            asked[name] = remote.remote(_path(), pickle.dumps((codes, dict(models))))
    wrong = []
    for node, answer in asked.items():
        try:
            found = ray.get(answer)
        except Exception as error:
            found = [reason_of(error)]
        wrong += [f"{node}: {one}" for one in found]
    if wrong:
        raise UsageError(
            f"the cluster is not ready: {'; '.join(wrong)}",
            "Every node needs the same dnd and plugins, and the models that the run uses: `dnd doctor` there tells.",
        )


def share(cluster: Cluster, task: Callable[[bytes], bytes], asked: Mapping[T, bytes]) -> Iterator[tuple[T, bytes]]:
    """The answers of `task`, a function of a module, to each message, as they come: as many at a time as the cluster
    has room for. Where a node is lost, its message is answered by another. Raises what `task` raised there."""
    import ray

    remote = ray.remote(_answer).options(**_need(cluster.device), scheduling_strategy="SPREAD", max_retries=_RETRIES)
    waiting = {remote.remote(_path(), task, message): key for key, message in asked.items()}
    try:
        while waiting:
            (done, *_), _ = ray.wait(list(waiting), num_returns=1)
            try:
                kind, value = pickle.loads(ray.get(done))
            except ray.exceptions.RayError as error:
                raise DeviceError(f"the cluster lost what it was given: {reason_of(error)}", NO_ROOM) from error
            if kind == "lost":
                raise DeviceError(f"a device of the cluster is gone: {value}", NO_ROOM)
            if kind == "error":
                raise value
            yield waiting.pop(done), value
    finally:
        for one in waiting:
            with suppress(Exception):  # the cluster may be gone
                ray.cancel(one, force=True)


def _need(device: str) -> dict[str, int]:
    """What a worker takes of its node, in Ray's words."""
    return {"num_gpus": 1} if device == "cuda" else {"num_cpus": 1}


def _answer(path: Sequence[str], task: Callable[[bytes], bytes], message: bytes) -> bytes:
    """Runs there."""
    _look_there_too(path)
    forbid_network()
    return reply_of(lambda: task(message))


def _path() -> list[str]:
    """Where modules are found here."""
    return [place for place in sys.path if isinstance(place, str) and Path(place).is_absolute()]


def _look_there_too(path: Sequence[str]) -> None:
    """Find modules where the driver does, if there is such a folder here."""
    sys.path += [place for place in path if place not in sys.path and Path(place).exists()]


def _faults(path: Sequence[str], asked: bytes) -> list[str]:
    """What this node lacks. Runs there."""
    from dnd.models.weights import Weights

    _look_there_too(path)
    codes: Sequence[tuple[type[Backend], Config, str]]
    models: Mapping[str, str]
    codes, models = pickle.loads(asked)
    weights, found = Weights.default(), []
    for name, digest in models.items():
        try:
            if weights.digest(name) != digest:
                found.append(f"the model {name!r} is another there")
            weights.resolve(name)
        except DndError as error:
            found.append(str(error))
    for cls, config, digest in codes:
        if source_digest(cls) != digest:
            found.append(f"the code of {cls.name!r} is another there")
        found += [str(fault) for fault in faults_of(cls(config, Runtime("cpu", weights.resolve)))]
    return found


class _Actor:
    """Answers on a node."""

    def __init__(self, path: Sequence[str]) -> None:
        _look_there_too(path)
        forbid_network()
        collect_rarely()
        self._server = Server()

    def ready(self) -> None:
        """Answers once the actor is there."""

    def answer(self, message: Any) -> bytes:
        reply = self._server.answer(lambda: message)
        if message == CLOSE:
            return reply
        try:
            raise_if_tried()
        except DndError as error:
            return pickle.dumps(("error", error))
        return reply


class Actors(Ends):
    """Actors on the nodes. Where a node is lost, others take their places if there is room."""

    def __init__(self, *, keeps: bool = True) -> None:
        super().__init__(keeps=keeps)
        self._alive: set[_ActorEnd] = set()

    def start(self, spec: WorkerSpec) -> End:
        end = _ActorEnd(spec.device, self._alive)
        self._alive.add(end)
        return end


class _ActorEnd(End):
    def __init__(self, device: str, alive: set[_ActorEnd]) -> None:
        import ray

        self._kind, self._alive = "GPU" if device == "cuda" else "CPU", alive
        self._actor = ray.remote(_Actor).options(**_need(device), scheduling_strategy="SPREAD").remote(_path())

    def ready(self) -> bool:
        import ray

        end, waiting = time.monotonic() + _PATIENCE, self._actor.ready.remote()
        while True:
            try:
                ray.get(waiting, timeout=_LOOK)
                return True
            except ray.exceptions.GetTimeoutError as error:
                room = ray.cluster_resources().get(self._kind, 0)
                if time.monotonic() > end or len(self._alive) > room:
                    self.kill()
                    raise NoRoomError("the cluster has no room for it") from error
            except ray.exceptions.RayError as error:
                self.kill()
                if getattr(error, "actor_init_failed", True):
                    raise DeviceError(f"an actor cannot be started on a node: {reason_of(error)}") from error
                return False  # on a node that is dying, as the cluster does not know yet

    def reply(self, message: object, timeout: float | None) -> bytes:
        import ray

        if isinstance(message, tuple):
            method, items = message
            message = method, [_carried(item) for item in items]
        try:
            reply: bytes = ray.get(self._actor.answer.remote(message), timeout=timeout)
        except ray.exceptions.GetTimeoutError as error:
            raise TooSlowError(f"no answer within {timeout:g} s") from error
        except ray.exceptions.RayError as error:
            raise NoAnswerError(f"its actor is gone: {reason_of(error)}") from error
        return reply

    def kill(self) -> None:
        import ray

        self._alive.discard(self)
        with suppress(Exception):  # the cluster may be gone
            ray.kill(self._actor)


def _carried(item: Any) -> Any:
    """The item with its pictures, which are files of this machine, as objects of the cluster."""
    if isinstance(item, SummaryRequest):
        return replace(item, images=tuple(map(_sent, item.images)))
    if isinstance(item, Evidence):
        images = tuple(tuple(map(_sent, some)) for some in item.images)
        exemplars, sample = tuple(map(_sent, item.exemplars)), tuple(map(_sent, item.sample))
        return replace(item, exemplars=exemplars, images=images, sample=sample)
    return item


@lru_cache(maxsize=4096)
def _sent(picture: Picture) -> Picture:
    """Sent to the cluster once, however many units it belongs to."""
    import ray

    return Picture(picture.digest, _Sent(ray.put(picture.open())))


@dataclass(frozen=True)
class _Sent:
    """Fetches an image from the cluster."""

    reference: Any

    def __call__(self) -> Image:
        import ray

        found: Image = ray.get(self.reference)
        return found

"""The large models at full size with random weights, each loaded by its plugin from files named as published: how
much memory it takes to load and to work, how fast it is, and whether it gives all of it back.

    python benchmarks/full_size.py --out out             # a CPU with 24 GB of memory: under an hour
    python benchmarks/full_size.py --device cuda --out out --batches blip2=auto,8 --rounds 2
    python benchmarks/full_size.py --size tiny --out out # the same classes, small

Every model has a process of its own, which writes OUT/MODEL.json after each batch size: a list whose first object tells
of the machine and the files, the others of one batch size each. On a CPU the work is as small as can be: one item in
few steps. See random_weights.py; --work chooses where the weights lie (16 GB at most at a time), and with --keep they
stay there for the next time.

Random weights never end an answer early: BLIP-2's captions have all of their tokens, and Llama's answers 16, about the
mean of a rewritten caption and of a concept.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import architectures as arch
import numpy as np
import torch
from PIL import Image
from random_weights import LOCK, lent
from rich.console import Console

from dnd import api
from dnd.api import is_device_lost
from dnd.models.weights import Weights
from dnd.runtime import memory
from dnd_blip2 import Blip2Captioner, Blip2Config
from dnd_hf.sizes import weight_bytes
from dnd_llama import LlamaConfig, LlamaSummarizer
from dnd_llama.conversation import Ask
from dnd_llama.prompts import concept_messages, simplify_messages
from dnd_scorers import ClipRank
from dnd_sdxl import SdxlConfig, SdxlGenerator

STAGES = {"blip2": "captions", "llama": "concepts", "sdxl": "images", "clip": "scores"}
"""By plugin, which the name of an architecture begins with."""
BATCHES: dict[str, tuple[int | str, ...]] = {
    "blip2": (1, "auto"),
    "llama": (1, "auto"),
    "sdxl": (1, "auto"),
    "clip": (64,),
}
"""On a GPU. One first: it says what loading and one item take, before larger batches are tried."""
CAPTIONS, CONCEPTS, IMAGES = 14, 5, 10
"""Of a standard unit: 10 exemplars and 4 crops, 5 concepts, 10 images of each. None is shared with another unit."""
MODULES = {
    "blip2": "transformers.models.blip_2.modeling_blip_2",
    "llama": "transformers.models.llama.modeling_llama",
    "sdxl": "diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl",
    "clip": "transformers.models.clip.modeling_clip",
}
"""Imported before loading is timed."""
MATTER = {"blip2": ("num_beams",), "sdxl": ("steps", "guidance", "width", "height")}
"""Settings that a rate depends on."""
SLACK = 256 << 20
"""Bytes that a CUDA library may keep."""
PACKAGES = ("dnd-describe", "torch", "transformers", "tokenizers", "diffusers", "accelerate", "bitsandbytes", "numpy")
CAPTION = "a small brown dog and a grey cat lie side by side on a red blanket in front of a wooden fence"


def plugin_of(architecture: str) -> str:
    return architecture.partition("-")[0]


class Subject:
    """A plugin with the settings that are measured, and batches of work for it."""

    def __init__(self, architecture: str, size: str, batch: int | str, device: str, settings: dict[str, Any]) -> None:
        self.plugin, self.light = plugin_of(architecture), size == "tiny" or device == "cpu"
        runtime = api.Runtime(device=device, weights=Weights.default().resolve)
        common = {"model": arch.model_name(architecture, size), "batch_size": batch}
        if device == "cpu" and self.plugin != "clip":
            common["dtype"] = "bfloat16"
        kind, config, usual = {
            "blip2": (Blip2Captioner, Blip2Config, {"max_new_tokens": 4} if self.light else {}),
            "llama": (LlamaSummarizer, LlamaConfig, {"max_new_tokens": 8 if self.light else 16}),
            "sdxl": (SdxlGenerator, SdxlConfig, {"steps": 2} if self.light else {}),
            "clip": (ClipRank, ClipRank.Config, {}),
        }[self.plugin]
        if self.plugin == "sdxl" and device == "cpu" and size == "full":
            usual |= {"width": 256, "height": 256}
        self.settings = usual | settings
        self.backend: Any = kind(config.model_validate(common | self.settings), runtime)

    def batch_size(self) -> int:
        return int(self.backend.chosen().get("batch_size", self.backend.config.batch_size))

    def work(self, first: int) -> tuple[Callable[[], Sequence[Any]], int, float]:
        """(what gives the answers, how many it gives, items of the stage per answer); `first` makes it a new one."""
        batch = self.batch_size()
        make = {"blip2": self._captions, "llama": self._chats, "sdxl": self._images, "clip": self._evidence}
        return make[self.plugin](1 if self.light else batch, first)

    def _captions(self, count: int, first: int) -> tuple[Callable[[], Sequence[Any]], int, float]:
        images = noise(first, count)
        return lambda: self.backend.caption(images), count, 1

    def _images(self, count: int, first: int) -> tuple[Callable[[], Sequence[Any]], int, float]:
        requests = [api.ImageRequest("a red star", first + number) for number in range(count)]
        return lambda: self.backend.generate(requests), count, 1

    def _chats(self, count: int, first: int) -> tuple[Callable[[], Sequence[Any]], int, float]:
        """What as many units ask as fill a batch: first all captions to simplify, then all concepts."""
        units, second = max(1, count // CAPTIONS), self.backend.config.n_extra_samples
        each = (1, 1) if self.light else (CAPTIONS, CONCEPTS + second)
        kinds = (simplify_messages(CAPTION), concept_messages((CAPTION,) * CAPTIONS))
        rounds = [
            [Ask(messages, first + number, 0.3) for number in range(units * asks)]
            for messages, asks in zip(kinds, each, strict=True)
        ]
        total = sum(len(asks) for asks in rounds)
        share = 1 / (CAPTIONS + CONCEPTS + second)
        return lambda: [answer for asks in rounds for answer in self.backend.answer(asks)], total, share

    def _evidence(self, count: int, first: int) -> tuple[Callable[[], Sequence[Any]], int, float]:
        """Units whose candidates' strongest images are all looked at; their pixels are in memory."""
        units, top = (1, 1) if self.light else (8, self.backend.config.top)
        given = [evidence(first + number, top) for number in range(units)]
        return lambda: self.backend.score(given), units, 1


def noise(first: int, count: int, side: int = 256) -> list[Image.Image]:
    pixels = np.random.default_rng(first).integers(0, 256, (count, side, side, 3), np.uint8)
    return [Image.fromarray(one) for one in pixels]


def evidence(seed: int, top: int) -> api.Evidence:
    """Of a standard unit, as far as a scorer looks at it."""
    made = noise(seed, 10 + CONCEPTS * top)
    pictures = [api.Picture(f"{seed}-{number}", image.copy) for number, image in enumerate(made)]
    rows = tuple(tuple(pictures[10 + at * top :][:top]) for at in range(CONCEPTS))
    chance = np.random.default_rng(seed)
    return api.Evidence(
        unit=api.Unit("layer", seed),
        exemplars=tuple(pictures[:10]),
        exemplar_activations=chance.random(10, np.float32),
        concepts=tuple(f"concept {number}" for number in range(CONCEPTS)),
        images=rows,
        activations=chance.random((CONCEPTS, top), np.float32),
        sample=(),
        sample_activations=np.zeros(0, np.float32),
    )


# --- memory and time ---------------------------------------------------------------------------------


def held(device: str) -> int:
    """Bytes that this process holds: on a GPU all of torch's, on a CPU those of models' parameters."""
    gc.collect()
    if device.startswith("cuda"):
        return torch.cuda.memory_allocated(device)
    return sum(one.nbytes for one in gc.get_objects() if issubclass(type(one), torch.nn.Parameter))


class Peaks:
    """The most memory of the device and of this machine, without mapped files, since the last `restart`."""

    def __init__(self, device: str) -> None:
        self._device, self._over = device, threading.Event()
        self._most = 0
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def restart(self) -> None:
        self._most = 0
        if self._device.startswith("cuda"):
            torch.cuda.reset_peak_memory_stats(self._device)

    def read(self) -> dict[str, int]:
        found = {"host_peak_bytes": max(self._most, anonymous())}
        if self._device.startswith("cuda"):
            found["peak_bytes"] = torch.cuda.max_memory_allocated(self._device)
        return found

    def _look(self) -> None:
        while not self._over.wait(0.05):
            self._most = max(self._most, anonymous())

    def close(self) -> None:
        self._over.set()
        self._thread.join()


def anonymous() -> int:
    """Bytes of main memory that are this process's alone: no mapped files."""
    for line in Path("/proc/self/status").read_text("utf-8").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


@contextmanager
def clocked(device: str) -> Iterator[list[float]]:
    """Seconds inside torch modules, those called by others counted once. It waits for the device each time, and so
    costs time itself."""
    spent, began, depth = [0.0], 0.0, 0

    def enter(*_: Any) -> None:
        nonlocal depth, began
        if depth == 0:
            wait(device)
            began = time.perf_counter()
        depth += 1

    def leave(*_: Any) -> None:
        nonlocal depth
        depth -= 1
        if depth == 0:
            wait(device)
            spent[0] += time.perf_counter() - began

    hooks = torch.nn.modules.module
    handles = [hooks.register_module_forward_pre_hook(enter), hooks.register_module_forward_hook(leave)]
    try:
        yield spent
    finally:
        for handle in handles:
            handle.remove()


def wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def measure(
    architecture: str, size: str, batch: int | str, device: str, rounds: int, settings: dict[str, Any]
) -> dict[str, Any]:
    """What `load_and_work` finds, and what stays in memory after closing; RuntimeError where it is too much."""
    subject = Subject(architecture, size, batch, device, settings)
    import_module(MODULES[subject.plugin])
    before = held(device)
    with closing(subject.backend), closing(Peaks(device)) as peaks:
        row = {
            "stage": STAGES[subject.plugin],
            "backend": subject.backend.name,
            "model": arch.model_name(architecture, size),
            "size": size,
            "device": device.partition(":")[0],
            "device_name": memory.device_name(device),
            "settings": subject.settings,
            "holds_for": {key: getattr(subject.backend.config, key) for key in MATTER.get(subject.plugin, ())},
            "batch_size_set": batch,
            **load_and_work(subject, device, rounds, peaks),
        }
    del subject
    row["left_bytes"] = held(device) - before
    if row["left_bytes"] > (SLACK if device.startswith("cuda") else 0):
        raise RuntimeError(f"{architecture} left {row['left_bytes'] / 1e6:.0f} MB behind")
    return row


def load_and_work(subject: Subject, device: str, rounds: int, peaks: Peaks) -> dict[str, Any]:
    """Load, a batch to warm up a GPU, `rounds` timed ones, one more with the models clocked. An automatic batch was
    tried while the model was loaded, and is warm."""
    backend, before = subject.backend, held(device)
    peaks.restart()
    began = time.perf_counter()
    backend.load()
    wait(device)
    row = {
        "load_seconds": round(time.perf_counter() - began, 2),
        "chosen": dict(backend.chosen()),
        "weight_bytes": held(device) - before,
        "load": peaks.read(),
    }
    peaks.restart()
    if device.startswith("cuda") and backend.config.batch_size != "auto":
        answer(subject, 0)
    seconds, items = 0.0, 0.0
    for number in range(rounds):
        spent, count = answer(subject, 1000 * (number + 1))
        seconds, items = seconds + spent, items + count
    with clocked(device) as inside:
        spent, count = answer(subject, 1000 * (rounds + 1))
    if not rounds:
        seconds, items = spent, count
    return row | {
        "items_per_second": float(f"{items / seconds:.4g}"),
        "work": peaks.read(),
        "share_in_models": round(inside[0] / spent, 3),
        "batch_size": subject.batch_size(),
    }


def answer(subject: Subject, first: int) -> tuple[float, float]:
    """(seconds, items of the stage) of one batch."""
    run, count, share = subject.work(first)
    began = time.perf_counter()
    if len(run()) != count:
        raise RuntimeError(f"{subject.plugin} left some of {count} items without an answer")
    return time.perf_counter() - began, count * share


# --- one model ----------------------------------------------------------------------------------------


def about(size: str, device: str) -> dict[str, Any]:
    """The machine and the versions."""
    driver = None
    if device.startswith("cuda"):
        asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    return {
        "about": "random weights of the real architectures; see benchmarks/full_size.py",
        "size": size,
        "device_name": memory.device_name(device),
        "driver": driver,
        "cuda": torch.version.cuda if driver else None,
        "memory_bytes": memory.free_memory(device)[1],
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "versions": {"python": platform.python_version(), **versions()},
        "date": time.strftime("%Y-%m-%d"),
    }


def versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def files_of(name: str, like: str) -> dict[str, Any]:
    """Bytes of the weights, and by how much each file differs from the one that models.lock pins for the real model."""
    weights = {f.path: f.size or 0 for f in Weights.default().find(name).files if f.path.endswith(".safetensors")}
    pinned = {file.path: file.size for file in Weights.read(LOCK).find(like).files}
    differ = {path: None if pinned.get(path) is None else size - pinned[path] for path, size in weights.items()}
    return {"weight_file_bytes": sum(weights.values()), "bytes_more_than_pinned": differ}


def expected(architecture: str, size: str, device: str) -> dict[str, int]:
    """What `dnd doctor` says of one item at a time."""
    subject = Subject(architecture, size, 1, device, {})
    chosen = subject.backend.chosen()
    files = Weights.default().resolve(subject.backend.config.model).rglob("*.safetensors")
    weights = weight_bytes(files, chosen.get("dtype", "float32"), chosen.get("quantization", "none"))
    total = subject.backend.memory()
    assert total is not None
    return {"weights": weights, "total": total}


def examine(architecture: str, options: argparse.Namespace, out: Path) -> None:
    """Everything about one model, into `out` as it goes; a batch size that fails is told there, and raised at the
    end."""
    console, size, device = Console(width=160), options.size, options.device
    with lent(architecture, size, device, options.work, options.keep) as variables:
        os.environ |= variables
        if device.startswith("cuda"):
            torch.cuda.empty_cache()
        name = arch.model_name(architecture, size)
        head = about(size, device) | {"model": name}
        began = time.perf_counter()
        Weights.default().resolve(name)
        if not options.keep:  # else its files may have been verified before
            head["verify_seconds"] = round(time.perf_counter() - began, 1)
        head["expected"] = expected(architecture, size, device)
        if size == "full":
            head |= files_of(name, arch.MODELS[architecture])
        rows: list[dict[str, Any]] = [head]
        _write(rows, out)
        failures: list[str] = []
        lost = False
        for batch, settings in options.batches[architecture]:
            try:
                row = measure(architecture, size, batch, device, options.rounds, settings)
                console.print(summary(architecture, row))
            except Exception as error:
                row = {"backend": architecture, "batch_size_set": batch, "settings": settings, "error": repr(error)}
                failures.append(f"batch {batch}: {error!r}")
                console.print(f"{architecture}, {failures[-1]}", style="red")
                lost = is_device_lost(error)
            rows.append(row)
            _write(rows, out)
            if lost:
                break
            gc.collect()
        head["seconds"] = round(time.perf_counter() - began, 1)
        _write(rows, out)
    if failures:
        raise RuntimeError(f"{architecture}: {'; '.join(failures)}")


def summary(architecture: str, row: dict[str, Any]) -> str:
    work, load = row["work"], row["load"]
    peak = f"peak {work.get('peak_bytes', work['host_peak_bytes']) / 1e9:.1f} GB"
    return (
        f"{architecture} {row['settings']}, batch {row['batch_size']} ({row['batch_size_set']}): "
        f"{row['items_per_second']:g} {row['stage']}/s, {peak}, {row['share_in_models']:.0%} inside models, "
        f"loaded in {row['load_seconds']:.0f} s (host {load['host_peak_bytes'] / 1e9:.1f} GB)"
    )


def _write(rows: list[dict[str, Any]], out: Path) -> None:
    """The automatic batch with usual settings first: gpu.py sums those up."""
    head, *others = rows
    out.write_text(json.dumps([head, *sorted(others, key=_rank)], indent=1) + "\n", "utf-8")


def _rank(row: dict[str, Any]) -> tuple[bool, bool, int]:
    return "error" in row, row["batch_size_set"] != "auto", len(row["settings"])


# --- the command --------------------------------------------------------------------------------------

Batches = dict[str, list[tuple[int | str, dict[str, Any]]]]


def read_batches(texts: Sequence[str], device: str) -> Batches:
    """ "sdxl=1,auto" or "sdxl:steps=4:guidance=0=auto" -> batch sizes with settings, added up by architecture."""
    found: Batches = {}
    for text in texts:
        where, _, sizes = text.rpartition("=")
        architecture, *settings = where.split(":")
        if architecture not in arch.MODELS:
            raise SystemExit(f"there is no architecture {architecture!r}; there are {', '.join(arch.MODELS)}")
        changed = {key: _number(value) for key, _, value in (one.partition("=") for one in settings)}
        found.setdefault(architecture, []).extend((_number(one), changed) for one in sizes.split(","))
    for architecture in arch.MODELS:
        usual = BATCHES[plugin_of(architecture)] if device != "cpu" else (1,)
        found.setdefault(architecture, [(batch, {}) for batch in usual])
    return found


def _number(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("tiny", "full"), default="full")
    parser.add_argument("--models", default=",".join(arch.MODELS), help=f"some of {','.join(arch.MODELS)}")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--rounds", type=int, help="timed batches; with 0 the one whose models are clocked  [1; CPU: 0]"
    )
    parser.add_argument(
        "--batches", action="append", default=[], help="blip2=1,auto or sdxl:steps=4:guidance=0=auto; may be repeated"
    )
    parser.add_argument("--work", type=Path, help="where the weights lie meanwhile")
    parser.add_argument("--keep", action="store_true", help="leave them there for the next time")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--here", action="store_true", help="no process of its own for each model")
    options = parser.parse_args(arguments)
    if unknown := set(options.models.split(",")) - set(arch.MODELS):
        parser.error(f"there is no model {', '.join(sorted(unknown))}; there are {', '.join(arch.MODELS)}")
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("there is no GPU here; --size tiny --device cpu tries the script out")
    options.given = list(sys.argv[1:] if arguments is None else arguments)
    if options.rounds is None:
        options.rounds = int(options.device != "cpu")
    options.batches = read_batches(options.batches, options.device)
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """How many models failed."""
    options = parse(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    failed = 0
    for architecture in options.models.split(","):
        if options.here:
            examine(architecture, options, options.out / f"{architecture}.json")
            continue
        command = [sys.executable, __file__, *options.given, "--models", architecture, "--here"]
        failed += subprocess.run(command).returncode != 0
    return failed


if __name__ == "__main__":
    sys.exit(main())

"""The command line and the environment of our own vLLM server."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dnd.api import ModelError, Runtime, UsageError
from dnd_hf.sizes import weight_bytes, work_beside
from dnd_vllm.config import ServerConfig
from dnd_vllm.environment import server_environment
from dnd_vllm.interpreter import MODULE, Interpreter

SERVED = "dnd"
"""The server's name for the model."""
_CONTEXT = 4096
_SHARE = 0.9
"""Of a GPU's memory, at most."""
_CPU_CACHE_GB = "2"
"""For keys and values on a CPU, where vLLM would otherwise take a share of the whole memory."""


@dataclass(frozen=True)
class Plan:
    """What the server gets, its automatic settings decided."""

    context: int
    gpus: tuple[int, ...]
    """Torch's numbers of those that the server uses; none on a CPU."""
    replicas: int = 1
    """Copies of the model beside each other, each on its share of the GPUs."""

    @property
    def shared_by(self) -> int:
        """GPUs that share one copy of the model."""
        return max(1, len(self.gpus) // self.replicas)


def make_plan(config: ServerConfig, runtime: Runtime, folder: Path) -> Plan:
    """UsageError where the model in the folder cannot be served as the settings say."""
    shape = _shape(config, folder)
    heads, reach = shape.get("num_attention_heads"), shape.get("max_position_embeddings")
    numbers = _gpus(runtime)
    replicas, wanted = config.data_parallel or 1, config.tensor_parallel
    given = {"tensor_parallel": config.tensor_parallel, "data_parallel": config.data_parallel}
    if (wanted or 1) * replicas > max(1, len(numbers)):
        named = " and ".join(f"{name} = {value}" for name, value in given.items() if value)
        raise UsageError(
            f"{named} want{'' if ' and ' in named else 's'} {(wanted or 1) * replicas} GPUs,"
            f" and this run has {len(numbers) or 'none'}",
            "Lower it, or give the run more: --device cuda:0,cuda:1",
        )
    if wanted is not None and isinstance(heads, int) and heads % wanted:
        raise UsageError(f"tensor_parallel = {wanted} does not divide {config.model}'s {heads} heads")
    if wanted is None:
        divides = [n for n in range(1, len(numbers) // replicas + 1) if isinstance(heads, int) and not heads % n]
        wanted = max(divides, default=1)
    if isinstance(reach, int) and (config.context_length or 0) > reach:
        raise UsageError(f"context_length = {config.context_length}, and {config.model} reaches {reach}")
    context = config.context_length or min(_CONTEXT, reach if isinstance(reach, int) else _CONTEXT)
    return Plan(context, tuple(numbers[: wanted * replicas]), replicas)


_PACKED = {"fp8": "8bit", "bitsandbytes": "4bit"}
"""vLLM's names for weights of eight and of four bits."""


def memory(config: ServerConfig, runtime: Runtime, folder: Path) -> int:
    """Bytes on each device for one chat at a time: an estimate. UsageError as in `make_plan`."""
    shared_by = make_plan(config, runtime, folder).shared_by
    dtype = None if config.dtype == "auto" else config.dtype
    weights = weight_bytes(folder.glob("*.safetensors"), dtype, _PACKED.get(config.quantization or "", "none"))
    return weights // shared_by + work_beside(weights // shared_by, runtime.device)


def _shape(config: ServerConfig, folder: Path) -> dict[str, Any]:
    try:
        shape: dict[str, Any] = json.loads((folder / "config.json").read_text("utf-8"))
        return shape.get("text_config") or shape
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(f"{config.model} has no config.json that can be read, in {folder}: {error}") from error


def _gpus(runtime: Runtime) -> list[int]:
    """All that the run may use, each once."""
    devices = runtime.devices or (runtime.device,)
    numbers = [int(device.partition(":")[2] or 0) for device in devices if device.startswith("cuda")]
    return list(dict.fromkeys(numbers))


def command(
    config: ServerConfig, plan: Plan, python: Interpreter, folder: Path, socket: Path, *, images: bool = False
) -> list[str]:
    """Never --trust-remote-code; weights from safetensors only; no sampling settings from the model's folder."""
    options: dict[str, Any] = {
        "model": folder,
        "served-model-name": SERVED,
        "uds": socket,
        "load-format": "safetensors",
        "dtype": config.dtype,
        "max-model-len": plan.context,
        "tensor-parallel-size": plan.shared_by,
        "generation-config": "vllm",
        "chat-template-content-format": "openai" if images else "string",
        "seed": 0,
        "uvicorn-log-level": "warning",
    }
    if plan.replicas > 1:
        options["data-parallel-size"] = plan.replicas
    if images:
        options["limit-mm-per-prompt"] = '{"image": 1}'
    if config.quantization:
        options["quantization"] = config.quantization
    fraction = config.gpu_memory_fraction or _free_share(plan.gpus)
    if fraction is not None:
        options["gpu-memory-utilization"] = fraction
    switches = ["--enable-prefix-caching"]
    if config.eager:
        switches.append("--enforce-eager")
    if not plan.gpus:
        switches.append("--no-enable-chunked-prefill")  # with it, a seeded chat ends vLLM 0.32's engine on a CPU
    return [str(python.path), "-m", MODULE, *(f"--{name}={value}" for name, value in options.items()), *switches]


def _free_share(gpus: Sequence[int]) -> float | None:
    """Of each GPU's memory; None on a CPU."""
    if not gpus:
        return None
    import torch

    free = [torch.cuda.mem_get_info(number) for number in gpus]
    return max(0.05, min(_SHARE, *(round(left / total - 0.02, 3) for left, total in free)))


def environment(config: ServerConfig, plan: Plan, ours: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What the server gets of ours, with only the GPUs that it is to use."""
    env = server_environment(ours)
    env["CUDA_VISIBLE_DEVICES"] = ",".join(_visible(plan.gpus, ours.get("CUDA_VISIBLE_DEVICES")))
    if not plan.gpus and config.gpu_memory_fraction is None:
        env.setdefault("VLLM_CPU_KVCACHE_SPACE", _CPU_CACHE_GB)
    return env


def _visible(gpus: Sequence[int], visible: str | None) -> list[str]:
    """Torch's numbers, as CUDA_VISIBLE_DEVICES names them."""
    names = [name.strip() for name in visible.split(",")] if visible else []
    return [names[number] if number < len(names) else str(number) for number in gpus]

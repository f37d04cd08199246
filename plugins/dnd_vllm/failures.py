"""What the last lines of a vLLM server that failed mean, and what to do about it."""

from __future__ import annotations

import re

_LESS_MEMORY = (
    "Lower gpu_memory_fraction or context_length, end other processes on the device, take"
    ' quantization = "fp8" or "bitsandbytes", several GPUs with tensor_parallel, or a smaller'
    " model."
)
_REINSTALL = (
    "Reinstall vLLM in an environment of its own, so that it brings the torch it was built for, and name that"
    " with python. For the CPU build also: pip uninstall torchvision torchaudio torchcodec"
)
_KNOWN = (
    (
        r"unrecognized arguments: --uds",
        "it is too old to listen on a Unix socket",
        "vLLM 0.11 or later is needed.",
    ),
    (
        r"out of memory|less than desired GPU memory|No available memory for the cache|OutOfMemoryError|MemoryError\b"
        r"|larger than the available KV cache memory|is needed, which is larger than|less than requested memory",
        "there is too little memory",
        _LESS_MEMORY,
    ),
    (
        r"architectures? .{0,80}(?:is|are) not supported|does not recognize this architecture|no vLLM implementation",
        "it does not know this model's architecture",
        'Take a newer vLLM, another model, or the summarizer "llama", which runs all that transformers does.',
    ),
    (
        r"unsupported.{0,30}head[_ ]?(?:size|dim)|head[_ ]?(?:size|dim)[^\n]{0,60}(?:not supported|unsupported)",
        "its attention kernels do not support this model's head size",
        'Take another model, or the summarizer "llama".',
    ),
    (
        r"Failed to infer device type|No CUDA GPUs are available|no NVIDIA driver|CUDA driver version is insufficient",
        "it finds no device that it was built for",
        "vLLM's plain build needs a GPU and a driver that fits; for --device cpu install a CPU build and name its"
        " Python with python.",
    ),
    (
        r"There is no module or parameter named '([^']+)'",
        "it has no place for the weights {0}",
        "Take the checkpoint as its authors publish it: a newer transformers saves it under other names. Or take the"
        ' summarizer "llama" or the captioner "vlm", which run all that transformers does.',
    ),
    (
        r"^ModuleNotFoundError: No module named '(\w+)",
        "its Python has no {0}, which it needs for this model",
        "Install {0} there, in a build that fits its torch, or take another model.",
    ),
    (
        r"torchvision::nms|undefined symbol|libtorch|libcudart|libcublas|lib\w+\.so[.\d]*: cannot open"
        r"|^[\w.]*(?:ImportError|ModuleNotFoundError|PackageNotFoundError): ",
        "its packages do not fit together: the wrong torch, or something missing",
        _REINSTALL,
    ),
    (
        r"max_model_len[^\n]{0,80}greater than|User-specified max_model_len",
        "the model does not reach as far as the context length asked for",
        "Lower context_length, or leave it out.",
    ),
    (
        r"unrecognized arguments|invalid choice|error: argument",
        "this version of vLLM does not know an option it was given",
        "Take vLLM 0.11 or later.",
    ),
    (
        r"bfloat16[^\n]{0,80}not supported|compute capability",
        "the device is too old for this",
        'Try dtype = "float16".',
    ),
)
_PREFIX = re.compile(
    r"^(?:\((?:\w+ )?pid=\d+\)\s*)?(?:\(\w+ pid=\d+\)\s*)?"
    r"(?:(?:INFO|WARNING|ERROR|DEBUG) \d\d-\d\d \d\d:\d\d:\d\d (?:\[[^\]]*\] ?)?)?"
)
_NOISE = re.compile(r"nanobind|^- (?:leaked|\.\.\.)")
"""Printed by libraries when a process ends in a hurry."""


def explain(log: str) -> tuple[str, str]:
    """(cause, remedy) in words; two empty texts where nothing known is in the log."""
    text = "\n".join(map(plain, log.splitlines()))
    for pattern, cause, remedy in _KNOWN:
        if found := re.search(pattern, text, re.IGNORECASE | re.MULTILINE):
            return cause.format(*found.groups()), remedy.format(*found.groups())
    return "", ""


def last_words(log: str, count: int = 6) -> list[str]:
    """The first errors that the log names, mostly the cause, and its last lines; without prefixes, each once."""
    lines = [line for raw in log.splitlines() if (line := plain(raw)) and not _NOISE.search(line)]
    errors = [line for line in lines[:-count] if re.match(r"[\w.]*(?:Error|Exception)\b.*: ", line)]
    return list(dict.fromkeys([*errors[:3], *lines[-count:]]))


def plain(line: str) -> str:
    """A line of vLLM's log without process, level, time and place."""
    return _PREFIX.sub("", line).strip()[:300]

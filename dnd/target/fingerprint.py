"""The identity of a network: what it is made of, and what its preprocess does."""

from __future__ import annotations

import hashlib
import inspect

import torch

from dnd.errors import UsageError
from dnd.target.preprocess import Preprocess, probe_image


def fingerprint(module: torch.nn.Module, preprocess: Preprocess) -> str:
    """sha256 over the module's structure, its weights, its layers' `forward` code, and what `preprocess` does.

    Of functions that a `forward` calls the code is not seen. Raises UsageError for a preprocess with chance in it, or
    whose values are not finite.
    """
    digest = hashlib.sha256(repr(module).encode())
    for kind in sorted({type(part) for part in module.modules()}, key=_kind_name):
        digest.update(f"\n{_kind_name(kind)}\n{_source(kind)}".encode())
    values = {**dict(module.named_buffers()), **module.state_dict()}  # which lacks buffers that are not to be saved
    for name, value in sorted(values.items()):
        digest.update(f"\n{name} ".encode())
        _add(digest, value)
    image = probe_image()
    once, again = preprocess(image), preprocess(image)
    if not once.isfinite().all():
        raise UsageError(
            "the target's preprocess gives values that are not finite for a made-up image",
            "Look for a division by zero: a mean or deviation of the image itself, say.",
        )
    if not torch.equal(once, again):
        raise UsageError(
            "the target's preprocess gives another tensor each time for the same image",
            "Use the transform for evaluation: without random crops, flips or the like.",
        )
    _add(digest, once)
    return digest.hexdigest()


def _kind_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _source(kind: type[torch.nn.Module]) -> str:
    try:
        return inspect.getsource(kind.forward)
    except (OSError, TypeError):
        return ""


def _add(digest: hashlib._Hash, value: object) -> None:
    if isinstance(value, torch.Tensor):
        tensor = value.detach().cpu().contiguous()
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    else:
        digest.update(repr(value).encode())

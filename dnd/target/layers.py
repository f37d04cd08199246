"""Finding a layer of a network by its name, and refusing what cannot be observed."""

from __future__ import annotations

import difflib

import torch

from dnd.errors import UsageError

_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module"}
"""What DataParallel, torch.compile and FSDP put into the names of layers."""
_PARALLEL = (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)


def find_layer(module: torch.nn.Module, layer: str) -> torch.nn.Module:
    """The layer of that dotted name. UsageError where there is none, or where it cannot be observed."""
    layers: dict[str, torch.nn.Module] = dict(module.named_modules(remove_duplicate=False))
    if layer in layers:
        way = ["", *(layer[:at] for at, letter in enumerate(layer) if letter == "."), layer]
        if any(isinstance(layers[name], torch.jit.ScriptModule) for name in way):
            raise UsageError(
                f"layer {layer} is TorchScript, which cannot be observed",
                "Give the Python network that it was made from.",
            )
        return layers[layer]
    close = [name for name in layers if layer and _unwrapped(name) == _unwrapped(layer)]
    close = close or difflib.get_close_matches(layer, layers, n=3, cutoff=0.5)
    top = [name for name, _ in module.named_children()]
    shown = ", ".join(top[:8]) + (" and more" if len(top) > 8 else "")
    near = f"Did you mean {' or '.join(close)}? " if close else ""
    hint = near + (f"Its top layers: {shown}." if top else "It is made of no layers.")
    raise UsageError(f"{type(module).__name__} has no layer {layer!r}", hint)


def _unwrapped(name: str) -> list[str]:
    return [part for part in name.split(".") if part not in _WRAPPERS]


def check_network(module: torch.nn.Module) -> None:
    """UsageError for a network whose layers do not run as modules, or whose weights are only announced."""
    if isinstance(module, torch.fx.GraphModule) and "eval" in vars(module):  # which torch.export takes away
        raise UsageError(
            "the target is an exported program, whose layers do not run as modules",
            "Give torch.export.unflatten(program), whose layers do.",
        )
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.is_meta:
            raise UsageError(
                f"the target has no weights: {name} is on the meta device",
                'Load them first: module.to_empty(device="cpu") and load_state_dict, or build it on the CPU.',
            )


def inner(module: torch.nn.Module) -> torch.nn.Module:
    """The network itself where it is wrapped to run on several devices."""
    while isinstance(module, _PARALLEL):
        module = module.module
    return module

"""Targets by name from three libraries: `transformers`, `torchvision` and `timm`, with weights from local files."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from dnd import api
from dnd_targets.checkpoints import load_checkpoint, weights_file
from dnd_targets.config import FileConfig, TimmConfig, TorchvisionConfig, TransformersConfig
from dnd_targets.hf import TransformersTarget

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch
    from PIL.Image import Image

    Built = tuple[torch.nn.Module, Callable[[Image], torch.Tensor]]

__all__ = ["FileConfig", "TimmConfig", "TimmTarget", "TorchvisionConfig", "TorchvisionTarget", "TransformersConfig"]
__all__ += ["TransformersTarget", "register_targets"]


class TorchvisionTarget(api.Target):
    """A torchvision model, prepared as its weights want it."""

    name = "torchvision"
    Config = TorchvisionConfig
    config: TorchvisionConfig
    requires = ("torchvision",)

    def build(self) -> Built:
        """Raises UsageError for an unknown architecture or transform, ModelError for weights that do not fit it."""
        models, config = _library("torchvision.models", "torchvision"), self.config
        name = config.architecture
        _check_name(name, models.list_models(), "torchvision")
        options: dict[str, Any] = {"num_classes": config.num_classes} if config.num_classes else {}
        if name in ("inception_v3", "googlenet"):  # as the builders do for their official weights
            options["transform_input"] = config.transform_input is not False
            options["init_weights"] = False
        if "weights_backbone" in _parameters(models.get_model_builder(name)):  # or it downloads them
            options["weights_backbone"] = None
        module = models.get_model(name, weights=None, **options)
        load_checkpoint(module, weights_file(config, self.runtime), name, config.weights_key)
        return module, _torchvision_transform(models.get_model_weights(name), name, config)


class TimmTarget(api.Target):
    """A timm model, prepared as its own data settings say."""

    name = "timm"
    Config = TimmConfig
    config: TimmConfig
    requires = ("timm",)

    def build(self) -> Built:
        """Raises UsageError for an unknown architecture or options, ModelError for weights that do not fit it."""
        timm, config = _library("timm", "timm"), self.config
        name = config.architecture
        _check_name(name.split(".")[0], timm.list_models(), "timm")
        if config.in_chans not in (None, 1, 3):
            hint = "Name a function of your own, module:function, which also says how an image becomes its input."
            raise api.UsageError(f"target.in_chans: images have 3 channels or 1, not {config.in_chans}", hint)
        given = {key: getattr(config, key) for key in ("num_classes", "in_chans", "img_size", "global_pool")}
        options = {key: value for key, value in given.items() if value is not None}
        try:
            module = timm.create_model(name, pretrained=False, **options)
        except (TypeError, AssertionError, ValueError, RuntimeError) as error:
            shown = ", ".join(f"{key}={value!r}" for key, value in options.items()) or "its defaults"
            raise api.UsageError(
                f"timm does not build {name} with {shown}: {error}", "See `timm.create_model`."
            ) from error
        load_checkpoint(module, weights_file(config, self.runtime), name, config.weights_key)
        return module, _timm_transform(timm, module, config)


def _torchvision_transform(weights: Any, name: str, config: TorchvisionConfig) -> Callable[[Image], torch.Tensor]:
    known = {one.name: one for one in weights}
    if config.transform is not None and config.transform not in known:
        raise api.UsageError(f"{name} has no transform {config.transform!r}", f"There are: {', '.join(known)}.")
    make = (known[config.transform] if config.transform else weights.DEFAULT).transforms
    if config.image_size is None:
        return make()  # type: ignore[no-any-return]
    size, known_sizes = config.image_size, _parameters(make)
    if "crop_size" in known_sizes:
        return make(crop_size=size, resize_size=size)  # type: ignore[no-any-return]
    if "resize_size" in known_sizes:  # of segmentation: a number alone would keep the image's shape
        return make(resize_size=[size, size])  # type: ignore[no-any-return]
    transform = make()  # of detection
    return lambda image: transform(image.resize((size, size)))


def _timm_transform(timm: Any, module: torch.nn.Module, config: TimmConfig) -> Callable[[Image], torch.Tensor]:
    """Of a network of grey images the mean over the channels that an RGB image has after the transform."""
    settings = timm.data.resolve_model_data_config(module)
    if config.img_size is not None:
        height, width = (config.img_size,) * 2 if isinstance(config.img_size, int) else config.img_size
        settings = {**settings, "input_size": (3, height, width)}
    if config.in_chans != 1:
        return timm.data.create_transform(**settings, is_training=False)  # type: ignore[no-any-return]
    colour = {key: _three(settings[key]) for key in ("mean", "std")}
    settings = {**settings, **colour, "input_size": (3, *settings["input_size"][1:])}
    transform = timm.data.create_transform(**settings, is_training=False)
    return lambda image: transform(image).mean(0, keepdim=True)


def _three(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(values) * 3 if len(values) == 1 else tuple(values)


def _parameters(function: Any) -> set[str]:
    from inspect import signature

    try:
        return set(signature(function).parameters)
    except (TypeError, ValueError):
        return set()


def _library(module: str, extra: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        hint = f"pip install {extra}"
        raise api.UsageError(f"the target needs {extra}, which does not import: {error}", hint) from error


def _check_name(name: str, known: list[str], library: str) -> None:
    if name not in known:
        from difflib import get_close_matches

        close = get_close_matches(name, known, n=3)
        hint = f"Did you mean {' or '.join(close)}?" if close else f"See {library}'s list_models()."
        raise api.UsageError(f"{library} has no architecture {name!r}", hint)


@api.hookimpl
def register_targets() -> list[type[api.Target]]:
    return [TransformersTarget, TorchvisionTarget, TimmTarget]

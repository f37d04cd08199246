"""Targets by name from three libraries: `transformers`, `torchvision` and `timm`, with weights from local files."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pydantic

from dnd import api
from dnd_hf.loading import LOCAL, load_errors, load_whole

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

Built = tuple["torch.nn.Module", "Callable[[Image], torch.Tensor]"]


class TransformersConfig(api.Config):
    """Settings of the target "transformers": one of the two."""

    model: api.ModelName | None = None
    """A name in models.lock."""
    folder: str | None = None
    """A folder of your own with config.json, preprocessor_config.json and safetensors weights."""

    @pydantic.model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.model is None) == (self.folder is None):
            raise ValueError("give either model, a name in models.lock, or folder")
        return self


class TransformersTarget(api.Target):
    """An image classifier or backbone as its config.json names it, prepared as its image processor does."""

    name = "transformers"
    Config = TransformersConfig
    config: TransformersConfig

    def build(self) -> Built:
        """Raises ModelError where the folder does not hold a whole model."""
        transformers = _library("transformers", "transformers")
        folder = self.runtime.weights(self.config.model) if self.config.model else _path(self.config.folder or "")
        name = self.config.model or str(folder)
        with load_errors(name, folder, "an image model", "config.json, preprocessor_config.json"):
            settings = transformers.AutoConfig.from_pretrained(folder, **LOCAL)
            # The PIL image processor everywhere: pixels must not depend on whether torchvision is installed.
            processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil", **LOCAL)
            kind = getattr(transformers, (settings.architectures or ["AutoModel"])[0], None)
            if kind is None:
                raise ValueError(f"transformers has no {settings.architectures[0]}")
            module = load_whole(kind, folder, name, **LOCAL)

        def preprocess(image: Image) -> torch.Tensor:
            pixels: torch.Tensor = processor(images=image, return_tensors="pt")["pixel_values"][0]
            return pixels

        return module, preprocess


class FileConfig(api.Config):
    """Settings of the targets "torchvision" and "timm"."""

    architecture: str
    """As the library names it: "resnet50", "vit_base_patch16_224"."""
    weights: str
    """A state dict of yours: .safetensors, or a .pth that holds tensors and nothing else."""
    num_classes: pydantic.PositiveInt | None = None
    """Outputs of the last layer, where they are not the library's own number."""


class TorchvisionTarget(api.Target):
    """A torchvision model, prepared as its default weights want it."""

    name = "torchvision"
    Config = FileConfig
    config: FileConfig

    def build(self) -> Built:
        """Raises UsageError for an unknown architecture, ModelError for weights that do not fit it."""
        models = _library("torchvision.models", "torchvision")
        name, classes = self.config.architecture, self.config.num_classes
        _check_name(name, models.list_models(), "torchvision")
        module = models.get_model(name, weights=None, **({"num_classes": classes} if classes else {}))
        _load(module, _path(self.config.weights), name)
        return module, models.get_model_weights(name).DEFAULT.transforms()


class TimmTarget(api.Target):
    """A timm model, prepared as its own data settings say."""

    name = "timm"
    Config = FileConfig
    config: FileConfig

    def build(self) -> Built:
        """Raises UsageError for an unknown architecture, ModelError for weights that do not fit it."""
        timm = _library("timm", "timm")
        name, classes = self.config.architecture, self.config.num_classes
        _check_name(name.split(".")[0], timm.list_models(), "timm")
        module = timm.create_model(name, pretrained=False, **({"num_classes": classes} if classes else {}))
        _load(module, _path(self.config.weights), name)
        return module, timm.data.create_transform(**timm.data.resolve_model_data_config(module), is_training=False)


def _library(module: str, extra: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        hint = f"pip install {extra}"
        raise api.UsageError(f"the target needs {extra}, which does not import: {error}", hint) from error


def _path(text: str) -> Path:
    path = Path(text).expanduser()
    if not path.exists():
        raise api.ModelError(f"there is no {path}", "Give the path of weights on this machine.")
    return path


def _check_name(name: str, known: list[str], library: str) -> None:
    if name not in known:
        from difflib import get_close_matches

        close = get_close_matches(name, known, n=3)
        hint = f"Did you mean {' or '.join(close)}?" if close else f"See {library}'s list_models()."
        raise api.UsageError(f"{library} has no architecture {name!r}", hint)


def _load(module: torch.nn.Module, file: Path, name: str) -> None:
    """Fill a module from a file of tensors, which must fit exactly."""
    try:
        module.load_state_dict(_read(file))
    except Exception as error:  # Readers raise their own kinds: SafetensorError, UnpicklingError, ...
        first = " ".join(str(error).split())[:300]
        raise api.ModelError(
            f"{file} does not load as weights of {name}: {first}", "It must be a state dict of exactly that model."
        ) from error


def _read(file: Path) -> dict[str, torch.Tensor]:
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(file)
    import torch

    found = torch.load(file, map_location="cpu", weights_only=True)
    nested = next((found[key] for key in ("state_dict", "model") if isinstance(found.get(key), dict)), found)
    return {name: value for name, value in nested.items() if isinstance(value, torch.Tensor)}


@api.hookimpl
def register_targets() -> list[type[api.Target]]:
    return [TransformersTarget, TorchvisionTarget, TimmTarget]

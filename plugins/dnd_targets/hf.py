"""The target "transformers": image classifiers, backbones, and the vision towers of CLIP-like models."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dnd import api
from dnd_hf.loading import LOCAL, load_errors, load_whole
from dnd_targets.config import TransformersConfig

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from PIL.Image import Image


class TransformersTarget(api.Target):
    """An image classifier or backbone as its config.json names it, prepared as its image processor does."""

    name = "transformers"
    Config = TransformersConfig
    config: TransformersConfig
    requires = ("transformers",)

    def build(self) -> tuple[torch.nn.Module, Callable[[Image], torch.Tensor]]:
        """Raises ModelError where the folder does not hold a whole model, UsageError for one that reads texts."""
        import transformers

        folder = self.config.folder or self.runtime.weights(self.config.model or "")
        name = self.config.model or str(folder)
        with load_errors(name, folder, "an image model", "config.json, preprocessor_config.json"):
            settings = transformers.AutoConfig.from_pretrained(folder, **LOCAL)
            kind = getattr(transformers, (settings.architectures or ["AutoModel"])[0], None)
            if kind is None:
                raise ValueError(f"transformers has no {settings.architectures[0]}")
            _refuse_talkers(kind, settings, name)
            processor = _image_processor(folder)
            module = _reading_pixels(_vision_tower(load_whole(kind, folder, name, **LOCAL)), name)

        def preprocess(image: Image) -> torch.Tensor:
            pixels: torch.Tensor = processor(images=image, return_tensors="pt")["pixel_values"][0]
            return pixels

        return module, preprocess


def _image_processor(folder: Path) -> Any:
    """The PIL image processor everywhere: pixels must not depend on whether torchvision is installed."""
    import transformers

    try:
        return transformers.AutoImageProcessor.from_pretrained(folder, backend="pil", **LOCAL)
    except ImportError as error:
        raise api.UsageError(
            f"transformers {transformers.__version__} does not read images without torchvision",
            'pip install "transformers>=5.18"',
        ) from error


def _refuse_talkers(kind: Any, settings: Any, name: str) -> None:
    """UsageError for a model that answers images with texts: its units are a language model's."""
    if getattr(settings, "vision_config", None) is not None and hasattr(kind, "generate"):
        raise api.UsageError(
            f"{name!r} is an image-text model ({kind.__name__}), which writes texts",
            "Name a function of your own, module:function, that gives its vision tower and image processor.",
        )


def _vision_tower(module: Any) -> Any:
    """Of a model of images and texts (CLIP, SigLIP) the part that sees images; any other as it is."""
    both = getattr(module.config, "vision_config", None) is not None and hasattr(module, "get_image_features")
    return module.vision_model if both and hasattr(module, "vision_model") else module


def _reading_pixels(module: Any, name: str) -> Any:
    """The module, called with the pixels alone: by name where they are not its first argument."""
    arguments = list(inspect.signature(module.forward).parameters)
    if "pixel_values" not in arguments:
        takes = ", ".join(arguments[:3])
        raise api.UsageError(
            f"{name!r} ({type(module).__name__}) takes no pixel_values but {takes}",
            "Name a function of your own, module:function, that gives an image model.",
        )
    if arguments[0] != "pixel_values":
        kind = type(module)

        def forward(self: Any, pixel_values: Any) -> Any:
            return kind.forward(self, pixel_values=pixel_values)

        module.__class__ = type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})
    return module

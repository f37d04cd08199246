"""Settings of the bundled targets."""

from __future__ import annotations

from typing import Self

import pydantic

from dnd import api


class TransformersConfig(api.Config):
    """Settings of the target "transformers": `model` or `folder`."""

    model: api.ModelName | None = None
    """A name in models.lock."""
    folder: api.ModelFolder | None = None
    """A folder of your own with config.json, preprocessor_config.json and safetensors weights."""

    @pydantic.model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.model is None) == (self.folder is None):
            raise ValueError("give either model, a name in models.lock, or folder")
        return self


class FileConfig(api.Config):
    """What the targets "torchvision" and "timm" share: `weights` or `model`."""

    architecture: str
    """As the library names it: "resnet50", "vit_base_patch16_224"."""
    weights: str | None = None
    """A state dict of your own: .safetensors, or a .pth that holds tensors and nothing else."""
    model: api.ModelName | None = None
    """A name in models.lock whose folder holds one such file."""
    weights_key: str | None = None
    """Which dictionary of a checkpoint: "state_dict_ema"; by default the one that training code calls its model."""
    num_classes: pydantic.NonNegativeInt | None = None
    """Outputs of the last layer, where they are not the library's own number."""

    @pydantic.model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.model is None) == (self.weights is None):
            raise ValueError("give either weights, a file, or model, a name in models.lock")
        return self


class TorchvisionConfig(FileConfig):
    """Settings of the target "torchvision"."""

    num_classes: pydantic.PositiveInt | None = None
    """Outputs of the last layer, where they are not the library's own number."""
    transform: str | None = None
    """Whose preprocessing: "IMAGENET1K_V1", say, for weights trained as those. By default that of the library's
    default weights, which for many architectures are V2."""
    image_size: pydantic.PositiveInt | None = None
    """Pixels along an edge of the input, in place of the transform's."""
    transform_input: bool | None = None
    """For inception_v3 and googlenet, whose official weights (true, the default) rescale their input themselves."""


class TimmConfig(FileConfig):
    """Settings of the target "timm"; `num_classes = 0` for a model without a head."""

    in_chans: pydantic.PositiveInt | None = None
    """Channels of the input: 3, or 1 for networks of grey images."""
    img_size: pydantic.PositiveInt | tuple[pydantic.PositiveInt, pydantic.PositiveInt] | None = None
    """Pixels of the input along each edge, or (height, width)."""
    global_pool: str | None = None
    """ "avg", "token", "map" or what else the architecture knows."""

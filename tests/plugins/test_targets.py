"""The bundled targets: tiny models, saved and loaded as users' are."""

from __future__ import annotations

import sys
from argparse import Namespace
from enum import Enum
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pydantic
import pytest
import torch
from safetensors.torch import save_file

import dnd_targets
from dnd.api import ModelError, Runtime, UsageError
from dnd.target.load import HookedTarget
from dnd.target.preprocess import probe_image
from dnd_targets.checkpoints import load_checkpoint

RUNTIME = Runtime("cpu", lambda name: Path(name))


def transformers_target(folder: Path | str) -> dnd_targets.TransformersTarget:
    return dnd_targets.TransformersTarget(dnd_targets.TransformersConfig(folder=str(folder)), RUNTIME)


def save_vit(folder: Path) -> torch.nn.Module:
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
    }
    model = ViTForImageClassification(ViTConfig(**sizes, image_size=32, patch_size=8, num_labels=5))
    model.save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return model


def save_resnet(folder: Path) -> torch.nn.Module:
    from transformers import ResNetConfig, ResNetForImageClassification, ViTImageProcessor

    torch.manual_seed(0)
    sizes: dict[str, Any] = {"embedding_size": 8, "hidden_sizes": [8, 12], "depths": [1, 1], "layer_type": "basic"}
    model = ResNetForImageClassification(ResNetConfig(**sizes, num_labels=7))
    model.save_pretrained(folder)
    ViTImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    return model


def test_a_vit(tmp_path: Path) -> None:
    saved = save_vit(tmp_path)
    module, preprocess = transformers_target(tmp_path).build()
    layers = ["vit.layernorm", "classifier"]
    with HookedTarget(module, preprocess, layers) as hooked:
        assert hooked.layer_sizes() == {"vit.layernorm": 16, "classifier": 5}
        assert hooked.has_maps("vit.layernorm")
        batch = torch.stack([preprocess(probe_image())])
        logits = hooked.pooled(batch)["classifier"]
        (activation_map,) = hooked.maps(batch, {"vit.layernorm": [(0, 3)]})["vit.layernorm"]
    with torch.no_grad():
        expected = saved.eval()(batch, output_hidden_states=True)
        hidden = saved.vit(batch).last_hidden_state
    torch.testing.assert_close(logits, expected.logits, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(torch.from_numpy(activation_map), hidden[0, 1:, 3].reshape(4, 4), rtol=1e-4, atol=1e-5)


def test_a_resnet(tmp_path: Path) -> None:
    save_resnet(tmp_path)
    module, preprocess = transformers_target(tmp_path).build()
    with HookedTarget(module, preprocess, ["resnet.encoder.stages.1", "classifier.1"]) as hooked:
        assert hooked.layer_sizes() == {"resnet.encoder.stages.1": 12, "classifier.1": 7}
        assert not hooked.has_maps("classifier.1")


def test_a_name_in_the_lock_is_resolved_by_the_runtime(tmp_path: Path) -> None:
    save_resnet(tmp_path)
    config = dnd_targets.TransformersConfig(model="my-resnet")
    target = dnd_targets.TransformersTarget(config, Runtime("cpu", {"my-resnet": tmp_path}.__getitem__))
    assert sum(p.numel() for p in target.build()[0].parameters()) > 0


@pytest.mark.parametrize("settings", [{}, {"model": "a", "folder": "."}])
def test_one_of_model_and_folder(settings: dict[str, str]) -> None:
    with pytest.raises(pydantic.ValidationError, match="give either model"):
        dnd_targets.TransformersConfig(**settings)


def test_folders_that_hold_no_whole_model(tmp_path: Path) -> None:
    with pytest.raises(pydantic.ValidationError, match="there is no folder"):
        transformers_target(tmp_path / "absent").build()
    with pytest.raises(ModelError, match="does not load as an image model"):
        transformers_target(tmp_path).build()
    save_resnet(tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(ModelError, match="does not load as an image model"):
        transformers_target(tmp_path).build()


def test_weights_that_are_missing_are_never_made_up(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    save_resnet(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["classifier.1.bias"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"not whole: classifier.1.bias is missing"):
        transformers_target(tmp_path).build()


def test_a_transformers_that_wants_torchvision_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    def wants(*_: Any, **__: Any) -> None:
        raise ImportError("AutoImageProcessor requires the Torchvision library")

    save_resnet(tmp_path)
    monkeypatch.setattr(transformers.AutoImageProcessor, "from_pretrained", wants)
    with pytest.raises(UsageError, match="does not read images without torchvision") as caught:
        transformers_target(tmp_path).build()
    assert "transformers>=5.18" in caught.value.hint


def test_pickled_weights_are_not_read(tmp_path: Path) -> None:
    model = save_resnet(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="does not load as an image model"):
        transformers_target(tmp_path).build()


# --- timm and torchvision, by stand-ins: neither is installed beside the CPU torch -------------------


@pytest.fixture
def libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    def make(name: str, num_classes: int = 4, **options: Any) -> torch.nn.Module:
        assert not options.get("pretrained")
        assert options.get("weights") is None
        return torch.nn.Sequential(torch.nn.Conv2d(3, num_classes, 1))

    timm: Any = ModuleType("timm")
    timm.list_models, timm.create_model = (lambda: ["tiny"]), make
    timm.data = SimpleNamespace(
        resolve_model_data_config=lambda module: {"input_size": (3, 8, 8)},
        create_transform=lambda input_size, is_training: lambda image: torch.zeros(input_size),
    )
    vision: Any = ModuleType("torchvision.models")
    vision.list_models, vision.get_model = (lambda: ["tiny"]), make
    vision.get_model_builder = lambda name: make

    def sized(side: int) -> Any:
        def make(crop_size: int = side, resize_size: int = side) -> Any:
            return lambda image: torch.zeros(3, crop_size, resize_size)

        return make

    class Weights(Enum):
        IMAGENET1K_V1 = SimpleNamespace(transforms=sized(6))
        DEFAULT = SimpleNamespace(transforms=sized(8))
        transforms = property(lambda self: self.value.transforms)

    vision.get_model_weights = lambda name: Weights
    monkeypatch.setitem(sys.modules, "timm", timm)
    monkeypatch.setitem(sys.modules, "torchvision", ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.models", vision)


KINDS = [dnd_targets.TimmTarget, dnd_targets.TorchvisionTarget]


def build(kind: Any, weights: Path, architecture: str = "tiny", **settings: Any) -> Any:
    return kind(kind.Config(architecture=architecture, weights=str(weights), **settings), RUNTIME).build()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("suffix", ["safetensors", "pth", "nested.pth"])
def test_weights_from_a_file(libraries: None, kind: Any, suffix: str, tmp_path: Path) -> None:
    state = {"0.weight": torch.rand(6, 3, 1, 1), "0.bias": torch.rand(6)}
    file = tmp_path / f"w.{suffix}"
    if suffix == "safetensors":
        save_file(state, file)
    else:
        torch.save({"state_dict": state, "epoch": 3} if "nested" in suffix else state, file)
    module, preprocess = build(kind, file, num_classes=6)
    assert torch.equal(module[0].bias, state["0.bias"])
    assert preprocess(probe_image()).shape == (3, 8, 8)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_that_do_not_fit(libraries: None, kind: Any, tmp_path: Path) -> None:
    save_file({"0.weight": torch.rand(6, 3, 1, 1)}, tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match=r"does not fit tiny: it has no 0.bias; 0.weight is"):
        build(kind, tmp_path / "w.safetensors")
    with pytest.raises(UsageError, match="has no architecture 'tinny'") as caught:
        build(kind, tmp_path / "w.safetensors", "tinny")
    assert caught.value.hint == "Did you mean tiny?"
    with pytest.raises(ModelError, match="there is no"):
        build(kind, tmp_path / "absent.pth")


class Evil:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (Path.touch, (self.mark,))


@pytest.mark.parametrize("kind", KINDS)
def test_a_pickle_with_code_in_it_does_not_run(libraries: None, kind: Any, tmp_path: Path) -> None:
    torch.save({"0.bias": Evil(tmp_path / "mark")}, tmp_path / "w.pth")
    with pytest.raises(ModelError, match="does not load as weights"):
        build(kind, tmp_path / "w.pth")
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize(("kind", "package"), list(zip(KINDS, ("timm", "torchvision"), strict=True)))
def test_a_missing_package_is_an_error_with_the_command(
    kind: Any, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setitem(sys.modules, f"{package}.models", None)
    with pytest.raises(UsageError, match=f"needs {package}") as caught:
        build(kind, Path("w.pth"))
    assert caught.value.hint == f"pip install {package}"


# --- checkpoints as people have them ------------------------------------------------------------------


def net(outputs: int = 4) -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Conv2d(3, outputs, 1), torch.nn.BatchNorm2d(outputs))


def filled(tmp_path: Path, saved: Any, key: str | None = None) -> torch.nn.Module:
    torch.save(saved, tmp_path / "w.pth")
    module = net()
    load_checkpoint(module, tmp_path / "w.pth", "tiny", key)
    return module


@pytest.mark.parametrize(
    "prefix", ["", "module.", "_orig_mod.", "model.", "module._orig_mod.", "_orig_mod.module.model."]
)
@pytest.mark.parametrize("nested", ["", "state_dict", "model_state_dict", "model", "net", "state_dict_ema"])
def test_prefixes_and_nesting_of_training_code(prefix: str, nested: str, tmp_path: Path) -> None:
    state = net().state_dict()
    named = {prefix + name: tensor for name, tensor in state.items()}
    saved: Any = {nested: named, "epoch": 3, "optimizer": {"state": {0: torch.zeros(2)}}} if nested else named
    assert torch.equal(filled(tmp_path, saved).get_parameter("0.weight"), state["0.weight"])


def test_arguments_and_numbers_beside_the_weights(tmp_path: Path) -> None:
    state = net().state_dict()
    saved = {
        "model": state,
        "args": Namespace(lr=0.1, sizes=[1, 2]),
        "best": np.float64(0.7),
        "losses": [np.float32(1)],
    }
    assert torch.equal(filled(tmp_path, saved).get_parameter("0.bias"), state["0.bias"])


def test_an_average_of_weights_is_taken_when_it_is_named(tmp_path: Path) -> None:
    plain, average = net().state_dict(), net().state_dict()
    both = {"state_dict": plain, "state_dict_ema": average}
    assert torch.equal(filled(tmp_path, both).get_parameter("0.weight"), plain["0.weight"])
    assert torch.equal(filled(tmp_path, both, "state_dict_ema").get_parameter("0.weight"), average["0.weight"])
    with pytest.raises(ModelError, match="no weights under 'ema'") as caught:
        filled(tmp_path, both, "ema")
    assert caught.value.hint == "target.weights_key may be: state_dict, state_dict_ema."


def test_counters_of_profilers_and_batch_norm_are_no_weights(tmp_path: Path) -> None:
    state = net().state_dict()
    del state["1.num_batches_tracked"]
    filled(tmp_path, {**state, "total_ops": torch.zeros(1), "0.total_params": torch.zeros(1)})


def test_the_first_tensor_that_does_not_fit_is_named(tmp_path: Path) -> None:
    state = net().state_dict()
    with pytest.raises(ModelError, match=r"w.pth does not fit tiny: tiny has no a\?b \(and 1 more\)(\n|$)") as caught:
        filled(tmp_path, {**state, "a\x1bb": torch.zeros(1), "c": torch.zeros(1)})
    assert "strict" not in str(caught.value)
    with pytest.raises(ModelError, match=r"0.weight is \(6, 3, 1, 1\) in it and \(4, 3, 1, 1\) in tiny") as caught:
        filled(tmp_path, net(6).state_dict())
    assert caught.value.hint == "Set target.num_classes to 6."


def test_code_in_a_checkpoint_is_named_without_advice_to_run_it(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"it holds an object of getattr, whose code would run") as caught:
        filled(tmp_path, {"state_dict": net().state_dict(), "extra": Evil(tmp_path / "mark")})
    assert "weights_only" not in str(caught.value) + caught.value.hint
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("saved", [[1, 2], {"epoch": 3}, torch.zeros(2), {}])
def test_a_file_without_weights(saved: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="holds no"):
        filled(tmp_path, saved)
    (tmp_path / "w.pth").write_bytes(b"PK\x03\x04 no")
    with pytest.raises(ModelError, match="damaged, or of another format"):
        load_checkpoint(net(), tmp_path / "w.pth", "tiny")


def test_settings_of_torchvision(libraries: None, tmp_path: Path) -> None:
    save_file(net()[0].state_dict(prefix="0."), tmp_path / "w.safetensors")  # type: ignore[index, operator]

    def shape(**settings: Any) -> tuple[int, ...]:
        _, preprocess = build(dnd_targets.TorchvisionTarget, tmp_path / "w.safetensors", **settings)
        return tuple(preprocess(probe_image()).shape)

    assert shape() == (3, 8, 8)
    assert shape(transform="IMAGENET1K_V1") == (3, 6, 6)
    assert shape(image_size=5) == (3, 5, 5)
    with pytest.raises(UsageError, match="has no transform 'V7'"):
        shape(transform="V7")


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_a_file_or_a_name_of_the_lock(libraries: None, kind: Any, tmp_path: Path) -> None:
    save_file({"0.weight": torch.rand(4, 3, 1, 1), "0.bias": torch.rand(4)}, tmp_path / "model.safetensors")
    runtime = Runtime("cpu", {"mine": tmp_path}.__getitem__)
    kind(kind.Config(architecture="tiny", model="mine"), runtime).build()
    for settings in ({}, {"model": "a", "weights": "b"}):
        with pytest.raises(pydantic.ValidationError, match="give either weights"):
            kind.Config(architecture="tiny", **settings)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="has no file of tensors"):
        kind(kind.Config(architecture="tiny", model="mine"), runtime).build()


# --- models of images and texts ----------------------------------------------------------------------


def vision(hidden: int = 16) -> dict[str, Any]:
    sizes = {"hidden_size": hidden, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    return {**sizes, "image_size": 32, "patch_size": 8}


@pytest.mark.parametrize("family", ["CLIP", "Siglip"])
def test_the_vision_tower_of_a_whole_clip_or_siglip(family: str, tmp_path: Path) -> None:
    import transformers

    text = {k: v for k, v in vision().items() if "size" not in k or k in ("hidden_size", "intermediate_size")}
    config = getattr(transformers, f"{family}Config")(vision_config=vision(), text_config={**text, "vocab_size": 50})
    model = getattr(transformers, f"{family}Model")(config)
    model.save_pretrained(tmp_path)
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    module, preprocess = transformers_target(tmp_path).build()
    pixels = preprocess(probe_image())[None]
    with torch.no_grad():
        found = module.eval()(pixels).last_hidden_state
        expected = model.vision_model.eval()(pixels).last_hidden_state
    torch.testing.assert_close(found, expected)


def test_a_model_that_writes_texts_is_refused_in_words(tmp_path: Path) -> None:
    import transformers

    text = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "vocab_size": 50,
    }
    config = transformers.BlipConfig(vision_config=vision(), text_config=text)
    transformers.BlipForConditionalGeneration(config).save_pretrained(tmp_path)
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    with pytest.raises(UsageError, match=r"is an image-text model \(BlipForConditionalGeneration\)"):
        transformers_target(tmp_path).build()


def test_a_model_without_pixels_is_refused_in_words(tmp_path: Path) -> None:
    import transformers

    config = transformers.BertConfig(**{k: v for k, v in vision().items() if "image" not in k and "patch" not in k})
    transformers.BertModel(config).save_pretrained(tmp_path)
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    with pytest.raises(UsageError, match=r"\(BertModel\) takes no pixel_values but input_ids"):
        transformers_target(tmp_path).build()

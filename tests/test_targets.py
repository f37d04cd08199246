"""The bundled targets: tiny models, saved and loaded as users' are."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pydantic
import pytest
import torch
from safetensors.torch import save_file

import dnd_targets
from dnd.api import ModelError, Runtime, UsageError
from dnd.target.load import HookedTarget
from dnd.target.preprocess import probe_image

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


@pytest.mark.parametrize("settings", [{}, {"model": "a", "folder": "b"}])
def test_one_of_model_and_folder(settings: dict[str, str]) -> None:
    with pytest.raises(pydantic.ValidationError, match="give either model"):
        dnd_targets.TransformersConfig(**settings)


def test_folders_that_hold_no_whole_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no"):
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
    weights = SimpleNamespace(DEFAULT=SimpleNamespace(transforms=lambda: lambda image: torch.zeros(3, 8, 8)))
    vision.get_model_weights = lambda name: weights
    monkeypatch.setitem(sys.modules, "timm", timm)
    monkeypatch.setitem(sys.modules, "torchvision", ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.models", vision)


KINDS = [dnd_targets.TimmTarget, dnd_targets.TorchvisionTarget]


def build(kind: Any, weights: Path, architecture: str = "tiny", **settings: Any) -> Any:
    config = dnd_targets.FileConfig(architecture=architecture, weights=str(weights), **settings)
    return kind(config, RUNTIME).build()


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
    with pytest.raises(ModelError, match=r"does not load as weights of tiny: .*0.bias"):
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

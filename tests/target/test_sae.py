"""Sparse autoencoders as the libraries themselves wrote them (saes/make.py), beside what their own encode() gives."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dnd.errors import UsageError
from dnd.target.sae import read_sae

HERE = Path(__file__).parent / "saes"
EXPECTED = load_file(HERE / "expected.safetensors")
REFUSED = {
    "overcomplete-pursuit.pt": "a MpSAE is not computed here",
    "overcomplete-layernorm.pt": "an encoder of Linear, LayerNorm, ReLU is not computed here",
}


@pytest.mark.parametrize("name", sorted({*EXPECTED} - {"x", *REFUSED}))
def test_latents_are_those_of_the_library(name: str) -> None:
    found = read_sae(str(HERE / name)).of(EXPECTED["x"])
    torch.testing.assert_close(found, EXPECTED[name], rtol=1e-4, atol=1e-5)
    assert 0 < (found != 0).float().mean() < 0.7
    assert ((found != 0) == (EXPECTED[name] != 0)).all()
    assert not {"overcomplete", "vit_prisma", "sae_lens"} & {*sys.modules}


@pytest.mark.parametrize("name", REFUSED)
def test_arithmetic_that_is_not_known(name: str) -> None:
    with pytest.raises(UsageError, match=REFUSED[name]):
        read_sae(str(HERE / name))


def test_a_tied_autoencoder_is_complete_only_after_training() -> None:
    with pytest.raises(
        UsageError, match=r"overcomplete-training.pt has tied weights and was saved while training"
    ) as caught:
        read_sae(str(HERE / "overcomplete-training.pt"))
    assert "sae.eval()" in caught.value.hint


def test_a_pickle_runs_no_code(tmp_path: Path) -> None:
    class Bad:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "touched",)

    file = tmp_path / "bad.pt"
    torch.save({"state_dict": Bad(), "cfg": {}}, file)
    with pytest.raises(UsageError, match="its weights cannot be read: "):
        read_sae(str(file))
    assert not (tmp_path / "touched").exists()


def changed(source: str, folder: Path, **config: Any) -> str:
    """A copy whose config says otherwise. None takes a line out."""
    shutil.copytree(HERE / source, folder)
    file = folder / ("cfg.json" if source.startswith("saelens") else "config.json")
    merged = {**json.loads(file.read_text()), **config}
    file.write_text(json.dumps({name: value for name, value in merged.items() if value is not None}))
    return str(folder)


@pytest.mark.parametrize(
    ("source", "config", "message"),
    [
        ("saelens-topk", {"k": None}, "does not say how many latents are kept"),
        ("saelens-standard", {"architecture": "temporal"}, "'temporal' with activation 'relu' is not known"),
        ("saelens-standard", {"activation_fn": "tanh-relu"}, "'standard' with activation 'tanh-relu' is not known"),
        ("saelens-standard", {"normalize_activations": "expected_average_only_in"}, "is not computed here"),
        ("saelens-standard", {"architecture": "gated"}, "has no tensor b_gate"),
        ("saelens-gated", {"architecture": "standard"}, "has no tensor b_enc"),
        ("saelens-jumprelu", {"architecture": "standard"}, "threshold is unknown of an autoencoder 'standard'"),
        ("prisma-gated", {"architecture": "standard"}, "b_gate, b_mag, r_mag is unknown of an autoencoder 'standard'"),
        ("prisma-standard", {"architecture": "jumprelu"}, "has no tensor threshold"),
        ("prisma-standard", {"activation_fn_str": "tanh-relu"}, "activation 'tanh-relu' is not known"),
        ("prisma-topk", {"activation_fn_kwargs": {"k": 4, "postact_fn": "gelu"}}, "postact_fn = 'gelu' is not known"),
        ("prisma-standard", {"normalize_activations": None}, "its config has no normalize_activations"),
    ],
)
def test_configs_that_change_the_arithmetic(source: str, config: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        read_sae(changed(source, tmp_path / "sae", **config))


def test_weights_that_are_not_complete(tmp_path: Path) -> None:
    folder = Path(changed("saelens-topk", tmp_path / "sae"))
    tensors = load_file(folder / "sae_weights.safetensors")
    for name in ("W_dec", "b_dec", "b_enc", "W_enc"):
        save_file({key: value for key, value in tensors.items() if key != name}, folder / "sae_weights.safetensors")
        with pytest.raises(UsageError, match=f"has no tensor {name}"):
            read_sae(str(folder))
    torch.save({"schema": 6}, tmp_path / "sae.pt")
    (tmp_path / "sae.pt").write_bytes(b'{"schema": 6}\n' + (HERE / "prisma-topk" / "weights.pt").read_bytes())
    with pytest.raises(UsageError, match="schema 6 is not known"):
        read_sae(str(tmp_path / "sae.pt"))

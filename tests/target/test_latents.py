"""Units that are rows of a matrix on a layer, or latents of a sparse autoencoder."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from readings import EDGE, Net, patches, preprocess, read
from safetensors.torch import save_file

from dnd.config.run import LayerSettings
from dnd.errors import UsageError
from dnd.target import layout
from dnd.target.fingerprint import fingerprint
from dnd.target.hooked import HookedTarget
from dnd.target.latents import Latents

BATCH = torch.rand(3, 3, EDGE, EDGE, generator=torch.Generator().manual_seed(0))
ROWS = torch.randn(5, 192, generator=torch.Generator().manual_seed(1))
BIAS = torch.linspace(-1, 1, 5)


def net() -> Net:
    return Net(lambda x: torch.cat([x.mean((2, 3)).repeat(1, 64)[:, None], patches(x)], 1))


def save(file: Path, **tensors: torch.Tensor) -> str:
    save_file({name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}, file)
    return str(file)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_a_unit_is_the_projection_on_its_row(relu: bool, bias: bool, tmp_path: Path) -> None:
    file = save(tmp_path / "probes.safetensors", directions=ROWS, **({"bias": BIAS} if bias else {}))
    expected = patches(BATCH) @ ROWS.T + (BIAS if bias else 0)  # (B, 64, 5)
    expected = expected.relu() if relu else expected
    reads = LayerSettings(directions=file, relu=relu)
    with HookedTarget(net(), preprocess, ["layer"], reads=reads) as hooked:
        assert hooked.layer_sizes() == {"layer": 5}
        assert str(hooked.readings["layer"]) == (
            "units = axis 2 (5 directions of probes.safetensors), map 8x8, 1 class token left out"
        )
        found, maps = hooked.observe(BATCH, {"layer": [(2, 4), (0, 1)]})
    torch.testing.assert_close(found["layer"], expected.mean(1), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(maps["layer"], expected[[2, 0], :, [4, 1]].reshape(2, 8, 8), rtol=1e-4, atol=1e-5)


def test_directions_of_channels_and_of_the_class_token(tmp_path: Path) -> None:
    file = save(tmp_path / "one.safetensors", anything=ROWS[:, :3])
    with HookedTarget(Net(lambda x: x), preprocess, ["layer"], reads=LayerSettings(directions=file)) as hooked:
        assert hooked.map_shape("layer") == (EDGE, EDGE)
        found = hooked.pooled(BATCH)["layer"]
    torch.testing.assert_close(found, BATCH.mean((2, 3)) @ ROWS[:, :3].T, rtol=1e-3, atol=1e-4)
    file = save(tmp_path / "wide.safetensors", weight=ROWS, other=ROWS[:2])
    reads = LayerSettings(directions=file, tokens="class", sign="negative")
    with HookedTarget(net(), preprocess, ["layer"], reads=reads) as hooked:
        found = hooked.pooled(BATCH)["layer"]
    torch.testing.assert_close(found, -BATCH.mean((2, 3)).repeat(1, 64) @ ROWS.T, rtol=1e-4, atol=1e-4)


def test_other_rows_are_another_identity(tmp_path: Path) -> None:
    turned = ROWS.clone()
    turned[4, 191] += 1e-5
    file, prints = tmp_path / "probes.safetensors", set()
    for rows in (ROWS, turned):
        save(file, directions=rows)
        prints.add(fingerprint(net(), preprocess, {"layer": read(net(), directions=str(file))}))
    assert len({*prints, fingerprint(net(), preprocess, {"layer": read(net())})}) == 3


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"directions": ROWS[:, :7]}, "layer layer has 192 features, and the 5 directions of p.safetensors have 7"),
        ({"directions": ROWS, "bias": BIAS[:3]}, r"bias is \(3,\), and there are 5 directions"),
        ({"a": ROWS, "b": ROWS}, "has no matrix `directions`"),
        ({"directions": ROWS[0]}, "has no matrix `directions`"),
        ({"directions": ROWS / 0}, "not finite"),
        ({"directions": ROWS[:0]}, "layer layer has no units: 0 directions of p.safetensors"),
        ({"directions": ROWS * 1j}, "complex numbers"),
        ({"coef_": ROWS, "intercept_": BIAS}, "it is not known what intercept_ is, a value for each direction"),
    ],
)
def test_files_that_do_not_fit(tensors: dict[str, torch.Tensor], message: str, tmp_path: Path) -> None:
    file = save(tmp_path / "p.safetensors", **tensors)
    with pytest.raises(UsageError, match=message):
        read(net(), directions=file)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read target.directions .*No such file"):
        read(net(), directions=str(tmp_path / "nothing"))
    (tmp_path / "pickle.pt").write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(UsageError, match="is no safetensors file") as caught:
        read(net(), directions=str(tmp_path / "pickle.pt"))
    assert "save_file" in caught.value.hint


@pytest.mark.parametrize("settings", [{"directions": "a", "heads": 2}, {"relu": True}, {"sae": "a", "directions": "b"}])
def test_settings_that_contradict_each_other(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"heads, directions or sae|relu goes with directions"):
        LayerSettings(**settings)


def test_what_is_cut_off_at_zero_has_nothing_below_it(tmp_path: Path) -> None:
    file = save(tmp_path / "p.safetensors", directions=ROWS)
    assert str(read(net(), directions=file, sign="negative")).endswith("negated")
    for settings in ({"directions": file, "relu": True}, {"sae": saelens(tmp_path / "sae")}):
        with pytest.raises(UsageError, match="are never below zero"):
            read(net(), sign="negative", **settings)


# --- sparse autoencoders -----------------------------------------------------------------------------

SHIFT, THRESHOLD = torch.linspace(-0.2, 0.8, 192), torch.linspace(0, 4, 5)
DECODER = torch.randn(5, 192, generator=torch.Generator().manual_seed(2))
TENSORS = {"W_enc": ROWS.T, "b_enc": BIAS, "W_dec": DECODER, "b_dec": SHIFT}


def saelens(folder: Path, **config: Any) -> str:
    folder.mkdir()
    jump = {"threshold": THRESHOLD} if config.get("architecture") == "jumprelu" else {}
    save(folder / "sae_weights.safetensors", **TENSORS, **jump)
    (folder / "cfg.json").write_text(json.dumps({"d_in": 192, "d_sae": 5, **config}))
    return str(folder)


def saev(file: Path, config: dict[str, Any]) -> str:
    content, config = io.BytesIO(), {**config}
    threshold = config.pop("threshold", None)
    torch.save(TENSORS if threshold is None else {**TENSORS, "activation.threshold": torch.tensor(threshold)}, content)
    file.write_bytes(json.dumps(config).encode() + b"\n" + content.getvalue())
    return str(file)


def top(values: torch.Tensor, k: int) -> torch.Tensor:
    """The k highest of each row, the others zero."""
    least = values.sort(-1, descending=True).values[..., k - 1 : k]
    return torch.where(values >= least, values, 0)


def encoded(x: torch.Tensor) -> torch.Tensor:
    return x @ ROWS.T + BIAS


def normed(x: torch.Tensor) -> torch.Tensor:
    x = x - x.mean(-1, keepdim=True)
    return x / (x.std(-1, keepdim=True) + 1e-5)


NEW = {"schema": 2}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"architecture": "standard"}, lambda x: encoded(x - SHIFT).relu()),
        ({"architecture": "standard", "apply_b_dec_to_input": False}, lambda x: encoded(x).relu()),
        ({"architecture": "topk", "k": 2}, lambda x: top(encoded(x - SHIFT), 2).relu()),
        ({"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 3}}, lambda x: top(encoded(x - SHIFT), 3).relu()),
        (
            {"architecture": "topk", "k": 2, "rescale_acts_by_decoder_norm": True},
            lambda x: top(encoded(x - SHIFT) * DECODER.norm(dim=1), 2).relu(),
        ),
        (
            {"architecture": "jumprelu"},
            lambda x: torch.where(encoded(x - SHIFT) > THRESHOLD, encoded(x - SHIFT), 0).relu(),
        ),
        ({"normalize_activations": "layer_norm"}, lambda x: encoded(normed(x) - SHIFT).relu()),
        (
            {"normalize_activations": "constant_norm_rescale"},
            lambda x: encoded(x * 192**0.5 / x.norm(dim=-1, keepdim=True) - SHIFT).relu(),
        ),
        ({"d_vit": 192, "exp_factor": 1}, lambda x: encoded(x - SHIFT).relu()),
        ({**NEW, "cfg": {"activation": {"cls": "Relu", "params": {}}}}, lambda x: encoded(x).relu()),
        ({**NEW, "cfg": {"activation": {"cls": "TopK", "params": {"top_k": 2}}}}, lambda x: top(encoded(x), 2)),
        ({**NEW, "cfg": {"activation": {"cls": "TopK", "params": {"top_k": 4}}}}, lambda x: top(encoded(x), 4)),
        ({"schema": 1, "cls": "TopK", "cfg": {"top_k": 3}}, lambda x: top(encoded(x), 3)),
        ({"schema": 1, "cls": "Relu", "cfg": {}}, lambda x: encoded(x).relu()),
        ({**NEW, "cfg": {"activation": {"cls": "BatchTopK", "params": {"top_k": 1}}}}, lambda x: top(encoded(x), 1)),
        (
            {"schema": 5, "threshold": 3.0, "cfg": {"activation": {"cls": "BatchTopK", "params": {"top_k": 1}}}},
            lambda x: torch.where(encoded(x) > 3, encoded(x), 0),
        ),
    ],
)
def test_the_latents_of_a_sparse_autoencoder_are_units(config: Any, expected: Any, tmp_path: Path) -> None:
    own = "d_vit" in config or "schema" in config
    sae = saev(tmp_path / "sae.pt", config) if own else saelens(tmp_path / "sae", **config)
    with HookedTarget(net(), preprocess, ["layer"], reads=LayerSettings(sae=sae)) as hooked:
        assert str(hooked.readings["layer"]).startswith(f"units = axis 2 (5 latents of {Path(sae).name}), map 8x8")
        found, maps = hooked.observe(BATCH, {"layer": [(2, 4), (0, 1), (1, 0)]})
    wanted = expected(patches(BATCH))
    assert (wanted == 0).any()
    torch.testing.assert_close(found["layer"], wanted.mean(1), rtol=1e-3, atol=1e-4)
    cells = wanted[[2, 0, 1], :, [4, 1, 0]].reshape(3, 8, 8)
    np.testing.assert_allclose(maps["layer"], cells, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("pooling", ["mean", "max", "top", "centre"])
@pytest.mark.parametrize("config", [{"architecture": "topk", "k": 2}, {"architecture": "jumprelu"}])
def test_many_latents_a_few_images_at_a_time(
    config: Any, pooling: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = LayerSettings(sae=saelens(tmp_path / "sae", **config))
    batch = torch.rand(11, 3, EDGE, EDGE, generator=torch.Generator().manual_seed(3))
    wanted = {"layer": [(10, 4), (0, 1), (7, 2), (10, 0)]}
    found, most = [], 0
    of = Latents.of

    def watched(latents: Latents, units: torch.Tensor) -> torch.Tensor:
        nonlocal most
        most = max(most, len(units))
        return of(latents, units)

    monkeypatch.setattr(Latents, "of", watched)
    for room in (1 << 30, 3 * 4 * 5 * 64):
        monkeypatch.setattr(layout, "_AT_ONCE", room)
        with HookedTarget(net(), preprocess, ["layer"], pooling=pooling, reads=reads) as hooked:
            most = 0
            found.append(hooked.observe(batch, wanted))
    assert most == 3
    torch.testing.assert_close(found[0][0]["layer"], found[1][0]["layer"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found[0][1]["layer"], found[1][1]["layer"], rtol=1e-4, atol=1e-5)
    assert found[0][0]["layer"].shape == (11, 5)


def test_no_sparse_autoencoders_at_all(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read target.sae .*cfg.json: No such file"):
        read(net(), sae=str(tmp_path))
    pickled = tmp_path / "whole.pt"
    torch.save(torch.nn.Linear(2, 2), pickled)
    with pytest.raises(UsageError, match="is no sparse autoencoder that is known"):
        read(net(), sae=str(pickled))
    pickled.write_bytes(b'{"schema": 1}\n' + pickled.read_bytes())
    with pytest.raises(UsageError, match="its weights cannot be read: "):
        read(net(), sae=str(pickled))
    broken = Path(saelens(tmp_path / "sae"))
    save(broken / "sae_weights.safetensors", W_enc=ROWS, b_enc=BIAS)
    with pytest.raises(UsageError, match=r"W_enc is \(5, 192\) and b_enc \(5,\)"):
        read(net(), sae=str(broken))


@pytest.mark.parametrize(
    ("config", "tensors", "message"),
    [
        ({}, {"b_dec": torch.zeros(1)}, r"its shift is \(1,\), and its encoder wants \(192,\)"),
        ({"rescale_acts_by_decoder_norm": True}, {"W_dec": DECODER[:1]}, r"its scale is \(1,\), and its encoder wants"),
        ({"architecture": "jumprelu"}, {"threshold": torch.zeros(3)}, "is not as those write it that are known"),
        ({"architecture": ["standard"]}, {}, "is not as those write it that are known"),
        ({"activation_fn_kwargs": 5}, {}, "is not as those write it that are known"),
        ({}, {"W_enc": ROWS.T[:, :0], "b_enc": BIAS[:0]}, "layer layer has no units: 0 latents of sae"),
    ],
)
def test_autoencoders_that_do_not_fit_themselves(
    config: dict[str, Any], tensors: dict[str, torch.Tensor], message: str, tmp_path: Path
) -> None:
    """One value was spread over all features without a word, or ended in a traceback."""
    place = Path(saelens(tmp_path / "sae"))
    save(place / "sae_weights.safetensors", **{**TENSORS, **tensors})
    (place / "cfg.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match=message):
        read(net(), sae=str(place))

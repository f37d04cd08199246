"""Units that are rows of a matrix on a layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from readings import EDGE, Net, patches, preprocess, read
from safetensors.torch import save_file

from dnd.config.run import LayerSettings
from dnd.errors import UsageError
from dnd.target.fingerprint import fingerprint
from dnd.target.hooked import HookedTarget

BATCH = torch.rand(3, 3, EDGE, EDGE, generator=torch.Generator().manual_seed(0))
ROWS = torch.randn(5, 192, generator=torch.Generator().manual_seed(1))
BIAS = torch.linspace(-1, 1, 5)


def net() -> Net:
    return Net(lambda x: torch.cat([x.mean((2, 3)).repeat(1, 64)[:, None], patches(x)], 1))


def save(file: Path, **tensors: torch.Tensor) -> str:
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, file)
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


@pytest.mark.parametrize("settings", [{"directions": "a", "heads": 2}, {"relu": True}])
def test_settings_that_contradict_each_other(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"heads or directions|relu goes with directions"):
        LayerSettings(**settings)

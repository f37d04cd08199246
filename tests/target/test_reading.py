"""How layers are read: which axis holds the units, and no map but one that follows the image."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from readings import EDGE, Net, patches, preprocess, read, with_class
from torch import Tensor, nn

from dnd.config.layout import parse_layout
from dnd.config.run import LayerSettings
from dnd.errors import UsageError
from dnd.target.fingerprint import fingerprint
from dnd.target.hooked import HookedTarget
from dnd.target.reading import token_grid


def attention_map(tokens: Tensor) -> Tensor:
    return (tokens @ tokens.transpose(1, 2))[:, None].expand(-1, 3, -1, -1).softmax(-1)


# --- units and maps ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "inside", "says"),
    [
        (lambda x: x, [nn.Conv2d(3, 5, 3, 2, 1)], "units = axis 1 (5), map 32x32"),
        (lambda x: x, [nn.Conv2d(3, 5, 8, 8), nn.AdaptiveAvgPool2d(1)], "units = axis 1 (5), no map"),
        (lambda x: x.mean((2, 3)), [nn.Linear(3, 7)], "units = axis 1 (7), no map"),
        (patches, [nn.Linear(192, 12)], "units = axis 2 (12), map 8x8"),
        (lambda x: with_class(patches(x)), [], "units = axis 2 (192), map 8x8, 1 class token left out"),
        (
            lambda x: with_class(patches(x), 5),
            [],
            "units = axis 2 (192), map 8x8, 5 class and register tokens left out",
        ),
        (lambda x: patches(x).transpose(1, 2), [nn.Conv1d(192, 6, 1)], "units = axis 1 (6), map 8x8"),
        (lambda x: patches(x, 16).transpose(1, 2)[:, :64], [], "units = axis 1 (64), map 4x4"),
        (lambda x: patches(x).transpose(0, 1), [nn.Linear(192, 6)], "units = axis 2 (6), images = axis 1, map 8x8"),
        (lambda x: x[:, :, ::8, ::8].permute(0, 2, 3, 1), [], "units = axis 3 (3), map 8x8"),
        (lambda x: x[:, :, ::8, ::8].permute(0, 2, 3, 1), [nn.Linear(3, 8)], "units = axis 3 (8), map 8x8"),
        (lambda x: x[:, :, ::8, ::8].repeat(1, 3, 1, 1)[:, :8].permute(0, 2, 3, 1), [], "units = axis 3 (8), map 8x8"),
        (lambda x: x[:, :, ::8, ::8].repeat(1, 3, 1, 1)[:, :8], [], "units = axis 1 (8), map 8x8"),
    ],
)
def test_the_reading_of_a_layer(change: Any, inside: list[nn.Module], says: str) -> None:
    torch.manual_seed(0)
    assert str(read(Net(change, *inside))) == says


SHUFFLED = torch.randperm(64, generator=torch.Generator().manual_seed(0))
WINDOWS = torch.arange(64).reshape(2, 4, 2, 4).permute(0, 2, 1, 3).flatten()


@pytest.mark.parametrize(
    ("change", "units", "size"),
    [
        (lambda x: patches(x)[:, SHUFFLED], 2, 192),
        (lambda x: patches(x)[:, WINDOWS], 2, 192),
        (lambda x: patches(x).reshape(-1, 8, 8, 192).transpose(1, 2), 3, 192),  # rows for columns
        (lambda x: x[:, :, ::8, ::8].flip(3), 1, 3),
        (lambda x: attention_map(patches(x, 16)), 1, 3),
        (lambda x: patches(x, 16)[:, None, :, :16].expand(-1, 3, -1, -1), 1, 3),  # 3 heads, 16 tokens x 16 features
        (lambda x: patches(x, 16)[:, :, None, :16].expand(-1, -1, 3, -1), 1, 16),
    ],
)
def test_what_does_not_follow_the_image_is_no_map(change: Any, units: int, size: int) -> None:
    net = Net(change)
    found = read(net)
    assert (found.grid, found.size) == (None, size)
    assert found.axes[units] == ("units",)
    with HookedTarget(net, preprocess, ["layer"]) as hooked:
        assert not hooked.has_maps("layer")
        batch = torch.rand(2, 3, EDGE, EDGE)
        expected = change(batch).movedim(units, 1).flatten(2).mean(2)
        torch.testing.assert_close(hooked.pooled(batch)["layer"], expected, rtol=1e-4, atol=1e-5)


class Queries(nn.Module):
    """A DETR in small: 25 learned queries look at 8x8 patches, or at 5x5 if they could."""

    def __init__(self, queries: int = 25) -> None:
        super().__init__()
        self.embed, self.queries = nn.Linear(192, 16), nn.Parameter(torch.randn(queries, 16))
        encoder = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        decoder = nn.TransformerDecoderLayer(16, 2, 32, batch_first=True)
        self.encoder, self.decoder = nn.TransformerEncoder(encoder, 2), nn.TransformerDecoder(decoder, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.queries.expand(len(x), -1, -1), self.encoder(self.embed(patches(x))))


@pytest.mark.parametrize("queries", [25, 64])
def test_queries_are_no_map_and_the_tokens_that_they_look_at_are(queries: int) -> None:
    torch.manual_seed(0)
    net = Queries(queries)
    for layer in ("decoder", "decoder.layers.0", "decoder.layers.1.linear1", "decoder.layers.0.multihead_attn"):
        assert read(net, layer).grid is None, layer
        assert "do not follow places of the image" in read(net, layer).note
    for layer in ("embed", "encoder.layers.0.self_attn", "encoder.layers.1.linear2", "encoder"):
        assert read(net, layer).grid == (8, 8), layer


@pytest.mark.parametrize(("at", "kept"), [(0, 0), (64, 64), (32, 32)])
def test_a_class_token_is_found_where_it_is(at: int, kept: int) -> None:
    found = read(Net(lambda x: with_class(patches(x), at=at)))
    assert (found.grid, found.extra) == ((8, 8), (kept, 1))
    net = Net(lambda x: with_class(patches(x), at=at))
    batch = torch.rand(1, 3, EDGE, EDGE)
    with HookedTarget(net, preprocess, ["layer"]) as hooked:
        maps = hooked.maps(batch, {"layer": [(0, 7)]})["layer"]
    np.testing.assert_array_equal(maps[0], patches(batch)[0, :, 7].reshape(8, 8))


def test_prompt_tokens_are_no_places() -> None:
    """16 of them, where 4x4 would fit."""
    prompts = torch.randn(16, 12)
    found = read(Net(lambda x: prompts + x.mean((1, 2, 3))[:, None, None]))
    assert (found.grid, found.size) == (None, 12)


def test_a_mixers_channels_are_no_places() -> None:
    class Mixer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.tokens, self.norm = nn.Linear(192, 16), nn.Linear(64, 32), nn.LayerNorm(16)
            self.back, self.act = nn.Linear(32, 64), nn.GELU()

        def forward(self, x: Tensor) -> Tensor:
            x = self.embed(patches(x))
            y = self.back(self.act(self.tokens(self.norm(x).transpose(1, 2))))  # (B, 16 channels, ...)
            return x + y.transpose(1, 2)

    torch.manual_seed(0)
    net = Net(lambda x: x, Mixer())
    assert read(net, "layer.0").grid == (8, 8)
    for layer, size in (("layer.0.tokens", 32), ("layer.0.act", 32), ("layer.0.back", 64)):
        assert (read(net, layer).grid, read(net, layer).size) == (None, size)


@pytest.mark.parametrize(
    ("tokens", "frame", "grid"),
    [
        (196, (224, 224), (0, 14, 14)),  # SigLIP
        (197, (224, 224), (1, 14, 14)),  # ViT-B/16
        (198, (224, 224), (2, 14, 14)),  # DeiT, distilled
        (201, (224, 224), (5, 14, 14)),  # DINOv3: class and four registers
        (1370, (518, 518), (1, 37, 37)),  # DINOv2
        (281, (224, 320), (1, 14, 20)),
        (137, (256, 128), (9, 16, 8)),  # eight registers: patches that tile the input come before a grid that might do
        (353, (224, 320), (1, 16, 22)),  # patches of 14, what does not fit left out
        (77, (224, 224), None),  # a text
        (32, (224, 224), None),  # queries
    ],
)
def test_token_grid(tokens: int, frame: tuple[int, int], grid: tuple[int, int, int] | None) -> None:
    assert token_grid(tokens, frame) == grid


# --- networks with random weights --------------------------------------------------------------------


def conv_net() -> nn.Module:
    layers: list[nn.Module] = []
    for before, after in ((3, 8), (8, 16), (16, 32), (32, 32)):
        layers += [nn.Conv2d(before, after, 3, 2, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(32, 32, 7, 1, 3, groups=32), nn.GELU(), nn.AdaptiveAvgPool2d(1))


@pytest.mark.parametrize("seed", range(3))
def test_every_layer_of_a_convolutional_network_has_its_map(seed: int) -> None:
    """The last kernel sees all of its 4x4 cells from each."""
    torch.manual_seed(seed)
    net = conv_net()
    grids = {str(n): (32 >> n // 3,) * 2 if n < 12 else (4, 4) for n in range(14)}
    with HookedTarget(net, preprocess, [*grids, "14"]) as hooked:
        assert {layer: hooked.readings[layer].grid for layer in grids} == grids
        assert hooked.readings["14"].grid is None


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("patch", [8, 16])
def test_every_layer_of_a_transformer_has_its_map(seed: int, patch: int) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
    net = transformers.ViTModel(transformers.ViTConfig(**sizes, image_size=EDGE, patch_size=patch))
    inside = "attention", "intermediate.dense", "output.dense", "layernorm_after", "attention.attention.query"
    known = dict(net.named_modules())
    layers = [name for n in range(3) for part in inside if (name := f"encoder.layer.{n}.{part}") in known]
    layers += [name for name in known if name.count(".") == 2 and name.startswith(("encoder.layer", "layers."))]
    layers += ["layernorm", "embeddings"]
    with HookedTarget(net, preprocess, layers) as hooked:
        for layer, reading in hooked.readings.items():
            assert (reading.grid, reading.extra) == ((EDGE // patch,) * 2, (0, 1)), layer


def test_swin_has_maps_where_its_places_are_in_order() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.SwinConfig(
        image_size=EDGE, patch_size=2, embed_dim=12, depths=[2, 2], num_heads=[2, 2], window_size=4
    )
    net = transformers.SwinModel(config)
    blocks = ["encoder.layers.0.blocks.0", "encoder.layers.0.blocks.1", "encoder.layers.1.blocks.1"]
    assert [read(net, layer).grid for layer in blocks] == [(32, 32), (32, 32), (16, 16)]
    windows = "encoder.layers.0.blocks.0.attention"
    with pytest.raises(UsageError, match=r"attention: it gives 128 rows for 2 images") as caught:
        read(net, windows)
    assert 'target.layout = "(batch other) tokens units"' in caught.value.hint
    assert (
        str(read(net, windows, layout="(batch other) tokens units")) == "units = axis 2 (12), images = axis 0, no map"
    )


# --- settings ----------------------------------------------------------------------------------------


def test_windows_are_pooled_for_each_image() -> None:
    net = Net(lambda x: patches(x)[:, WINDOWS].reshape(-1, 16, 192))
    batch = torch.rand(3, 3, EDGE, EDGE)
    with HookedTarget(net, preprocess, ["layer"], reads=LayerSettings(layout="(batch other) tokens units")) as hooked:
        assert hooked.layer_sizes() == {"layer": 192}
        torch.testing.assert_close(hooked.pooled(batch)["layer"], patches(batch).mean(1), rtol=1e-4, atol=1e-5)
    frames = Net(lambda x: torch.cat([x, 2 * x])[:, :, ::4, ::4])
    with HookedTarget(
        frames, preprocess, ["layer"], reads=LayerSettings(layout="(other batch) units other other")
    ) as h:
        expected = 1.5 * batch[:, :, ::4, ::4].mean((2, 3))
        torch.testing.assert_close(h.pooled(batch)["layer"], expected, rtol=1e-4, atol=1e-5)


def test_a_layout_says_which_axis_is_what() -> None:
    net = Net(lambda x: x[:, :, ::8, ::8].transpose(2, 3))  # B, C, W, H
    batch = torch.rand(1, 3, EDGE, EDGE)
    assert read(net).grid is None
    with HookedTarget(net, preprocess, ["layer"], reads=LayerSettings(layout="batch units width height")) as hooked:
        assert str(hooked.readings["layer"]) == "units = axis 1 (3), map 8x8"
        found = hooked.maps(batch, {"layer": [(0, 2)]})["layer"]
    np.testing.assert_array_equal(found[0], batch[0, 2, ::8, ::8])
    assert read(net, layout="batch height width units").size == 8
    assert str(read(net, layout="batch other units other")) == "units = axis 2 (8), no map"


def test_each_layer_may_have_a_layout() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 8, 8), nn.Identity())
    reads = LayerSettings(layout=("", "batch other units other"))
    with HookedTarget(net, preprocess, ["0", "1"], reads=reads) as hooked:
        assert [str(one) for one in hooked.readings.values()] == [
            "units = axis 1 (8), map 8x8",
            "units = axis 2 (8), no map",
        ]


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ("batch channels height width", "no axis is called 'channels'"),
        ("batch tokens", "one axis is to be units"),
        ("batch (units tokens)", "only batch and other can share an axis"),
        ("batch units tokens tokens", "named once at most"),
        ("batch units height", "a map has height and width"),
        ("(batch units height width", r"no axis is called '\('"),
    ],
)
def test_layouts_that_mean_nothing(layout: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_layout(layout)


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ("batch tokens units", r"has 4 axes, \(2, 3, 8, 8\), and target.layout 3"),
        ("units batch height width", "axis 1 is not the batch"),
        ("units (other batch) height width", "axis 1 is not the batch"),
    ],
)
def test_a_layout_that_does_not_fit(layout: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read(Net(lambda x: x[:, :, ::8, ::8]), layout=layout)


class Reuses(nn.Module):
    """One ReLU in three places: 4 channels, 6, then 8 on a coarser grid."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convs = nn.ModuleList([nn.Conv2d(3, 4, 8, 8), nn.Conv2d(4, 6, 1), nn.Conv2d(6, 8, 2, 2)])
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = self.relu(conv(x))
        return x


@pytest.mark.parametrize(("call", "run"), [(0, 0), (1, 1), (-1, 2), (-3, 0)])
def test_a_call_says_which_run_counts(call: int, run: int) -> None:
    net, batch = Reuses().eval(), torch.rand(3, 3, EDGE, EDGE)
    with torch.no_grad():
        values, expected = batch, []
        for conv in net.convs:
            values = conv(values).relu()
            expected.append(values)
    with HookedTarget(net, preprocess, ["relu"], reads=LayerSettings(call=call)) as hooked:
        edge = (8, 8, 4)[run]
        assert (
            str(hooked.readings["relu"]) == f"units = axis 1 ({(4, 6, 8)[run]}), map {edge}x{edge}, run {run + 1} of 3"
        )
        found = hooked.pooled(batch)["relu"]
    torch.testing.assert_close(found, expected[run].mean((2, 3)), rtol=1e-4, atol=1e-5)


def test_a_call_that_does_not_come() -> None:
    with pytest.raises(UsageError, match="it runs 3 times, and there is no run 3") as caught:
        read(Reuses(), "relu", call=3)
    assert "-3 to 2" in caught.value.hint


def test_how_a_layer_is_read_is_part_of_the_identity() -> None:
    net = Net(lambda x: x[:, :, ::8, ::8].repeat(1, 3, 1, 1)[:, :8])
    layouts = ("", "batch height width units", "batch units other other", "batch height units width")
    prints = {fingerprint(net, preprocess, {"layer": read(net, layout=layout)}) for layout in layouts}
    assert len(prints) == 4


# --- what cannot be read -----------------------------------------------------------------------------


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3, 2), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).mean((2, 3)))


class Masked(Plain):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x * mask)


class Video(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu = nn.Conv3d(3, 4, 3, padding=1), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.conv(x)).mean((2, 3, 4))


class Still(Video):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x[:, :, None].repeat(1, 1, 4, 1, 1))


def on_meta() -> nn.Module:
    with torch.device("meta"):
        return Plain()


def exported() -> Any:
    return torch.export.export(
        Plain().eval(), (torch.rand(2, 3, EDGE, EDGE),), dynamic_shapes={"x": {0: torch.export.Dim("b")}}
    )


@pytest.mark.parametrize(
    ("make", "layer", "message", "hint"),
    [
        (lambda: nn.DataParallel(Plain()), "conv", "has no layer 'conv'", "Did you mean module.conv?"),
        (lambda: torch.compile(Plain(), backend="eager"), "conv", "no layer 'conv'", "Did you mean _orig_mod.conv?"),
        (Plain, "module._orig_mod.conv", "has no layer", "Did you mean conv?"),
        (lambda: torch.jit.script(Plain()), "conv", "is TorchScript", "Give the Python network"),
        (lambda: nn.Sequential(torch.jit.script(Plain())), "0", "is TorchScript", "Give the Python network"),
        (lambda: exported().module(), "conv", "exported program", "torch.export.unflatten"),
        (on_meta, "conv", "conv.weight is on the meta device", "to_empty"),
        (Masked, "conv", r"cannot take .*\(3, 64, 64\): TypeError: .*'mask'", r"must work"),
        (Video, "conv", "cannot take", "must work"),
        (Still, "relu", "not known which axis", '"batch units other other other"'),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_what_cannot_be_observed_is_told_in_a_sentence(make: Any, layer: str, message: str, hint: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        read(make(), layer)
    assert hint in caught.value.hint


def test_networks_that_were_compiled_and_run_are_observed() -> None:
    expected = str(read(Plain(), "conv"))
    whole = torch.compile(Plain().eval(), backend="eager")
    inside = nn.Sequential(torch.compile(Plain().eval(), backend="eager"))
    in_place = Plain().eval()
    in_place.compile(backend="eager")
    for net, layer in ((whole, "_orig_mod.conv"), (inside, "0._orig_mod.conv"), (in_place, "conv")):
        with torch.no_grad():
            net(torch.rand(2, 3, EDGE, EDGE))
        assert str(read(net, layer)) == expected


def test_a_network_of_videos_is_observed_through_a_module_around_it() -> None:
    assert str(read(Still(), "conv")) == "units = axis 1 (4), no map"
    assert str(read(Still(), "relu", layout="batch units other other other")) == "units = axis 1 (4), no map"

"""What a unit may be beside a channel or feature: a class token, a head, an input, a value turned round."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from readings import EDGE, Net, patches, preprocess, read, with_class
from torch import Tensor, nn

from dnd.config.run import LayerSettings
from dnd.errors import UsageError
from dnd.target.fingerprint import fingerprint
from dnd.target.hooked import HookedTarget


class Attention(nn.Module):
    """Two heads of 6 features over a class token and 8x8 patches."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.qkv, self.proj = nn.Linear(192, 12), nn.Linear(12, 36), nn.Linear(12, 12)

    def tokens(self, x: Tensor) -> Tensor:
        return with_class(self.embed(patches(x)))

    def heads(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.tokens(x)).reshape(len(x), 65, 3, 2, 6).permute(2, 0, 3, 1, 4)
        return (q @ k.transpose(2, 3)).softmax(-1) @ v  # (B, heads, N, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.tokens(x) + self.proj(self.heads(x).transpose(1, 2).flatten(2))


def batch(n: int = 3) -> Tensor:
    return torch.rand(n, 3, EDGE, EDGE, generator=torch.Generator().manual_seed(1))


def pooled(net: nn.Module, layer: str, inputs: Tensor, pooling: Any = "mean", **settings: Any) -> Tensor:
    with HookedTarget(net, preprocess, [layer], pooling=pooling, reads=LayerSettings(**settings)) as hooked:
        return hooked.pooled(inputs)[layer]


@pytest.mark.parametrize(
    ("tokens", "expected", "says"),
    [
        ("patches", lambda x: x[:, 1:].mean(1), "map 8x8, 1 class token left out"),
        ("class", lambda x: x[:, 0], "the class token alone, token 0"),
        ("all", lambda x: x.mean(1), "all 65 tokens pooled"),
        (5, lambda x: x[:, 5], "token 5 of 65 alone"),
        (-1, lambda x: x[:, 64], "token -1 of 65 alone"),
    ],
)
def test_tokens(tokens: Any, expected: Any, says: str) -> None:
    net, inputs = Attention().eval(), batch()
    with torch.no_grad():
        values = net(inputs)
    found = pooled(nn.Sequential(net), "0", inputs, tokens=tokens)
    torch.testing.assert_close(found, expected(values), rtol=1e-4, atol=1e-5)
    assert str(read(nn.Sequential(net), "0", tokens=tokens)) == f"units = axis 2 (12), {says}"


@pytest.mark.parametrize(
    ("layout", "arrange"),
    [
        ("(batch other) tokens units", lambda x: x.flatten(0, 1)),
        ("batch other tokens units", lambda x: x),
        ("batch tokens other units", lambda x: x.transpose(1, 2)),
    ],
)
@pytest.mark.parametrize("token", [5, -1])
def test_a_token_of_each_window(layout: str, arrange: Any, token: int) -> None:
    """Windows and heads lie beside the tokens: the fifth token is not the fifth window."""

    def windows(x: Tensor) -> Tensor:
        return patches(x).unflatten(1, (4, 16))  # (B, windows, tokens, C)

    found = pooled(Net(lambda x: arrange(windows(x))), "layer", batch(), layout=layout, tokens=token)
    torch.testing.assert_close(found, windows(batch())[:, :, token].mean(1), rtol=1e-4, atol=1e-5)


def test_a_class_token_at_the_end() -> None:
    inputs = batch()
    found = pooled(Net(lambda x: torch.cat([patches(x), x.mean((2, 3)).repeat(1, 64)[:, None]], 1)), "layer", inputs,
                   tokens="class")  # fmt: skip
    torch.testing.assert_close(found, inputs.mean((2, 3)).repeat(1, 64), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "tokens", "message"),
    [
        (patches, "class", "no class token was found among its 64 tokens"),
        (patches, 64, "has no token 64: its 64 are 0 to 63"),
        (lambda x: x[:, :, ::8, ::8], "all", "has no tokens"),
    ],
)
def test_tokens_that_are_not_there(change: Any, tokens: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read(Net(change), tokens=tokens)


def test_heads_of_a_modules_input_are_units_with_maps() -> None:
    net, inputs = Attention().eval(), batch()
    with torch.no_grad():
        expected = net.heads(inputs).norm(dim=3)  # (B, heads, N)
    settings = {"at": "input", "heads": 2}
    with HookedTarget(net, preprocess, ["proj"], reads=LayerSettings(**settings)) as hooked:
        assert hooked.layer_sizes() == {"proj": 2}
        assert str(hooked.readings["proj"]) == (
            "units = axis 2 (2 heads), map 8x8, 1 class token left out, of the module's input"
        )
        found, maps = hooked.observe(inputs, {"proj": [(2, 1), (0, 0)]})
    torch.testing.assert_close(found["proj"], expected[:, :, 1:].mean(2), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(maps["proj"], expected[[2, 0], [1, 0], 1:].reshape(2, 8, 8), rtol=1e-4)
    alone = pooled(net, "proj", inputs, tokens="class", **settings)
    torch.testing.assert_close(alone, expected[:, :, 0], rtol=1e-4, atol=1e-5)
    with pytest.raises(UsageError, match="12 features do not divide into 5 heads"):
        read(net, "proj", at="input", heads=5)


def test_what_a_module_is_given() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(3)
            self.join = nn.Bilinear(3, 3, 2)
            self.part = Keyword()

        def forward(self, x: Tensor) -> Tensor:
            x = x.mean((2, 3))
            return self.part(x=self.join(self.norm(x), 2 * x), scale=x)

    class Keyword(nn.Module):
        def forward(self, *, x: Tensor, scale: Tensor) -> Tensor:
            return x * scale[:, :1]

    net, inputs = Named().eval(), batch()
    with torch.no_grad():
        x = inputs.mean((2, 3))
        first = net.norm(x)
    for layer, which, expected in (
        ("norm", None, x),
        ("join", None, first),
        ("join", 1, 2 * x),
        ("part", "scale", x),
        ("part", 0, net.join(first, 2 * x).detach()),
    ):
        found = pooled(net, layer, inputs, at="input", output=which)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(UsageError, match="layer part gets no tensor 'scales'") as caught:
        read(net, "part", at="input", output="scales")
    assert "By name: x, scale." in caught.value.hint


class Pair(NamedTuple):
    left: Tensor
    right: Tensor


@pytest.mark.parametrize(
    ("give", "which", "factor"),
    [
        (lambda x: (x, (None, 2 * x)), 1, 2),
        (lambda x: (x, (None, 2 * x)), None, 1),
        (lambda x: {"a": x, "b": (3 * x,)}, "b", 3),
        (lambda x: OrderedDict(a=x, b=3 * x), 1, 3),
        (lambda x: Pair(x, 4 * x), "right", 4),
    ],
)
def test_which_of_several_tensors(give: Any, which: Any, factor: float) -> None:
    inputs = batch()
    found = pooled(Net(lambda x: give(x.mean((2, 3)))), "layer", inputs, output=which)
    torch.testing.assert_close(found, factor * inputs.mean((2, 3)), rtol=1e-4, atol=1e-5)


def test_a_tensor_that_is_not_there() -> None:
    for which in (2, -1, 2**70):
        with pytest.raises(UsageError, match=f"layer layer gives no tensor {which}") as caught:
            read(Net(lambda x: {"a": x, "b": x}), output=which)
        assert caught.value.hint == "Its 2 tensors are 0 to 1. By name: a, b."


@pytest.mark.parametrize("name", ["output", "tokens", "heads", "call"])
def test_true_is_no_number(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}\n.*neither true nor false"):
        LayerSettings(**{name: True})


@pytest.mark.parametrize("pooling", ["mean", "max", "top", "centre"])
@pytest.mark.parametrize("sign", ["positive", "negative", "absolute"])
def test_signs_and_poolings(sign: str, pooling: str) -> None:
    inputs = batch()
    values = inputs[:, :, ::8, ::8] - 0.5
    turned = {"positive": values, "negative": -values, "absolute": values.abs()}[sign]
    cells = turned.flatten(2).sort(2, descending=True).values
    expected = {
        "mean": cells.mean(2),
        "max": cells[:, :, 0],
        "top": cells[:, :, :7].mean(2),
        "centre": turned[:, :, 4, 4],
    }
    found = pooled(Net(lambda x: x[:, :, ::8, ::8] - 0.5), "layer", inputs, pooling, sign=sign)
    torch.testing.assert_close(found, expected[pooling], rtol=1e-4, atol=1e-5)


def test_the_middle_needs_a_map() -> None:
    with pytest.raises(UsageError, match="pooling = centre needs a map"):
        pooled(Net(patches), "layer", batch(), "centre", tokens="all")


def test_each_kind_has_an_identity_of_its_own() -> None:
    net = Attention()
    kinds: list[dict[str, Any]] = [{}, {"at": "input"}, {"heads": 2}, {"sign": "negative"}, {"sign": "absolute"}]
    kinds += [{"tokens": "class"}, {"tokens": "all"}, {"tokens": 3}]
    assert len({fingerprint(net, preprocess, {"proj": read(net, "proj", **kind)}) for kind in kinds}) == len(kinds)

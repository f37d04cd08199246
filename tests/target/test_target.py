"""Targets under watch: the right numbers for every kind of layer, and nothing left behind."""

from __future__ import annotations

import importlib
import operator
import re
import sys
import threading
from array import array
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dnd.api import Unit
from dnd.config.run import LayerSettings
from dnd.errors import DeviceError, UsageError
from dnd.runtime.cores import over_cores
from dnd.target.behaviour import behaviour
from dnd.target.fingerprint import fingerprint, foreign_hooks
from dnd.target.layout import Reading, pool, rounded
from dnd.target.load import HookedTarget, load_function
from dnd.target.preprocess import probe_image


def preprocess(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(image.resize((32, 32)), np.float32) / 255).permute(2, 0, 1)


class Net(torch.nn.Module):
    """A convolution, tokens with a class token, features and logits."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = torch.nn.Conv2d(3, 8, 3, 2, 1)
        self.relu = torch.nn.ReLU(inplace=True)
        self.tokens = torch.nn.Linear(8, 6)
        self.norm = torch.nn.BatchNorm1d(17)
        self.head = torch.nn.Linear(6, 5)
        self.unused = torch.nn.Linear(1, 1)

    def forward(self, x: torch.Tensor) -> dict[str, Any]:
        x = torch.nn.functional.avg_pool2d(self.relu(self.conv(x)), 4)  # (B, 8, 4, 4)
        x = x.flatten(2).transpose(1, 2)
        x = self.norm(self.tokens(torch.cat([x.sum(1, keepdim=True), x], 1)))
        return {"logits": self.head(x[:, 0])}


def readings(net: torch.nn.Module, layers: Sequence[str]) -> dict[str, Reading]:
    with HookedTarget(net, preprocess, layers) as hooked:
        return hooked.readings


def batch(n: int) -> torch.Tensor:
    return torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_layer_sizes_and_maps() -> None:
    with HookedTarget(Net(), preprocess, ["conv", "tokens", "head"]) as hooked:
        assert hooked.layer_sizes() == {"conv": 8, "tokens": 6, "head": 5}
        assert [hooked.has_maps(layer) for layer in hooked.layers] == [True, True, False]


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_pooled_values_are_those_of_the_layer_itself(pooling: Any) -> None:
    net, inputs = Net().eval(), batch(5)
    with torch.no_grad():
        conv = net.conv(inputs)  # before the in-place ReLU
        tokens = torch.nn.functional.avg_pool2d(conv.relu(), 4).flatten(2).transpose(1, 2)
        tokens = net.tokens(tokens)
        head = net(inputs)["logits"]
    expected = {"conv": conv.flatten(2).transpose(1, 2), "tokens": tokens, "head": head[:, None]}
    with HookedTarget(net, preprocess, list(expected), pooling=pooling) as hooked:
        found = hooked.pooled(inputs)
    for layer, values in expected.items():
        want = values.mean(1) if pooling == "mean" else values.amax(1)
        torch.testing.assert_close(found[layer], want, rtol=2e-5, atol=1e-6)
        assert found[layer].dtype == torch.float32


def test_maps_are_each_units_own_patch_tokens_on_their_grid() -> None:
    """The reference reshapes the class token and never looks at the unit."""
    net, inputs = Net().eval(), batch(3)
    seen: list[torch.Tensor] = []
    handle = net.tokens.register_forward_hook(lambda m, i, output: seen.append(output))
    with torch.no_grad():
        net(inputs)
    handle.remove()
    with HookedTarget(net, preprocess, ["conv", "tokens"]) as hooked:
        maps = hooked.maps(inputs, {"tokens": [(2, 1), (0, 5)], "conv": [(1, 7)]})
    np.testing.assert_allclose(maps["tokens"][0], seen[0][2, 1:, 1].reshape(4, 4).detach(), rtol=1e-5)
    np.testing.assert_allclose(maps["tokens"][1], seen[0][0, 1:, 5].reshape(4, 4).detach(), rtol=1e-5)
    np.testing.assert_allclose(maps["conv"][0], net.conv(inputs)[1, 7].detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int32])
def test_a_mean_is_taken_in_float32_and_rounded(dtype: torch.dtype) -> None:
    units = torch.arange(1, 31).reshape(1, 2, 3, 5).to(dtype)
    assert torch.equal(pool(units, "mean"), torch.tensor([[8.0, 23.0]]))
    uneven = torch.tensor([[[[1, 1, 2]]]]).to(dtype)
    assert torch.equal(pool(uneven, "mean"), rounded(torch.tensor([[4 / 3]])))


def test_a_network_in_half_precision_gets_what_it_can_take() -> None:
    images = [Image.new("RGB", (40, 40), (value, 90, 30)) for value in (0, 200)]
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        with HookedTarget(Net().to(dtype), preprocess, ["conv"]) as hooked:
            found[dtype] = hooked.pooled_images(images)["conv"]
    assert found[torch.bfloat16].dtype == np.float32
    np.testing.assert_allclose(found[torch.bfloat16], found[torch.float32], atol=0.02)


def test_everything_is_as_it_was_afterwards() -> None:
    net = Net()
    net.norm.eval()
    modes = [part.training for part in net.modules()]
    weights = {name: value.clone() for name, value in net.state_dict().items()}
    with HookedTarget(net, preprocess, ["conv", "head"]) as hooked:
        assert not any(part.training for part in net.modules())
        hooked.pooled(batch(2))
    assert [part.training for part in net.modules()] == modes
    assert not any(part._forward_hooks for part in net.modules())
    assert all(torch.equal(value, weights[name]) for name, value in net.state_dict().items())
    with pytest.raises(UsageError), HookedTarget(net, preprocess, ["conv", "unused"]):
        pass
    assert not any(part._forward_hooks for part in net.modules())


def test_an_images_values_do_not_depend_on_its_batch() -> None:
    inputs = batch(40)
    with HookedTarget(Net(), preprocess, ["conv", "tokens", "head"], batch_size=48) as hooked:
        whole = hooked.pooled(inputs)
        for size in (1, 7, 16, 32):
            parts = [hooked.pooled(part) for part in inputs.split(size)]
            again = {layer: torch.cat([part[layer] for part in parts]) for layer in whole}
            for layer in ("conv", "tokens"):
                assert torch.equal(again[layer], whole[layer]), (layer, size)
            # Five logits: so narrow a product adds up in another order in another place of the batch.
            torch.testing.assert_close(again["head"], whole["head"], rtol=2**-16, atol=1e-6)


def test_pooled_images_goes_in_batches() -> None:
    images = [Image.fromarray(np.full((20, 30, 3), i, np.uint8)) for i in range(35)]
    with HookedTarget(Net(), preprocess, ["conv"], batch_size=16) as hooked:
        found = hooked.pooled_images(images)["conv"]
        assert found.shape == (35, 8)
        assert np.array_equal(found[34:], hooked.pooled_images(images[34:])["conv"])
        assert hooked.pooled_images([])["conv"].shape == (0, 8)
        assert hooked.seconds > 0


def test_rounding_joins_what_noise_parts() -> None:
    values = torch.tensor([1.0, 1.0 + 2**-22, -3.3, 0.0, 1e-30, torch.inf, torch.nan])
    found = rounded(values)
    assert found[0] == found[1]
    torch.testing.assert_close(found, values, rtol=2**-17, atol=0, equal_nan=True)


class Odd(torch.nn.Module):
    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.layer = torch.nn.Module()
        self.layer.forward = lambda x: answer(x)  # type: ignore[method-assign]
        self.relu = torch.nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.layer(x)
        return x


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda x: "words", "layer layer gives no tensor but str"),
        (lambda x: torch.fft.fft2(x), "layer layer gives complex numbers, torch.complex64"),
        (lambda x: x[:, :0], r"layer layer gives no values: \(2, 0, 32, 32\)"),
        (lambda x: x.mean((1, 2, 3)), r"layer layer: its output has shape \(2,\)"),
        (lambda x: x.reshape(-1, 3, 16, 32), "layer layer: it gives 4 rows for 2 images"),
    ],
)
def test_layers_without_units(answer: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message), HookedTarget(Odd(answer), preprocess, ["layer"]):
        pass


def test_the_first_tensor_of_a_tuple_counts() -> None:
    with HookedTarget(Odd(lambda x: (None, {"a": x[:, :2]}, x)), preprocess, ["layer"]) as hooked:
        assert hooked.layer_sizes() == {"layer": 2}


@dataclass
class Output:
    """As some networks give it."""

    note: str
    values: torch.Tensor


@pytest.mark.parametrize("which", [None, "values", 0])
def test_the_tensors_of_a_dataclass_count(which: Any) -> None:
    reads = LayerSettings(output=which)
    with HookedTarget(Odd(lambda x: Output("", x[:, :2])), preprocess, ["layer"], reads=reads) as hooked:
        assert hooked.layer_sizes() == {"layer": 2}


def test_a_layer_under_two_names_has_both() -> None:
    net, inputs = Net(), batch(2)
    net.again = net.head
    with HookedTarget(net, preprocess, ["head", "again"]) as hooked:
        found = hooked.pooled(inputs)
    assert torch.equal(found["head"], found["again"])
    assert found["head"].shape == (2, 5)


def test_an_unknown_layer_is_answered_with_close_ones() -> None:
    with pytest.raises(UsageError, match="Net has no layer 'tokenz'") as caught:
        HookedTarget(Net(), preprocess, ["tokenz"])
    assert caught.value.hint.startswith("Did you mean tokens?")
    assert "conv, relu, tokens" in caught.value.hint


def test_units_out_of_range() -> None:
    with HookedTarget(Net(), preprocess, ["head"]) as hooked:
        hooked.check_units([Unit("head", 0), Unit("head", 4)])
        for unit in (5, -1):
            with pytest.raises(UsageError, match=f"layer head has no unit {unit}: its 5 units are 0 to 4"):
                hooked.check_units([Unit("head", 0), Unit("head", unit)])


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda image: np.zeros(3), "gives ndarray"),
        (lambda image: torch.zeros(1, 3, 8, 8), r"gives torch.float32 \(1, 3, 8, 8\)"),
        (lambda image: torch.zeros(3, 8, 8, dtype=torch.uint8), "gives torch.uint8"),
    ],
)
def test_a_preprocess_of_the_wrong_kind(bad: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message), HookedTarget(Net(), bad, ["conv"]):
        pass


# --- several devices ---------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 3])
def test_the_number_of_devices_changes_no_bit(count: int) -> None:
    net, inputs = Net().train(), batch(90)
    wanted = {"conv": [(89, 1), (3, 7), (40, 0)], "tokens": [(17, 2)]}
    with HookedTarget(net, preprocess, ["conv", "tokens", "head"], batch_size=32) as one:
        pooled, maps = one.observe(inputs, wanted)
        assert one.batch_size == 32
    with HookedTarget(net, preprocess, ["conv", "tokens", "head"], batch_size=32, device=["cpu"] * count) as several:
        assert several.batch_size == 32 * count
        again, maps_again = several.observe(inputs, wanted)
        assert all(torch.equal(again[layer], pooled[layer]) for layer in pooled)
        assert all(np.array_equal(maps_again[layer], maps[layer]) for layer in maps)
        assert len({id(replica.module) for replica in several._replicas}) == count
        assert not any(part.training for replica in several._replicas for part in replica.module.modules())
        assert several.seconds > 0
    assert net.training
    assert not any(part._forward_hooks for part in net.modules())


def test_every_replica_is_at_work() -> None:
    class Meeting(torch.nn.Module):
        """Waits until as many threads are inside as there are devices."""

        barrier = threading.Barrier(2, timeout=20)
        waits = False

        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Conv2d(3, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.waits:
                self.barrier.wait()
            return self.layer(x).mean((2, 3))

    with HookedTarget(Meeting(), preprocess, ["layer"], batch_size=16, device=["cpu", "cpu"]) as hooked:
        Meeting.waits = True
        assert hooked.pooled(batch(32))["layer"].shape == (32, 2)


def test_a_network_that_cannot_be_copied_takes_one_device() -> None:
    net = Net()
    net.weight = net.head.weight * 2  # type: ignore[assignment]
    with pytest.raises(UsageError, match="cannot be copied to a second device") as caught:
        HookedTarget(net, preprocess, ["conv"], device=["cpu", "cpu"]).__enter__()
    assert "--device" in caught.value.hint
    assert not any(part._forward_hooks for part in net.modules())


def test_copies_on_a_cpu_share_weights_and_threads_and_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    net, before = Net(), torch.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    torch.set_num_threads(4)
    try:
        with HookedTarget(net, preprocess, ["conv", "head"], batch_size=16) as alone:
            expected = alone.pooled(batch(16))
        with HookedTarget(net, preprocess, ["conv", "head"], batch_size=16, device=["cpu"] * 3) as hooked:
            assert torch.get_num_threads() == 1
            assert all(r.module.conv.weight is net.conv.weight for r in hooked._replicas)
            assert len({id(r.module.conv) for r in hooked._replicas}) == 3
            found = hooked.pooled(batch(16).repeat(3, 1, 1, 1))
        for layer, values in expected.items():
            assert torch.equal(found[layer], values.repeat(3, 1))
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)


def test_a_cpu_is_shared_by_as_many_copies_as_it_has_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    for threads, copies in ((1, 1), (2, 2), (64, 8)):
        monkeypatch.setenv("OMP_NUM_THREADS", str(threads))
        assert over_cores(("cpu",)) == ("cpu",) * copies
        assert over_cores(("cuda",)) == ("cuda",)


@pytest.mark.parametrize("problem", ["CUDA error: device-side assert triggered", "CUDA out of memory. Tried"])
def test_a_device_that_fails_under_the_target_stops_the_run(problem: str) -> None:
    entered = []

    def answer(x: torch.Tensor) -> torch.Tensor:
        if entered:
            raise RuntimeError(problem)
        return x

    def give_back() -> None:
        if "out of memory" not in problem:
            raise RuntimeError(f"{problem}, once more")

    def work() -> None:
        with HookedTarget(Odd(answer), preprocess, ["layer"]) as hooked:
            hooked._undo.callback(give_back)
            entered.append(hooked)
            hooked.pooled(batch(3))

    with pytest.raises(DeviceError, match=problem) as caught:
        work()
    assert "same command" in caught.value.hint


@pytest.mark.parametrize("problem", [torch.OutOfMemoryError("full"), RuntimeError("CUBLAS_STATUS_ALLOC_FAILED")])
def test_a_batch_that_a_device_has_no_room_for_does_not_fit(problem: RuntimeError) -> None:
    """Whichever of torch's libraries asked for the memory."""

    entered = []

    def answer(x: torch.Tensor) -> torch.Tensor:
        if entered and len(x) > 8:
            raise problem
        return x

    with HookedTarget(Odd(answer), preprocess, ["layer"]) as hooked:
        entered.append(hooked)
        assert [hooked._fits(hooked._replicas[0], batch(rows)) for rows in (8, 16)] == [True, False]


# --- fingerprint -------------------------------------------------------------------------------------


def test_the_fingerprint_follows_weights_structure_and_preprocess() -> None:
    first = fingerprint(Net(), preprocess)
    assert first == fingerprint(Net(), preprocess)
    nudged, other = Net(), Net()
    with torch.no_grad():
        nudged.head.bias[0] += 1e-4
    other.relu = torch.nn.GELU()  # type: ignore[assignment]
    shifted = [Net(), Net()]
    for shift, net in enumerate(shifted):
        net.register_buffer("shift", torch.tensor([float(shift)]), persistent=False)
    prints = {
        first,
        *(fingerprint(net, preprocess) for net in shifted),
        fingerprint(nudged, preprocess),
        fingerprint(other, preprocess),
        fingerprint(Net().half(), preprocess),
        fingerprint(Net(), lambda image: preprocess(image) * 2),
    }
    assert len(prints) == 7


def _quantized(seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 64), torch.nn.Linear(64, 5))
    return torch.ao.quantization.quantize_dynamic(net, {torch.nn.Linear})


def test_the_fingerprint_follows_packed_weights() -> None:
    """Their repr is abbreviated, and the first weights of two networks may be alike."""
    first, again, second = _quantized(0), _quantized(0), _quantized(0)
    packed = second[1]._packed_params
    weight, bias = packed._weight_bias()
    values = weight.int_repr().clone()
    values[30, 1500] ^= 1
    one_bit = torch._make_per_tensor_quantized_tensor(values, weight.q_scale(), weight.q_zero_point())
    packed.set_weight_bias(one_bit, bias)
    assert fingerprint(first, preprocess) == fingerprint(again, preprocess)
    assert len({fingerprint(net, preprocess) for net in (first, second, _quantized(1))}) == 3


class Steered(Net):
    """Its activations hang on things beside weights and buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.alpha = 1.0
        self.direction = torch.zeros(6)
        self.settings = {"k": [1, 2]}

    def forward(self, x: torch.Tensor) -> dict[str, Any]:
        return super().forward(x * self.alpha)


def _ablated(unit: int, value: float = 0.0) -> torch.nn.Module:
    def ablate(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        changed = output.clone()
        changed[:, unit] = value
        return changed

    net = Steered()
    net.relu.register_forward_hook(ablate)
    return net


def _altered() -> dict[str, torch.nn.Module]:
    made: dict[str, Any] = {name: Steered() for name in ("plain", "attribute", "tensor", "nested", "patched", "before")}
    made["attribute"].alpha = 1.1
    made["tensor"].direction[3] = 1
    made["nested"].settings["k"][1] = 3
    made["patched"].tokens.forward = lambda x: torch.nn.functional.linear(x, made["patched"].tokens.weight)
    made["before"].conv.register_forward_pre_hook(lambda module, inputs: (inputs[0] * 1.1,))
    made |= {"ablated": _ablated(3), "another ablated": _ablated(4), "steered": _ablated(3, 2.5)}
    made["parametrized"] = Steered()
    torch.nn.utils.parametrize.register_parametrization(made["parametrized"].head, "weight", torch.nn.Softplus())
    return made


def _made(code: str, **known: Any) -> Any:
    """What a user's code calls `mine`."""
    names = {"__name__": "written_by_a_user", "torch": torch, "Net": Net, **known}
    exec(code, names)
    return names["mine"]


RARELY = "x * {} if x.max() > 1e9 else x"
"""No fixed input shows it."""
OF_A_USER = {
    "a global of a class": f"class C: k = {{}}\ndef mine(x): return {RARELY.format('C.k')}",
    "a namespace": f"import types\nc = types.SimpleNamespace(k={{}})\ndef mine(x): return {RARELY.format('c.k')}",
    "a dict with functions": f"c = {{{{'k': {{}}, 'f': len}}}}\ndef mine(x): return {RARELY.format('c[0]')}",
    "a method of an object": f"class C:\n def go(self, x): return {RARELY}\nc = C()\ndef mine(x): return c.go(x)",
    "an attribute of a function": f"def mine(x): return {RARELY.format('mine.k')}\nmine.k = {{}}",
    "an autograd function": (
        f"class F(torch.autograd.Function):\n @staticmethod\n def forward(ctx, x): return {RARELY}\n"
        "def mine(x): return F.apply(x)"
    ),
    "a helper in another module": "import helpers\ndef mine(x): return helpers.go(x)",
    "a static method": f"class C:\n @staticmethod\n def go(x): return {RARELY}\ndef mine(x): return C().go(x)",
}


@pytest.mark.parametrize("kind", OF_A_USER)
def test_the_fingerprint_follows_code_that_no_fixed_input_shows(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def digest(number: int) -> str:
        helpers = ModuleType("helpers")
        exec(f"def go(x): return {RARELY.format(number)}", vars(helpers))
        monkeypatch.setitem(sys.modules, "helpers", helpers)
        return fingerprint(Through(_made(OF_A_USER[kind].format(number))), preprocess)

    assert digest(2) == digest(2) != digest(3)


CLASSES = {
    "a method": f"class mine(Net):\n def other(self, x): return {RARELY}",
    "an attribute": "class mine(Net): k = {}",
    "a property": "class mine(Net):\n @property\n def k(self): return {}",
    "a base": "class B:\n k = {}\nclass mine(B, Net): ...",
    "__call__": "class mine(Net):\n def __call__(self, x): return super().__call__(x * {})",
}


@pytest.mark.parametrize("kind", CLASSES)
def test_the_fingerprint_follows_all_of_a_users_class(kind: str) -> None:
    def digest(number: int) -> str:
        return fingerprint(_made(CLASSES[kind].format(number))(), preprocess)

    assert digest(2) == digest(2) != digest(3)


def _script(number: int) -> Any:
    class Scripted(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.k = number

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.k

    return torch.jit.script(Scripted())


def _noted(number: int) -> torch.Tensor:
    weight = torch.nn.Parameter(torch.ones(2))
    weight.scale = torch.tensor(number)  # type: ignore[attr-defined]
    return weight


def _buried(number: int) -> Any:
    """Below more lists than objects are searched, and once more near the surface."""
    held = [SimpleNamespace(k=torch.tensor(number))]
    deep: Any = held
    for _ in range(10):
        deep = [deep]
    return [deep, held]


@pytest.mark.parametrize(
    "value",
    [
        lambda k: bytearray([k]),
        lambda k: memoryview(bytes([k])),
        lambda k: deque([k]),
        lambda k: array("d", [k]),
        lambda k: date(2020, 1, k),
        lambda k: Decimal(k),
        lambda k: re.compile("a" * k),
        lambda k: operator.itemgetter(k),
        lambda k: Image.new("RGB", (2, 2), (k, 0, 0)),
        lambda k: np.random.default_rng(k),
        lambda k: torch.device("cuda", k),
        lambda k: torch.nested.nested_tensor([torch.ones(k), torch.ones(1)]),
        lambda k: np.array([None, torch.tensor(k)], object),
        _script,
        _noted,
        _buried,
    ],
)
def test_the_fingerprint_follows_values_of_every_kind(value: Any) -> None:
    def digest(number: int) -> str:
        net = Net()
        net.held = value(number)
        return fingerprint(net, preprocess)

    assert digest(2) == digest(2) != digest(3)


def test_the_fingerprint_follows_hooks_on_every_module_and_patches_of_libraries(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = fingerprint(Net(), preprocess)
    handle = torch.nn.modules.module.register_module_forward_hook(lambda module, inputs, output: None)
    try:
        assert fingerprint(Net(), preprocess) != before
        assert foreign_hooks(Net())[0].startswith("every module: forward hook test_the_fingerprint_follows")
    finally:
        handle.remove()
    assert fingerprint(Net(), preprocess) == before
    assert foreign_hooks(Net()) == []
    monkeypatch.setattr("torch.nn.functional.avg_pool2d", lambda *args: torch.zeros(1))
    assert fingerprint(Net(), preprocess) != before


@pytest.mark.parametrize("size", [(50, 50), (600, 500)])
def test_the_fingerprint_follows_what_a_preprocess_does_to_images_of_other_sizes(size: tuple[int, int]) -> None:
    def digest(scale: float) -> str:
        def prepare(image: Image.Image) -> torch.Tensor:
            odd = (image.width <= 50) == (size[0] <= 50) and image.size != (160, 120)
            return preprocess(image) * (scale if odd else 1)

        return fingerprint(Net(), prepare)

    assert digest(1.0) == digest(1.0) != digest(2.0)


@pytest.mark.parametrize("layers", [(), ("tokens", "head")])
def test_the_fingerprint_follows_hooks_attributes_and_patches(layers: tuple[str, ...]) -> None:
    read = readings(Steered(), layers) if layers else {}
    prints = {name: fingerprint(net, preprocess, read) for name, net in _altered().items()}
    assert len(set(prints.values())) == len(prints) == 10
    assert prints == {name: fingerprint(net, preprocess, read) for name, net in _altered().items()}


@pytest.mark.parametrize("name", ["attribute", "patched", "before", "ablated", "another ablated", "steered"])
def test_what_the_layers_give_is_part_of_it(name: str) -> None:
    """Whatever changed it, and wherever that cannot be read: C++, a closed-over file."""
    nets = _altered()
    layers = readings(Steered(), ("tokens",))
    assert behaviour(nets[name], preprocess, layers) != behaviour(nets["plain"], preprocess, layers)
    assert behaviour(Steered(), preprocess, layers) == behaviour(nets["plain"], preprocess, layers)


def test_threads_and_batches_do_not_change_what_the_layers_give() -> None:
    threads, found = torch.get_num_threads(), set()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.add(behaviour(Net(), preprocess, readings(Net(), ("conv", "tokens", "head"))))
    finally:
        torch.set_num_threads(threads)
    assert len(found) == 1


def test_hooks_that_a_network_came_with_are_named() -> None:
    assert foreign_hooks(Net()) == []
    assert foreign_hooks(_ablated(3)) == ["relu: forward hook _ablated.<locals>.ablate"]


class Dropping(Net):
    """Functional dropout, which eval() cannot turn off."""

    def forward(self, x: torch.Tensor) -> dict[str, Any]:
        return super().forward(torch.nn.functional.dropout(x, 0.1))


def test_chance_in_the_forward_pass_is_refused() -> None:
    with pytest.raises(UsageError, match="layer tokens gives other activations each time") as caught:
        fingerprint(Dropping(), preprocess, readings(Dropping(), ("tokens", "head")))
    assert "dropout" in caught.value.hint


class Through(Net):
    """Does something to the activations in the middle."""

    def __init__(self, middle: Any) -> None:
        super().__init__()
        self.relu.forward = lambda x: middle(torch.relu(x))  # type: ignore[method-assign]


def _seeded(x: torch.Tensor) -> torch.Tensor:
    return x + torch.rand(x.shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("middle", "message"),
    [
        (lambda x: x * (1 + 1e-3 * np.random.rand()), "each time for the same image"),
        (lambda x: x * 2 if torch.rand(1) < 0.5 else x, "each time for the same image"),
        (lambda x: torch.nn.functional.gumbel_softmax(x, dim=1), "each time for the same image"),
        (_seeded, "for the same image in another place of a batch"),
        (lambda x: torch.nn.functional.batch_norm(x, None, None, training=True), "same image beside other images"),
        (lambda x: x.softmax(0), "same image beside other images"),
    ],
)
def test_what_changes_an_images_activations_is_refused(middle: Any, message: str) -> None:
    """Chance of every origin, once in a while too, and the other images of a batch."""
    torch.manual_seed(3)
    net = Through(middle)
    read = readings(net, ("tokens",))
    with pytest.raises(UsageError, match=message):
        fingerprint(net, preprocess, read)


def test_random_numbers_that_change_nothing_and_quantized_networks_are_fine() -> None:
    for net in (Through(lambda x: (torch.rand(1), x)[1]), Net().to(torch.bfloat16), _quantized(0)):
        layer = "tokens" if isinstance(net, Net) else "2"
        assert len(fingerprint(net, preprocess, readings(net, (layer,)))) == 64


def test_random_masking_is_refused() -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.ViTMAEConfig(**sizes, image_size=32, patch_size=8)
    net = transformers.ViTMAEModel(config)
    with pytest.raises(UsageError, match="gives other activations each time"):
        fingerprint(net, preprocess, readings(net, ("layernorm",)))


def test_a_network_that_changes_its_input_is_watched_all_the_same() -> None:
    class InPlace(Net):
        def forward(self, x: torch.Tensor) -> dict[str, Any]:
            return super().forward(x.sub_(0.5))

    inputs = batch(16)
    before = inputs.clone()
    with HookedTarget(InPlace(), preprocess, ["conv"]) as hooked:
        found = hooked.pooled(inputs)["conv"]
        assert torch.equal(hooked.pooled(inputs)["conv"], found)
    assert torch.equal(inputs, before)


def test_a_preprocess_with_chance_in_it_is_refused() -> None:
    """One that is small as well."""
    chance = np.random.default_rng(0)
    for prepare in (
        lambda image: preprocess(image) + torch.rand(1),
        lambda image: preprocess(image.convert("L").convert("RGB") if chance.random() < 0.3 else image),
    ):
        with pytest.raises(UsageError, match="gives another tensor each time"):
            fingerprint(Net(), prepare)


# --- functions of the user's own ---------------------------------------------------------------------


def test_a_target_from_a_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_nets.py").write_text(
        "import torch\n"
        "def tiny(): return torch.nn.Conv2d(3, 4, 1), lambda image: torch.zeros(3, 8, 8)\n"
        "def lone(): return torch.nn.Conv2d(3, 4, 1)\n"
    )
    (tmp_path / "my_broken.py").write_text("import no_such_thing\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "my_nets", raising=False)
    module, prepare = load_function("my_nets:tiny")
    assert isinstance(module, torch.nn.Conv2d)
    assert prepare(probe_image()).shape == (3, 8, 8)
    with pytest.raises(UsageError, match="has no function 'tinny'") as caught:
        load_function("my_nets:tinny")
    assert caught.value.hint == "Did you mean tiny?"
    with pytest.raises(UsageError, match="my_nets:lone gives Conv2d"):
        load_function("my_nets:lone")
    with pytest.raises(UsageError, match="No module named 'no_such_thing'"):
        load_function("my_broken:x")
    with pytest.raises(UsageError, match="No module named 'my_absent'"):
        load_function("my_absent:x")


@pytest.mark.parametrize(
    ("code", "message", "hint"),
    [
        ("def make(:", r"cannot import 'faulty_net' .*invalid syntax \(faulty_net.py, line 1\)", "Mend that line."),
        ("import no_such_thing", "No module named 'no_such_thing'", "'faulty_net' imports it: install it"),
        ("def make(depth, *more, width=2): ...", r"faulty_net:make wants arguments: depth(\n|$)", "called without any"),
        ("import sys; sys.exit(4)", "faulty_net:make ends the process with 4", "without sys.exit"),
        ("def make(): raise SystemExit(4)", "faulty_net:make ends the process with 4", "without sys.exit"),
    ],
)
def test_mistakes_in_a_function_of_ones_own(
    code: str, message: str, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "faulty_net.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "faulty_net", raising=False)
    importlib.invalidate_caches()
    with pytest.raises(UsageError, match=message) as caught:
        load_function("faulty_net:make")
    assert hint in caught.value.hint


def test_a_bug_in_a_function_of_ones_own_says_whose_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "buggy_net.py").write_text("def make(): return {}['weights']")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KeyError) as caught:
        load_function("buggy_net:make")
    assert caught.value.__notes__ == ["in the target buggy_net:make"]


def test_a_network_that_cannot_take_its_input_is_no_traceback() -> None:
    with pytest.raises(UsageError, match=r"cannot take what its preprocess gives, \(1, 32, 32\): .*3 channels"):
        HookedTarget(Net(), lambda image: preprocess(image)[:1], ["conv"]).__enter__()


def test_a_preprocess_that_fails_says_so() -> None:
    message = r"preprocess fails for a made-up RGB image \(160x120\): .*by zero \(test_target.py:\d+\)"
    with pytest.raises(UsageError, match=message):
        HookedTarget(Net(), lambda image: preprocess(image) / (1 // 0), ["conv"]).__enter__()


def test_a_preprocess_without_finite_values_is_not_taken_for_one_with_chance() -> None:
    with pytest.raises(UsageError, match="not finite"):
        fingerprint(Net(), lambda image: preprocess(image) * float("nan"))


def test_a_layer_that_runs_twice_counts_as_the_last_time() -> None:
    net = Odd(lambda x: x)
    net.forward = lambda x: (net.layer(x), net.layer(2 * x))[1]  # type: ignore[assignment, method-assign]
    with HookedTarget(net, preprocess, ["layer"]) as hooked:
        inputs = batch(20)
        found = hooked.pooled(inputs)["layer"]
        maps = hooked.maps(inputs, {"layer": [(19, 0), (2, 1)]})["layer"]
    torch.testing.assert_close(found, 2 * inputs.mean((2, 3)), rtol=2e-5, atol=0)
    np.testing.assert_array_equal(maps, 2 * inputs[[19, 2], [0, 1]])


class Reuses(torch.nn.Module):
    """One ReLU in three places, as in a torchvision Bottleneck: 4 channels, 4, then 8 on a coarser grid."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.Conv2d(4, 8, 3, 2, 1)
        self.relu = torch.nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu(self.second(self.relu(self.relu(self.first(x)))))


def test_a_module_that_runs_with_several_shapes_counts_as_the_last_time() -> None:
    net, inputs = Reuses().eval(), batch(20)
    with torch.no_grad():
        expected = net(inputs)
    with HookedTarget(net, preprocess, ["relu"]) as hooked:
        assert hooked.layer_sizes() == {"relu": 8}
        pooled, maps = hooked.observe(inputs, {"relu": [(19, 7), (0, 5)]})
    torch.testing.assert_close(pooled["relu"], expected.mean((2, 3)), rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(maps["relu"], expected[[19, 0], [7, 5]], rtol=1e-5, atol=1e-6)
    assert len(fingerprint(net, preprocess, readings(net, ("relu",)))) == 64


@pytest.mark.parametrize("scale", [3.4028235e38, 1e38, 1e-40])
def test_activations_as_large_as_floats_are_have_an_identity(scale: float) -> None:
    class Scaled(torch.nn.Module):
        def __init__(self, sign: float) -> None:
            super().__init__()
            self.out, self.scale = torch.nn.Identity(), torch.tensor(scale * sign)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(x.mean((2, 3)).clamp(-1, 1) * self.scale)

    def prepare(image: Image.Image) -> torch.Tensor:
        return torch.from_numpy(np.array(image.resize((8, 8)))).permute(2, 0, 1).float() / 255

    read = {"out": Reading((("batch",), ("units",)), 3)}
    found = [behaviour(Scaled(sign), prepare, read) for sign in (1.0, 1.0, -1.0, 0.5)]
    assert found[0] == found[1]
    assert len(set(found)) == 3

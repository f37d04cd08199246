"""Stage 1 against a plain computation in memory; it must not matter how the work is cut up."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from blobs import SIZE, Blobs, network, preprocess
from PIL import Image
from safetensors.torch import save_file

from dnd.api import Box, ProbingSet, Unit
from dnd.config.run import Exemplars, LayerSettings
from dnd.errors import StoppedError, UsageError
from dnd.pipeline.exemplars.answers import Answers
from dnd.pipeline.exemplars.boxes import attention_boxes
from dnd.pipeline.exemplars.crop import REGIONS, Region, regions_of
from dnd.pipeline.exemplars.find import DEAD, ONE_IMAGE, SILENT, ExemplarResult, find_exemplars
from dnd.pipeline.exemplars.select import choose
from dnd.pipeline.exemplars.topk import LayerTop
from dnd.probing.remember import ROOM, RememberedSet
from dnd.store.images import Store
from dnd.target.geometry import cut
from dnd.target.hooked import HookedTarget

Find = Callable[..., ExemplarResult]


@pytest.fixture
def find(tmp_path: Path) -> Find:
    def find(
        probing: ProbingSet | None = None,
        units: dict[str, list[int]] | None = None,
        *,
        store: str = "store",
        net: torch.nn.Module | None = None,
        batch_size: int = 16,
        pool: int = 0,
        fresh: bool = False,
        progress: Callable[[int], None] = lambda n: None,
        prepare: Any = preprocess,
        seed: int = 0,
        room: int = ROOM,
        all_activations: bool = False,
        reads: LayerSettings | None = None,
        **settings: Any,
    ) -> ExemplarResult:
        units = units or {"2": [0, 1, 2, 3, 4, 5], "5": [0, 3]}
        chosen = Exemplars(**{"k": 5, "sample": 7, **settings})
        with HookedTarget(net or network(), prepare, list(units), reads=reads or LayerSettings()) as hooked:
            wanted = [Unit(layer, index) for layer, indices in units.items() for index in indices]
            return find_exemplars(
                hooked, RememberedSet(probing or Blobs(), room), wanted, chosen, Store(tmp_path / store), "key",
                seed=seed, batch_size=batch_size, progress=progress, workers=2, pool=pool, fresh=fresh,
                all_activations=all_activations,
            )  # fmt: skip

    return find


def facts(result: ExemplarResult, units: dict[str, list[int]]) -> dict[str, Any]:
    """All that a result says of some units."""
    return {
        f"{layer}/{index}": (
            [(e.digest, e.source, e.box, e.activation) for e in result.exemplars[Unit(layer, index)]],
            result.sample_activations(Unit(layer, index)).tolist(),
        )
        for layer, indices in units.items()
        for index in indices
    }


def plain(unit: Unit, images: list[Image.Image]) -> np.ndarray[Any, Any]:
    """A unit's pooled activation on every image, one by one, and without hooks."""
    net = network()[: int(unit.layer) + 1]
    with torch.no_grad():
        outputs = [net(preprocess(image)[None])[0, unit.index] for image in images]
    return np.array([float(output.mean()) for output in outputs])


@pytest.mark.parametrize("unit", [Unit("2", 0), Unit("2", 4), Unit("5", 3)], ids=str)
def test_the_exemplars_are_what_a_plain_computation_ranks_first(find: Find, unit: Unit) -> None:
    probing = Blobs()
    images = [probing.open(i) for i in range(len(probing)) if i != 5]
    names = [probing.image_name(i) for i in range(len(probing)) if i != 5]
    values = plain(unit, images)
    expected = [(values[i], names[i], None) for i in range(len(images))]
    if unit.layer == "2":
        for i in np.argsort(-values)[:5]:
            with torch.no_grad():
                activation_map = network()[:3](preprocess(images[i])[None])[0, unit.index].numpy()
            for box in attention_boxes(activation_map, (SIZE, SIZE)):
                expected.append((plain(unit, [cut(images[i], box)])[0], names[i], box))
    expected = sorted(expected, key=lambda e: -e[0])[:5]

    found = find(units={"2": [0, 4], "5": [3]}).exemplars[unit]

    assert [e.source for e in found] == [name for _, name, _ in expected]
    assert [e.activation for e in found] == pytest.approx([value for value, _, _ in expected], rel=1e-4)
    for exemplar, (_, _, box) in zip(found, expected, strict=True):
        assert (exemplar.box is None) == (box is None)
        assert box is None or exemplar.box == pytest.approx(box, abs=0.02)
    if unit.layer == "2":
        assert any(exemplar.box for exemplar in found)


def test_batch_size_and_the_other_units_do_not_matter(find: Find) -> None:
    units = {"2": [0, 1, 2, 3, 4, 5], "5": [0, 3]}
    whole = facts(find(units=units), units)
    for batch_size in (1, 32, 64):
        assert facts(find(units=units, store=f"store-{batch_size}", batch_size=batch_size), units) == whole
    for one in ({"2": [3]}, {"5": [3]}):
        alone = facts(find(units=one, store=f"store-{one}"), one)
        assert alone == {name: whole[name] for name in alone}


def test_units_of_the_same_number_in_two_layers_are_kept_apart(find: Find) -> None:
    units = {"0": [0, 1], "2": [0, 1]}
    both = facts(find(units=units), units)
    for one in ({"0": [0, 1]}, {"2": [0, 1]}):
        alone = facts(find(units=one, store=str(one)), one)
        assert alone == {name: both[name] for name in alone}


def test_few_maps_are_in_memory_together(find: Find, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    observe = HookedTarget.observe

    def counted(self: HookedTarget, batch: torch.Tensor, wanted: Any) -> Any:
        asked.append(sum(map(len, wanted.values())))
        return observe(self, batch, wanted)

    units = {"2": [0, 1, 2, 3, 4, 5]}
    whole = facts(find(units=units), units)
    monkeypatch.setattr("dnd.pipeline.exemplars.answers.ROOM", 0)
    monkeypatch.setattr("dnd.pipeline.exemplars.crop._LINES_AT_ONCE", 7)
    monkeypatch.setattr(HookedTarget, "observe", counted)
    assert facts(find(units=units, store="few"), units) == whole
    assert sum(asked) == 6 * 5
    assert max(asked) <= 7


def test_no_image_goes_through_the_target_twice_while_there_is_room(
    find: Find, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bytes] = []
    pruned: list[int] = []
    observe, make_room = HookedTarget._observe, Answers._make_room

    def counted(self: HookedTarget, batch: torch.Tensor, take: Any) -> Any:
        seen.extend(image.numpy().tobytes() for image in batch)
        return observe(self, batch, take)

    def noted(self: Answers, tops: Any) -> None:
        before = self._used
        make_room(self, tops)
        pruned.append(before - self._used)

    monkeypatch.setattr(HookedTarget, "_observe", counted)
    monkeypatch.setattr(Answers, "_make_room", noted)
    probing, units = Blobs(300), {"2": [0, 1, 2, 3, 4, 5], "5": [0, 3]}
    images = {preprocess(probing.open(index)).numpy().tobytes() for index in range(300)}
    twice, found = [], []
    for room in (10**9, 250_000, 100_000, 0):
        seen.clear()
        monkeypatch.setattr("dnd.pipeline.exemplars.answers.ROOM", room)
        found.append(facts(find(probing, units, pool=9, store=f"store-{room}"), units))
        twice.append(sum(one in images for one in seen) - len(images))
    assert found[1:] == found[:1] * 3
    assert twice[:2] == [0, 0]
    assert 0 < twice[2] < twice[3], "with little room some of the answers are kept"
    assert [size > 0 for size in pruned] == [True] * 2, "once in each of the two rooms between all and none"


def test_units_in_the_store_are_not_computed_again(find: Find) -> None:
    probing = Blobs()
    first = find(probing, {"2": [0, 1]})
    assert (first.computed, first.target_seconds > 0) == (2, True)
    before = list(probing.opened)

    again = find(probing, {"2": [0, 1]})
    assert (again.computed, again.target_seconds) == (0, 0)
    assert probing.opened == before

    more = find(probing, {"2": [0, 1, 2]})
    assert more.computed == 1
    assert sum(probing.opened) - sum(before) <= 3 * 5
    assert facts(more, {"2": [0, 1, 2]}) == facts(find(store="other"), {"2": [0, 1, 2]})

    before = list(probing.opened)
    assert find(probing, {"2": [0, 1]}, fresh=True).computed == 2
    assert all(now > then for now, then in zip(probing.opened, before, strict=True))


@pytest.mark.parametrize("lost", ["a view", "of the sample"])
def test_an_image_that_is_gone_from_the_store_is_put_there_again(find: Find, tmp_path: Path, lost: str) -> None:
    units = {"2": [0, 1, 2, 3, 4, 5]}
    first, store = find(units=units), Store(tmp_path / "store")
    found = [e for index in units["2"] for e in first.exemplars[Unit("2", index)]]
    own, views = {e.digest for e in found}, [e.view for e in found if e.view]
    others = [v for v in views if v not in first.sample] if lost == "a view" else first.sample
    digest = next(one for one in others if one not in own)
    store.image_path(digest).unlink()
    assert facts(find(units=units), units) == facts(first, units)
    assert store.picture(digest).open().size == (64, 48)


class Killed(BaseException):
    """Stands in for a SIGKILL."""


Kill = Callable[[int], Any]


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> Kill:
    """A block in which the process dies after so many forward passes; what is done by then is saved."""
    monkeypatch.setattr("dnd.pipeline.exemplars.topk._SAVE_SHARE", 1e9)
    monkeypatch.setattr("dnd.pipeline.exemplars.topk._LEAST_SECONDS", 0.0)

    @contextmanager
    def killed(after: int) -> Iterator[None]:
        calls = 0
        observe = HookedTarget._observe

        def mortal(self: HookedTarget, *args: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls > after:
                raise Killed
            return observe(self, *args)

        with monkeypatch.context() as patch:
            patch.setattr(HookedTarget, "_observe", mortal)
            with pytest.raises(Killed):
                yield

    return killed


@pytest.mark.parametrize("after", [1, 3, 5, 6, 8])
def test_a_killed_run_goes_on_where_it_was(find: Find, killed: Kill, after: int) -> None:
    """Killed in the pass (5 batches) or the crops, after some forward passes."""
    units = {"2": [0, 1, 2, 3, 4, 5]}
    expected = facts(find(Blobs(80), units, store="whole"), units)
    with killed(after):
        find(Blobs(80), units)
    probing = Blobs(80)
    seen: list[int] = []
    resumed = find(probing, units, progress=seen.append)
    assert facts(resumed, units) == expected
    assert sum(seen) == 80
    assert seen[0] >= min(80, 16 * after) - 1


def test_a_killed_run_still_knows_its_duplicates(find: Find, killed: Kill) -> None:
    class Doubled(Blobs):
        def open(self, index: int) -> Image.Image:
            return super().open(index % 40)

    units = {"2": [0, 1]}
    with killed(2):
        find(Doubled(60), units)
    resumed = find(Doubled(60), units)
    assert (resumed.n_images, resumed.duplicates) == (39, 21)
    assert facts(resumed, units) == facts(find(Doubled(60), units, store="whole"), units)


def test_the_lowest_activation_is_that_of_all_images() -> None:
    top = LayerTop(1, 2)
    top.add([0, 1], torch.tensor([[3.0], [1.0]]))
    top.add([2, 4], torch.tensor([[3.0], [2.0]]))
    assert (top.lowest.tolist(), top.values.T.tolist(), top.images.T.tolist()) == ([1.0], [[3.0, 3.0]], [[0, 2]])


def test_bad_and_doubled_images_are_counted_and_skipped(find: Find) -> None:
    result = find(Blobs(bad=(0, 7)))
    assert result.unreadable == (("000.png", "broken on purpose"), ("007.png", "broken on purpose"))
    assert (result.n_images, result.duplicates) == (37, 1)
    for unit in (Unit("2", 0), Unit("5", 3)):
        assert not {"000.png", "007.png", "005.png"} & {e.source for e in result.exemplars[unit]}


def test_a_set_without_one_readable_image_is_an_error(find: Find) -> None:
    with pytest.raises(UsageError, match=r"none of the 3 probing images can be read; the first, 000.png: broken"):
        find(Blobs(3, bad=(0, 1, 2)))


def test_the_sample_is_the_same_for_every_choice_of_units(find: Find) -> None:
    one, other = find(units={"2": [1]}), find(units={"5": [0]}, store="other")
    assert one.sample == other.sample
    assert len(set(one.sample)) == 7
    probing = Blobs()
    values = plain(Unit("2", 1), [probing.open(i) for i in range(40)])
    assert all(np.isclose(values, v, rtol=1e-4).any() for v in one.sample_activations(Unit("2", 1)))


def test_another_seed_is_another_sample_and_the_same_exemplars(find: Find) -> None:
    one, other = find(units={"2": [1]}), find(units={"2": [1]}, store="other", seed=1)
    assert set(one.sample) != set(other.sample)
    assert one.exemplars[Unit("2", 1)] == other.exemplars[Unit("2", 1)]


def test_layers_agree_on_the_sample_whatever_could_be_read_when(find: Find) -> None:
    """An image could not be read when the first layer was surveyed, as when a disk or a network drive was away."""
    find(Blobs(bad=(3,)), {"2": [0, 1]}, sample=40)
    find(Blobs(), {"5": [0]}, sample=40)
    both, plainly = (find(Blobs(), {"2": [0], "5": [0, 3]}, store=s, sample=40) for s in ("store", "other"))
    assert both.sample == plainly.sample
    for unit in (Unit("2", 0), Unit("5", 0), Unit("5", 3)):
        assert both.sample_activations(unit).tolist() == plainly.sample_activations(unit).tolist()


def test_fewer_images_than_exemplars(find: Find) -> None:
    result = find(Blobs(3), crops=False)
    assert [len(result.exemplars[Unit("2", unit)]) for unit in range(6)] == [3] * 6
    assert len(result.sample) == 3
    assert not any(result.too_few(Unit("2", unit)) for unit in range(6))


def test_a_unit_that_gives_nan_fails_alone(find: Find) -> None:
    net, sound = network(), find(store="sound")
    with torch.no_grad():
        net[2].weight[1] = torch.nan
    result = find(net=net, units={"2": [0, 1, 2]})
    assert result.failed == {Unit("2", 1): "its activations are not finite (NaN or infinite)"}
    assert result.exemplars[Unit("2", 1)] == ()
    assert not result.too_few(Unit("2", 1))
    assert result.exemplars[Unit("2", 0)] == sound.exemplars[Unit("2", 0)]


def test_a_crop_without_a_finite_activation_is_no_exemplar(find: Find) -> None:
    brightest = max(float(preprocess(Blobs().open(i)).mean()) for i in range(40))

    class Overflowing(torch.nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            bright = x.mean((1, 2, 3), keepdim=True) > brightest + 1e-3  # as crops of a blob may be
            found: torch.Tensor = super().forward(torch.where(bright, torch.nan, x))
            return found

    result = find(net=Overflowing(*network()), units={"2": list(range(6))})
    crops = 0
    for unit in range(6):
        strengths = [e.activation for e in result.exemplars[Unit("2", unit)]]
        crops += sum(e.box is not None for e in result.exemplars[Unit("2", unit)])
        assert strengths == sorted(strengths, reverse=True)
        assert np.isfinite(strengths).all()
    assert crops


def test_a_broken_unit_does_not_spoil_the_diversity_of_its_layer(find: Find) -> None:
    units = [Unit("2", index) for index in (0, 2, 3, 4, 5)]
    found = []
    for value in (torch.nan, 0.0):  # as if it never varied
        net = network()
        with torch.no_grad():
            net[2].weight[1] = value
            net[2].bias[1] = value
        result = find(net=net, units={"2": [0, 2, 3, 4, 5]}, store=str(value), pool=10, crops=False)
        found.append([result.exemplars[unit] for unit in units])
    assert found[0] == found[1]


def test_sample_activations_are_those_of_the_samples_images(find: Find, tmp_path: Path) -> None:
    result, store = find(), Store(tmp_path / "store")
    for unit in (Unit("2", 0), Unit("5", 3)):
        expected = plain(unit, [store.picture(digest).open() for digest in result.sample])
        assert np.allclose(result.sample_activations(unit), expected, rtol=1e-4, atol=1e-5)


def test_crops_are_made_as_the_target_takes_them(find: Find) -> None:
    alive, most = weakref.WeakSet[torch.Tensor](), 0

    def prepare(image: Image.Image) -> torch.Tensor:
        nonlocal most
        tensor = preprocess(image)
        alive.add(tensor)
        most = max(most, len(alive))
        return tensor

    units = {"0": list(range(64))}
    result = find(Blobs(16), units, net=torch.nn.Sequential(torch.nn.Conv2d(3, 64, 5, 2, 2)), prepare=prepare, k=8)
    crops = {(e.source, e.box) for unit in units["0"] for e in result.exemplars[Unit("0", unit)] if e.box}
    assert len(crops) > 200
    assert most < 100  # a batch, what waits beside it, and the batch of images that they are cut from


@pytest.mark.parametrize("image", [0, 39])
def test_one_image_that_is_not_finite_is_enough_to_fail(find: Find, image: int) -> None:
    class Chokes(torch.nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            bad = (x == preprocess(Blobs().open(image))).all(dim=(1, 2, 3))[:, None, None, None]
            found: torch.Tensor = super().forward(torch.where(bad, torch.nan, x))
            return found

    assert set(find(net=Chokes(*network()), units={"2": [0, 3]}).failed) == {Unit("2", 0), Unit("2", 3)}


def test_a_dead_unit_is_silent(find: Find) -> None:
    net = network()
    with torch.no_grad():
        net[2].weight[1] = 0
    result = find(net=net, units={"2": [0, 1]})
    assert [result.too_few(Unit("2", unit)) for unit in (0, 1)] == ["", SILENT]
    assert result.exemplars[Unit("2", 1)] == ()


def test_a_latent_has_a_density_and_a_dead_one_says_so(find: Find, tmp_path: Path) -> None:
    file, rows = tmp_path / "rows.safetensors", torch.randn(6, 6, generator=torch.Generator().manual_seed(3))
    probing = Blobs()
    images = [probing.open(i) for i in range(len(probing)) if i != 5]
    with torch.no_grad():
        outputs = network()[:3](torch.stack([preprocess(image) for image in images]))
    projections = torch.einsum("nchw,kc->nkhw", outputs, rows)
    bias = torch.tensor([-0.9, 0.0, 0.5, -0.7, -1e6, 0.1]) * projections.amax((0, 2, 3))
    save_file({"directions": rows, "bias": bias}, file)
    fires = (projections + bias[:, None, None] > 0).any(2).any(2).float().mean(0)
    assert len({*fires.tolist()}) > 3
    units = [Unit("2", index) for index in range(6)]
    reads = LayerSettings(directions=str(file), relu=True)
    for store in ("store", "store", "another"):  # the second from the first's files
        result = find(units={"2": [*range(6)]}, reads=reads, store=store, crops=False, k=3 if store == "another" else 5)
        assert [result.density(unit) for unit in units] == pytest.approx(fires.tolist())
        assert result.density(units[4]) == 0
        assert result.too_few(units[4]) == DEAD
    plain = find(units={"2": [0]}, reads=LayerSettings(directions=str(file)), store="third", crops=False)
    assert plain.density(units[0]) is None


@pytest.mark.parametrize(("firing", "reason"), [(0, SILENT), (1, ONE_IMAGE), (2, ""), (5, "")])
def test_images_on_which_a_unit_is_silent_are_no_exemplars(find: Find, firing: int, reason: str) -> None:
    class Rare(torch.nn.Module):
        """One unit that fires on some images alone, as a latent of a sparse autoencoder does."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            known = [preprocess(Blobs(300).open(index)) for index in range(firing)]
            fires = [any(torch.equal(one, other) for other in known) for one in x]
            return torch.tensor(fires)[:, None, None, None] * (x.mean(1, keepdim=True) + 2)

    net = torch.nn.Sequential(torch.nn.Identity(), torch.nn.Identity(), Rare())
    result = find(net=net, units={"2": [0]}, crops=False)
    assert result.too_few(Unit("2", 0)) == reason
    assert len(result.exemplars[Unit("2", 0)]) == firing


def test_a_preprocess_that_is_not_affine_gives_no_crops_and_says_so(find: Find) -> None:
    def swirl(image: Image.Image) -> torch.Tensor:
        return preprocess(image.rotate(30, Image.Resampling.BILINEAR))

    result = find(prepare=swirl)
    assert "does more than scale, crop, pad and mirror" in result.no_crops
    assert not any(e.box for unit in range(6) for e in result.exemplars[Unit("2", unit)])


def test_a_preprocess_may_be_made_of_layers(find: Find) -> None:
    """Whose weights have gradients, and so what they give."""
    scale = torch.nn.Parameter(torch.ones(()))
    units = {"2": [0, 1]}
    found = find(units=units, prepare=lambda image: preprocess(image) * scale)
    assert facts(found, units) == facts(find(units=units, store="plain"), units)
    assert any(e.box for unit in (0, 1) for e in found.exemplars[Unit("2", unit)])


def test_crops_can_be_switched_off(find: Find) -> None:
    for settings in ({"crops": False}, {"max_crops": 0}):
        result = find(store=str(settings), **settings)
        assert not any(e.box for unit in range(6) for e in result.exemplars[Unit("2", unit)])


def test_an_image_gets_no_more_crops_than_asked_for(find: Find) -> None:
    most = {
        n: max(
            len(e.boxes)
            for unit in range(6)
            for e in find(store=str(n), max_crops=n, units={"2": [unit]}).exemplars[Unit("2", unit)]
        )
        for n in (1, 4)
    }
    assert most[1] == 1 < most[4]


def test_crops_lie_in_what_the_target_sees_of_the_source(find: Find) -> None:
    result = find(prepare=lambda image: preprocess(image.crop((0, 0, image.width // 2, image.height))))
    found = [e for unit in range(6) for e in result.exemplars[Unit("2", unit)]]
    boxes = [box for e in found for box in e.boxes]
    assert boxes
    assert all(box.right < 0.52 for box in boxes)
    assert max(box.right - box.left for box in boxes) > 0.25
    assert all(e.map.frame == pytest.approx((0, 0, 0.5, 1), abs=0.02) for e in found if e.map)


def test_a_crop_has_its_own_place_in_the_activation_space() -> None:
    row = {"boxes": [[0.0, 0.0, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0]], "activations": [2.0, 3.0], "map": None}
    rows: Any = {"2/0@7": {**row, "features": [[0.0], [1.0], [2.0]]}}
    found = regions_of(Unit("2", 0), [(7, 1.0), (8, 0.5)], rows)
    assert [(c.image, c.activation, c.features) for c in found] == [
        *((7, 1.0, (0.0,)), (7, 2.0, (1.0,)), (7, 3.0, (2.0,))),
        (8, 0.5, ()),
    ]


def test_diversity_takes_the_strongest_and_then_what_differs() -> None:
    places = [(0.0, 0.0), (0.1, 0.0), (0.0, 0.1), (5.0, 0.0), (0.0, 4.0), (9.0, 9.0)]
    regions = [Region(i, None, 1 - i / 10, place) for i, place in enumerate(places)]
    assert [c.image for c in choose(regions, 3, pool=5)] == [0, 3, 4]
    assert [c.image for c in choose(regions, 3)] == [0, 1, 2]


def test_diversity_takes_nothing_twice_where_nothing_differs() -> None:
    regions = [Region(i, None, 1 - i / 10, (1.0, 2.0)) for i in range(6)]
    assert [c.image for c in choose(regions, 3, pool=5)] == [0, 1, 2]


def test_of_a_pool_only_the_strongest_k_images_get_crops(find: Find, tmp_path: Path) -> None:
    find(units={"2": [1]}, k=3, pool=10)
    strongest = [e.source for e in find(units={"2": [1]}, store="ten", k=10, crops=False).exemplars[Unit("2", 1)]]
    rows = list(Store(tmp_path / "store").table("crops", "key", REGIONS).rows())
    cropped = {f"{int(row['key'].partition('@')[2]):03}.png" for row in rows if row["boxes"]}
    assert len(rows) == 10
    assert cropped
    assert cropped <= set(strongest[:3])


def test_diversity_leaves_out_what_is_weak() -> None:
    strengths = [1.0, 0.9, 0.8, 0.5, 0.41, 0.39, 0.1]
    regions = [Region(i, None, value, (float(i), 0.0)) for i, value in enumerate(strengths)]
    assert [c.image for c in choose(regions, 3, pool=7, baseline=0.0)] == [0, 2, 4]
    assert [c.image for c in choose(regions, 3, pool=7)] == [0, 3, 6]


def test_diverse_exemplars_come_from_the_pool(find: Find) -> None:
    units = {"2": [0, 1], "5": [3]}
    diverse, ten = find(units=units, pool=10, crops=False), find(units=units, store="ten", k=10, crops=False)
    different = 0
    for unit in (Unit("2", 0), Unit("2", 1), Unit("5", 3)):
        chosen = diverse.exemplars[unit]
        assert set(chosen) <= set(ten.exemplars[unit])
        assert chosen[0] == ten.exemplars[unit][0]
        different += chosen != ten.exemplars[unit][:5]
    assert different


def test_a_pass_keeps_all_activations_for_a_method_that_asks(find: Find) -> None:
    probing = Blobs(bad=(7,))
    images = [i for i in range(len(probing)) if i not in (5, 7)]  # 5 equals 2
    units = {"2": [0, 4], "5": [3]}
    for first in ({}, {"store": "known"}):  # from the first pass, or one that was there and kept none
        if first:
            find(probing, units, **first)
        result = find(probing, units, all_activations=True, **first)
        assert result.record is not None
        assert result.record.images() == images
        for layer, index in (("2", 4), ("5", 3)):
            expected = plain(Unit(layer, index), [probing.open(i) for i in images])
            assert result.record.of(layer)[images, index] == pytest.approx(expected, rel=1e-4, abs=1e-5)
    before = list(probing.opened)
    again = find(probing, units, all_activations=True)
    assert (again.target_seconds, probing.opened) == (0, before)


def test_a_stopped_pass_goes_on_with_its_activations(find: Find) -> None:
    whole, seen = find(all_activations=True), [0]

    def stop(n: int) -> None:
        seen[0] += n
        if seen[0] > 16:
            raise StoppedError("stopped", "")

    probing = Blobs()
    with pytest.raises(StoppedError):
        find(probing, store="stopped", all_activations=True, progress=stop)
    resumed = find(probing, store="stopped", all_activations=True)
    assert max(probing.opened[:16]) <= 2, "of those that were in, the sample and the exemplars alone"
    assert whole.record is not None
    assert resumed.record is not None
    for layer in ("2", "5"):
        assert np.array_equal(resumed.record.of(layer), whole.record.of(layer))


def test_ties_go_to_whole_images_and_then_to_the_first() -> None:
    box = Box(0.0, 0.0, 0.5, 0.5)
    regions = [Region(9, None, 1.0), Region(3, box, 1.0), Region(3, None, 1.0), Region(0, box, 2.0)]
    assert [(c.image, c.box) for c in choose(regions, 4)] == [(0, box), (3, None), (9, None), (3, box)]


def test_images_in_the_store_are_the_exemplars(find: Find, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    probing = Blobs()
    for exemplar in find(probing).exemplars[Unit("2", 0)]:
        source = probing.open(int(exemplar.source[:3]))
        expected = cut(source, exemplar.box) if exemplar.box else source
        assert np.array_equal(store.picture(exemplar.digest).open(), expected)


def test_of_a_small_set_every_image_is_opened_once(find: Find) -> None:
    probing = Blobs()
    result = find(probing, units={"2": [0, 1, 2, 3, 4, 5], "5": [0, 3]})
    assert any(one.box for one in result.exemplars[Unit("2", 0)])
    assert probing.opened == [1] * len(probing)


def test_of_a_large_set_only_the_chosen_images_are_opened_again(find: Find, monkeypatch: pytest.MonkeyPatch) -> None:
    """With room for a batch alone: once for the crops and once to keep them, whatever the number of units."""
    one = Blobs().open(0)
    room = 40 * one.width * one.height * 3
    monkeypatch.setattr("dnd.pipeline.exemplars.find._ROWS_AT_ONCE", 1)
    monkeypatch.setattr("dnd.pipeline.exemplars.find._UNITS_AT_ONCE", 1)
    few, many = {"2": [0]}, {"2": [0, 1, 2, 3, 4, 5]}
    for units in (few, many):
        probing = Blobs(400)
        result = find(probing, units=units, store=str(units), sample=1, room=room)
        chosen = {int(e.source[:3]) for index in units["2"] for e in result.exemplars[Unit("2", index)]}
        again = [index for index, times in enumerate(probing.opened) if times > 1]
        assert {index for index in chosen if index < 350} <= set(again), "the last ones are still in memory"
        assert max(probing.opened) <= 3
        assert sum(probing.opened) <= 400 + 1 + 2 * 5 * len(units["2"])


def test_an_image_that_vanishes_in_mid_run_is_named(find: Find) -> None:
    class Fleeting(Blobs):
        def open(self, index: int) -> Image.Image:
            if self.opened[index]:
                raise OSError("gone")
            return super().open(index)

    with pytest.raises(
        UsageError, match=r"probing set changed under the run: \d+.png cannot be read any more \(gone\)"
    ):
        find(Fleeting(), room=0)

"""The rivals: their formulas by hand, and whole runs on a toy world whose answers are known."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import toys
from corpus import png_of
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import dnd_methods
from dnd import api
from dnd.api import Box
from dnd.config.read import build_run
from dnd.errors import UsageError
from dnd.pipeline.execute import execute
from dnd.plugin.registry import Entry, Registry
from dnd.results.run import RunFolder
from dnd.target.hooked import HookedTarget
from dnd_methods import broden, dissection, quantile, similarity
from dnd_methods.concepts import concept_set

RNG = np.random.default_rng(0)


# --- CLIP-Dissect ------------------------------------------------------------------------------------


def planted(seed: int = 0) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """400 images that show one of 8 concepts each, more or less; unit i fires on concept i.

    Likeness (400, 8), activations (400, 8).
    """
    rng = np.random.default_rng(seed)
    shows = np.eye(8)[rng.integers(8, size=400)] * rng.uniform(0.5, 1.5, (400, 1))
    return 0.2 + 0.1 * shows + 0.01 * rng.normal(size=shows.shape), shows + 0.1 * rng.normal(size=shows.shape)


def compared(name: str, likeness: npt.NDArray[Any], activations: npt.NDArray[Any], **settings: Any) -> npt.NDArray[Any]:
    """The whole table (n_units, n_concepts); `likeness` (n_images, n_concepts)."""
    known = similarity.Likeness(likeness, np.eye(likeness.shape[1]))
    parts: Any = similarity.SIMILARITIES[name]
    return np.concatenate(list(parts(known, activations.astype(np.float32), **settings)))


@pytest.mark.parametrize("name", similarity.SIMILARITIES)
def test_each_similarity_finds_the_planted_concept(name: str) -> None:
    likeness, activations = planted()
    table = compared(name, likeness, activations)
    assert table.shape == (8, 8)
    wrong = int((table.argmax(axis=1) != np.arange(8)).sum())
    # As published, rank-reorder sees no more than the order of the 20 strongest images, and misses two of the eight.
    assert wrong <= (2 if name == "rank-reorder" else 0)


@pytest.mark.parametrize("name", similarity.SIMILARITIES)
def test_the_order_of_images_and_concepts_changes_nothing(name: str) -> None:
    likeness, activations = planted(1)
    images, concepts = RNG.permutation(400), RNG.permutation(8)
    table = compared(name, likeness, activations)
    other = compared(name, likeness[images][:, concepts], activations[images])
    assert np.allclose(other, table[:, concepts], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", similarity.SIMILARITIES)
def test_blocks_change_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    likeness, activations = planted(2)
    whole = compared(name, likeness, activations)
    for setting, size in (("_AT_ONCE", 3), ("_CONCEPTS", 3), ("_IN_MEMORY", 0)):
        monkeypatch.setattr(similarity, setting, size)
    assert np.allclose(compared(name, likeness, activations), whole, rtol=1e-4, atol=1e-4)


def test_of_equal_activations_the_first_image_counts() -> None:
    activations = np.array([[0, 2, 1, 2, 1, np.nan], [0, 0, 0, 0, 0, 0], [np.nan] * 6], np.float32).T
    assert similarity._strongest(activations, 3).tolist() == [[1, 3, 2], [0, 1, 2], [0, 1, 2]]


def test_soft_wpmi_is_the_published_sum() -> None:
    likeness, activations = RNG.random((30, 4)), RNG.random((30, 3))
    p = np.exp(10 * likeness) / np.exp(10 * likeness).sum(1, keepdims=True)
    given_unit = np.zeros((3, 4))
    for unit in range(3):
        for place, image in enumerate(np.argsort(-activations[:, unit])[:20]):
            belongs = 0.998 - place / 20 * (0.998 - 0.97)
            given_unit[unit] += np.log(1 + belongs * (p[image] - 1) + 1e-7)
    expected = given_unit - np.log(np.exp(given_unit).mean(0))
    assert np.allclose(compared("soft-wpmi", likeness, activations, top=20), expected, rtol=1e-4)


def test_rank_reorder_is_zero_for_the_unit_s_own_order() -> None:
    activations = RNG.random((200, 1))
    table = compared("rank-reorder", np.concatenate([activations, RNG.random((200, 1))], axis=1), activations)
    assert table[0, 0] == 0
    assert table[0, 1] < 0


def test_rank_reorder_is_the_published_ratio() -> None:
    """mean |change|^3 over what random orders get, over the root of the mean likeness, on the strongest twentieth."""
    likeness, activations = RNG.random((200, 3)), RNG.random((200, 1))
    top = np.argsort(-activations[:, 0])[:10]
    target, seen = activations[top, 0], likeness[top]
    by_chance = np.mean([np.abs(target - RNG.permutation(target)) ** 3 for _ in range(20_000)])
    for concept, found in enumerate(compared("rank-reorder", likeness, activations)[0]):
        reordered = np.empty(10)
        reordered[np.argsort(seen[:, concept])] = np.sort(target)
        moved = (np.abs(target - reordered) ** 3).mean()
        assert found == pytest.approx(-moved / by_chance / np.sqrt(seen[:, concept].mean()), rel=0.02)


def test_cosine_cubed_is_the_published_cosine() -> None:
    likeness, activations = RNG.random((50, 3)), RNG.random((50, 2))
    found = compared("cosine-cubed", likeness, activations)
    for unit in range(2):
        for concept in range(3):
            one = (activations[:, unit] - activations[:, unit].mean()) ** 3
            other = (likeness[:, concept] - likeness[:, concept].mean()) ** 3
            assert found[unit, concept] == pytest.approx(
                one @ other / np.linalg.norm(one) / np.linalg.norm(other), rel=1e-3
            )
    assert (compared("cosine-cubed", np.ones((5, 1)), activations[:5]) == 0).all()


# --- Network Dissection ------------------------------------------------------------------------------


@settings(max_examples=50)
@given(st.integers(1, 400), st.floats(0.001, 0.5), st.integers(1, 50), st.integers(0, 99))
def test_the_streamed_threshold_is_the_sorted_one(length: int, share: float, step: int, seed: int) -> None:
    values = np.random.default_rng(seed).normal(size=(3, length)).astype(np.float32)
    top = quantile.TopShare(3, length, share)
    for start in range(0, length, step):
        top.add(values[:, start : start + step])
    count = max(1, int(np.ceil(length * share)))
    assert np.array_equal(top.threshold(), np.sort(values, axis=1)[:, -count])


def test_iou_counts_cells_of_labelled_images_only() -> None:
    overlap = dissection.Overlap(1)
    left = np.array([[True, False], [True, False]])
    overlap.add(left[None], {"thing": {"a": left, "b": ~left}})
    overlap.add(left[None], {"thing": {"a": ~left}})
    overlap.add(left[None], {"stuff": {"c": left}})
    concepts, table = overlap.iou()
    found = dict(zip(concepts, table[0].tolist(), strict=True))
    assert found == {"c": 1.0, "a": pytest.approx(2 / 6), "b": 0.0}


def test_a_mask_is_read_where_the_target_looks() -> None:
    mask = np.zeros((10, 20), np.bool_)
    mask[:, 10:] = True
    assert dissection.seen(mask, Box(0.25, 0, 0.75, 1), 4).tolist() == [[False, False, True, True]] * 4
    assert dissection.seen(mask, Box(1.0, 0, 0.0, 1), 4).tolist() == [[True, True, False, False]] * 4, "mirrored"
    padded = dissection.seen(np.ones((4, 4), np.bool_), Box(-0.5, 0, 1.5, 1), 4)
    assert padded.tolist() == [[False, True, True, False]] * 4, "padding shows nothing"


# --- whole runs --------------------------------------------------------------------------------------


class Halves(api.ProbingSet):
    """Images whose left half is one colour and whose right half another, with masks that say so."""

    name = "halves"

    def __len__(self) -> int:
        return 24

    def _colours(self, index: int) -> tuple[str, str]:
        names = list(toys.COLOURS)
        return names[index % 3], names[(index + 1 + index // 3 % 2) % 3]

    def image_name(self, index: int) -> str:
        return f"{index:02}"

    def open(self, index: int) -> Image.Image:
        parts = [np.array(toys.flat(colour, index, 16))[:, :8] for colour in self._colours(index)]
        return Image.fromarray(np.concatenate(parts, axis=1))

    def digest(self) -> str:
        return "halves-1"

    def masks(self, index: int) -> Mapping[str, Mapping[str, npt.NDArray[np.bool_]]]:
        left = np.zeros((8, 8), np.bool_)
        left[:, :4] = True
        first, second = self._colours(index)
        return {"colour": {first: left, second: ~left}}


class Teller(toys.Captioner):
    """A captioner that also says how likely a text is: by the share of the colour it names."""

    name = "teller"

    def caption(self, images: Sequence[Image.Image]) -> list[str]:
        return [f"a {toys.colour_of(image)} thing" for image in images]

    def log_probabilities(self, requests: Sequence[tuple[Image.Image, Sequence[str]]]) -> list[list[float]]:
        answers = []
        for image, texts in requests:
            mean = np.asarray(image, np.float64).reshape(-1, 3).mean(0) + 1
            shares = dict(zip(toys.COLOURS, mean / mean.sum(), strict=True))
            answers.append([float(np.log(shares[text.split()[1]])) for text in texts])
        return answers


def registry() -> Registry:
    own = [
        Entry("probing-set", "halves", Halves, "tests", "1", "ok"),
        Entry("captioner", "teller", Teller, "tests", "1", "ok"),
        *(Entry("method", m.name, m, "tests", "1", "ok") for m in (*dnd_methods.register_methods(), Reddest)),
    ]
    return Registry([*toys.registry().entries, *own])


def run_method(out: Path, name: str, probing: str = "halves", **method: object) -> list[dict[str, str]]:
    tables = {
        "target": {"name": "Net", "layers": ["units"], "units": "0-3"},
        "probing": {"set": probing},
        "exemplars": {"k": 4, "sample": 12},
        "device": "cpu",
        "captioner": {"backend": "teller"},
        "method": {"name": name, **method},
    }
    run = build_run(tables, registry(), live_target=True)
    execute(run, out, registry=registry(), live=(toys.Net(), toys.preprocess))
    with (out / "labels.csv").open() as file:
        return list(csv.DictReader(file))


def test_network_dissection_names_what_the_masks_name(tmp_path: Path) -> None:
    rows = run_method(tmp_path / "run", "network-dissection", share=0.3, resolution=8)
    assert [row["label"] for row in rows[:3]] == list(toys.COLOURS)
    assert all(float(row["score"]) > 0.5 for row in rows[:3])
    assert rows[3]["status"] == "uninterpretable", "the unit that is always zero"


class Reddest(api.Method):
    """The mean of all activations: it needs neither exemplars nor a second pass."""

    name = "reddest"
    crops = False
    all_activations = True

    def describe(self, study: api.Study) -> Iterator[api.Label]:
        table = study.activations("units")
        assert table.shape == (len(study.images), 4)
        for unit in study.units:
            yield api.Label(unit, "labelled", (("mean", float(table[:, unit.index].mean())),))


def test_all_activations_come_from_the_one_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[int] = []
    plain = Halves.open
    monkeypatch.setattr(Halves, "open", lambda self, index: opened.append(index) or plain(self, index))
    shown: list[int] = []
    observe = HookedTarget._observe

    def noted(self: HookedTarget, batch: torch.Tensor, take: Any) -> Any:
        shown.append(len(batch))
        return observe(self, batch, take)

    monkeypatch.setattr(HookedTarget, "_observe", noted)
    rows = run_method(tmp_path / "run", "reddest")
    assert sorted(opened) == list(range(24))
    assert sum(shown) == 24
    images = [plain(Halves.__new__(Halves), index) for index in range(24)]
    net = toys.Net().eval()
    with torch.no_grad():
        expected = net.units(torch.stack([toys.preprocess(image) for image in images])).mean((0, 2, 3))
    assert [float(row["score"]) for row in rows[:3]] == pytest.approx(expected[:3].tolist(), rel=1e-3)


def test_a_method_that_asks_for_what_it_did_not_announce_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Reddest, "all_activations", False)
    with pytest.raises(api.PluginError, match="asks for all activations"):
        run_method(tmp_path / "run", "reddest")


def test_milan_names_what_the_captions_share(tmp_path: Path) -> None:
    rows = run_method(tmp_path / "run", "milan")
    assert [row["label"] for row in rows[:3]] == [f"a {colour} thing" for colour in toys.COLOURS]
    shown = RunFolder(tmp_path / "run").unit(0).exemplars
    assert {exemplar.caption for exemplar in shown} == {"a red thing"}, "where the label comes from"


def test_a_run_of_another_method_asks_for_no_other_backends(tmp_path: Path) -> None:
    run_method(tmp_path / "run", "network-dissection", share=0.3)
    text = (tmp_path / "run" / "run.toml").read_text()
    assert "network-dissection" in text
    assert "captioner" not in text


def test_network_dissection_says_that_masks_are_missing(tmp_path: Path) -> None:
    photos = toys.make_photos(tmp_path / "photos", 6)
    with pytest.raises(UsageError, match="concept masks"):
        run_method(tmp_path / "run", "network-dissection", str(photos))


def test_milan_says_that_the_captioner_gives_no_probabilities(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(Teller, "log_probabilities")
    with pytest.raises(UsageError, match="by their probability"):
        run_method(tmp_path / "run", "milan")


def test_an_unknown_method_is_refused_with_what_there_is() -> None:
    target = {"name": "Net", "layers": ["units"]}
    tables = {"target": target, "probing": {"set": "halves"}, "method": {"name": "milano"}}
    with pytest.raises(UsageError, match=r"no method named 'milano'. Did you mean 'milan'\? There are: .*dnd,"):
        build_run(tables, registry(), live_target=True)


# --- concept sets and Broden -------------------------------------------------------------------------


def test_the_bundled_words_are_words() -> None:
    words = concept_set("common-words")
    assert len(words) == 10867
    assert {"dog", "spotted", "water"} <= set(words)


@pytest.mark.parametrize(("name", "why"), [("nowhere.txt", "cannot read"), ("package:no_such/x", "not installed")])
def test_a_missing_concept_set_is_named(name: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        concept_set(name)


def make_broden(folder: Path, image: str = "a/1.png") -> Path:
    (folder / "images" / "a").mkdir(parents=True)
    Image.new("RGB", (8, 8), (200, 0, 0)).save(folder / "images" / "a" / "1.png")
    numbers = np.zeros((4, 4, 3), np.uint8)
    numbers[:2, :, 0] = 5
    numbers[2:, :, 1] = 1  # 256
    Image.fromarray(numbers).save(folder / "images" / "a" / "1_object.png")
    (folder / "index.csv").write_text(
        "image,split,ih,iw,sh,sw,color,object,part,material,scene,texture\n"
        f"{image},train,8,8,4,4,,a/1_object.png,,,7,\n"
    )
    (folder / "label.csv").write_text("number,name,category\n5,cat,object\n7,kitchen,scene\n256,sofa,object\n")
    return folder


def test_broden_s_masks(tmp_path: Path) -> None:
    one = broden.BrodenSet(broden.BrodenConfig(folder=str(make_broden(tmp_path))), None)  # type: ignore[arg-type]
    masks = one.masks(0)
    assert set(masks) == {"object", "scene"}
    assert masks["scene"]["kitchen"].tolist() == [[True]]
    assert masks["object"]["cat"].sum() == masks["object"]["sofa"].sum() == 8
    assert one.open(0).size == (8, 8)
    assert one.digest() == one.digest()


def test_broden_stays_in_its_folder(tmp_path: Path) -> None:
    folder = make_broden(tmp_path / "set", "../../secret.png")
    Image.new("RGB", (4, 4)).save(tmp_path / "secret.png")
    one = broden.BrodenSet(broden.BrodenConfig(folder=str(folder)), None)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="outside the folder"):
        one.open(0)


@pytest.mark.parametrize("data", [b"", b"no image", png_of(30_000, 7_000)], ids=["empty", "text", "bomb"])
def test_broden_s_damaged_images_are_named(tmp_path: Path, data: bytes) -> None:
    folder = make_broden(tmp_path)
    for name in ("1", "1_object"):
        (folder / "images" / "a" / f"{name}.png").write_bytes(data)
    one = broden.BrodenSet(broden.BrodenConfig(folder=str(folder)), None)  # type: ignore[arg-type]
    with pytest.raises((OSError, ValueError)):
        one.open(0)
    with pytest.raises(UsageError, match=r"label image .*1_object\.png"):
        one.masks(0)


def test_broden_s_odd_tables_are_read_or_named(tmp_path: Path) -> None:
    folder = make_broden(tmp_path)
    (folder / "label.csv").write_text("number,name\n\u00b2,two\n\u0663,three\n" + "9" * 5000 + ",x\n5,cat\n7,\n256,x\n")
    one = broden.BrodenSet(broden.BrodenConfig(folder=str(folder)), None)  # type: ignore[arg-type]
    assert set(one.masks(0)["object"]) == {"cat", "x"}
    (folder / "index.csv").write_text("image,split\n" + "x" * 200_000)
    with pytest.raises(UsageError, match=r"cannot read .*index\.csv"):
        len(broden.BrodenSet(broden.BrodenConfig(folder=str(folder)), None))  # type: ignore[arg-type]


def test_a_folder_that_is_no_broden_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read .*index\.csv"):
        len(broden.BrodenSet(broden.BrodenConfig(folder=str(tmp_path)), None))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "text", "encoding"),
    [
        ("x.txt", "# mine\nsea\n\n  # more\nred fox\nsea\n", "utf-8"),
        ("x.txt", "sea\r\nred fox\r\n", "utf-8-sig"),
        ("x.txt", "sea\nred fox\n", "utf-16"),
        ("x.csv", "# mine, of 2026\nid,concept\n1,sea\n# more\n2,red fox\n", "utf-8-sig"),
        ("x.csv", 'concept\nsea\n"red fox"\n', "utf-8"),
        ("x.csv", "Concept;n\nsea;1\nred fox;2\n", "utf-8"),
        ("x.csv", "sea\nred fox\n", "utf-8"),
        ("x.TSV", "n\tconcept\n1\tsea\n2\tred fox\n", "utf-16"),
    ],
)
def test_concept_sets_as_people_have_them(tmp_path: Path, name: str, text: str, encoding: str) -> None:
    (tmp_path / name).write_bytes(text.encode(encoding))
    assert concept_set(str(tmp_path / name)) == ["sea", "red fox"]


def test_a_table_of_several_columns_names_that_of_the_concepts(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("word,n\nsea,1\n")
    with pytest.raises(UsageError, match="none is called concept"):
        concept_set(str(tmp_path / "x.csv"))

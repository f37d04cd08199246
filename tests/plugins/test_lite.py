"""The small setting for photos, on photos that scikit-image's wheel carries."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import needs
import numpy as np
import pytest
from PIL import Image

from dnd.api import ImageFolder, ImageRequest, ItemError, Label, Runtime, SummaryRequest, Unit, UsageError
from dnd.config.read import read_run
from dnd.pipeline.build import chosen_units
from dnd.plugin.registry import Registry
from dnd_lite import look
from dnd_lite.frequency import TagFrequency, rank_tags, tags
from dnd_lite.words import WordStatistics, phrases, rank_phrases

RUNTIME = Runtime("cpu", lambda name: Path(name))
ESPRESSO, EGYPTIAN_CAT, ROCKET = 967, 285, 657
"""The first answers of Lite0 to coffee.png and chelsea.png, and its "missile" to rocket.jpg."""
PHOTOS = ("coffee.png", "chelsea.png", "rocket.jpg", "motorcycle_left.png", "brick.png", "grass.png")
PHOTOS_AS_SAVED = sorted(Path(name).with_suffix(".png").name for name in PHOTOS)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import skimage

    folder = tmp_path_factory.mktemp("photos")
    for name in PHOTOS:
        with Image.open(Path(skimage.__file__).parent / "data" / name) as image:
            image.convert("RGB").resize((260, 260)).save(folder / Path(name).with_suffix(".png").name)
    return folder


# --- words and pixels --------------------------------------------------------------------------------


def test_phrases_stay_in_their_clause_and_do_not_end_in_stop_words() -> None:
    found = set(phrases("a golden retriever, a cup of coffee; grey and brown"))
    assert {"golden retriever", "retriever", "cup of coffee", "grey", "brown"} <= found
    assert not {"a golden retriever", "cup of", "retriever cup", "grey and brown"} & found


def test_what_the_captions_share_comes_first() -> None:
    captions = ["a tabby, a sofa; grey", "a tabby; grey and brown", "a tabby, a desk; grey", "a lemon; yellow"]
    ranked = rank_phrases(captions, prior=0.01, decay=0.0)
    assert ranked[0] == "tabby"
    assert ranked.index("tabby") < ranked.index("sofa")
    assert ranked.index("tabby") < (ranked.index("grey") if "grey" in ranked else len(ranked))


def test_stronger_exemplars_weigh_more() -> None:
    captions = ["an espresso", "a lemon", "a lemon"]
    assert rank_phrases(captions, prior=0.01, decay=0.0)[0] == "lemon"
    assert rank_phrases(captions, prior=0.01, decay=2.0)[0] == "espresso"


def test_a_word_that_only_stands_in_a_longer_phrase_is_dropped() -> None:
    assert rank_phrases(["a golden retriever", "a golden retriever"], 0.01, 1.0) == ["golden retriever"]
    both = rank_phrases(["a golden retriever", "a labrador retriever"], 0.01, 0.0)
    assert both[0] == "retriever"


def test_word_statistics_does_not_depend_on_the_batch_and_says_when_there_is_nothing() -> None:
    summarizer = WordStatistics(WordStatistics.Config(), RUNTIME)
    requests = [SummaryRequest(("a tabby; grey", "a lynx"), 3, 0), SummaryRequest(("a boat; blue",), 1, 5)]
    together = summarizer.summarize(requests)
    assert together == [summarizer.summarize([request])[0] for request in requests]
    assert together[1] == ["boat"]
    with pytest.raises(ItemError, match="no word"):
        summarizer.summarize([SummaryRequest(("a photo",), 3, 0)])


def test_tags_that_many_photos_have_come_after_those_that_few_have() -> None:
    assert tags("a tabby, an egyptian cat; grey and brown, striped") == [
        "tabby",
        "egyptian cat",
        "grey",
        "brown",
        "striped",
    ]
    assert tags("white, plain") == ["white", "plain"]
    assert tags("a photo") == []
    captions = ["a lynx; white", "a tabby; white", "a tabby; white and grey", "a photo"]
    frequency = {"lynx": 1, "tabby": 2, "white": 100}
    # lynx 1 / 1, tabby (1/2 + 1/3) / sqrt 2, white (1 + 1/2 + 1/3) / 10, grey, which no photo of the folder has, 1/3
    assert rank_tags(captions, frequency, 1.0, 0.5) == ["lynx", "tabby", "grey", "white"]
    assert rank_tags(captions, frequency, 1.0, 0.0)[0] == "white"


@needs.lite
def test_tag_frequency_counts_the_photos_of_its_folder(photos: Path) -> None:
    with TagFrequency(TagFrequency.Config(folder=photos, variant=0), RUNTIME) as summarizer:
        assert summarizer._frequency is not None
        assert summarizer._frequency["espresso"] == 1
        requests = [SummaryRequest(("an espresso; red", "a cup; brown"), 3, 0), SummaryRequest(("a photo",), 3, 0)]
        assert summarizer.summarize(requests[:1]) == [["espresso", "red", "cup"]]
        with pytest.raises(ItemError, match="name nothing"):
            summarizer.summarize(requests)


GRID = np.mgrid[:200, :200]
PATTERNS = {
    "striped": (np.sin((GRID[0] + GRID[1]) / 4) > 0) * 255,
    "spotted": (((GRID[0] % 20 - 10) ** 2 + (GRID[1] % 20 - 10) ** 2) < 30) * 255,
    "plain": np.full((200, 200), 90),
    "rough": np.random.default_rng(0).integers(0, 255, (100, 100)).repeat(2, 0).repeat(2, 1),
}


@pytest.mark.parametrize("texture", PATTERNS)
def test_textures(texture: str) -> None:
    shares = look.measure(Image.fromarray(PATTERNS[texture].astype(np.uint8)))
    assert shares[texture] == max(shares[t] for t in look.TEXTURES)
    assert shares[texture] > 0.7
    assert texture in look.describe(shares)


@pytest.mark.parametrize(
    ("rgb", "name"),
    [
        ((250, 250, 250), "white"), ((10, 10, 10), "black"), ((120, 120, 125), "grey"), ((190, 30, 40), "red"),
        ((60, 150, 60), "green"), ((40, 70, 180), "blue"), ((240, 220, 60), "yellow"), ((100, 60, 35), "brown"),
        ((240, 140, 40), "orange"), ((245, 160, 190), "pink"), ((110, 50, 140), "purple"),
    ],
)  # fmt: skip
def test_colours(rgb: tuple[int, int, int], name: str) -> None:
    shares = look.measure(Image.new("RGB", (60, 40), rgb))
    assert shares[name] == 1
    assert look.describe(shares) == f"{name}, plain"


# --- networks ----------------------------------------------------------------------------------------


@needs.lite
def test_names_of_classes() -> None:
    from dnd_lite.classes import N_CLASSES, class_name, class_names, names_class

    assert class_name(ESPRESSO) == "espresso"
    assert names_class("Sports cars", 817)
    assert names_class("sport car", 817)
    assert not names_class("red sports car", 817)
    assert not names_class("car", 817)
    for index in range(N_CLASSES):
        assert 1 <= len(class_name(index).split()) <= 5
        assert class_names(index)[0] == class_name(index) == class_name(index).lower()


@needs.lite
def test_the_target_sees_the_centre_of_a_photo_and_knows_it(photos: Path) -> None:
    import torch

    from dnd_lite.target import EfficientNetLite

    module, preprocess = EfficientNetLite(EfficientNetLite.Config(), RUNTIME).build()
    assert not module.training
    frame = Image.new("RGB", (512, 512), (255, 0, 0))
    frame.paste((127, 127, 127), (24, 24, 488, 488))
    assert preprocess(frame).shape == (3, 224, 224)
    assert torch.equal(preprocess(frame), torch.zeros(3, 224, 224))
    with Image.open(photos / "coffee.png") as coffee, torch.inference_mode():
        logits = module(preprocess(coffee)[None])[0]
    assert int(logits.argmax()) == ESPRESSO


@needs.lite
def test_weights_that_were_changed_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from dnd.api import ModelError
    from dnd_lite import networks

    monkeypatch.setitem(networks._DIGESTS, 0, "0" * 64)
    with pytest.raises(ModelError, match="not the file that was pinned"):
        networks.load_network(0)


@needs.lite
def test_logits_are_graded_by_class_names_and_other_layers_are_not() -> None:
    from dnd_lite.target import EfficientNetLite

    target = EfficientNetLite(EfficientNetLite.Config(), RUNTIME)
    labels = [
        Label(Unit("_fc", ESPRESSO), "labelled", (("espresso", 3.0),)),
        Label(Unit("_fc", EGYPTIAN_CAT), "labelled", (("tabby", 2.0),)),
        Label(Unit("_fc", ROCKET), "uninterpretable", (("missile", 0.1),)),
    ]
    grading = target.grade(labels)
    assert grading is not None
    assert [(grade.right, grade.total) for grade in grading.grades] == [(1, 3)]
    assert set(grading.wrong) == {f"_fc/{EGYPTIAN_CAT}", f"_fc/{ROCKET}"}
    assert grading.controls["labels shuffled"] == pytest.approx(1 / 9)
    assert target.grade([Label(Unit("_conv_head", 3), "labelled", (("espresso", 3.0),))]) is None


# --- the photos of a folder --------------------------------------------------------------------------


@needs.lite
def test_retrieval_shows_the_concept_and_only_the_request_decides(photos: Path) -> None:
    from dnd_lite.retrieval import Retrieval

    generator = Retrieval(Retrieval.Config(folder=photos, variant=0), RUNTIME)
    with generator:
        assert generator._index is not None
        assert generator._vocabulary is not None

        def best(concept: str) -> str:
            parts = generator._vocabulary.parts(concept)
            return generator._index.photos.image_name(int(generator._index.matching(parts, 1e-9)[0]))

        assert best("espresso") == "coffee.png"
        assert best("grey rough") in ("grass.png", "brick.png")
        assert best("brown cat") == best("egyptian cat") == "chelsea.png"
        requests = [ImageRequest("grey", 9 - number, number) for number in range(9)] + [ImageRequest("zorp", 3)]
        together = generator.generate(requests)
        alone = [generator.generate([request])[0] for request in reversed(requests)][::-1]
    made = [image for image in together if image is not None]
    assert [one and one.tobytes() for one in together] == [one and one.tobytes() for one in alone]
    assert together == [*made, *[None] * (len(requests) - len(made))]
    assert len({image.tobytes() for image in made}) == len(made) > 1
    assert all(max(image.size) <= 400 and image.mode == "RGB" for image in made)


@needs.lite
def test_retrieval_shows_no_photo_that_is_probed_with_in_any_form(photos: Path, tmp_path: Path) -> None:
    from dnd_lite.retrieval import Retrieval

    def shown(**settings: Path | tuple[Path, ...]) -> set[str]:
        with Retrieval(Retrieval.Config(variant=0, **settings), RUNTIME) as generator:
            index = generator._index
            assert index is not None
            return {index.photos.image_name(int(number)) for number in index.shown}

    forms = tmp_path / "forms"
    forms.mkdir()
    with Image.open(photos / "coffee.png") as coffee, Image.open(photos / "chelsea.png") as cat:
        coffee.save(forms / "a.jpg", quality=40)
        coffee.resize((150, 140)).save(forms / "b.png")
        coffee.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(forms / "c.png")
        coffee.point(lambda value: int(value * 0.8)).save(forms / "d.png")
        cat.save(forms / "e.png")
    assert shown(folder=forms) == {"a.jpg", "e.png"}
    probed = tmp_path / "probed"
    probed.mkdir()
    shutil.copy(photos / "coffee.png", probed / "other name.png")
    assert shown(folder=forms, probing=(probed,)) == {"e.png"}
    halves = [{PHOTOS_AS_SAVED[i] for i in half} for half in ImageFolder(photos).halves()]
    assert shown(folder=photos, probing=(photos,)) == halves[1]
    assert not halves[0] & halves[1]


@pytest.mark.parametrize("size", [(39, 7), (3, 400), (1, 1), (8, 8), (50, 60)])
def test_narrow_photos_are_as_wide_as_the_core_asks(size: tuple[int, int]) -> None:
    from dnd.plugin.validate import checked_images
    from dnd_lite.retrieval import _padded

    image = _padded(Image.new("RGB", size))
    assert checked_images([image], 1) == [image]
    assert int((np.asarray(image) == 0).all(2).sum()) == size[0] * size[1]


def test_retrieval_notices_other_photos(tmp_path: Path) -> None:
    from pydantic import ValidationError

    from dnd_lite.retrieval import RetrievalConfig

    with pytest.raises(UsageError):
        RetrievalConfig.model_validate({"folder": str(tmp_path)})
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    config = RetrievalConfig.model_validate({"folder": str(tmp_path)})
    assert RetrievalConfig.model_validate(config.model_dump(mode="json")) == config
    Image.new("RGB", (8, 8)).save(tmp_path / "b.png")
    with pytest.raises(ValidationError, match="other photos"):
        RetrievalConfig.model_validate(config.model_dump(mode="json"))


@needs.lite
def test_logits_get_the_names_of_their_classes(photos: Path, tmp_path: Path) -> None:
    """The whole way: target, exemplars, tags, counts."""
    from dnd.config.read import read_run
    from dnd.pipeline.execute import execute
    from dnd.plugin.registry import Registry
    from dnd_lite.classes import names_class

    runfile = Path(__file__).parents[2] / "plugins" / "dnd_runfiles" / "photos.toml"
    options = {"probing.sets": [str(photos)], "target.units": [EGYPTIAN_CAT, ESPRESSO]}
    settings = ["captioner.variant=1", "summarizer.variant=1", "concepts.n=3", "exemplars.k=3"]
    run = read_run(runfile, Registry.load(), options=options, settings=settings)
    result = execute(run, tmp_path / "run")
    first = {label.unit.index: label.labels[0][0] for label in result.labels if label.status == "labelled"}
    assert first[ESPRESSO] == "espresso"
    assert names_class(first[EGYPTIAN_CAT], EGYPTIAN_CAT)


@needs.lite
def test_the_units_that_photos_show_can_be_chosen(photos: Path) -> None:
    from dnd_lite.target import EfficientNetLite, EfficientNetLiteConfig

    options = {"probing.sets": [str(photos)], "target.units": "shown"}
    run = read_run("photos", Registry.load(), options=options)
    target = EfficientNetLite(EfficientNetLiteConfig(), Runtime("cpu", lambda name: photos))
    units = chosen_units(run, {"_fc": 1000}, target, ImageFolder(photos))
    assert Unit("_fc", ESPRESSO) in units
    assert len(units) < 10
    with pytest.raises(UsageError, match="'_fc' alone"):
        target.shown("_conv_head", ImageFolder(photos))
    with pytest.raises(UsageError, match="cannot say which units"):
        chosen_units(run, {"_fc": 1000}, None, ImageFolder(photos))


def test_a_missing_extra_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    from dnd.api import PluginError
    from dnd_lite.networks import load_network

    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(PluginError, match="efficientnet_lite_pytorch") as caught:
        load_network(0)
    assert "pip install 'dnd-describe[lite]'" in caught.value.hint

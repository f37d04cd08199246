"""The contract: right plugins keep every rule, and each rule notices the plugin that breaks it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import wrong_backends as wrong
from PIL import Image

from dnd import api
from dnd.plugin.registry import KINDS, Registry
from dnd.testing import (
    CONTRACTS,
    CaptionerContract,
    EncoderContract,
    GeneratorContract,
    ProbingSetContract,
    ScorerContract,
    SummarizerContract,
    TargetContract,
    evidence,
    image_requests,
    images,
    run_contract,
    runtime,
    summary_requests,
)

RIGHT = {
    "captioner": wrong.Captioner,
    "summarizer": wrong.Summarizer,
    "generator": wrong.Generator,
    "scorer": wrong.Scorer,
    "encoder": wrong.Encoder,
    "target": wrong.Target,
    "probing-set": wrong.Images,
    "method": wrong.Method,
}
CHEAP = "making one is cheap"
"""A process each, and all of `wrong_backends` breaks it: the module imports torch."""


def bundled(kind: str, name: str) -> type[api.Plugin]:
    found = Registry.load().find(kind, name).cls
    assert found is not None
    return found


# --- the bundled ones keep it ---


class TestMean(ScorerContract):
    backend = bundled("scorer", "mean")


class TestCoverage(ScorerContract):
    backend = bundled("scorer", "coverage")
    config = {"model": "microworld-clip"}  # noqa: RUF012


class TestTopK(ScorerContract):
    backend = bundled("scorer", "topk-squared")
    config = {"top": 3}  # noqa: RUF012


class TestWordStatistics(SummarizerContract):
    backend = bundled("summarizer", "word-statistics")


class TestBlip2(CaptionerContract):
    backend = bundled("captioner", "blip2")
    config = {"model": "microworld-blip2", "max_new_tokens": 4}  # noqa: RUF012

    def items(self) -> list[Image.Image]:
        return images(2)


class TestClip(EncoderContract):
    backend = bundled("encoder", "clip")
    config = {"model": "microworld-clip"}  # noqa: RUF012


class TestMicroworldTarget(TargetContract):
    backend = bundled("target", "microworld")


class TestMicroworldImages(ProbingSetContract):
    backend = bundled("probing-set", "microworld")
    config = {"count": 50}  # noqa: RUF012


# --- right ones keep it, wrong ones do not ---


def broken(kind: str, backend: type[api.Plugin]) -> dict[str, str]:
    """Rule -> why, of those that the backend breaks."""
    contract = type("Checked", (CONTRACTS[kind],), {"backend": backend, "test_making_one_is_cheap": lambda self: None})
    from dnd.testing.run import outcomes

    return {outcome.rule: outcome.broken for outcome in outcomes(contract) if outcome.broken}


def test_a_right_scorer_with_bounds_keeps_every_rule() -> None:
    assert broken("scorer", wrong.Share) == {}


def test_a_backend_needs_no_answer_to_an_empty_batch() -> None:
    assert broken("captioner", wrong.FailsOnNothing) == {}


@pytest.mark.parametrize("kind", KINDS)
def test_a_right_plugin_keeps_every_rule(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert broken(kind, RIGHT[kind]) == {}


@pytest.mark.parametrize(
    ("kind", "backend", "rule", "why"),
    [
        ("captioner", wrong.NameOfTwoWords, "the class can be registered", "must be a word"),
        ("captioner", wrong.Scorer, "the class can be registered", "not a subclass of dnd.api.Captioner"),
        ("captioner", wrong.TakesStrangers, "settings refuse unknown names", "a setting it does not have"),
        ("captioner", wrong.Thawed, "settings are frozen", "config.words can be assigned to"),
        ("captioner", wrong.OneAnswerShort, "there is one good answer per item", "5 answers came back for 6 items"),
        ("captioner", wrong.GivesATuple, "there is one good answer per item", "a tuple, not a list"),
        ("captioner", wrong.SaysNothing, "there is one good answer per item", "empty text"),
        ("captioner", wrong.SaysTwoLines, "there is one good answer per item", "more than one line"),
        ("captioner", wrong.SortsItsAnswers, "answers come in order", "with the items reversed"),
        ("captioner", wrong.CountsTheBatch, "an answer does not depend on the batch", "one of 1' alone"),
        ("captioner", wrong.CountsItsCalls, "the same request gives the same answer", "when asked again"),
        ("captioner", wrong.PaintsOnItsInput, "what it is given stays as it was", "was changed"),
        ("summarizer", wrong.TooManyConcepts, "there is one good answer per item", "concepts were asked for"),
        ("summarizer", wrong.NoConcept, "there is one good answer per item", "concepts were asked for"),
        ("summarizer", wrong.SameConceptTwice, "there is one good answer per item", "not distinct"),
        ("summarizer", wrong.LoudConcepts, "there is one good answer per item", "not in lower case: 'Dog'"),
        ("generator", wrong.SeedsAreIgnored, "another seed gives another image", "the very same image"),
        ("generator", wrong.OutOfOrder, "another seed gives another image", "an image for a higher number"),
        ("generator", wrong.GlobalChance, "chance elsewhere is left alone", "numpy"),
        ("generator", wrong.NotRgb, "there is one good answer per item", "the image is L"),
        ("generator", wrong.NotAnImage, "there is one good answer per item", "a ndarray, not a PIL image"),
        ("scorer", wrong.NotANumber, "there is one good answer per item", "not a finite float: nan"),
        ("scorer", wrong.OneScoreShort, "there is one good answer per item", "4 candidates want as many"),
        ("scorer", wrong.NumpyScores, "there is one good answer per item", "float32"),
        ("scorer", wrong.FirstIsBest, "scores follow their candidates", "in another order"),
        ("scorer", wrong.DividesBySpread, "a unit that never varies is scored", "not a finite float"),
        ("scorer", wrong.NotABound, "bounds hold", "the scores became"),
        ("scorer", wrong.TooSure, "bounds hold", "the scores became"),
        ("scorer", wrong.NeverSettled, "bounds hold", "open with all its images"),
        ("scorer", wrong.NeedsTwo, "a lone candidate is scored", "wrong_backends.py, line"),
        ("scorer", wrong.SortsInPlace, "what it is given stays as it was", "read-only"),
        ("encoder", wrong.NotOfLengthOne, "there is one good answer per item", "of length 2, not 1"),
        ("encoder", wrong.TwoSpaces, "images and texts are of one space", "different shapes"),
        ("captioner", wrong.ClosesOnce, "close is safe at any time", "AttributeError"),
        ("captioner", wrong.NeedsItsModelToClose, "close is safe after a load that failed", "AttributeError"),
        ("captioner", wrong.LoadsOnlyOnce, "it works again after close", "AssertionError"),
        ("captioner", wrong.KeepsItsArray, "close gives memory back", "800"),
        ("captioner", wrong.KeepsItElsewhere, "close gives memory back", "what array held is still in memory"),
        ("captioner", wrong.KeepsText, "close gives memory back", "bytes hang on the instance"),
        ("captioner", wrong.Complains, "its own check finds no fault", "the moon is full"),
        ("captioner", wrong.SeedsInLoad, "chance elsewhere is left alone", "load() seeds .* random"),
        ("captioner", wrong.SeedsTorchInLoad, "chance elsewhere is left alone", "load() seeds .* torch"),
        ("captioner", wrong.UsesGlobalChance, "chance elsewhere is left alone", "random were used while it worked"),
        ("captioner", wrong.CallsHome, "the network is left alone", "192.0.2.1"),
        ("captioner", wrong.LeavesAFile, "the current folder is left alone", "cache.txt"),
        ("captioner", wrong.Prints, "standard output is left alone", "captioning"),
        ("captioner", wrong.ChangesItsMind, "what it chose stays", "float16"),
        ("method", wrong.MethodThatComplains, "its own check finds no fault", "the moon is full"),
        ("method", wrong.UsesAStranger, "it uses kinds that there are", "captoner"),
        ("probing-set", wrong.MaskOfGreys, "masks are of yes and no", "float64"),
        ("target", wrong.NoTuple, "preprocess gives float tensors", "(module, preprocess)"),
        ("target", wrong.WholeNumbers, "preprocess gives float tensors", "torch.int64"),
        ("target", wrong.WithBatchAxis, "preprocess gives float tensors", "not (C, H, W)"),
        ("target", wrong.RandomFlip, "preprocess is the same every time", "another tensor"),
        ("target", wrong.GlobalNoise, "chance elsewhere is left alone", "torch"),
        ("target", wrong.OtherWeightsEachTime, "building twice gives the same network", "two builds differ"),
        ("target", wrong.SeedsToBuild, "chance elsewhere is left alone", "build() seeds"),
        ("target", wrong.AlwaysDropsOut, "the module answers the same every time", "the second time"),
        ("target", wrong.CentresTheBatch, "the module answers the same every time", "in a batch"),
        ("target", wrong.GradesOnlyAnswers, "grade takes labels without an answer", "IndexError"),
        ("probing-set", wrong.NoImages, "it has images", "no images"),
        ("probing-set", wrong.OneNameForAll, "names are distinct and stay", "the same name"),
        ("probing-set", wrong.GreyImages, "images are rgb", "is L, not RGB"),
        ("probing-set", wrong.ImagesInTurn, "an image is the same every time", "in another order"),
        ("probing-set", wrong.DigestOfTheCall, "the digest stays", "from call to call"),
        ("probing-set", wrong.DigestOfTheInstance, "the digest stays", "between instances"),
        ("probing-set", wrong.GlobalChanceImages, "chance elsewhere is left alone", "numpy"),
        ("probing-set", wrong.ImagesFromFar, "the network is left alone", "192.0.2.1"),
    ],
)
def test_a_broken_rule_is_noticed(
    kind: str, backend: type[api.Plugin], rule: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import re

    monkeypatch.chdir(tmp_path)
    found = broken(kind, backend)
    assert rule in found
    assert re.search(why.replace("(", r"\(").replace(")", r"\)"), found[rule]), found[rule]


def test_a_setting_that_is_lost_on_the_way_is_noticed() -> None:
    settings = {"words": 5}
    found = {o.rule: o.broken for o in run_contract("captioner", wrong.ForgetsASetting, settings, runtime())}
    assert "words=5" in found["settings survive a run file"]


def test_a_heavy_import_at_the_top_is_noticed() -> None:
    found = {o.rule: o.broken for o in run_contract("captioner", wrong.ImportsTorchAtOnce, {}, runtime())}
    assert found[CHEAP].startswith("torch is imported before there is work")
    assert [rule for rule, why in found.items() if why] == [CHEAP]


def test_a_class_within_a_function_is_told_to_move() -> None:
    class Local(wrong.Captioner):
        pass

    found = {o.rule: o.broken for o in run_contract("captioner", Local, {}, runtime())}
    assert "must stand at the top level of a module" in found[CHEAP]


def test_a_batch_size_may_be_found_while_the_model_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert broken("captioner", wrong.FindsItsBatch) == {}


def test_a_generator_may_have_one_image_of_a_concept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert broken("generator", wrong.OneForAll) == {}


def test_every_rule_has_a_plugin_that_breaks_it() -> None:
    """So that no rule can be written that cannot fail."""
    from dnd.testing.run import _rules, _words

    (mark,) = (mark for mark in test_a_broken_rule_is_noticed.pytestmark if mark.name == "parametrize")
    tried = {rule for _, _, rule, _ in mark.args[1]} | {CHEAP, "settings survive a run file"}
    rules = {_words(name) for contract in CONTRACTS.values() for name in _rules(contract)}
    assert rules - tried == set()


# --- stand-ins ---


def test_stand_ins_are_the_same_at_every_call_and_all_different() -> None:
    first, second = images(8), images(8)
    assert [image.tobytes() for image in first] == [image.tobytes() for image in second]
    assert len({image.tobytes() for image in first}) == 8
    assert len({request.captions for request in summary_requests()}) == 3
    assert len(set(image_requests())) == len(image_requests())
    one = evidence(("red", "blue"), n_images=3)
    assert one.activations.shape == (2, 3)
    assert [len(row) for row in one.images] == [3, 3]
    assert one.activations[0].min() > one.activations[1].max()


def test_a_runtime_knows_models_of_ones_own_and_those_of_the_lock(tmp_path: Path) -> None:
    weights = runtime(folders={"mine": tmp_path}).weights
    assert weights("mine") == tmp_path
    assert (weights("microworld-target") / "config.json").is_file()
    with pytest.raises(api.ModelError):
        weights("nobody's")


def test_testing_needs_neither_torch_nor_pytest() -> None:
    code = "import dnd.testing as t, sys; t.images(); t.evidence(); t.summary_requests()"
    code += "; print([m for m in ('torch', 'pytest', 'transformers', 'pyarrow') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_another_contract_is_not_needed_to_check_a_generator_of_few_words() -> None:
    class TestFew(GeneratorContract):
        backend = wrong.Generator
        concepts = ("sea", "sky")

    assert {request.concept for request in TestFew().items()} == {"sea", "sky"}

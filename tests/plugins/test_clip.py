"""The towers behind the encoder "clip", the scorers and CLIP-Dissect: CLIP and SigLIP, dtypes, batches of texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
from transformers import AutoProcessor, CLIPModel, SiglipModel

from dnd import api
from dnd.testing import EncoderContract, evidence, images, runtime
from dnd_hf.clip import GROUP, ClipConfig, ClipEncoder
from dnd_hf.sizes import weight_bytes
from dnd_scorers.clip import ClipRank, ClipScorerConfig

TEXTS = ["red", "a red star", "a photo of a blue dog on the grass", "red", "sky"]


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.siglip(tmp_path_factory.mktemp("siglip"))


def encoder(folder: Path | None = None, **settings: Any) -> ClipEncoder:
    """Of the microworld's CLIP, or of another folder."""
    name = "tiny" if folder else "microworld-clip"
    return ClipEncoder(ClipConfig(model=name, **settings), runtime(folders={"tiny": folder} if folder else None))


class TestSiglip(EncoderContract):
    backend = ClipEncoder
    config = {"model": "tiny"}  # noqa: RUF012

    @pytest.fixture(autouse=True)
    def _tiny(self, siglip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(type(self), "runtime", runtime(folders={"tiny": siglip}))


def alone(model: Any, processor: Any, **reading: Any) -> np.ndarray:
    """(n, d): images, then texts, one after another by transformers alone."""
    found = [model.get_image_features(**processor(images=[one], return_tensors="pt")) for one in images(3)]
    found += [model.get_text_features(**processor(text=[one], return_tensors="pt", **reading)) for one in TEXTS]
    rows = np.concatenate([one.pooler_output.detach().numpy() for one in found])
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_clip_is_what_transformers_alone_gives() -> None:
    folder = runtime().weights("microworld-clip")
    wanted = alone(CLIPModel.from_pretrained(folder, dtype="float32"), AutoProcessor.from_pretrained(folder))
    with encoder() as backend:
        assert np.stack(backend.encode([*images(3), *TEXTS])) == pytest.approx(wanted, abs=1e-5)


def test_siglip_reads_texts_at_the_length_of_its_training(siglip: Path) -> None:
    processor = AutoProcessor.from_pretrained(siglip)
    padded = {"padding": "max_length", "max_length": 64, "return_attention_mask": False}  # it was trained without
    wanted = alone(SiglipModel.from_pretrained(siglip), processor, **padded)
    with encoder(siglip) as backend:
        found = np.stack(backend.encode([*images(3), *TEXTS]))
    assert found == pytest.approx(wanted, abs=1e-5)
    unpadded = alone(SiglipModel.from_pretrained(siglip), processor)
    assert np.abs(found[3:] - unpadded[3:]).max() > 1e-3, "it matters"


def test_what_else_is_embedded_changes_no_bit_on_a_cpu() -> None:
    """Else the last digit of a score would hang on what was there before."""
    with encoder() as backend:
        shown, texts = images(21), [f"{colour} star" for colour in ("red", "blue", "green")]
        together = np.stack(backend.encode([*shown, *texts]))
        alone = np.stack([backend.encode([one])[0] for one in (*shown, *texts)])
    assert (together == alone).all()


def test_texts_of_one_length_are_read_together(monkeypatch: pytest.MonkeyPatch) -> None:
    with encoder(batch_size=2) as backend:
        shapes, read = list[tuple[int, int]](), backend.clip._model.get_text_features

        def noted(input_ids: Any) -> Any:
            shapes.append(tuple(input_ids.shape))
            return read(input_ids=input_ids)

        monkeypatch.setattr(backend.clip._model, "get_text_features", noted)
        many = np.stack(backend.encode(["red", "red star", "blue", "green", "blue star"]))
        assert [n for n, _ in shapes] == [GROUP, GROUP]
        assert len({length for _, length in shapes}) == 2
    with encoder() as backend:
        each = [backend.encode([text])[0] for text in ("red", "red star", "blue", "green", "blue star")]
    assert many == pytest.approx(np.stack(each), abs=1e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(dtype: str) -> None:
    with encoder() as whole, encoder(dtype=dtype) as half:
        wanted, found = (np.stack(one.encode([*images(3), *TEXTS])) for one in (whole, half))
        assert str(half.clip._model.dtype) == f"torch.{dtype}"
    assert 0 < np.abs(found - wanted).max() < 0.05
    assert (found * wanted).sum(1) == pytest.approx(1, abs=0.01)
    assert encoder(dtype=dtype).memory() <= encoder().memory()
    files = list(runtime().weights("microworld-clip").glob("*.safetensors"))
    assert weight_bytes(files, dtype) == pytest.approx(weight_bytes(files, "float32") / 2, rel=0.01)


def test_scorers_take_a_siglip(siglip: Path) -> None:
    config = ClipScorerConfig(model="tiny")
    with ClipRank(config, runtime(folders={"tiny": siglip})) as scorer:
        (scores,) = scorer.score([evidence()])
    assert all(0 < score < 1 for score in scores)
    assert len(set(scores)) == len(scores)


def test_a_model_of_another_kind_is_named() -> None:
    other = runtime().weights("microworld-llama")
    with pytest.raises(api.ModelError, match="is a llama, not a clip or siglip or siglip2"):
        encoder(other).load()

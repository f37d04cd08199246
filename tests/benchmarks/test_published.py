"""The regression kit on made-up tables: its figures are those of hand-made sentences."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from encoders import make_encoder

from dnd.models.encoder import Encoder

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import published


def make_tables(folder: Path) -> None:
    tables = {
        "imagenet_labels.txt": "red\ndots\ncat\n",
        "DnD_results/rn50_results/resnet50_imagenet_broden_fc.csv": "Neuron ID,label\n0,red\n1,dots\n2,stripes\n",
        "MILAN_results/m_base_resnet50_imagenet.csv": "layer,unit,description\nfc,0,red\nfc,1,dots\nfc,2,cat\nl,9,a\n",
        "MILANNOTATIONS_resnet152_imagenet.csv": "layer,unit,summary\n"
        + "".join(f"layer{i},7,{text}\n" for i in range(1, 5) for text in ("red", "dots", "red")),
        "MILAN_results/m_places365_resnet152_imagenet.csv": "layer,unit,description\n"
        + "".join(f"layer{i},7,red\nlayer{i},8,cat\n" for i in range(1, 5)),
        "CLIP_Dissect_results/resnet152_imagenet.csv": "layer,unit,description\n"
        + "".join(f"layer{i},7,cat\n" for i in range(1, 5)),
    }
    for layer in range(1, 5):
        tables[f"DnD_results/rn152_results/resnet152_imagenet_layer{layer}.csv"] = "Neuron ID,Label 1\n7,dots\n"
    for name, text in tables.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def test_the_kit_measures_what_the_tables_say(tmp_path: Path) -> None:
    make_tables(tmp_path / "data")
    (tmp_path / "encoder").mkdir()
    encoder = Encoder(str(make_encoder(tmp_path / "encoder")))
    words = ["red", "dots", "cat", "stripes", "depiction"]
    vectors = dict(zip(words, encoder.encode(words).sentences, strict=True))

    def cosine(one: str, other: str) -> float:
        return float(vectors[one] @ vectors[other])

    two = published.table_2(tmp_path / "data", encoder)
    assert two["table 2: MILAN, cosine"] == pytest.approx(1, abs=1e-5)
    assert two["table 2: DnD, cosine"] == pytest.approx((2 + cosine("stripes", "cat")) / 3, abs=1e-5)
    assert two["table 2: DnD, class among five"] == 1  # there are three
    nine = published.table_9(tmp_path / "data", encoder)
    apart = cosine("red", "dots")
    assert nine["table 9: DnD, cosine"] == pytest.approx((1 + 2 * apart) / 3, abs=1e-5)
    assert nine["table 9: MILAN, cosine"] == pytest.approx((2 + apart) / 3, abs=1e-5)
    assert nine["table 9: annotators among themselves, cosine"] == pytest.approx((1 + 2 * apart) / 3, abs=1e-5)
    depiction = (2 * cosine("depiction", "red") + cosine("depiction", "dots")) / 3
    assert nine['table 9: "depiction" for all, cosine'] == pytest.approx(depiction, abs=1e-5)
    assert set(two | nine) == set(published.KNOWN)
    agree = published.table_9(tmp_path / "data", encoder, lambda texts: np.ones((len(texts), 1), np.float32))
    assert agree == nine

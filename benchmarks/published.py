"""Describe-and-Dissect's own labels, measured by dnd's code beside the figures that are known of them.

    python benchmarks/published.py FOLDER --encoder all-mpnet-base-v2 [--clip NAME]

FOLDER is the `data` folder of the reference's repository, fetched by you: its tables carry no licence and are not part
of dnd. Table 2: last-layer labels of ResNet-50 against class names. Table 9: labels of ResNet-152 against
MILANNOTATIONS, three annotators a unit. The published column of sentence similarities in Table 9 compares a label with
the *letters* of an annotation (a text is passed where a list is expected); here whole texts are compared. With --clip
only units count whose annotators agree (CLIP's cosine of some two of them above 0.81), as in the reference.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dnd.api import Truth, Unit, read_truth
from dnd.evaluation.clip import Clip
from dnd.evaluation.tables import Row, read_labels
from dnd.evaluation.text import Texts, retrieval_figures
from dnd.evaluation.truth import join
from dnd.models.encoder import Encoder

Embed = Callable[[Sequence[str]], npt.NDArray[np.float32]]
AGREE = 0.81
KNOWN = {
    "table 2: DnD, cosine": 0.4586,
    "table 2: MILAN, cosine": 0.2788,
    "table 2: DnD, class found first": 0.319,
    "table 2: DnD, class among five": 0.528,
    "table 9: DnD, cosine": 0.2758,
    "table 9: MILAN, cosine": 0.2871,
    "table 9: CLIP-Dissect, cosine": 0.2028,
    'table 9: "depiction" for all, cosine': 0.2334,
    "table 9: annotators among themselves, cosine": 0.3515,
}
"""With all-mpnet-base-v2."""


def table_2(folder: Path, encoder: Encoder) -> dict[str, float]:
    classes = read_truth(folder / "imagenet_labels.txt")
    ours = read_labels(folder / "DnD_results/rn50_results/resnet50_imagenet_broden_fc.csv")
    milan = [r for r in read_labels(folder / "MILAN_results/m_base_resnet50_imagenet.csv") if r.unit.layer == "fc"]
    found = {}
    for name, rows in (("DnD", ours), ("MILAN", milan)):
        cases = [case for case in join(rows, classes) if case.row.labels]
        texts = Texts([t for case in cases if (t := case.truth)], [case.row.labels for case in cases])
        found[f"table 2: {name}, cosine"] = _mean_cosine(texts, encoder)
        if name == "DnD":
            ranks = {pairs.name: float(pairs.figure().own.mean()) for pairs in retrieval_figures(texts, encoder)}
            found["table 2: DnD, class found first"] = ranks["retrieval.top1"]
            found["table 2: DnD, class among five"] = ranks["retrieval.top5"]
    return found


def table_9(folder: Path, encoder: Encoder, clip: Embed | None = None) -> dict[str, float]:
    truths = read_truth(folder / "MILANNOTATIONS_resnet152_imagenet.csv")
    ours = [
        Row(Unit(f"layer{layer}", row.unit.index), row.labels, row.status)
        for layer in range(1, 5)
        for row in read_labels(folder / f"DnD_results/rn152_results/resnet152_imagenet_layer{layer}.csv")
    ]
    units = [row.unit for row in ours if row.unit in truths and _agree(truths[row.unit], clip)]
    milan = read_labels(folder / "MILAN_results/m_places365_resnet152_imagenet.csv")
    dissect = read_labels(folder / "CLIP_Dissect_results/resnet152_imagenet.csv")
    found = {
        f"table 9: {name}, cosine": _cosine(units, {row.unit: row.labels for row in rows}, truths, encoder)
        for name, rows in (("DnD", ours), ("MILAN", milan), ("CLIP-Dissect", dissect))
    }
    same = {unit: ("depiction",) for unit in units}
    found['table 9: "depiction" for all, cosine'] = _cosine(units, same, truths, encoder)
    pairs = [(a, b) for unit in units for a, b in combinations(truths[unit].meanings[0], 2)]
    one, other = (encoder.encode([pair[side] for pair in pairs]).sentences for side in (0, 1))
    found["table 9: annotators among themselves, cosine"] = float((one * other).sum(axis=1).mean())
    return found


def _cosine(
    units: Sequence[Unit], said: dict[Unit, tuple[str, ...]], truths: dict[Unit, Truth], encoder: Encoder
) -> float:
    there = [unit for unit in units if said.get(unit)]
    texts = Texts([truths[unit] for unit in there], [said[unit] for unit in there])
    return _mean_cosine(texts, encoder)


def _mean_cosine(texts: Texts, encoder: Encoder) -> float:
    likeness = encoder.encode(texts.truths).sentences @ encoder.encode(texts.labels).sentences.T
    return float(np.diagonal(texts.compare(likeness)[0]).mean())


def _agree(truth: Truth, clip: Embed | None) -> bool:
    if clip is None:
        return True
    vectors = clip(truth.meanings[0])
    return bool(((vectors @ vectors.T)[np.triu_indices(len(vectors), 1)] > AGREE).any())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--encoder", default="all-mpnet-base-v2")
    parser.add_argument("--clip")
    given = parser.parse_args()
    encoder = Encoder(given.encoder)
    clip = Clip(given.clip, "cpu").texts if given.clip else None
    print(f"{'':46}  here    known")
    for name, value in (table_2(given.folder, encoder) | table_9(given.folder, encoder, clip)).items():
        print(f"{name:46}  {value:.4f}  {KNOWN[name]:.4f}")


if __name__ == "__main__":
    main()

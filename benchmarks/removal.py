"""Would removing a concept from the exemplars tell right labels from wrong ones?

    python benchmarks/removal.py RUN [RUN ...]           # runs of planted targets, as benchmarks/verify.py takes them

From each exemplar nine windows of half its width and height are filled with the mean colour of the rest, one at a time.
The window whose loss costs CLIP's likeness of image and label most has the concept; those that do not touch it are the
control. `removed` is how often losing the concept costs more of the activation than losing a control does, `together`
the correlation over windows of what both lose. Each is compared between right labels and labels that were spoilt, as an
AUC, beside the figures that a verdict has without. Writes benchmarks/results/removal.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from rich.console import Console
from verify import RESULTS, SHIPPED, cases

from dnd.api import auc, read_truth
from dnd.evaluation.clip import Clip, clip_of
from dnd.evaluation.reopen import open_run
from dnd.results.run import RunFolder
from dnd.runtime.progress import Meter
from dnd_microworld import planted

Floats = npt.NDArray[np.floating]
PLACES = np.array([(x, y) for y in range(3) for x in range(3)])
"""Of the windows, in quarters of the image."""


def without(image: Image.Image) -> Iterator[Image.Image]:
    """The image with one window after another filled."""
    for x, y in PLACES * np.array(image.size) / 4:
        pixels = np.array(image)
        window = np.zeros(pixels.shape[:2], bool)
        window[round(y) : round(y + image.height / 2), round(x) : round(x + image.width / 2)] = True
        pixels[window] = pixels[~window].mean(0)
        yield Image.fromarray(pixels)


def figures(activation: Floats, likeness: Floats) -> tuple[float, float]:
    """Both (n_exemplars, 10), the whole image first -> `removed`, `together`."""
    lost, missed = activation[:, :1] - activation[:, 1:], likeness[:, :1] - likeness[:, 1:]
    removed, together = [], []
    for own, seen in zip(lost, missed, strict=True):
        at = seen.argmax()
        apart = np.abs(PLACES - PLACES[at]).max(1) >= 2
        if apart.any():
            removed.append(auc(own[[at]], own[apart]))
        varies = own.std() > 0 and seen.std() > 0
        together.append(np.corrcoef(own, seen)[0, 1] if varies else 0.0)
    return float(np.mean(removed)) if removed else 0.5, float(np.mean(together))


def measure(folder: Path, number: int, meter: Meter) -> dict[str, list[tuple[float, float]]]:
    """By the verdict that is right, the figures of each label."""
    run = RunFolder(folder)
    seed = run.settings["target"].get("planted_seed", 0)
    truths = {unit.index: t for unit, t in read_truth(planted.truth_file(seed) if seed else SHIPPED).items()}
    records = list(run.records())
    opened = open_run(folder, images=3, meter=meter)
    clip = Clip(str(clip_of(opened.job.run)), opened.job.run.device)
    digests = list(dict.fromkeys(one.digest for record in records for one in record.exemplars))
    images = [opened.job.store.picture(digest).open() for digest in digests]
    shown = [one for image in images for one in (image, *without(image))]
    with opened.hooked as hooked:
        pooled = [hooked.pooled_images(shown[at : at + 500]) for at in range(0, len(shown), 500)]
    seen = np.concatenate([clip.images(shown[at : at + 250]) for at in range(0, len(shown), 250)])
    seen = seen.reshape(len(digests), 10, -1)
    layer = run.settings["target"]["layers"][0]
    activations = np.concatenate([part[layer] for part in pooled]).reshape(len(digests), 10, -1)
    row = {digest: place for place, digest in enumerate(digests)}
    found: dict[str, list[tuple[float, float]]] = {}
    for _, right, record in cases(records, truths, number):
        if truths[record.index].kind != "noise" and record.labels:
            rows = [row[one.digest] for one in record.exemplars]
            text = clip.texts(record.labels[0].concept)[0]
            found.setdefault(right, []).append(figures(activations[rows, :, record.index], seen[rows] @ text))
    return found


def told_apart(right: Sequence[float], wrong: Sequence[float]) -> float:
    return round(auc(np.array(right, np.float32), np.array(wrong, np.float32)), 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    options = parser.parse_args()
    found: dict[str, list[tuple[float, float]]] = {}
    with Meter(Console(stderr=True)) as meter:
        for number, folder in enumerate(options.runs):
            for right, rows in measure(folder, number, meter).items():
                found.setdefault(right, []).extend(rows)
    own = np.array(found["verified"])
    result = {
        right: {
            "labels": len(rows),
            "removed, median": round(float(np.median([removed for removed, _ in rows])), 3),
            "together, median": round(float(np.median([together for _, together in rows])), 3),
            "AUC of removed": told_apart(own[:, 0], [removed for removed, _ in rows]),
            "AUC of together": told_apart(own[:, 1], [together for _, together in rows]),
        }
        for right, rows in found.items()
    }
    print(json.dumps(result, indent=1))
    RESULTS.with_name("removal.json").write_text(json.dumps(result, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()

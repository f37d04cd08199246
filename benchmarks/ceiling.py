"""Naming with true captions: the microworld's main job with the renderer's own words in the captioner's place.

    python benchmarks/ceiling.py [--write] [--set section.setting=value ...]

What is still wrong then is lost by the summarizer, the generator or the scorer, not by the captions. `--write`
records the shares among the held-out figures that `dnd run` prints (plugins/dnd_microworld/figures.json).
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console

from benchmarks.training.common import write_figures
from dnd import api
from dnd.config.read import read_run
from dnd.pipeline.execute import execute
from dnd.plugin.registry import Entry, Registry
from dnd.results.run import RunFolder
from dnd.store.images import Store
from dnd_microworld import world


class TrueCaptions(api.Captioner):
    """Looks an image's digest up among captions that were worked out beforehand."""

    name = "true-captions"
    batch_size = 256
    known: dict[str, str]
    scratch: Store

    def caption(self, images: Sequence[Image.Image]) -> list[str]:
        return [self.known[self.scratch.put_image(image).digest] for image in images]


def true_captions(lines: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Digest of each exemplar in labels.jsonl -> what the renderer says it shows."""
    found: dict[str, str] = {}
    for exemplar in (exemplar for line in lines for exemplar in line["exemplars"]):
        scene = world.draw_scene("probing", int(exemplar["source"].removeprefix("scene-")))
        whole, words = world.caption(scene), None
        if exemplar["box"]:
            left, top, right, bottom = (round(edge * world.SIZE) for edge in exemplar["box"])
            words = world.caption(scene, (left, top, right, bottom), world.render([scene]).owners[0])
        found[exemplar["image"]] = words or whole or ""
    return found


def run_with(registry: Registry, out: Path, settings: Sequence[str], captioner: str | None) -> RunFolder:
    options = {"captioner.backend": captioner} if captioner else {}
    run = read_run("default", registry, options=options, settings=settings)
    return execute(run, out, registry=registry, console=Console(quiet=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--set", action="append", default=[])
    options = parser.parse_args()
    installed = Registry.load()
    with tempfile.TemporaryDirectory() as folder:
        plain = run_with(installed, Path(folder) / "plain", options.set, None)
        lines = [json.loads(line) for line in (plain.folder / "labels.jsonl").read_text().splitlines()]
        TrueCaptions.known, TrueCaptions.scratch = true_captions(lines), Store(Path(folder) / "scratch")
        entry = Entry("captioner", TrueCaptions.name, TrueCaptions, "benchmark", "1", "ok")
        true = run_with(Registry([*installed.entries, entry]), Path(folder) / "true", options.set, TrueCaptions.name)
    assert plain.grading
    assert true.grading
    shares = {grade.kind: grade.right / grade.total for grade in true.grading.grades}
    for before, after in zip(plain.grading.grades, true.grading.grades, strict=True):
        print(f"{before.kind}: {before.right} of {before.total}; with true captions {after.right}")
    if options.write:
        write_figures("naming with true captions", shares)


if __name__ == "__main__":
    main()

"""CLIP-Dissect: the reference's steps beside `dnd run clip-dissect`, with the same tiny models, images and words.

    python benchmarks/clip_dissect.py [--images 1000] [--out benchmarks/results/clip_dissect.json]
    python benchmarks/clip_dissect.py --large [--images 50000] [--out benchmarks/results/clip_dissect_large.json]

The reference's structure, in code of our own: the images go through the target, and then, opened again, through CLIP;
the words go through CLIP; SoftWPMI over all units. Each is a process of its own of one thread. CPU seconds count its
start too, and those of `dnd` its tables. The reference keeps nothing and shows nothing.

With --large, `dnd` alone: 10,867 words and all units of five layers of a ResNet-50's sizes, here 1x1 convolutions with
random weights; its CPU seconds and its peak of memory.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

LAYER = "concepts"
WIDE = """
import numpy as np
import torch

def preprocess(image):
    return torch.from_numpy(np.array(image.resize((64, 64)))).permute(2, 0, 1).float() / 127.5 - 1

def net():
    torch.manual_seed(0)
    sizes = (64, 256, 512, 1024, 2048)
    layers = [torch.nn.Conv2d(i, o, 1) for i, o in zip((3, *sizes), sizes)]
    for layer in layers:
        torch.nn.init.normal_(layer.weight, std=layer.in_channels**-0.5)
    body = [one for layer in layers for one in (layer, torch.nn.ReLU())]
    end = torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
    return torch.nn.Sequential(torch.nn.AvgPool2d(16), *body, *end), preprocess
"""
"""A target of the user's own: its layers are 2, 4, 6, 8 and 10."""


def reference(images: int, folder: Path) -> None:
    """Best concept of each unit, one a line."""
    import numpy as np
    import torch
    from PIL import Image
    from transformers import AutoModel, AutoProcessor

    from dnd.models.weights import Weights
    from dnd_microworld import __file__ as microworld
    from dnd_microworld import target

    weights = Weights.default()
    files = sorted(folder.glob("*.png"))[:images]
    net = target.load(weights.resolve("microworld-target"))
    pooled: list[Any] = []
    dict(net.named_modules())[LAYER].register_forward_hook(lambda m, i, out: pooled.append(out.mean((2, 3))))
    clip = AutoModel.from_pretrained(weights.resolve("microworld-clip"))
    processor = AutoProcessor.from_pretrained(weights.resolve("microworld-clip"), backend="pil")
    words = (Path(microworld).parent / "concepts.txt").read_text().split("\n")
    words = [word.strip() for word in words if word.strip() and not word.startswith("#")]

    def batches() -> Any:
        for start in range(0, len(files), 64):
            yield [Image.open(file).convert("RGB") for file in files[start : start + 64]]

    with torch.no_grad():
        for batch in batches():
            net.eval()(torch.stack([target.preprocess(image) for image in batch]))
        seen = torch.cat(
            [
                clip.get_image_features(**processor(images=batch, return_tensors="pt")).pooler_output
                for batch in batches()
            ]
        )
        read = clip.get_text_features(**processor.tokenizer(words, return_tensors="pt", padding=True)).pooler_output
        seen, read = (torch.nn.functional.normalize(one) for one in (seen, read))
        p = torch.softmax(10 * seen @ read.T, 1)
        strongest = torch.cat(pooled).topk(100, dim=0).indices  # (100, units)
        belongs = (0.998 - torch.arange(100) / 100 * (0.998 - 0.97))[:, None]
        given = torch.stack([torch.log(1 + belongs * (p[own] - 1) + 1e-7).sum(0) for own in strongest.T])
        table = given - torch.logsumexp(given, 0) + np.log(len(given))
    for best in table.argmax(1):
        print(words[best])


def measured(command: list[str], **environment: str) -> tuple[str, float, int]:
    """What it prints, CPU seconds and peak memory in MB."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    text = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | environment).stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return text, seconds, after.ru_maxrss // 1024


def large(images: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "wide.py").write_text(WIDE)
        run = [sys.executable, "-m", "dnd", "run", "clip-dissect", "--target", "wide:net", "--units", "all"]
        run += [word for place in (2, 4, 6, 8, 10) for word in ("--layer", str(place))]
        run += ["--set", "method.concepts=common-words", "--set", f"probing.count={images}", "--no-report", "--quiet"]
        path = os.pathsep.join([name, os.environ.get("PYTHONPATH", "")])
        _, seconds, peak = measured([*run, "--out", f"{name}/out/run"], OMP_NUM_THREADS="1", PYTHONPATH=path)
        facts = json.loads((Path(name) / "out" / "run" / "run.json").read_text())
        store = sum(file.stat().st_size for file in Path(name, "out").rglob("*") if file.is_file())
    stages = {stage: round(one["seconds"], 1) for stage, one in facts["stages"].items()}
    return {
        "images": images,
        "words": 10_867,
        "units": 64 + 256 + 512 + 1024 + 2048,
        "cpu_seconds": round(seconds, 1),
        "peak_mb": peak,
        "disk_mb": store // 10**6,
        "stages": stages,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int)
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--reference", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    options.images = options.images or (50_000 if options.large else 1000)
    if options.large:
        figures = large(options.images)
        print(json.dumps(figures, indent=1))
        if options.out:
            options.out.write_text(json.dumps(figures, indent=1) + "\n")
        return
    if options.reference:
        reference(options.images, options.reference)
        return
    from dnd.api import Runtime
    from dnd_microworld import MicroworldProbing, ProbingConfig

    scenes = MicroworldProbing(ProbingConfig(count=options.images), Runtime("cpu", Path))
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "photos"
        folder.mkdir()
        for index in range(options.images):
            scenes.open(index).save(folder / f"{index:06}.png")
        for repeat in range(options.repeats):
            here = [sys.executable, __file__, "--images", str(options.images), "--reference", str(folder)]
            words, plain, _ = measured(here, OMP_NUM_THREADS="1")
            out = Path(name) / f"{repeat}" / "run"
            run = [sys.executable, "-m", "dnd", "run", "clip-dissect", "--probe", str(folder), "--out", str(out)]
            _, ours, _ = measured([*run, "--no-report"], OMP_NUM_THREADS="1")
            table = [json.loads(line) for line in (out / "labels.jsonl").read_text().splitlines()]
            best = [row["labels"][0]["concept"] if row.get("labels") else "" for row in table]
            same = sum(one == other for one, other in zip(best, words.split("\n"), strict=False))
            rows.append(
                {"reference": plain, "dnd": ours, "ratio": ours / plain, "same_first": same, "units": len(best)}
            )
            print(json.dumps(rows[-1]))
    figures = {"images": options.images, "repeats": rows, "ratio": sorted(row["ratio"] for row in rows)[len(rows) // 2]}
    print(json.dumps(figures, indent=1))
    if options.out:
        options.out.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()

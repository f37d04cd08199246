"""What a language model makes of sets of photograph captions whose concept a person has named.

    python -m benchmarks.concepts MODEL --folder FOLDER [--sets dev] [--on grid|llama|vllm] [--out FILE.json]

MODEL is the folder of a chat model. Each row of the grid is the summarizer `llama` or `vllm` with other settings; on
`grid` that is `llama` with what makes many temperatures cheap, so that its seconds say nothing of the plugin. Answers
are kept in --folder, so an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.concepts.chats import GridLlama, Kept, KeptLlama, KeptVllm
from benchmarks.concepts.sets import CaptionSet, glued, known_words, read_sets
from dnd.api import ItemError, SummaryRequest, base_form, derive_seed
from dnd_llama import LlamaConfig
from dnd_vllm import VllmConfig

N_CONCEPTS = 5
"""The default of `concepts.n`."""
_TOGETHER = 40
"""Sets in one call: the more, the larger the batches."""


def candidates_of(summarizer: Kept, sets: Sequence[CaptionSet]) -> dict[str, list[str]]:
    """By the set's name; empty where no answer could be read."""
    requests = [SummaryRequest(one.captions, N_CONCEPTS, derive_seed("concepts", one.name)) for one in sets]
    found: dict[str, list[str]] = {}
    for start in range(0, len(sets), _TOGETHER):
        names, some = [one.name for one in sets[start : start + _TOGETHER]], requests[start : start + _TOGETHER]
        before = len(summarizer.replies)
        try:
            found.update(zip(names, summarizer.summarize(some), strict=True))
        except ItemError:  # of one of them: the others' answers are kept
            del summarizer.replies[before:]
            found.update((name, _alone(summarizer, request)) for name, request in zip(names, some, strict=True))
    return found


def _alone(summarizer: Kept, request: SummaryRequest) -> list[str]:
    try:
        return summarizer.summarize([request])[0]
    except ItemError:
        return []


def figures(sets: Sequence[CaptionSet], found: dict[str, list[str]]) -> dict[str, float]:
    """Means over the sets that have something in common; `distinct` over all."""
    named = [one for one in sets if one.answers]
    return {
        "distinct": statistics.mean(len(set(map(base_form, found[one.name]))) for one in sets),
        "candidates": statistics.mean(len(found[one.name]) for one in sets),
        "first": statistics.mean(min(1.0, one.hits(found[one.name][:1]) * len(one.answers)) for one in named),
        "among": statistics.mean(one.hits(found[one.name]) for one in named),
        "first_near": statistics.mean(one.is_near(found[one.name][:1]) for one in named),
        "among_near": statistics.mean(one.is_near(found[one.name]) for one in named),
    }


def summarizer_of(options: argparse.Namespace, settings: dict[str, Any]) -> Kept:
    model, folder = options.model, options.folder
    if options.on == "vllm":
        served: dict[str, Any] = {"python": options.python, "structured": options.structured, "eager": True}
        config = VllmConfig(model=model.name, dtype="bfloat16", **served, **settings)
        return KeptVllm(config, model, folder / f"{model.name}-vllm-{'held' if options.structured else 'free'}.jsonl")
    config = LlamaConfig(model=model.name, dtype="bfloat16", batch_size=32, **settings)
    if options.on == "llama":
        return KeptLlama(config, model, folder / f"{model.name}-llama.jsonl")
    return GridLlama(config, model, folder / f"{model.name}.jsonl", options.temperatures)


def measure(
    options: argparse.Namespace, sets: Sequence[CaptionSet], grid: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    rows = []
    known = known_words(sets)
    for settings in grid:
        with summarizer_of(options, settings) as summarizer:
            found, replies = candidates_of(summarizer, sets), summarizer.replies
            row = {
                "on": options.on,
                **({"structured": options.structured} if options.on == "vllm" else {}),
                **settings,
                "answers": len(replies),
                "answers_per_set": round(len(replies) / len(sets), 1),
                "read": round(statistics.mean(is_read for _, is_read in replies), 3),
                **{name: round(value, 3) for name, value in figures(sets, found).items()},
                "glued": glued([text for text, _ in replies], known),
                "fresh": summarizer.fresh,
                "seconds": round(summarizer.seconds, 1),
                "cpu_seconds": round(summarizer.cpu_seconds, 1),
            }
        print(" ".join(f"{name}={value}" for name, value in row.items()), flush=True)
        rows.append({**row, "found": found})
    return rows


def grid_of(
    names: str, temperatures: Sequence[float], samples: Sequence[int], simplify: Sequence[bool], extra: int
) -> list[dict[str, Any]]:
    return [
        {"names": names, "simplify": simple, "temperature": temperature, "n_samples": n, "n_extra_samples": extra}
        for simple, n, temperature in itertools.product(simplify, samples, temperatures)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--folder", type=Path, required=True, help="where answers are kept")
    parser.add_argument(
        "--sets", choices=("all", "dev", "test"), default="all", help="all, every third one, or the others"
    )
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.3, 0.7, 1.0])
    parser.add_argument("--samples", type=int, nargs="+", default=[3, 6, 10])
    parser.add_argument("--names", choices=("one", "three"), default="three", help="names in an answer")
    parser.add_argument("--extra", type=int, default=0, help="samples on the captions that the first name leaves over")
    parser.add_argument("--simplify", choices=("both", "yes", "no"), default="both")
    parser.add_argument("--on", choices=("grid", "llama", "vllm"), default="grid", help="what runs the model")
    parser.add_argument("--python", help="for vllm: the Python that has it, or its virtual environment")
    parser.add_argument("--structured", action=argparse.BooleanOptionalAction, default=True, help="for vllm")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.folder.mkdir(parents=True, exist_ok=True)
    sets = read_sets()
    sets = {"all": sets, "dev": sets[::3], "test": [one for place, one in enumerate(sets) if place % 3]}[options.sets]
    simplify = {"both": [False, True], "yes": [True], "no": [False]}[options.simplify]
    grid = grid_of(options.names, options.temperatures, options.samples, simplify, options.extra)
    rows = measure(options, sets, grid)
    if options.out:
        options.out.write_text(
            json.dumps({"model": options.model.name, "sets": len(sets), "rows": rows}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()

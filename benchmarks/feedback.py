"""What a small chat model makes of the names that were tested before, which `refine` tells it.

    python benchmarks/feedback.py MODEL

MODEL is the folder of a chat model. Eight made-up units: what was tested, and captions of what the best of it leaves
out. The likeliest answer (temperature 0) to the captions alone, and with what was tested; one chat at a time. Writes
benchmarks/results/feedback.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import NamedTuple

from dnd.api import JudgedConcept, Runtime, base_form
from dnd_llama import LlamaConfig, LlamaSummarizer
from dnd_llama.answers import parse_names
from dnd_llama.conversation import Ask
from dnd_llama.prompts import breadth_messages

RESULTS = Path(__file__).parent / "results" / "feedback.json"


class Case(NamedTuple):
    tested: tuple[str, ...]
    """Best first."""
    shared: str
    captions: tuple[str, ...]
    """Of what the best of the tested names leaves out; at least four of five show what is shared."""


CASES = (
    Case(
        ("dog", "puppy", "animal"),
        "bicycle",
        (
            "a red bicycle leaning against a brick wall",
            "a man riding a bicycle down a street",
            "a row of bicycles in front of a shop",
            "a bowl of soup on a table",
            "a child's bicycle lying on the grass",
        ),
    ),
    Case(
        ("striped pattern", "stripes"),
        "keyboard",
        (
            "a computer keyboard next to a mouse",
            "hands typing on a keyboard",
            "a black keyboard on a white desk",
            "a tree in front of a house",
            "a laptop with a keyboard covered in dust",
        ),
    ),
    Case(
        ("red car", "sports car", "red"),
        "car",
        (
            "a blue car parked on a street",
            "an old car in a garage",
            "a white car driving in the rain",
            "a plate of pasta with basil",
            "a police car at a crossing",
        ),
    ),
    Case(
        ("snow", "snowy mountain"),
        "wedding dress",
        (
            "a bride in a long wedding dress",
            "a wedding dress hanging in a window",
            "a woman trying on a wedding dress",
            "a bus at a station",
            "a lace wedding dress on a bed",
        ),
    ),
    Case(
        ("water", "ocean waves", "boat"),
        "blue sky",
        (
            "a kite in a blue sky",
            "a church tower against a blue sky",
            "a field of wheat under a blue sky",
            "a cat on a sofa",
            "a plane crossing a clear blue sky",
        ),
    ),
    Case(
        ("dog", "puppy", "animal"),
        "bicycle",
        (
            "a dog sitting next to a bicycle",
            "a dog running beside a man on a bicycle",
            "a bicycle with a dog in its basket",
            "a bicycle chained to a fence",
            "a small dog looking at a bicycle",
        ),
    ),
    Case(
        ("red", "red car"),
        "clock",
        (
            "a red clock on a wall",
            "a red alarm clock on a table",
            "a clock with red hands",
            "a church clock at noon",
            "a red kitchen clock above an oven",
        ),
    ),
    Case(
        ("beach", "ocean"),
        "umbrella",
        (
            "a striped umbrella on a beach",
            "people under an umbrella at the beach",
            "a woman with an umbrella in the rain",
            "a beach umbrella next to two chairs",
            "an umbrella leaning against a door",
        ),
    ),
)


def judged(names: tuple[str, ...]) -> tuple[JudgedConcept, ...]:
    """Each a little weaker than the one before, and seen on less."""
    return tuple(JudgedConcept(name, 0.93 - 0.06 * rank, 0.5 - 0.1 * rank) for rank, name in enumerate(names))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    options = parser.parse_args()
    config = LlamaConfig(model=options.model.name, dtype="bfloat16")
    summarizer = LlamaSummarizer(config, Runtime("cpu", lambda name: options.model))
    summarizer.load()
    rows = []
    print("| tested, the best first | the captions share | captions alone | with what was tested |\n|---|---|---|---|")
    for case in CASES:
        row = {"tested": case.tested, "shared": case.shared}
        for name, tested in (("captions alone", ()), ("with what was tested", judged(case.tested))):
            [answer] = summarizer.answer([Ask(breadth_messages(case.captions, tested), seed=0, temperature=0.0)])
            row[name] = parse_names(answer)
        rows.append(row)
        print("|", " | ".join(one if isinstance(one, str) else ", ".join(one) for one in row.values()), "|", flush=True)
    right = {
        name: sum(base_form(row[name][0]) == base_form(row["shared"]) for row in rows)
        for name in ("captions alone", "with what was tested")
    }
    print(json.dumps(right))
    result = {"model": options.model.name, "first name is what is shared": right, "rows": rows}
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()

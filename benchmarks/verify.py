"""What the verdicts of `dnd verify` are worth: on planted units, also with labels that are spoilt on purpose.

    dnd run --out RUN                                    # the shipped target; another: --set target.planted_seed=1
    python benchmarks/verify.py RUN [RUN ...] [--out FILE]

Each run's labels are verified as they are, and again spoilt: a single concept narrowed ("red" -> "red star"), a
conjunction broadened ("red star" -> "red" or "star"), and the labels of other units. A right label ought to be
verified, a half of a union one of several. Each unit is then verified once more with its true concept as the best of
the other candidates: what a language model that named broader and narrower ones perfectly would add. Writes
benchmarks/results/verify.json, or the file that --out names. All images go to the run's store, so that a second time
costs little.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from dnd.api import Truth, read_truth
from dnd.evaluation.clip import Clip, clip_of
from dnd.evaluation.intervals import wilson
from dnd.evaluation.reopen import open_run
from dnd.evaluation.verify import verify
from dnd.results.run import RunFolder
from dnd.results.unit import Candidate, ScoredConcept, UnitResult
from dnd.runtime.progress import Meter
from dnd_microworld import planted, world
from dnd_microworld.grade import attributes

RESULTS = Path(__file__).parent / "results" / "verify.json"
SHIPPED = Path(planted.__file__).with_name("truth.csv")
WORDS = (*world.COLOURS, *world.TEXTURES[1:], *world.SHAPES)


def relabelled(record: UnitResult, concept: str) -> UnitResult:
    return record.model_copy(update={"status": "labelled", "labels": (ScoredConcept(concept=concept, score=0.0),)})


def narrowed(truth: str, chance: random.Random) -> str:
    """A single attribute and one of another kind: a colour comes first."""
    if truth in world.COLOURS:
        return f"{truth} {chance.choice((*world.TEXTURES[1:], *world.SHAPES))}"
    return f"{chance.choice(tuple(world.COLOURS))} {truth}"


def cases(
    records: Sequence[UnitResult], truths: Mapping[int, Truth], seed: int
) -> Iterator[tuple[str, str, UnitResult]]:
    """(how the label came about, the verdict that is right, the unit with this label)."""
    chance = random.Random(seed)
    for record in records:
        truth = truths[record.index]
        wanted = [attributes(concept) for concept in truth.concepts]
        if record.status == "labelled":
            given = attributes(record.labels[0].concept)
            right = "one of several" if truth.kind == "union" else "verified"
            yield "as labelled", right if given in wanted else "another", record
        if truth.kind == "single":
            yield "narrowed", "too narrow", relabelled(record, narrowed(truth.concepts[0], chance))
        if truth.kind == "conjunction":
            first, second = truth.concepts[0].split(" ", 1)
            yield "broadened", "too broad", relabelled(record, chance.choice((first, second)))
        if truth.kind in ("single", "conjunction"):
            own = set(truth.concepts[0].split())
            others = [t.concepts[0] for t in truths.values() if t.concepts and own.isdisjoint(t.concepts[0].split())]
            yield "swapped", "not driven", relabelled(record, chance.choice(others))


def told(record: UnitResult, truth: Truth) -> UnitResult:
    """The unit with its true concepts as its best candidates."""
    known = tuple(Candidate(concept=concept, score=9.0) for concept in truth.concepts)
    others = tuple(one for one in record.candidates if one.concept not in truth.concepts)
    return record.model_copy(update={"candidates": (*known, *others)})


def measure(folder: Path, images: int, seed: int, meter: Meter, with_truth: bool = False) -> list[dict[str, Any]]:
    """A row for each case. `with_truth` for an oracle among the candidates."""
    run = RunFolder(folder)
    planted_seed = run.settings["target"].get("planted_seed", 0)
    file = planted.truth_file(planted_seed) if planted_seed else SHIPPED
    truths = {unit.index: truth for unit, truth in read_truth(file).items()}
    opened = open_run(folder, images=images, meter=meter)
    clip = Clip(str(clip_of(opened.job.run)), opened.job.run.device)
    found = list(cases(list(run.records()), truths, seed))
    rows = []
    for how in dict.fromkeys(how for how, _, _ in found):
        some = [
            (right, told(record, truths[record.index]) if with_truth else record)
            for one, right, record in found
            if one == how
        ]
        verdicts = verify(opened, [record for _, record in some], clip)
        for right, record in some:
            verdict = verdicts[record.unit]
            case = {"run": folder.name, "kind": truths[record.index].kind, "how": how, "right": right}
            rows.append(case | json.loads(verdict.model_dump_json(by_alias=True)))
    return rows


def share(hits: int, total: int) -> list[float]:
    """With its 95 % interval, and of how many."""
    return [round(value, 3) for value in (hits / total, *wilson(hits, total))] + [total] if total else []


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    words = list(dict.fromkeys(row["right"] for row in rows if row["right"] != "another"))
    table = {
        f"{how}, {right}": dict(Counter(row["word"] for row in rows if (row["how"], row["right"]) == (how, right)))
        for how, right in dict.fromkeys((row["how"], row["right"]) for row in rows)
    }
    return {
        "verdicts by what is right": table,
        "precision": {
            w: share(sum(r["right"] == w for r in rows if r["word"] == w), sum(r["word"] == w for r in rows))
            for w in words
        },
        "recall": {
            w: share(sum(r["word"] == w for r in rows if r["right"] == w), sum(r["right"] == w for r in rows))
            for w in words
        },
        "right": share(
            sum(r["word"] == r["right"] for r in rows if r["right"] != "another"),
            sum(r["right"] != "another" for r in rows),
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--images", type=int, default=10)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--rows", type=Path, help="keep each case here, as JSON")
    options = parser.parse_args()
    found, oracle = {}, []
    with Meter(Console(stderr=True)) as meter:
        for number, folder in enumerate(options.runs):
            found[folder.name] = measure(folder, options.images, number, meter)
            oracle += measure(folder, options.images, number, meter, with_truth=True)
    if options.rows:
        options.rows.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    result = {"images": options.images, **{name: summary(rows) for name, rows in found.items()}}
    if len(found) > 1:
        result["all"] = summary([row for rows in found.values() for row in rows])
    result["all, with the truth among the candidates"] = summary(oracle)
    print(json.dumps(result, indent=1))
    options.out.write_text(json.dumps(result, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()

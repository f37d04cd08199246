"""What runs survive, at full scale (tests/pipeline/test_faults.py does the same at small scale).

    python benchmarks/faults.py [--kills 100] [--out benchmarks/results/faults.json]

Runs of the toy world of tests/toys.py, in processes of their own. Each comes to harm in one way, then the same command
is given again; labels.csv and labels.jsonl must be, byte for byte, those of a run that nothing happened to.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import faulty
import toys
from faulty import BATCH, FAULTS, Job, Server

PHOTOS = 15


def labels(folder: Path) -> tuple[bytes, bytes]:
    return (folder / "labels.csv").read_bytes(), (folder / "labels.jsonl").read_bytes()


class Bench:
    def __init__(self, server: Server, folder: Path) -> None:
        self.server, self.folder = server, folder
        self.photos = str(toys.make_photos(folder / "photos", PHOTOS))
        self.whole = folder / "whole" / "run"
        self.first = self.good(self.whole)
        self.labels = labels(self.whole)

    def good(self, out: Path, **harm: Any) -> faulty.Outcome:
        """A run that must end well."""
        outcome = self.server.run(Job(self.photos, str(out), **harm))
        if outcome.code:
            raise SystemExit(f"{out}, {harm}: {outcome}")
        return outcome

    def same(self, out: Path) -> bool:
        return labels(out) == self.labels

    def kills(self, n: int) -> dict[str, Any]:
        """SIGKILL at random moments; each run is killed until it gets through, then the next begins."""
        rng, killed, ended, same, runs = random.Random(0), 0, 0, 0, 0
        redone: Counter[int] = Counter()
        while killed < n:
            runs += 1
            out, asked = self.folder / f"kill{runs}" / "run", self.folder / f"kill{runs}" / "asked"
            out.parent.mkdir()
            asked.touch()
            while True:
                before = len(asked.read_text().splitlines())
                moment = rng.uniform(0.1, 1) * self.first.seconds if killed < n else None
                outcome = self.server.run(Job(self.photos, str(out), str(asked), kill_after=moment))
                redone[faulty.repeats(asked, before)] += 1
                if outcome.code == 0:
                    break
                if outcome.code != -9:
                    raise SystemExit(f"{outcome}")
                killed += 1
            ended += 1
            same += self.same(out)
        return {
            "kills": killed,
            "runs": ended,
            "runs_with_the_same_labels": same,
            "batch": BATCH,
            "most_items_asked_again_after_a_kill": max(redone),
            "starts_by_items_asked_again": dict(sorted(redone.items())),
        }

    def disk(self) -> dict[str, Any]:
        """The disk is full from the n-th write on, for every n; then there is room again."""
        clear = same = 0
        others = []
        for number in range(1, self.first.writes + 1):
            out = self.folder / f"full{number}" / "run"
            outcome = self.server.run(Job(self.photos, str(out), full_at=number))
            told = outcome.code == 1 and outcome.message.startswith("StoreError: cannot write")
            clear += told
            if not told:
                others.append([number, outcome.code, outcome.message])
            self.good(out)
            same += self.same(out)
        found = {"writes": self.first.writes, "clear_errors": clear, "same_labels_afterwards": same}
        return {**found, "others": others}

    def backends(self) -> dict[str, Any]:
        """Each fault on everything green: its unit fails with a reason, the rest are labelled, and once it is mended
        all are."""
        found = {}
        for number, fault in enumerate(FAULTS):
            out = self.folder / f"fault{number}" / "run"
            outcome = self.server.run(Job(self.photos, str(out), fault=fault))
            rows = [line.split(",") for line in labels(out)[0].decode().splitlines()[1:]]
            rest = [line for i, line in enumerate(labels(out)[0].splitlines()) if i != 2]
            alone = rest == [line for i, line in enumerate(self.labels[0].splitlines()) if i != 2]
            self.good(out)
            found[fault] = {
                "exit": outcome.code,
                "status": rows[1][2],
                "reason": ",".join(rows[1][9:])[:80],
                "the_rest_as_ever": alone,
                "same_labels_afterwards": self.same(out),
            }
        return found

    def damage(self) -> dict[str, Any]:
        """Every file of the store, one after the other: a bit flipped, cut short, emptied or gone. Images are then
        opened again, for the stages that open them are forgotten."""
        store = self.whole.parent / ".dnd-store"
        files = sorted(file.relative_to(store) for file in store.rglob("*") if file.is_file())
        same, rng = 0, random.Random(0)
        for number, name in enumerate(files):
            place = self.folder / f"damage{number}"
            shutil.copytree(store, place / ".dnd-store")
            if name.parts[0] == "images":
                for folder in (place / ".dnd-store").glob("*-*"):
                    if folder.name.startswith(("captions-", "activations-")):
                        shutil.rmtree(folder)
            file = place / ".dnd-store" / name
            data = bytearray(file.read_bytes())
            how = rng.choice(("flip", "cut", "empty", "gone"))
            if how == "gone":
                file.unlink()
            else:
                if how == "flip":
                    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
                file.write_bytes(data if how == "flip" else data[: len(data) // 2 if how == "cut" else 0])
            self.good(place / "run")
            same += self.same(place / "run")
            shutil.rmtree(place)
        return {"files": len(files), "same_labels_afterwards": same}

    def together(self) -> dict[str, Any]:
        """Four runs at a time in one store, five times; and two in one folder."""
        same = 0
        for turn in range(5):
            jobs = [Job(self.photos, str(self.folder / f"together{turn}" / name)) for name in "abcd"]
            outcomes = self.server.together(jobs)
            same += sum(o.code == 0 and self.same(Path(job.out)) for o, job in zip(outcomes, jobs, strict=True))
        one = Job(self.photos, str(self.folder / "twice" / "run"))
        twice = self.server.together([one, one])
        refused = [o.message.split(":")[0] for o in twice if o.code]
        return {
            "runs": 20,
            "same_labels": same,
            "in_one_folder": {"refused": refused, "same": self.same(Path(one.out))},
        }

    def clocks(self) -> dict[str, Any]:
        """Files from 1970 and from 2096, and a clock that tells another decade at each look."""
        for number, photo in enumerate(sorted(Path(self.photos).iterdir())):
            os.utime(photo, (0, 0) if number % 2 else (4e9, 4e9))
        same = 0
        for _ in range(5):
            self.good(self.folder / "clock" / "run", clock=True)
            same += self.same(self.folder / "clock" / "run")
        return {"runs": 5, "same_labels": same}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    found: dict[str, Any] = {"machine": {"python": platform.python_version(), "cpus": os.cpu_count()}}
    with tempfile.TemporaryDirectory() as folder, Server() as server:
        bench = Bench(server, Path(folder))
        parts: dict[str, Callable[[], dict[str, Any]]] = {
            "kills": lambda: bench.kills(given.kills),
            "damaged_files": bench.damage,
            "wrong_backends": bench.backends,
            "together": bench.together,
            "clocks": bench.clocks,
            "full_disk": bench.disk,
        }
        for name, part in parts.items():
            began = time.monotonic()
            found[name] = {**part(), "seconds": round(time.monotonic() - began)}
            print(name, json.dumps(found[name], indent=1), flush=True)
            if given.out:
                given.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""`python -m dnd_lite --truth FILE`: the names of the ImageNet classes, as a truth file for `dnd eval`."""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path

from dnd_lite.classes import N_CLASSES, short_names


def write_truth(file: Path) -> None:
    """unit,text: a row for each name of each class; the units of any classifier of the 1000 classes in their order."""
    with file.open("w", newline="", encoding="utf-8") as out:
        rows = csv.writer(out, lineterminator="\n")
        rows.writerow(("unit", "text"))
        rows.writerows((index, name) for index in range(N_CLASSES) for name in short_names(index))


def main() -> int:
    parser = argparse.ArgumentParser("python -m dnd_lite", description="The names of the ImageNet classes as a truth.")
    parser.add_argument("--truth", type=Path, metavar="FILE", required=True, help="a CSV unit,text")
    file = parser.parse_args().truth.expanduser()
    try:
        write_truth(file)
    except OSError as error:
        print(f"Error: cannot write {file}: {error.strerror}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

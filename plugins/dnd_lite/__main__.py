"""`python -m dnd_lite FOLDER`: which classes the photos of a folder show, as units for `dnd run photos`.

The units go to standard output, what they are to standard error:

    dnd run photos --probe FOLDER --units $(python -m dnd_lite FOLDER)

`python -m dnd_lite --truth FILE` writes the names of all classes instead, as a truth file for `dnd eval`.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections import defaultdict
from pathlib import Path

from dnd.api import DndError, ImageFolder
from dnd_lite.classes import N_CLASSES, class_name, short_names
from dnd_lite.networks import Variant
from dnd_lite.tagger import Recogniser


def shown_classes(folder: Path, variant: Variant, probability: float) -> dict[int, list[str]]:
    """class -> names of the photos for which the network's first answer it is, by at least this probability."""
    photos, recogniser = ImageFolder(folder), Recogniser(variant, "cpu")
    shown = defaultdict(list)
    for number in range(len(photos)):
        try:
            found = recogniser.probabilities(photos.open(number))
        except (OSError, ValueError):
            continue  # `dnd run` reports it by name.
        best = int(found.argmax())
        if found[best] >= probability:
            shown[best].append(photos.image_name(number))
    return dict(sorted(shown.items()))


def write_truth(file: Path) -> None:
    """unit,text: a row for each name of each class; the units of any classifier of the 1000 classes in their order."""
    with file.open("w", newline="", encoding="utf-8") as out:
        rows = csv.writer(out, lineterminator="\n")
        rows.writerow(("unit", "text"))
        rows.writerows((index, name) for index in range(N_CLASSES) for name in short_names(index))


def main() -> int:
    parser = argparse.ArgumentParser("python -m dnd_lite", description="The ImageNet classes that your photos show.")
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--truth", type=Path, metavar="FILE", help="write the classes' names here, and do nothing else")
    parser.add_argument("--probability", type=float, default=0.3, help="a photo shows a class from here on (0.3)")
    parser.add_argument("--variant", type=int, choices=(0, 1, 2), default=0, help="of the target (0)")
    options = parser.parse_args()
    if (options.folder is None) == (options.truth is None):
        parser.error("give a folder of photos, or --truth FILE")
    try:
        if options.truth is not None:
            write_truth(options.truth.expanduser())
            return 0
        shown = shown_classes(options.folder.expanduser(), options.variant, options.probability)
    except DndError as error:
        print(f"Error: {error}\nHint: {error.hint}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"Error: cannot write {options.truth}: {error.strerror}", file=sys.stderr)
        return 1
    for index, photos in shown.items():
        print(f"{index:4} {class_name(index)}: {len(photos)} ({photos[0]})", file=sys.stderr)
    if not shown:
        print("Error: none of the photos clearly shows a class", file=sys.stderr)
        return 1
    print(",".join(map(str, shown)))
    return 0


if __name__ == "__main__":
    sys.exit(main())

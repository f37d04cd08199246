"""`python -m dnd_lite FOLDER`: which classes the photos of a folder show, as units for `dnd run photos`.

The units go to standard output, what they are to standard error:

    dnd run photos --probe FOLDER --units $(python -m dnd_lite FOLDER)
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from pathlib import Path

from dnd.api import DndError
from dnd.probing import FolderSet
from dnd_lite.classes import class_name
from dnd_lite.networks import Variant
from dnd_lite.tagger import Recogniser


def shown_classes(folder: Path, variant: Variant, probability: float) -> dict[int, list[str]]:
    """class -> names of the photos for which the network's first answer it is, by at least this probability."""
    photos, recogniser = FolderSet(folder), Recogniser(variant, "cpu")
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


def main() -> int:
    parser = argparse.ArgumentParser("python -m dnd_lite", description="The ImageNet classes that your photos show.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--probability", type=float, default=0.3, help="a photo shows a class from here on (0.3)")
    parser.add_argument("--variant", type=int, choices=(0, 1, 2), default=0, help="of the target (0)")
    options = parser.parse_args()
    try:
        shown = shown_classes(options.folder.expanduser(), options.variant, options.probability)
    except DndError as error:
        print(f"Error: {error}\nHint: {error.hint}", file=sys.stderr)
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

"""A finished run made by hand: labels as wished, every exemplar and synthetic image a flat colour in a store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from dnd.api import Box, Label, Unit
from dnd.results.unit import Exemplar, Finding
from dnd.results.write import write_findings
from dnd.store.images import Store

EXEMPLARS = 3


def finish(
    folder: Path,
    labels: Mapping[str, Sequence[str]],
    *,
    caption: str = "a thing",
    source: str = "photo.png",
) -> Path:
    """labels: "layer/unit" -> its concepts, best first; none for an uninterpretable unit; "!why" for a failed one."""
    store = Store(folder.parent / ".dnd-store")
    findings = []
    for number, (name, concepts) in enumerate(labels.items()):
        layer, _, index = name.rpartition("/")
        unit = Unit(layer, int(index))
        if concepts and concepts[0].startswith("!"):
            findings.append(Finding(Label(unit, "failed", (), concepts[0][1:])))
            continue
        pictures = [store.put_image(Image.new("RGB", (20, 12), (number, 9 * at, 200))) for at in range(EXEMPLARS)]
        exemplars = tuple(
            Exemplar(p.digest, source, Box(0, 0, 0.5, 1) if at else None, 3.0 - at) for at, p in enumerate(pictures)
        )
        scored = tuple((concept, 0.9 - 0.1 * at) for at, concept in enumerate(concepts))
        label = Label(unit, "labelled", scored) if concepts else Label(unit, "uninterpretable", (), "nothing fits")
        drawn = tuple(store.put_image(Image.new("RGB", (16, 16), (200, 9 * at, number))) for at in range(2))
        findings.append(
            Finding(
                label,
                exemplars,
                (caption,) * EXEMPLARS,
                tuple(concepts),
                tuple(score for _, score in scored),
                (0.8,) * len(concepts),
                (drawn,) * len(concepts),
                np.array([[0.25, 0.5]] * len(concepts), np.float32),
            )
        )
    write_findings(folder, findings)
    return folder

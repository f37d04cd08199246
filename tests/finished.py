"""A finished run made by hand: labels as wished, every exemplar and synthetic image a flat colour in a store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from PIL import Image

from dnd.api import Box, Label, Unit
from dnd.results.unit import Candidate, Exemplar, StoredImage, UnitResult
from dnd.results.verdict import Verdict
from dnd.results.write import write_results
from dnd.store.images import Store

EXEMPLARS = 3


def finish(
    folder: Path,
    labels: Mapping[str, Sequence[str]],
    *,
    caption: str = "a thing",
    source: str = "photo.png",
    verdicts: Mapping[str, Verdict] = MappingProxyType({}),
) -> Path:
    """labels: "layer/unit" -> its concepts, best first; none for an uninterpretable unit; "!why" for a failed one.
    verdicts: by unit, too."""
    store = Store(folder.parent / ".dnd-store")
    results = []
    for number, (name, concepts) in enumerate(labels.items()):
        layer, _, index = name.rpartition("/")
        unit = Unit(layer, int(index))
        if concepts and concepts[0].startswith("!"):
            results.append(UnitResult.of(Label(unit, "failed", (), concepts[0][1:])))
            continue
        pictures = [store.put_image(Image.new("RGB", (20, 12), (number, 9 * at, 200))) for at in range(EXEMPLARS)]
        exemplars = tuple(
            Exemplar(
                digest=p.digest,
                source=source,
                box=Box(0.0, 0.0, 0.5, 1.0) if at else None,
                activation=3.0 - at,
                caption=caption,
            )
            for at, p in enumerate(pictures)
        )
        scored = tuple((concept, 0.9 - 0.1 * at) for at, concept in enumerate(concepts))
        label = Label(unit, "labelled", scored) if concepts else Label(unit, "uninterpretable", (), "nothing fits")
        drawn = [store.put_image(Image.new("RGB", (16, 16), (200, 9 * at, number))).digest for at in range(2)]
        images = tuple(StoredImage(digest=d, activation=a) for d, a in zip(drawn, (0.25, 0.5), strict=True))
        candidates = tuple(Candidate(concept=c, score=score, auc=0.8, images=images) for c, score in scored)
        verdict = verdicts.get(name)
        results.append(UnitResult.of(label, exemplars=exemplars, candidates=candidates, verdict=verdict))
    write_results(folder, results)
    return folder

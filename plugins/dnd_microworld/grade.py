"""Is a label right? Decided by code: the label and the planted concept must name the same attributes.

A label is lower-cased, freed of articles, punctuation and of the words in `FILLER`, and its synonyms are
replaced by the world's own words. What is left must be exactly the planted concept's attributes: "red star"
is wrong for a unit of stars, and "star" is wrong for a unit of red stars. A union is right when both halves
are among the first three labels, each as a label of its own. Noise is right when it is called uninterpretable.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from dnd import api
from dnd_microworld import world

KINDS = ("single", "conjunction", "union", "noise")
FILLER = frozenset(
    {"a", "an", "the", "of", "with", "on", "in", "and", "is", "are", "some"}
    | {"background", "backgrounds", "backdrop", "pattern", "patterns", "patterned", "shape", "shapes", "shaped"}
    | {"colour", "colours", "coloured", "color", "colors", "colored", "thing", "things", "object", "objects"}
    | {"figure", "figures", "symbol", "symbols"}
)
"""Words that add nothing: "a star shape" is "star"."""
SYNONYMS: dict[str, tuple[str, ...]] = {
    **{
        f"{way} stripes": tuple(
            phrase
            for noun in ("stripe", "lines", "line", "bars", "striped", "striping", "stripe pattern")
            for phrase in (f"{way} {noun}", f"{way}ly {noun}", f"{noun} {way}ly", f"{way}ly oriented {noun}")
        )
        for way in ("horizontal", "vertical", "diagonal")
    },
    "dots": ("polka dots", "polka dot", "dot", "dotted", "spots", "spot", "spotted"),
    "checkerboard": (
        *("checker board", "checkerboards", "checkered", "chequered", "chequerboard", "chessboard", "chess board"),
        *("checker", "checkers", "checks", "checked"),
    ),
    "grid": ("grids", "grid lines", "gridlines", "gridded", "lattice"),
    "circle": ("circles", "disc", "discs", "disk", "disks", "circular"),
    "square": ("squares",),
    "triangle": ("triangles", "triangular"),
    "star": ("stars", "starry"),
    "cross": ("crosses", "plus sign", "plus signs", "plus"),
    "ring": ("rings", "annulus", "donut", "doughnut"),
    "heart": ("hearts", "love heart", "love hearts"),
    "cyan": ("turquoise", "aqua"),
    "purple": ("violet",),
}
"""The world's word -> what else it may be called."""


TARGET_HEADLINES = ("single AUC mean", "conjunction AUC mean", "held-out AUC mean", "union AUC mean")
HEADLINES = {
    "microworld-blip2": (
        "scenes: object colour",
        "scenes: texture",
        "scenes: object shape",
        "scenes: exact",
        "crops: exact",
    ),
    "microworld-llama": ("exact, clean", "exact, 2 off topic, noise", "among, 2 off topic, noise", "simplify exact"),
    "microworld-sdxl": (
        *("colour", "colour_shuffled", "texture", "texture_shuffled", "shape", "shape_shuffled"),
        *("colour_shape", "colour_shape_shuffled"),
    ),
    "microworld-clip": ("retrieval@1 of 100", "zero-shot colour", "zero-shot texture", "zero-shot shape"),
    "naming with true captions": KINDS,
}
"""What of figures.json is shown beside a run's labels, besides that of the target's model."""


@cache
def _rewriting() -> tuple[re.Pattern[str], dict[str, str]]:
    words = {other: word for word, others in SYNONYMS.items() for other in others}
    words |= {word: word for word in (*world.COLOURS, *world.TEXTURES[1:], *world.SHAPES)}
    longest_first = sorted(words, key=lambda w: (-len(w), w))
    return re.compile(r"\b(" + "|".join(map(re.escape, longest_first)) + r")\b"), words


def attributes(label: str) -> frozenset[str]:
    """The attributes that a label names; words that name none stay in the set, so such a label fits nothing."""
    pattern, words = _rewriting()
    text = " ".join(re.sub(r"[^a-z]+", " ", label.lower()).split())
    found = {words[match] for match in pattern.findall(text)}
    rest = {word for word in pattern.sub(" ", text).split() if word not in FILLER}
    return frozenset(found | rest)


def is_right(label: api.Label, truth: api.Truth) -> bool:
    if truth.kind == "noise":
        return label.status == "uninterpretable"
    if label.status != "labelled":
        return False
    said = [attributes(text) for text, _ in label.labels[:3]]
    wanted = [attributes(concept) for concept in truth.concepts]
    if truth.kind == "union":
        return all(half in said for half in wanted)
    return said[:1] == wanted


def read_figures(path: Path, target: str) -> dict[str, dict[str, float]]:
    """The headlines of figures.json: model -> figure -> value; nothing where it does not exist. `target`: its model."""
    known = json.loads(path.read_text()) if path.exists() else {}
    return {
        model: {figure: known[model][figure] for figure in figures if figure in known[model]}
        for model, figures in {target: TARGET_HEADLINES, **HEADLINES}.items()
        if model in known
    }


def grade(
    labels: Sequence[api.Label], truth: Mapping[api.Unit, api.Truth], figures: Mapping[str, Mapping[str, float]]
) -> api.Grading | None:
    """None where no label is of a planted unit."""
    judged = [(label, truth[label.unit]) for label in labels if label.unit in truth]
    if not judged:
        return None
    right = [is_right(label, known) for label, known in judged]
    grades = [
        api.Grade(
            kind,
            sum(r for r, (_, known) in zip(right, judged, strict=True) if known.kind == kind),
            sum(known.kind == kind for _, known in judged),
        )
        for kind in (*KINDS, "latent", "direction")
    ]
    wrong = {
        str(label.unit): " | ".join(known.concepts) or "uninterpretable"
        for r, (label, known) in zip(right, judged, strict=True)
        if not r
    }
    kinds = {str(label.unit): known.kind for label, known in judged}
    return api.Grading(tuple(g for g in grades if g.total), _controls(judged), figures, wrong, kinds)


def _controls(judged: Sequence[tuple[api.Label, api.Truth]], shuffles: int = 100) -> dict[str, float]:
    """What is right by chance, as shares of all units, and the meaningful units that got no label."""
    known = [truth for _, truth in judged]
    given = [label for label, _ in judged]
    rng, hits = random.Random(0), 0
    for _ in range(shuffles):
        rng.shuffle(given)
        hits += sum(is_right(label, truth) for label, truth in zip(given, known, strict=True))
    unit = judged[0][0].unit
    constants = [api.Label(unit, "uninterpretable")]
    constants += [api.Label(unit, "labelled", ((c, 1.0),)) for c in sorted({c for t in known for c in t.concepts})]
    best = max(sum(is_right(label, truth) for truth in known) for label in constants)
    meaningful = [label for label, truth in judged if truth.kind != "noise"]
    silent = sum(label.status == "uninterpretable" for label in meaningful)
    return {
        "labels shuffled between units": hits / (shuffles * len(known)),
        "one constant label, the best": best / len(known),
        "meaningful units called uninterpretable": silent / max(1, len(meaningful)),
    }

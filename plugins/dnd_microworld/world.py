"""The microworld's renderer: a scene from a seed, with its caption and its concept masks.

A scene is a 64x64 RGB picture: a background of one colour and one texture, and zero to two outlined
shapes, each of one colour that is not the background's. Everything is drawn by numpy from signed
distances, so edges are anti-aliased and no image file is shipped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

SIZE = 64
"""Side of a scene, in pixels."""

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "orange": (247, 140, 20),
    "yellow": (250, 226, 50),
    "green": (46, 160, 67),
    "cyan": (70, 214, 222),
    "blue": (45, 80, 205),
    "purple": (150, 55, 170),
    "white": (244, 244, 244),
}
TEXTURES = ("plain", "horizontal stripes", "vertical stripes", "diagonal stripes", "dots", "checkerboard", "grid")
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "heart")

CATEGORIES = ("colour", "texture", "shape", "coloured texture", "coloured shape")
"""Kinds of concept: every scene is labelled for each of them."""

HELD_OUT_OBJECTS = frozenset(
    {
        ("red", "star"),
        ("green", "heart"),
        ("cyan", "circle"),
        ("purple", "triangle"),
        ("yellow", "ring"),
        ("white", "cross"),
    }
)
"""(colour, shape) pairs that no training scene shows."""
HELD_OUT_BACKGROUNDS = frozenset(
    {
        ("blue", "dots"),
        ("orange", "checkerboard"),
        ("green", "vertical stripes"),
        ("red", "grid"),
        ("purple", "diagonal stripes"),
    }
)
"""(colour, texture) pairs that no training scene shows."""

SPLITS = {"train": 1, "validation": 2, "probing": 3, "test": 4}
"""Each split draws from seeds of its own; only "train" leaves the held-out pairs out."""

_NAMES = tuple(COLOURS)
_RGB = np.array(list(COLOURS.values()), dtype=np.float32)
_OUTLINE = np.float32(24.0)
_DARK = np.float32(0.42)
_AXIS = np.arange(SIZE, dtype=np.float32)


class Thing(NamedTuple):
    """One shape of a scene. Centre, radius in pixels; `turn` in radians."""

    shape: str
    colour: str
    x: float
    y: float
    radius: float
    turn: float


@dataclass(frozen=True)
class Scene:
    """All that is drawn. `things` are ordered from left to right and do not overlap."""

    colour: str
    texture: str
    things: tuple[Thing, ...]
    period: float
    """Pixels from one stripe, dot or square to the next of its kind."""
    phase: tuple[float, float]
    """Where the pattern starts, as a share of its period, along x and y."""
    light: tuple[float, float, float]
    """Brightness at the centre, and its slope along x and y from edge to edge."""
    grain: int
    """Seed of the pixel noise."""


class Rendered(NamedTuple):
    """A batch of drawn scenes."""

    images: npt.NDArray[np.uint8]
    """(B, 64, 64, 3), sRGB."""
    owners: npt.NDArray[np.uint8]
    """(B, 64, 64): 0 where the background shows, 1 or 2 where that thing does."""


def draw_scene(split: str, index: int) -> Scene:
    """The scene number `index` of a split: the same for ever, whatever is drawn around it."""
    rng = np.random.default_rng((SPLITS[split], index))
    training = split == "train"
    while True:
        colour, texture = _NAMES[rng.integers(len(_NAMES))], TEXTURES[rng.integers(len(TEXTURES))]
        if not (training and (colour, texture) in HELD_OUT_BACKGROUNDS):
            break
    count = int(rng.choice(3, p=(0.22, 0.46, 0.32)))
    things: list[Thing] = []
    while len(things) < count:
        shape, tint = SHAPES[rng.integers(len(SHAPES))], _NAMES[rng.integers(len(_NAMES))]
        if tint == colour or (training and (tint, shape) in HELD_OUT_OBJECTS):
            continue
        radius = rng.uniform(13, 21) if count == 1 else rng.uniform(11, 15)
        x, y = rng.uniform(radius + 1, SIZE - radius - 1, 2)
        if all(np.hypot(x - t.x, y - t.y) > radius + t.radius + 2 for t in things):
            things.append(Thing(shape, tint, float(x), float(y), float(radius), float(rng.uniform(-0.2, 0.2))))
        elif rng.random() < 0.1:  # the first thing leaves no room: begin again
            things.clear()
    low, high = (17, 23) if texture == "checkerboard" else (11, 17)
    return Scene(
        colour,
        texture,
        tuple(sorted(things, key=lambda t: t.x)),
        float(rng.uniform(low, high)),
        (float(rng.random()), float(rng.random())),
        (float(rng.uniform(0.88, 1.0)), float(rng.uniform(-0.08, 0.08)), float(rng.uniform(-0.08, 0.08))),
        int(rng.integers(2**31)),
    )


def draw_scenes(split: str, start: int, count: int) -> list[Scene]:
    return [draw_scene(split, index) for index in range(start, start + count)]


def _texture(name: str, x: npt.NDArray[np.float32], y: npt.NDArray[np.float32], p: float) -> npt.NDArray[np.float32]:
    """How dark each pixel is, 0..1, of a shape that broadcasts to (64, 64). x (1, 64), y (64, 1): pixels from the
    pattern's origin; p: period."""

    def wave(t: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        found: npt.NDArray[np.float32] = np.sin(t * np.float32(2 * np.pi / p))
        return found

    def edge(signed: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        found: npt.NDArray[np.float32] = np.clip(signed + np.float32(0.5), np.float32(0), np.float32(1))
        return found

    if name == "horizontal stripes":
        return edge(wave(y) * np.float32(p / 6.28))
    if name == "vertical stripes":
        return edge(wave(x) * np.float32(p / 6.28))
    if name == "diagonal stripes":
        return edge(wave((x + y) * np.float32(0.7071)) * np.float32(p / 6.28))
    if name == "checkerboard":
        return edge(wave(x) * wave(y) * np.float32(p / 6.28))
    u, v = x * np.float32(1 / p), y * np.float32(1 / p)
    across, down = u - np.floor(u) - np.float32(0.5), v - np.floor(v) - np.float32(0.5)
    if name == "dots":
        return edge((np.float32(0.31) - np.sqrt(across * across + down * down)) * np.float32(p))
    if name == "grid":
        return edge((np.float32(0.13) - np.minimum(np.abs(across), np.abs(down))) * np.float32(p))
    raise ValueError(f"no such texture: {name}")


def _distance(shape: str, u: npt.NDArray[np.float32], v: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Signed distance to the shape of radius 1, negative inside; v points down."""
    found: npt.NDArray[np.float32]
    a, b = np.abs(u), np.abs(v)
    if shape == "circle":
        return np.sqrt(u * u + v * v) - np.float32(0.95)
    if shape == "square":
        return np.maximum(a, b) - np.float32(0.82)
    if shape == "triangle":
        found = np.maximum(v - np.float32(0.75), np.float32(0.866) * a - np.float32(0.5) * v - np.float32(0.5))
        return found
    if shape == "star":
        rho, angle = np.sqrt(u * u + v * v), np.abs(np.mod(np.arctan2(u, -v) + np.pi / 5, 2 * np.pi / 5) - np.pi / 5)
        return np.float32(0.3505) * (rho * np.cos(angle) - 1) + np.float32(0.9366) * rho * np.sin(angle)
    if shape == "cross":
        bars = (
            np.maximum(a - np.float32(0.95), b - np.float32(0.33)),
            np.maximum(a - np.float32(0.33), b - np.float32(0.95)),
        )
        found = np.minimum(*bars)
        return found
    if shape == "ring":
        return np.abs(np.sqrt(u * u + v * v) - np.float32(0.7)) - np.float32(0.28)
    if shape == "heart":
        lobes = np.hypot(a - np.float32(0.425), v + np.float32(0.325)) - np.float32(0.601)
        found = np.minimum((a + np.abs(v - np.float32(0.1)) - np.float32(0.85)) * np.float32(0.7071), lobes)
        return found
    raise ValueError(f"no such shape: {shape}")


def _draw_thing(thing: Thing, place: int, canvas: npt.NDArray[np.float32], owners: npt.NDArray[np.uint8]) -> None:
    """Draw over canvas (3, 64, 64) and owners (64, 64), inside the thing's own window only."""
    reach = thing.radius * 1.2 + 2
    left, right = max(int(thing.x - reach), 0), min(int(thing.x + reach) + 2, SIZE)
    top, bottom = max(int(thing.y - reach), 0), min(int(thing.y + reach) + 2, SIZE)
    radius = np.float32(thing.radius)
    dx = ((_AXIS[left:right] - np.float32(thing.x)) / radius)[None, :]
    dy = ((_AXIS[top:bottom] - np.float32(thing.y)) / radius)[:, None]
    cos, sin = np.float32(np.cos(thing.turn)), np.float32(np.sin(thing.turn))
    distance = _distance(thing.shape, dx * cos + dy * sin, dy * cos - dx * sin) * radius
    ink = np.clip(np.float32(0.5) - distance, np.float32(0), np.float32(1))
    fill = np.clip(np.float32(-0.9) - distance, np.float32(0), np.float32(1))
    window = canvas[:, top:bottom, left:right]
    window += (_OUTLINE - window) * ink
    window += (_RGB[_NAMES.index(thing.colour)][:, None, None] - window) * fill
    owners[top:bottom, left:right][distance < 0] = place


def render(scenes: Sequence[Scene]) -> Rendered:
    """Draw scenes: several thousand a second on one core. A scene's pixels do not depend on the batch."""
    n = len(scenes)
    images, owners = np.empty((n, SIZE, SIZE, 3), np.uint8), np.zeros((n, SIZE, SIZE), np.uint8)
    row, column = _AXIS[:, None], _AXIS[None, :]
    canvas = np.empty((3, SIZE, SIZE), np.float32)
    for i, scene in enumerate(scenes):
        canvas[:] = _RGB[_NAMES.index(scene.colour)][:, None, None]
        if scene.texture != "plain":
            p, (along, down) = scene.period, scene.phase
            dark = _texture(scene.texture, column + np.float32(along * p), row + np.float32(down * p), p)
            canvas *= 1 - (1 - _DARK) * dark
        for place, thing in enumerate(scene.things, start=1):
            _draw_thing(thing, place, canvas, owners[i])
        level, right, below = (np.float32(v) for v in scene.light)
        canvas *= level + (column - SIZE / 2) * (right / SIZE) + (row - SIZE / 2) * (below / SIZE)
        grain = np.random.Generator(np.random.SFC64(scene.grain)).integers(-4, 5, (SIZE, SIZE), dtype=np.int8)
        canvas += grain + np.float32(0.5)
        np.maximum(canvas, 0, out=canvas)
        np.minimum(canvas, 255, out=canvas)
        images[i] = canvas.transpose(1, 2, 0)
    return Rendered(images, owners)


def batches(split: str, start: int, count: int, size: int = 256) -> Iterator[tuple[list[Scene], Rendered]]:
    """Scenes of a split with their pictures, `size` at a time."""
    for at in range(start, start + count, size):
        scenes = draw_scenes(split, at, min(size, start + count - at))
        yield scenes, render(scenes)


# --- words -----------------------------------------------------------------------------------------


def background_phrase(colour: str, texture: str) -> str:
    if texture == "plain":
        return f"a plain {colour} background"
    pattern = f"a {texture}" if texture in ("checkerboard", "grid") else texture
    return f"a {colour} background with {pattern}"


def caption(
    scene: Scene, box: tuple[int, int, int, int] | None = None, owners: npt.NDArray[np.uint8] | None = None
) -> str | None:
    """What a careful person would write under the scene, or under the part of it that `box` shows.

    `box` is (left, top, right, bottom) in pixels and needs `owners` (64, 64) of the rendered scene. A
    thing counts when half of it is inside; the background when it fills a tenth of the crop. None where
    a crop is ambiguous (a thing's cut-off part takes more than a twelfth of it, or nothing is left).
    """
    things, ground = list(scene.things), True
    if box is not None:
        if owners is None:
            raise ValueError("a crop's caption needs the owners of its pixels")
        left, top, right, bottom = box
        inside = owners[top:bottom, left:right]
        things = []
        for place, thing in enumerate(scene.things, start=1):
            seen, whole = int((inside == place).sum()), int((owners == place).sum())
            if seen * 2 >= whole:
                things.append(thing)
            elif seen * 12 > inside.size:
                return None
        ground = int((inside == 0).sum()) * 10 >= inside.size
    words = " and ".join(f"{'an' if t.colour == 'orange' else 'a'} {t.colour} {t.shape}" for t in things)
    if not ground:
        return words or None
    behind = background_phrase(scene.colour, scene.texture)
    return f"{words} on {behind}" if words else behind


def concepts(scene: Scene) -> set[str]:
    """Every concept that the scene shows: "red", "dots", "star", "red star", "red dots"."""
    found = {scene.colour}
    if scene.texture != "plain":
        found |= {scene.texture, f"{scene.colour} {scene.texture}"}
    for thing in scene.things:
        found |= {thing.colour, thing.shape, f"{thing.colour} {thing.shape}"}
    return found


def category(concept: str) -> str:
    """One of CATEGORIES."""
    colour, _, rest = concept.partition(" ")
    if colour not in COLOURS:
        return "texture" if concept in TEXTURES else "shape"
    return "colour" if not rest else "coloured texture" if rest in TEXTURES else "coloured shape"


def concept_mask(scene: Scene, owners: npt.NDArray[np.uint8], concept: str) -> npt.NDArray[np.bool_]:
    """Where the scene shows the concept: (64, 64). `owners` as `render` gave it for this scene."""
    colour, _, rest = concept.partition(" ")
    if colour not in COLOURS:
        colour, rest = "", concept
    mask = np.zeros(owners.shape, np.bool_)
    if colour in ("", scene.colour) and rest in ("", scene.texture):
        mask |= owners == 0
    for place, thing in enumerate(scene.things, start=1):
        if colour in ("", thing.colour) and rest in ("", thing.shape):
            mask |= owners == place
    return mask

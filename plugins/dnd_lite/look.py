"""Colour and texture words measured from pixels: no model, only statistics of one image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from PIL.Image import Image

Floats = npt.NDArray[np.float64]

_PROTOTYPES: dict[str, tuple[tuple[int, int, int], ...]] = {
    "black": ((0, 0, 0), (28, 28, 28)),
    "grey": ((90, 90, 90), (128, 128, 128), (180, 180, 180)),
    "white": ((255, 255, 255), (232, 232, 232)),
    "red": ((200, 25, 25), (140, 20, 25), (225, 60, 60)),
    "orange": ((240, 130, 20), (250, 160, 70)),
    "yellow": ((245, 220, 40), (250, 235, 140), (205, 180, 40)),
    "green": ((40, 140, 50), (25, 75, 30), (120, 180, 80), (95, 110, 45)),
    "blue": ((30, 80, 200), (20, 30, 90), (110, 165, 225), (60, 110, 150)),
    "purple": ((120, 40, 150), (80, 30, 90), (170, 120, 200)),
    "pink": ((245, 150, 180), (230, 60, 140), (250, 200, 210)),
    "brown": ((110, 65, 30), (70, 40, 20), (160, 110, 70), (195, 155, 115)),
}
"""sRGB examples of the eleven basic colour terms; a pixel takes the name of the nearest in CIELAB."""

COLOURS = tuple(_PROTOTYPES)
TEXTURES = ("plain", "striped", "spotted", "rough")

_COLOUR_SIDE = 48
_PATCH, _STEP, _TEXTURE_SIDE = 48, 24, 144
_FLAT = 0.035
"""Standard deviation of luminance, 0..1, under which a patch has no texture."""
_LOWEST, _HIGHEST = 2.5, 18
"""Cycles per patch between which a pattern repeats; an edge or shading has its power below."""
_PERIODIC = 0.5
"""Share of a patch's power that must lie in that band for a pattern."""
_ORIENTED = 0.7
"""Coherence of the band's orientations, 0..1, from which a pattern is stripes."""
_PEAK_BINS, _ORDERED = 48, 0.7
"""A pattern in several directions is spots where this share of its power lies in so few bins, else rough."""


def measure(image: Image) -> dict[str, float]:
    """word -> share of the image, 0..1, that looks so: every word of COLOURS and of TEXTURES."""
    return {**_colours(image), **_textures(image)}


def describe(shares: Mapping[str, float], colour_share: float = 0.25, texture_share: float = 0.4) -> str:
    """The words whose share is large: "grey and brown, striped"; empty where none is."""
    common = sorted((c for c in COLOURS if shares[c] >= colour_share), key=lambda c: -shares[c])[:2]
    texture = max(TEXTURES, key=lambda t: shares[t])
    parts = [" and ".join(common), texture if shares[texture] >= texture_share else ""]
    return ", ".join(p for p in parts if p)


def to_lab(rgb: npt.NDArray[np.uint8]) -> Floats:
    """sRGB (..., 3) uint8 to CIELAB (D65): L in 0..100."""
    linear = rgb / 255.0
    linear = np.where(linear <= 0.04045, linear / 12.92, ((linear + 0.055) / 1.055) ** 2.4)
    matrix = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = linear @ matrix.T / np.array([0.9505, 1.0, 1.089])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    x, y, z = f[..., 0], f[..., 1], f[..., 2]
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def _colours(image: Image) -> dict[str, float]:
    small = np.asarray(image.convert("RGB").resize((_COLOUR_SIDE, _COLOUR_SIDE)), dtype=np.uint8)
    owners = np.array([i for i, c in enumerate(COLOURS) for _ in _PROTOTYPES[c]])
    examples = np.array([p for c in COLOURS for p in _PROTOTYPES[c]], dtype=np.uint8)
    away = to_lab(small.reshape(-1, 1, 3)) - to_lab(examples)  # (pixels, examples, 3)
    away[..., 0] *= 0.6  # a hue in the shade keeps its name
    nearest = owners[np.square(away).sum(-1).argmin(1)]
    counts = np.bincount(nearest, minlength=len(COLOURS))
    return {c: float(n) / nearest.size for c, n in zip(COLOURS, counts, strict=True)}


def _textures(image: Image) -> dict[str, float]:
    """Shares of the overlapping patches: flat, with a pattern in one direction, in several, without order."""
    grey = np.asarray(image.convert("L").resize((_TEXTURE_SIDE, _TEXTURE_SIDE)), dtype=np.float64) / 255
    patches = np.lib.stride_tricks.sliding_window_view(grey, (_PATCH, _PATCH))[::_STEP, ::_STEP]
    patches = patches.reshape(-1, _PATCH, _PATCH)
    flat = patches.std(axis=(1, 2)) < _FLAT
    window = np.outer(np.hanning(_PATCH), np.hanning(_PATCH))
    mean = (patches * window).sum((1, 2), keepdims=True) / window.sum()
    power = np.abs(np.fft.fft2((patches - mean) * window)) ** 2  # (patches, 48, 48)
    cycles = np.fft.fftfreq(_PATCH, 1 / _PATCH)
    across, down = np.meshgrid(cycles, cycles)
    radius = np.hypot(across, down)
    band = power * ((radius >= _LOWEST) & (radius <= _HIGHEST))
    in_band = band.sum((1, 2)) + 1e-12
    periodic = ~flat & (in_band / (power.sum((1, 2)) + 1e-12) >= _PERIODIC)
    coherence = np.abs((band * np.exp(2j * np.arctan2(down, across))).sum((1, 2))) / in_band
    peaks = np.sort(band.reshape(len(band), -1), axis=1)[:, -_PEAK_BINS:].sum(1) / in_band
    oriented, ordered = coherence >= _ORIENTED, peaks >= _ORDERED
    return {
        "plain": float(flat.mean()),
        "striped": float((periodic & oriented).mean()),
        "spotted": float((periodic & ~oriented & ordered).mean()),
        "rough": float((periodic & ~oriented & ~ordered).mean()),
    }

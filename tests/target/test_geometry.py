"""The frame of what the target saw, found through the preprocess."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from dnd.api import Box
from dnd.target.geometry import Geometry, cut, to_source

Prepare = Callable[[Image.Image], torch.Tensor]


def tensor(image: Image.Image) -> torch.Tensor:
    """As ImageNet models have it: each channel with its own mean and deviation."""
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    return torch.from_numpy((np.asarray(image) / 255 - mean) / deviation).permute(2, 0, 1).float()


def identity(image: Image.Image) -> torch.Tensor:
    return tensor(image)


def squash(image: Image.Image) -> torch.Tensor:
    return tensor(image.resize((64, 64), Image.Resampling.BICUBIC))


def centre_crop(image: Image.Image) -> torch.Tensor:
    """Shorter side to 73, then the middle 64x64."""
    scale = 73 / min(image.size)
    small = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BILINEAR)
    left, top = (small.width - 64) // 2, (small.height - 64) // 2
    return tensor(small.crop((left, top, left + 64, top + 64)))


def letterbox(image: Image.Image) -> torch.Tensor:
    return tensor(ImageOps.pad(image, (64, 64), color=(124, 116, 104)))


def mirrored_grey(image: Image.Image) -> torch.Tensor:
    return squash(ImageOps.mirror(image).convert("L").convert("RGB"))


def centre_frame(width: int, height: int) -> Box:
    across, down = 64 / 73 / max(1, width / height), 64 / 73 / max(1, height / width)
    return Box((1 - across) / 2, (1 - down) / 2, (1 + across) / 2, (1 + down) / 2)


@pytest.mark.parametrize("size", [(100, 80), (64, 64), (30, 90), (1600, 1000)], ids=str)
@pytest.mark.parametrize("prepare", [identity, squash, centre_crop, letterbox, mirrored_grey])
def test_frames(prepare: Prepare, size: tuple[int, int]) -> None:
    width, height = size
    expected = {
        identity: Box(0, 0, 1, 1),
        squash: Box(0, 0, 1, 1),
        mirrored_grey: Box(1, 0, 0, 1),
        centre_crop: centre_frame(width, height),
        letterbox: Box(*(0.5 + side * max(1, ratio) / 2
                         for side in (-1, 1) for ratio in (height / width, width / height))),
    }[prepare]  # fmt: skip
    geometry = Geometry(prepare)
    found = geometry.frame(size)
    assert not geometry.problem
    # A pixel of the input, which is what resizing and cropping to whole pixels may move.
    pixel = max(abs(expected.right - expected.left), expected.bottom - expected.top) / 64
    assert tuple(found or ()) == pytest.approx(tuple(expected), abs=1.1 * pixel)


@pytest.mark.parametrize("prepare", [squash, centre_crop, letterbox])
def test_a_crop_shows_what_the_box_enclosed(prepare: Prepare) -> None:
    """The reference stretches the map of a centre crop over the whole image: its crops lie beside the thing."""
    source = Image.new("RGB", (300, 200), "black")
    source.paste((255, 255, 255), (180, 60, 210, 90))
    seen = prepare(source)[0]
    ys, xs = torch.nonzero(seen > seen.min() + 0.5 * (seen.max() - seen.min()), as_tuple=True)
    side = seen.shape[0]
    box = Box(int(xs.min()) / side, int(ys.min()) / side, (int(xs.max()) + 1) / side, (int(ys.max()) + 1) / side)
    frame = Geometry(prepare).frame(source.size)
    assert frame is not None
    found = to_source(frame, box)
    assert found is not None
    corners = (found.left * 300, found.top * 200, found.right * 300, found.bottom * 200)
    assert corners == pytest.approx((180, 60, 210, 90), abs=300 / 64)
    assert np.asarray(cut(source, found)).mean() > 160


def wavy(image: Image.Image) -> torch.Tensor:
    return squash(image.transform(image.size, Image.Transform.QUAD, (0, 0, 20, image.height, *image.size, 60, 0)))


@pytest.mark.parametrize(
    ("prepare", "why"),
    [
        (lambda image: squash(image.rotate(20)), "does more than scale"),
        (wavy, "does more than scale"),
        (lambda image: squash(image.transpose(Image.Transpose.ROTATE_90)), "does more than scale"),
        (lambda image: torch.zeros(3, 8, 8), "does not tell black from white"),
        (lambda image: squash(image.crop((random.randrange(40), 0, image.width, image.height))), "changes from call"),
        (lambda image: tensor(image)[:, :2, :2], "shows too little"),
    ],
)
def test_other_preprocesses_have_no_frame(prepare: Prepare, why: str) -> None:
    random.seed(3)
    geometry = Geometry(prepare)
    assert geometry.frame((100, 80)) is None
    assert why in geometry.problem
    assert geometry.frame((100, 80)) is None


def test_each_size_is_measured_once() -> None:
    calls = 0

    def counting(image: Image.Image) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return squash(image)

    geometry = Geometry(counting)
    geometry.frame((50, 40))
    first = calls
    geometry.frame((50, 40))
    assert calls == first


def test_boxes_beside_the_source() -> None:
    padded = Box(-0.5, 0, 1.5, 1)
    assert to_source(padded, Box(0, 0, 0.2, 1)) is None
    assert to_source(padded, Box(0, 0.5, 0.5, 1)) == Box(0, 0.5, 0.5, 1)
    assert to_source(Box(1, 0, 0, 1), Box(0, 0, 0.25, 1)) == Box(0.75, 0, 1, 1)


def test_a_cut_has_at_least_a_pixel() -> None:
    image = Image.new("RGB", (10, 6))
    assert cut(image, Box(0.999, 0.999, 1, 1)).size == (1, 1)
    assert cut(image, Box(0.5, 0.5, 0.5001, 0.5001)).size == (1, 1)
    assert cut(image, Box(0, 0, 1, 1)).size == (10, 6)
    assert cut(image, Box(0.11, 0, 0.39, 0.5)).size == (3, 3)

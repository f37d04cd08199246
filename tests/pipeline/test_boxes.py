"""Attention crops: where the map is high, whatever its type and scale."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dnd.api import FRAME, Box
from dnd.pipeline.exemplars.boxes import attention_boxes, select_boxes


def bump(y: int, x: int, peak: float = 1.0, dtype: Any = np.float64) -> Any:
    """An 8x8 map with one high cell."""
    values = np.zeros((8, 8), dtype)
    values[y, x] = peak
    return values


def test_the_box_lies_on_the_high_cell() -> None:
    (box,) = attention_boxes(bump(2, 5), (64, 64))
    assert box.left <= 5.5 / 8 <= box.right
    assert box.top <= 2.5 / 8 <= box.bottom
    assert 0.5 / 64 < box.area < 4 / 64
    assert (box.left + box.right) / 2 == pytest.approx(5.5 / 8)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.int64, np.uint8])
def test_scale_and_type_do_not_matter(dtype: Any) -> None:
    assert attention_boxes(bump(1, 1, 200, dtype), (64, 64)) == attention_boxes(bump(1, 1), (64, 64))


def test_strong_values_do_not_wrap() -> None:
    """The reference casts maps to uint8: 256 becomes 0, and the strongest place vanishes."""
    strong = bump(1, 1, 256.0) + bump(6, 6, 255.0)
    boxes = attention_boxes(strong, (64, 64))
    assert len(boxes) == 2
    assert any(box.left <= 1.5 / 8 <= box.right and box.top <= 1.5 / 8 <= box.bottom for box in boxes)


def test_a_ring_is_one_contour_with_what_it_encloses() -> None:
    values = np.zeros((32, 32))
    values[4:20, 4:20] = 1
    values[6:18, 6:18] = 0
    values[11:13, 11:13] = 1
    values[28, 28] = 1
    boxes = attention_boxes(values, (32, 32))
    assert boxes == [Box(4 / 32, 4 / 32, 20 / 32, 20 / 32), Box(28 / 32, 28 / 32, 29 / 32, 29 / 32)]


def test_cells_that_touch_at_a_corner_are_one_contour() -> None:
    values = np.zeros((16, 16))
    values[4, 4] = values[5, 5] = 1
    assert attention_boxes(values, (16, 16)) == [Box(4 / 16, 4 / 16, 6 / 16, 6 / 16)]


@pytest.mark.parametrize(
    "values", [np.ones((7, 7)), np.zeros((1, 1)), bump(1, 1, np.nan), bump(1, 1, np.inf), bump(0, 0, -np.inf)]
)
def test_maps_without_a_high_part_have_no_boxes(values: Any) -> None:
    assert attention_boxes(values, (32, 32)) == []


def test_frames_need_not_be_square() -> None:
    values = np.zeros((4, 8))
    values[3, 7] = 1
    (box,) = attention_boxes(values, (32, 64))
    assert (box.right, box.bottom) == (1, 1)
    assert box.left > 0.75


maps = hnp.arrays(
    st.sampled_from([np.float32, np.float64, np.int32, np.uint8]),
    hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=14),
)
boxes = st.tuples(*[st.floats(0, 1)] * 4).map(
    lambda e: Box(min(e[0], e[2]), min(e[1], e[3]), max(e[0], e[2]), max(e[1], e[3]))
)


def check_rules(found: list[Box], max_boxes: int) -> None:
    assert len(found) <= max_boxes
    assert [b.area for b in found] == sorted((b.area for b in found), reverse=True)
    for n, box in enumerate(found):
        assert 0 <= box.left <= box.right <= 1
        assert 0 <= box.top <= box.bottom <= 1
        assert box.iou(FRAME) < 0.8
        assert all(box.iou(other) <= 0.5 for other in found[:n])


@settings(max_examples=60)
@given(maps, st.integers(1, 4))
def test_boxes_of_any_map_keep_the_rules(values: Any, max_boxes: int) -> None:
    found = attention_boxes(values, (24, 31), max_boxes)
    check_rules(found, max_boxes)
    assert all(box.area > 0 for box in found)


@settings(max_examples=100)
@given(st.lists(boxes, max_size=12), st.integers(0, 4))
def test_any_choice_of_boxes_keeps_the_rules(given_boxes: list[Box], max_boxes: int) -> None:
    found = select_boxes(given_boxes, max_boxes)
    check_rules(found, max_boxes)
    if len(found) < max_boxes:
        for box in given_boxes:
            assert box in found or box.iou(FRAME) >= 0.8 or any(box.iou(k) > 0.5 for k in found)


def test_a_half_overlap_is_kept_and_four_fifths_of_the_frame_are_not() -> None:
    half, quarter = Box(0, 0, 0.5, 1), Box(0, 0, 0.25, 1)
    assert select_boxes([quarter, half, Box(0, 0, 0.8, 1)], 4) == [half, quarter]


@settings(max_examples=100)
@given(boxes, boxes)
def test_iou(one: Box, other: Box) -> None:
    assert 0 <= one.iou(other) <= 1 + 1e-9
    assert one.iou(other) == pytest.approx(other.iou(one))
    if one.area > 0:
        assert one.iou(one) == pytest.approx(1)

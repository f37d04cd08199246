"""The curves that the benchmarks draw."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.diagram import risk_coverage


def test_risk_and_coverage_take_equal_confidences_together() -> None:
    points = risk_coverage(np.array([0.9, 0.9, 0.5, 0.1]), np.array([1.0, 0.0, 1.0, 0.0]))
    assert points == [(0.9, 0.5, 0.5), (0.5, 0.75, pytest.approx(2 / 3)), (0.1, 1.0, 0.5)]

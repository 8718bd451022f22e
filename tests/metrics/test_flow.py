from __future__ import annotations

import numpy as np
import pytest

from s2d.metrics.flow import flow_quality


def test_errors_and_outliers():
    truth = np.zeros((2, 3, 2), np.float32)
    truth[0, 0] = np.nan
    truth[1, 1] = [100, 0]
    flow = np.zeros_like(truth)
    flow[0, 1] = [0, 4]  # an outlier
    flow[0, 2] = [3, 0]  # not more than 3 px
    flow[1, 1] = [100, 5]  # not more than 5 %
    flow[0, 0] = 1000  # of no known truth
    quality = flow_quality(flow, truth)
    assert quality.pixels == 5
    assert quality.end_point_error == pytest.approx((4 + 3 + 5) / 5)
    assert quality.outliers == pytest.approx(1 / 5)


def test_flow_that_is_no_number_is_an_outlier():
    truth = np.zeros((1, 4, 2), np.float32)
    flow = truth.copy()
    flow[0, 1, 0] = np.nan
    quality = flow_quality(flow, truth)
    assert np.isnan(quality.end_point_error)
    assert quality.outliers == 0.25


def test_what_is_refused():
    truth = np.zeros((2, 3, 2))
    with pytest.raises(ValueError, match="expected flow and truth"):
        flow_quality(truth[:, :2], truth)
    with pytest.raises(ValueError, match="known somewhere"):
        flow_quality(truth, truth * np.nan)

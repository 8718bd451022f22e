from __future__ import annotations

import numpy as np
import pytest
import torch

from s2d.motion.camera import fit_homography, homography_flow, residual_flow

HEIGHT, WIDTH = 90, 160
CAMERA = np.array([[1.02, 0.01, -3.0], [-0.008, 0.99, 2.0], [1e-4, -5e-5, 1.0]])


def test_a_homography_is_found_again():
    found = fit_homography(homography_flow(CAMERA, HEIGHT, WIDTH))
    np.testing.assert_allclose(homography_flow(found, HEIGHT, WIDTH), homography_flow(CAMERA, HEIGHT, WIDTH), atol=1e-3)


def test_objects_and_noise_do_not_move_the_camera():
    flow = homography_flow(CAMERA, HEIGHT, WIDTH)
    noisy = flow + np.random.default_rng(0).normal(0, 0.1, flow.shape).astype(np.float32)
    noisy[20:60, 30:100] += np.array([6, -4], np.float32)
    residual, matrix = residual_flow(torch.from_numpy(noisy))
    assert matrix.shape == (3, 3)
    length = residual.norm(dim=-1)
    assert float(length[62:].mean()) < 0.2
    assert torch.allclose(residual[20:60, 30:100].mean((0, 1)), torch.tensor([6.0, -4.0]), atol=0.1)


def test_a_still_scene_has_the_identity():
    np.testing.assert_allclose(fit_homography(np.zeros((HEIGHT, WIDTH, 2), np.float32)), np.eye(3), atol=1e-6)


@pytest.mark.parametrize("flow", [np.zeros((1, 1, 2), np.float32), np.full((40, 40, 2), np.nan, np.float32)])
def test_where_nothing_can_be_fitted_it_is_the_identity(flow):
    np.testing.assert_array_equal(fit_homography(flow), np.eye(3))


def test_the_same_flow_gives_the_same_camera():
    flow = np.random.default_rng(1).normal(0, 3, (HEIGHT, WIDTH, 2)).astype(np.float32)
    np.testing.assert_array_equal(fit_homography(flow), fit_homography(flow.copy()))


def test_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"expected flow \[H, W, 2\]"):
        residual_flow(torch.zeros(3, 4, 5))

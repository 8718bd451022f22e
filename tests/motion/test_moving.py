from __future__ import annotations

import cv2
import numpy as np
import pytest

from s2d.motion.moving import moving_clip
from s2d.testing.scenes import moving_disc, texture


def test_the_object_moves_and_the_background_does_not():
    frames, masks = moving_disc()
    moving = moving_clip(frames.permute(0, 2, 3, 1).numpy())
    length = np.linalg.norm(moving.residual, axis=-1)
    for t in range(len(frames)):
        disc = masks[t].numpy()
        far = cv2.dilate(disc.astype(np.uint8), np.ones((17, 17))) == 0
        np.testing.assert_allclose(np.median(moving.residual[t][disc], 0), (2.5, 1.5), atol=0.6)
        assert np.median(length[t][far]) < 0.2
        assert moving.saliency[t][disc].mean() > 0.7 > 0.3 > moving.saliency[t][far].mean()
    assert moving.anything(0.6)


def test_an_object_that_stops_for_a_frame_is_still_seen():
    frames, masks = moving_disc(frames=9)
    order = [0, 1, 2, 3, 4, 4, 5, 6, 7, 8]
    moving = moving_clip(frames[order].permute(0, 2, 3, 1).numpy())
    disc = masks[4].numpy()
    assert moving.saliency[5][disc].mean() > 2 * moving.saliency[5][~disc].mean()


def still_scene(kind: str) -> np.ndarray:
    scene = texture(120, 160, 3)
    if kind == "noise":
        generator = np.random.default_rng(0)
        noisy = [scene + generator.normal(0, 2, scene.shape) for _ in range(8)]
        return np.clip(noisy, 0, 255).astype(np.uint8)
    if kind == "jpeg":
        files = [cv2.imencode(".jpg", scene, [cv2.IMWRITE_JPEG_QUALITY, 60 + 4 * k])[1] for k in range(8)]
        return np.stack([cv2.imdecode(file, cv2.IMREAD_COLOR) for file in files])
    if kind == "pan":
        wide = texture(200, 260, 4)
        y, x = np.mgrid[:120, :160].astype(np.float32)
        return np.stack([cv2.remap(wide, x + 20 + 2 * k, y + 30 + k, cv2.INTER_LINEAR) for k in range(8)])
    return np.stack([scene] * (1 if kind == "one frame" else 8))


@pytest.mark.parametrize("kind", ["still", "noise", "jpeg", "pan", "one frame"])
def test_nothing_moves_in_a_still_scene(kind):
    assert not moving_clip(still_scene(kind)).anything(0.6)

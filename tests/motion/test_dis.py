from __future__ import annotations

import numpy as np
import pytest
import torch

from s2d.motion.dis import dis_flow, video_flow
from s2d.testing.scenes import moving_disc

# Smoothness holds the flow of so small an object back.
NEAR = 0.5


@pytest.fixture(scope="module")
def scene():
    return moving_disc(frames=3)


def test_flow_says_where_a_pixel_has_gone(scene):
    frames, masks = scene
    flow = dis_flow(frames[0], frames[1])
    assert flow.dtype == torch.float32
    assert flow.shape == (*frames.shape[-2:], 2)
    assert torch.allclose(flow[masks[0]].median(0).values, torch.tensor([4.0, 1.0]), atol=NEAR)
    assert torch.allclose(flow[~masks[0]].median(0).values, torch.tensor([1.5, -0.5]), atol=0.2)


def test_grey_frames_do_as_well(scene):
    frames, masks = scene
    grey = frames.float().mean(1).to(torch.uint8)
    assert torch.allclose(dis_flow(grey[0], grey[1])[masks[0]].median(0).values, torch.tensor([4.0, 1.0]), atol=NEAR)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_video_flow_goes_both_ways(scene, dtype):
    frames, masks = scene
    flow = video_flow(frames, dtype=dtype)
    assert flow.forward.shape == flow.backward.shape == (2, *frames.shape[-2:], 2)
    assert flow.forward.dtype == flow.backward.dtype == dtype
    assert torch.equal(flow.forward[1], dis_flow(frames[1], frames[2]).to(dtype))
    assert torch.equal(flow.backward[1], dis_flow(frames[2], frames[1]).to(dtype))
    assert torch.allclose(flow.backward[0].float()[masks[1]].median(0).values, torch.tensor([-4.0, -1.0]), atol=NEAR)


def test_one_frame_has_no_flow(scene):
    flow = video_flow(scene[0][:1])
    assert flow.forward.shape == flow.backward.shape == (0, *scene[0].shape[-2:], 2)


@pytest.mark.parametrize("size", [(1, 1), (3, 40), (9, 9), (17, 250)])
def test_tiny_frames_have_a_flow_too(size):
    frames = torch.from_numpy(np.random.default_rng(0).integers(0, 255, (2, 3, *size), dtype=np.uint8))
    flow = dis_flow(frames[0], frames[1])
    assert flow.shape == (*size, 2)
    assert bool(flow.isfinite().all())


def test_what_is_refused(scene):
    frames, _ = scene
    with pytest.raises(ValueError, match="two frames of one size"):
        dis_flow(frames[0], frames[1][:, :-1])
    with pytest.raises(ValueError, match="quality to be one of"):
        dis_flow(frames[0], frames[1], quality="best")
    with pytest.raises(ValueError, match="frame uint8"):
        dis_flow(frames[0].float(), frames[1].float())

from __future__ import annotations

import pytest
import torch

from s2d.data.types import FrameMasks, Tracks
from s2d.ops import rle_encode


@pytest.fixture
def make_tracks():
    """Tracks from a bool tensor [N, T, H, W]."""

    def build(masks, scores=None, video="clip"):
        masks = masks.bool()
        number, _, height, width = masks.shape
        scores = torch.ones(number) if scores is None else torch.as_tensor(scores, dtype=torch.float32)
        annotated = masks.flatten(2).any(2)
        return Tracks(video, (height, width), rle_encode(masks.reshape(-1, height, width)), annotated, scores)

    return build


@pytest.fixture
def make_frame_masks():
    """FrameMasks from a list of (frame, bool [H, W], score)."""

    def build(items, num_frames):
        items = sorted(items, key=lambda item: item[0])
        masks = torch.stack([mask for _, mask, _ in items]).bool()
        frames = torch.tensor([frame for frame, _, _ in items])
        scores = torch.tensor([score for *_, score in items])
        return FrameMasks("clip", tuple(masks.shape[1:]), num_frames, rle_encode(masks), frames, scores)

    return build


@pytest.fixture
def blobs():
    return random_boxes


def random_boxes(generator, number, frames, height=20, width=70):
    """Random boxes [N, T, H, W], some frames empty."""
    masks = torch.zeros(number, frames, height, width, dtype=torch.bool)
    for n in range(number):
        y, x = (int(torch.randint(0, k - 6, (1,), generator=generator)) for k in (height, width))
        for t in range(frames):
            if float(torch.rand(1, generator=generator)) < 0.85:
                h, w = torch.randint(3, 12, (2,), generator=generator).tolist()
                masks[n, t, y : y + h, x + t : x + t + w] = True
    return masks

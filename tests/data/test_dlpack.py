"""Frames and masks cross to numpy, CuPy and back without a copy: the same memory on both sides."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from s2d.data import dali
from s2d.data.clip_loader import ClipLoader
from s2d.data.clip_plan import ClipFormat, ClipPlan
from s2d.data.clips import ClipSettings
from s2d.data.datasets import open_dataset
from s2d.data.video import Video, open_video
from s2d.ops import pack_masks, unpack_masks

from .conftest import pictures
from .test_datasets import SIZE, davis_2017

SETTINGS = ClipSettings(size=SIZE, frames=3, batch=2, decoder="pyav")


def address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def test_batches_cross_to_numpy_and_back(tmp_path, encode):
    davis_2017(tmp_path / "root", encode)
    (batch,) = ClipLoader(open_dataset(tmp_path / "root"), SETTINGS)
    tensors = [batch.frames, batch.times, *(t.masks for t in batch.targets), *(t.bits.words for t in batch.targets)]
    for tensor in tensors:
        array = np.from_dlpack(tensor)
        assert address(array) == tensor.data_ptr()
        back = torch.from_dlpack(array)
        assert back.data_ptr() == tensor.data_ptr()
        assert torch.equal(back, tensor)


def test_what_another_library_writes_is_seen():
    video = Video.from_frames(torch.from_numpy(pictures(4)).permute(0, 3, 1, 2))
    clip = video.clip(0, 2)
    np.from_dlpack(clip)[:] = 7
    assert (clip == 7).all()
    masks = torch.zeros(2, 40, 70, dtype=torch.bool)
    np.from_dlpack(masks)[1, 3, 5] = True
    words = np.from_dlpack(pack_masks(masks).words)
    assert words[1, 3, 0] == 1 << 5


@pytest.mark.skipif(dali.missing() is not None, reason=f"{dali.missing()}: pip install s2d[dali]")
def test_dalis_outputs_are_torch_tensors_on_its_memory(encode):
    """The batch that DALI made is one block, which the clips are views of, whoever holds them."""
    video = open_video(encode("x.webm", "libvpx-vp9", options={"deadline": "realtime"}))
    plan = ClipPlan.whole(np.arange(3), video.size)
    masks = np.ones((2, 3, *video.size), np.uint8)
    decoder = dali.DaliDecoder(SETTINGS, ClipFormat(video.size), torch.device("cpu"))
    first, second = decoder.decode([dali.request(video, plan, masks)] * 2)
    clip = first.frames
    assert second.frames.data_ptr() == clip.data_ptr() + clip.numel() * clip.element_size()
    assert address(np.from_dlpack(clip)) == clip.data_ptr()
    assert address(np.from_dlpack(first.masks)) == first.masks.data_ptr()
    assert first.masks.all()


def test_cupy_shares_memory_with_torch_on_a_gpu():
    """Components of masks by CuPy's own function and a kernel of one's own."""
    cupy = pytest.importorskip("cupy", reason="cupy is not installed (the extra 'cupy')")
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    from cupyx.scipy.ndimage import label

    masks = torch.zeros(2, 64, 64, dtype=torch.bool, device="cuda")
    masks[0, 4:9, 4:9] = masks[0, 40:50, 40:50] = True
    shared = cupy.from_dlpack(masks.view(torch.uint8))
    assert shared.data.ptr == masks.data_ptr()
    labels, number = label(shared[0])
    assert number == 2
    assert torch.from_dlpack(labels).data_ptr() == labels.data.ptr
    kernel = cupy.RawKernel(
        'extern "C" __global__ void invert(unsigned char* m, int n)'
        "{ int i = blockIdx.x * blockDim.x + threadIdx.x; if (i < n) m[i] = !m[i]; }",
        "invert",
    )
    kernel((32,), (256,), (shared, masks.numel()))
    cupy.cuda.get_current_stream().synchronize()
    assert int(masks.sum()) == masks.numel() - 125
    assert torch.equal(unpack_masks(pack_masks(masks)), masks)

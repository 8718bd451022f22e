"""Flow and tracks in files: against OpenCV's own readers, round trips, and what is refused."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from s2d.data.video import Video
from s2d.errors import InputError
from s2d.metrics.flow import flow_quality
from s2d.motion.dis import VideoFlow
from s2d.motion.files import FilesPrior, fit_flow, write_flow_folder
from s2d.motion.flow_formats import read_flo, read_flow, read_kitti, read_npz, write_flo, write_kitti, write_npz
from s2d.ops import PointTracks

LENGTH, SIZE = 12, (6, 8)


def video_of(size=SIZE, length=LENGTH, name="clip"):
    return Video.from_frames(torch.zeros(length, 3, *size, dtype=torch.uint8), name=name)


def flow_of(size=SIZE, length=LENGTH):
    """Every pair and direction differs from every other."""
    generator = torch.Generator().manual_seed(0)
    both = torch.randn(2, length - 1, *size, 2, generator=generator)
    both[:, :, 0, 0] = float("nan")
    return VideoFlow(both[0], both[1])


def scene_of(prior, video, start=0, stop=None):
    return prior.scene(video.clip(start, stop or video.num_frames), start, video)


def same(a, b):
    return torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num())


# ---- formats ----


def test_flo_is_what_opencv_reads_and_writes(tmp_path):
    flow = np.random.default_rng(0).standard_normal((7, 11, 2)).astype(np.float32) * 100
    write_flo(tmp_path / "ours.flo", flow)
    cv2.writeOpticalFlow(str(tmp_path / "theirs.flo"), flow)
    assert (tmp_path / "ours.flo").read_bytes() == (tmp_path / "theirs.flo").read_bytes()
    assert np.array_equal(cv2.readOpticalFlow(str(tmp_path / "ours.flo")), flow)
    assert np.array_equal(read_flo(tmp_path / "theirs.flo"), flow)


@settings(max_examples=25, deadline=None)
@given(arrays.arrays(np.float32, (3, 5, 2), elements=st.floats(-1e9, 1e9, width=32) | st.just(float("nan"))))
def test_flo_round_trip(tmp_path_factory, flow):
    path = tmp_path_factory.mktemp("flo") / "a.flo"
    write_flo(path, flow)
    unknown = np.isnan(flow).any(-1, keepdims=True)
    assert np.array_equal(read_flo(path), np.where(unknown, np.float32(np.nan), flow), equal_nan=True)


def test_unknown_flow_is_above_1e9(tmp_path):
    flow = np.array([[[1, 2], [1.5e9, 0], [0, -2e9], [1e9, -1e9], [np.inf, 1], [np.nan, 1]]], np.float32)
    cv2.writeOpticalFlow(str(tmp_path / "a.flo"), flow)
    assert np.isnan(read_flo(tmp_path / "a.flo")).all(-1).tolist() == [[False, True, True, False, True, True]]
    write_flo(tmp_path / "b.flo", flow[:, 5:])
    assert cv2.readOpticalFlow(str(tmp_path / "b.flo")).min() > 1e9


def test_kitti_is_what_opencv_sees(tmp_path):
    flow = np.random.default_rng(0).uniform(-512, 511.9, (7, 11, 2)).astype(np.float32)
    flow[2, 3] = flow[4, 5, 0] = np.nan
    write_kitti(tmp_path / "a.png", flow)
    blue, green, red = np.moveaxis(cv2.imread(str(tmp_path / "a.png"), cv2.IMREAD_UNCHANGED), 2, 0)
    known = ~np.isnan(flow).any(-1)
    assert red.dtype == np.uint16
    assert np.array_equal(blue, known)
    assert np.array_equal(red[known], np.rint(flow[known, 0] * 64) + 32768)
    assert np.array_equal(green[known], np.rint(flow[known, 1] * 64) + 32768)
    back = read_kitti(tmp_path / "a.png")
    assert np.array_equal(np.isnan(back).all(-1), ~known)
    assert np.abs(back[known] - flow[known]).max() <= 1 / 128
    write_kitti(tmp_path / "b.png", back)
    assert np.array_equal(read_kitti(tmp_path / "b.png"), back, equal_nan=True)


def test_kitti_has_sixteen_bits(tmp_path):
    for value in (-512.1, 512.0, np.inf):
        with pytest.raises(ValueError, match="expected flow in"):
            write_kitti(tmp_path / "a.png", np.full((2, 2, 2), value))
    assert not list(tmp_path.iterdir())


def test_npz_round_trip(tmp_path):
    flow = flow_of()
    for dtype in (torch.float32, torch.float16):
        write_npz(tmp_path / "a.npz", VideoFlow(flow.forward.to(dtype), flow.backward.to(dtype)))
        back, size = read_npz(tmp_path / "a.npz")
        assert (size, back.forward.dtype) == (SIZE, dtype)
        assert same(back.forward, flow.forward.to(dtype))
        assert same(back.backward, flow.backward.to(dtype))
    tracks = PointTracks(torch.rand(5, 4, 2), torch.rand(5, 4) > 0.5)
    write_npz(tmp_path / "b.npz", tracks, SIZE)
    back, size = read_npz(tmp_path / "b.npz")
    assert size == SIZE
    assert torch.equal(back.tracks, tracks.tracks)
    assert torch.equal(back.visible, tracks.visible)
    with pytest.raises(ValueError, match="expected size"):
        write_npz(tmp_path / "c.npz", tracks)


def broken_files(folder):
    """Files that are not what their names say, and a word of the sentence that tells so."""
    write_flo(folder / "good.flo", np.zeros((3, 4, 2)))
    good = (folder / "good.flo").read_bytes()
    cv2.imwrite(str(folder / "grey.png"), np.zeros((3, 4), np.uint16))
    cv2.imwrite(str(folder / "bytes.png"), np.zeros((3, 4, 3), np.uint8))
    np.savez(folder / "other.npz", depth=np.zeros(3))
    np.savez(folder / "objects.npz", forward=np.array([{}], dtype=object), backward=np.zeros(1))
    np.savez(folder / "unlike.npz", forward=np.zeros((2, 3, 4, 2), "f4"), backward=np.zeros((1, 3, 4, 2), "f4"))
    np.savez(folder / "sizeless.npz", tracks=np.zeros((2, 3, 2)), visible=np.zeros((2, 3), bool))
    np.savez(folder / "grey.npz", tracks=np.zeros((2, 3, 2)), visible=np.zeros((2, 3)), size=np.array([4, 5]))
    contents = {
        "cut.flo": good[:-1],
        "longer.flo": good + b"\0",
        "negative.flo": good[:4] + b"\xff" * 8,
        "text.flo": b"flow",
        "empty.flo": b"",
        "text.png": b"flow",
        "empty.png": b"",
        "text.npz": b"flow",
        "empty.npz": b"",
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("cut.flo", "expected 108 bytes of flow of 4 x 3 pixels"),
        ("longer.flo", "got 109 bytes"),
        ("negative.flo", "-1 x -1"),
        ("text.flo", "another kind of file"),
        ("empty.flo", "another kind of file"),
        ("absent.flo", "no such file"),
        ("grey.png", "16 bits and 1 channels"),
        ("bytes.png", "8 bits and 3 channels"),
        ("text.png", "no image"),
        ("empty.png", "no image"),
        ("absent.png", "no such file"),
        ("other.npz", "got depth"),
        ("objects.npz", "expected a .npz file"),
        ("unlike.npz", "expected forward and backward"),
        ("sizeless.npz", "got tracks, visible"),
        ("grey.npz", "visible bool"),
        ("text.npz", "expected a .npz file"),
        ("empty.npz", "expected a .npz file"),
        ("absent.npz", "no such file"),
    ],
)
def test_broken_files_are_told(tmp_path, name, word):
    broken_files(tmp_path)
    read = read_npz if name.endswith(".npz") else read_flow
    with pytest.raises(InputError, match=word) as caught:
        read(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)


# ---- the prior ----


@pytest.mark.parametrize("suffix", [".flo", ".png"])
def test_a_scene_takes_its_own_pairs(tmp_path, suffix):
    flow, video = flow_of(), video_of()
    write_flow_folder(tmp_path / "flow", flow, suffix)
    prior = FilesPrior(str(tmp_path / "flow"))
    scene = scene_of(prior, video, 3, 8)
    assert scene.forward.shape == (4, *SIZE, 2)
    tolerance = 0 if suffix == ".flo" else 1 / 128
    for found, wanted in ((scene.forward, flow.forward[3:7]), (scene.backward, flow.backward[3:7])):
        assert torch.allclose(found, wanted, rtol=0, atol=tolerance, equal_nan=True)
    one = scene_of(prior, video, 5, 6)
    assert one.forward.shape == one.backward.shape == (0, *SIZE, 2)


def test_files_come_in_natural_order(tmp_path):
    flow, video = flow_of(), video_of()
    for direction in ("forward", "backward"):
        for t, pair in enumerate(getattr(flow, direction)):
            write_flo(tmp_path / direction / f"frame{t}.flo", pair.numpy())
    assert same(scene_of(FilesPrior(str(tmp_path)), video).forward, flow.forward)


def test_several_videos_in_one_folder(tmp_path):
    flow = flow_of()
    tracks = PointTracks(torch.rand(5, LENGTH, 2), torch.rand(5, LENGTH) > 0.5)
    write_flow_folder(tmp_path / "cat", flow)
    write_npz(tmp_path / "dog.npz", tracks, SIZE)
    prior = FilesPrior(str(tmp_path))
    assert same(scene_of(prior, video_of(name="cat")).backward, flow.backward)
    found = scene_of(prior, video_of(name="dog"), 2, 5)
    assert torch.allclose(found.tracks, tracks.tracks[:, 2:5])
    assert torch.equal(found.visible, tracks.visible[:, 2:5])
    with pytest.raises(InputError, match="expected flow of bird"):
        scene_of(prior, video_of(name="bird"))


def test_flow_of_another_size_is_scaled(tmp_path):
    flow = VideoFlow(torch.full((1, 12, 16, 2), 3.0), torch.full((1, 12, 16, 2), -1.0))
    flow.forward[..., 1] = 2.0
    write_npz(tmp_path / "a.npz", flow)
    for size in ((6, 8), (24, 32)):
        scene = scene_of(FilesPrior(str(tmp_path / "a.npz")), video_of(size, 2))
        scale = size[0] / 12
        assert torch.allclose(scene.forward, torch.tensor([3.0, 2.0]) * scale)
        assert torch.allclose(scene.backward, torch.tensor(-1.0) * scale)


def test_tracks_of_another_size_are_scaled(tmp_path):
    """The corners of the frame stay its corners: they lie half a pixel outside the centres."""
    corners = torch.tensor([[-0.5, -0.5], [15.5, 11.5]])[:, None].repeat(1, 2, 1)
    write_npz(tmp_path / "a.npz", PointTracks(corners, torch.ones(2, 2, dtype=torch.bool)), (12, 16))
    tracks = scene_of(FilesPrior(str(tmp_path / "a.npz")), video_of((24, 32), 2)).tracks
    assert torch.allclose(tracks[:, 0], torch.tensor([[-0.5, -0.5], [31.5, 23.5]]))


def test_unknown_flow_does_not_spread():
    flow = np.full((8, 8, 2), 4.0, np.float32)
    flow[:, :3] = np.nan
    small, large = fit_flow(flow, (4, 4)), fit_flow(flow, (16, 16))
    assert np.allclose(small[~np.isnan(small)], 2)
    assert np.isnan(small[..., 0]).all(0).tolist() == [True, False, False, False]
    assert np.allclose(large[~np.isnan(large)], 8)
    assert np.isnan(large[..., 0]).all(0).tolist() == [True] * 6 + [False] * 10


def test_files_that_do_not_fit_are_refused(tmp_path):
    write_flow_folder(tmp_path / "flow", flow_of())
    write_npz(tmp_path / "a.npz", flow_of())
    folder, single = FilesPrior(str(tmp_path / "flow")), FilesPrior(str(tmp_path / "a.npz"))
    with pytest.raises(InputError, match=r"expected 12 files of flow .* of the 13 frames .* got 11"):
        scene_of(folder, video_of(length=13))
    with pytest.raises(InputError, match=r"expected the motion of 13 frames .* got that of 12"):
        scene_of(single, video_of(length=13))
    for prior in (folder, single):
        with pytest.raises(InputError, match=r"in the shape of the frames, 8 x 8, .* got 8 x 6"):
            scene_of(prior, video_of((8, 8)))
    for file in (tmp_path / "flow/backward").iterdir():
        file.unlink()
    (tmp_path / "flow/backward").rmdir()
    with pytest.raises(InputError, match="expected flow backward"):
        scene_of(folder, video_of())
    for place in ("absent", "flow/forward/000000.flo"):
        with pytest.raises(InputError, match=r"expected a folder of flow or a .npz file"):
            FilesPrior(str(tmp_path / place))


def test_the_fingerprint_notices_other_files(tmp_path):
    write_flow_folder(tmp_path, flow_of())
    before = FilesPrior(str(tmp_path)).fingerprint()
    assert FilesPrior(str(tmp_path)).fingerprint() == before
    (tmp_path / "forward/000003.flo").write_bytes(b"other")
    assert FilesPrior(str(tmp_path)).fingerprint() != before


# ---- real files ----


def test_middlebury_and_kitti(test_data):
    """Both formats as their makers wrote them: as OpenCV reads them, and their channels where DIS says they are."""
    folder = test_data / "data/flow"
    flo = folder / "middlebury_rubberwhale/flow10.flo"
    whale, raw = read_flo(flo), cv2.readOpticalFlow(str(flo))
    unknown = (np.abs(raw) > 1e9).any(-1)
    assert unknown.any()
    assert np.array_equal(np.isnan(whale).all(-1), unknown)
    assert np.array_equal(whale[~unknown], raw[~unknown])
    png = folder / "kitti_pair/flow_gt.png"
    turn, raw = read_kitti(png), cv2.imread(str(png), cv2.IMREAD_UNCHANGED).astype(np.float64)
    valid = raw[..., 0] > 0
    assert round(valid.mean(), 2) == 0.16
    assert np.array_equal(np.isnan(turn).all(-1), ~valid)
    assert np.array_equal(turn[valid], (raw[valid][:, :0:-1] - 32768) / 64)
    assert flow_quality(np.zeros_like(turn), turn).end_point_error == pytest.approx(51.01, abs=0.01)

"""Priors by their words, the default one, and what the command line says to wrong ones."""

from __future__ import annotations

import json
import warnings

import cv2
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from s2d import cli
from s2d.data.coco import write_proposals
from s2d.data.image_folder import read_image
from s2d.data.types import FrameMasks
from s2d.data.video import Video, open_video, write_video
from s2d.errors import InputError
from s2d.metrics.flow import flow_quality
from s2d.motion.dis import DisPrior, VideoFlow, video_flow
from s2d.motion.files import FilesPrior, write_flow_folder
from s2d.motion.flow_formats import read_flow, write_npz
from s2d.motion.prior import make_prior, parse_options
from s2d.ops import PointTracks, rle_encode, unpack_masks
from s2d.stages.discover import discover
from s2d.testing.scenes import moving_disc

LENGTH = 6


# ---- by their words ----


def test_dis_is_video_flow():
    frames, _ = moving_disc(frames=3)
    for quality in ("ultrafast", "fast", "medium", "fine"):
        prior = make_prior("dis", quality=quality)
        assert isinstance(prior, DisPrior)
        found, wanted = prior.scene(frames, 0, Video.from_frames(frames)), video_flow(frames, quality=quality)
        assert torch.equal(found.forward, wanted.forward)
        assert torch.equal(found.backward, wanted.backward)
    prints = [make_prior("dis", quality=quality).fingerprint() for quality in ("fine", "medium")]
    assert make_prior("dis").fingerprint() == prints[0] != prints[1]
    assert json.loads(json.dumps(prints)) == prints


def test_paths_may_hold_colons(tmp_path):
    (tmp_path / "a:b").mkdir()
    assert isinstance(make_prior(f"files:{tmp_path}/a:b"), FilesPrior)
    with pytest.raises(InputError, match=r"a checkout of CoTracker at x:y/cotracker/predictor.py"):
        make_prior("cotracker3:x:y:z.pth")


@pytest.mark.parametrize(
    ("word", "options", "sentence"),
    [
        ("", {}, "expected a motion prior (dis, raft:WEIGHTS, files:FOLDER, cotracker3:CHECKOUT:CHECKPOINT), got ''"),
        ("farneback", {}, "got 'farneback'"),
        ("dis:fast", {}, "expected the motion prior dis as dis, got 'dis:fast'"),
        ("raft", {}, "expected the motion prior raft as raft:WEIGHTS, got 'raft'"),
        ("raft:", {}, "as raft:WEIGHTS, got 'raft:'"),
        ("cotracker3:folder", {}, "as cotracker3:CHECKOUT:CHECKPOINT, got 'cotracker3:folder'"),
        ("files:absent", {}, "expected a folder of flow or a .npz file at absent, got nothing"),
        ("raft:absent.pth", {}, "expected weights of RAFT at absent.pth, got nothing"),
        ("dis", {"quality": "best"}, "quality of the motion prior dis: ultrafast, fast, medium, fine, got 'best'"),
        ("dis", {"iterations": "3"}, "expected an option of the motion prior dis (quality), got 'iterations'"),
        ("files:absent", {"quality": "fast"}, "expected no option of files, got 'quality'"),
        ("raft:absent.pth", {"iterations": "many"}, "expected iterations of the motion prior raft as int, got 'many'"),
    ],
)
def test_words_that_are_refused(word, options, sentence):
    with pytest.raises(InputError) as caught:
        make_prior(word, **options)
    assert sentence in str(caught.value)


def test_options_are_pairs():
    assert parse_options(["a=1", "b=c=d"]) == {"a": "1", "b": "c=d"}
    for word in ("a", "a=", "=1", ""):
        with pytest.raises(InputError, match="NAME=VALUE"):
            parse_options([word])


# ---- quality on real pairs ----


@pytest.mark.parametrize(
    ("pair", "names", "most"),
    [
        ("middlebury_rubberwhale", ("frame10.png", "frame11.png", "flow10.flo"), (0.54, 0.44, 0.23)),
        ("kitti_pair", ("frame1.png", "frame2.png", "flow_gt.png"), (42.1, 42.7, 38.5)),
    ],
)
def test_dis_is_as_good_as_opencvs(test_data, pair, names, most):
    """Equal to OpenCV called directly; the errors are those measured when this was written, rounded up."""
    folder = test_data / "data/flow" / pair
    pixels = np.stack([read_image(folder / name) for name in names[:2]])
    video = Video.from_frames(torch.from_numpy(pixels).movedim(3, 1))
    grey = [cv2.cvtColor(cv2.imread(str(folder / name)), cv2.COLOR_BGR2GRAY) for name in names[:2]]
    truth = read_flow(folder / names[2])
    for preset, (quality, error) in enumerate(zip(("ultrafast", "fast", "medium"), most, strict=True)):
        flow = make_prior("dis", quality=quality).scene(video.clip(0, 2), 0, video)
        assert np.array_equal(flow.forward[0], cv2.DISOpticalFlow_create(preset).calc(*grey, None))
        assert np.array_equal(flow.backward[0], cv2.DISOpticalFlow_create(preset).calc(*grey[::-1], None))
        assert flow_quality(flow.forward[0].numpy(), truth).end_point_error <= error
    fine = make_prior("dis").scene(video.clip(0, 2), 0, video).forward[0].numpy()
    assert flow_quality(fine, truth).end_point_error < most[-1]


# ---- through discovery and the command line ----


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A video file of a moving disc, and its masks as proposals; (folder, video, masks)."""
    folder = tmp_path_factory.mktemp("clip")
    frames, masks = moving_disc(frames=LENGTH)
    write_video(folder / "clip.mp4", frames, 10)
    size, index = tuple(masks.shape[1:]), torch.arange(LENGTH)
    found = FrameMasks("clip", size, LENGTH, rle_encode(masks), index, torch.ones(LENGTH))
    write_proposals(folder / "masks.json", found)
    return folder, open_video(folder / "clip.mp4"), found


def run_discover(folder, output, *options):
    arguments = ["discover", folder / "clip.mp4", folder / "masks.json", "-o", output, "-q", *options]
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def test_discover_asks_the_prior_for_every_scene(clip):
    _, video, masks = clip

    class Seen(DisPrior):
        scenes = ()

        def scene(self, frames, start, video):
            self.scenes += ((start, len(frames), video.name),)
            return super().scene(frames, start, video)

    prior = Seen()
    found, usual = (discover(video, masks, progress=False, **extra) for extra in ({"motion": prior}, {}))
    assert prior.scenes == ((0, LENGTH, "clip"),)
    assert torch.equal(unpack_masks(found.bits()), unpack_masks(usual.bits()))
    assert len(usual) == 1


def test_flow_from_files_and_from_the_cache_finds_the_same(clip, tmp_path):
    folder, video, _ = clip
    write_flow_folder(tmp_path / "flow", video_flow(video.clip(0, LENGTH)))
    files, cache = ("--motion", f"files:{tmp_path}/flow"), ("--cache", tmp_path / "cache")
    found = []
    for options in ((), (*files, *cache), cache, cache):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert run_discover(folder, tmp_path / "out.json", "--overwrite", *options).exit_code == 0
        annotations = json.loads((tmp_path / "out.json").read_text())["annotations"]
        found.append([annotation["segmentations"] for annotation in annotations])
    assert len(found[0]) == 1
    assert all(one == found[0] for one in found)
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_unknown_flow_is_no_motion(clip):
    """Where nothing is known no point is carried: each mask stands alone, and that is no error."""
    _, video, masks = clip
    nothing = torch.full((LENGTH - 1, *video.size, 2), float("nan"))

    class Unknown(DisPrior):
        def scene(self, frames, start, video):
            return VideoFlow(nothing, nothing)

    assert len(discover(video, masks, motion=Unknown(), progress=False)) == 0


BAD = [
    (("--motion", "magic"), "expected a motion prior"),
    (("--motion", "raft:{0}/absent.pth"), "no such file"),
    (("--motion", "raft:{0}/text"), "cut off or another file"),
    (("--motion", "cotracker3:{0}:{0}/text"), "expected a checkout of CoTracker"),
    (("--motion-option", "quality"), "NAME=VALUE"),
    (("--motion-option", "quality=best"), "expected quality"),
    (("--motion-option", "device=cpu"), "got 'device'"),
    (("--cache", "{0}/text"), "expected a folder for the cache"),
    (("--motion", "files:{0}/absent"), "no such file"),
    (("--motion", "files:{0}"), "expected flow of clip"),
    (("--motion", "files:{0}/few"), "expected 5 files of flow"),
    (("--motion", "files:{0}/square"), "in the shape of the frames"),
    (("--motion", "files:{0}/broken"), "expected a .flo file of flow in"),
    (
        ("--motion", "files:{0}/tracks.npz", "--scoring", "flow"),
        "gives optical flow for the scoring flow, got point tracks",
    ),
    (("--motion", "files:{0}/text.npz"), "expected a .npz file of arrays"),
]


@pytest.fixture(scope="module")
def bad_files(clip):
    """Files that do not fit the clip, beside it."""
    folder, video, _ = clip
    for name in ("text", "text.npz"):
        (folder / name).write_text("this is nothing of that kind")
    for name, pairs, size in (("few", 3, video.size), ("square", 5, (10, 10)), ("broken", 5, video.size)):
        write_flow_folder(folder / name, VideoFlow(*2 * [torch.zeros(pairs, *size, 2)]))
    (folder / "broken/forward/000003.flo").write_bytes(b"PIEX")
    tracks = PointTracks(torch.zeros(2, LENGTH, 2), torch.ones(2, LENGTH, dtype=torch.bool))
    write_npz(folder / "tracks.npz", tracks, video.size)
    return folder


@pytest.mark.parametrize(("options", "sentence"), BAD)
def test_bad_motion_is_one_sentence_and_leaves_nothing(bad_files, options, sentence):
    before = sorted(bad_files.rglob("*"))
    cache = () if "--cache" in options else ("--cache", bad_files / "cache")
    result = run_discover(bad_files, bad_files / "out.json", *cache, *(option.format(bad_files) for option in options))
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("s2d: expected")
    assert sentence in result.stderr
    assert result.stderr.count("\n") == 1
    assert sorted(bad_files.rglob("*")) == before

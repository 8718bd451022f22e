"""Every format of datasets: a small one written by hand is read into the same videos and masks."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from s2d.cli import app
from s2d.data.datasets import open_dataset, write_dataset
from s2d.data.datasets.check import check_dataset
from s2d.data.ytvis import read_ytvis
from s2d.errors import InputError
from s2d.ops import rle_encode, unpack_masks

from .conftest import pictures

FRAMES, SIZE = 9, (24, 40)
VIDEOS = ("bear", "camel")


def masks_of(video: str) -> np.ndarray:
    """Two instances that move and do not overlap: bool [2, T, H, W]; the second of the camel is gone at the end."""
    masks = np.zeros((2, FRAMES, *SIZE), dtype=bool)
    for t in range(FRAMES):
        masks[0, t, 2:10, 3 + t : 12 + t] = True
        if video == "bear" or t < 5:
            masks[1, t, 12 + VIDEOS.index(video) : 22, 20 - t : 30 - t] = True
    return masks


def write_images(folder: Path, pattern: str = "{:05d}.jpg", frames: int = FRAMES) -> list[str]:
    folder.mkdir(parents=True)
    names = [pattern.format(t) for t in range(frames)]
    for name, image in zip(names, pictures(frames, SIZE), strict=True):
        Image.fromarray(image).save(folder / name)
    return names


def write_labels(folder: Path, masks: np.ndarray, values: tuple[int, ...], frames: range, stuff: int = 0) -> None:
    """Label maps (16 bit where a value needs it) of some frames."""
    folder.mkdir(parents=True)
    for t in frames:
        labels = np.full(SIZE, stuff, dtype=np.uint16 if max(values) > 255 else np.uint8)
        for value, tube in zip(values, masks, strict=True):
            labels[tube[t]] = value
        Image.fromarray(labels).save(folder / f"{t:05d}.png")


def write_ytvis_like(json_file: Path, images: Path, pattern: str) -> None:
    videos, annotations = [], []
    for number, video in enumerate(VIDEOS, 1):
        names = [f"{video}/{name}" for name in write_images(images / video, pattern)]
        size = {"height": SIZE[0], "width": SIZE[1]}
        videos.append({"id": number, "length": FRAMES, "file_names": names, **size})
        for tube in masks_of(video):
            codes = rle_encode(torch.from_numpy(tube)).to_coco()
            codes = [code if tube[t].any() else None for t, code in enumerate(codes)]
            annotations.append(
                {"id": len(annotations) + 1, "video_id": number, "category_id": 3, "iscrowd": 0, "segmentations": codes}
            )
    json_file.parent.mkdir(parents=True, exist_ok=True)
    json_file.write_text(json.dumps({"videos": videos, "annotations": annotations, "categories": [{"id": 3}]}))


def ytvis_2019(root: Path, encode: Callable) -> None:
    write_ytvis_like(root / "train.json", root / "train" / "JPEGImages", "{:05d}.jpg")


def ytvis_2021(root: Path, encode: Callable) -> None:
    write_ytvis_like(root / "train" / "instances.json", root / "train" / "JPEGImages", "{:05d}.jpg")


def ovis(root: Path, encode: Callable) -> None:
    write_ytvis_like(root / "annotations_train.json", root / "train", "img_{:07d}.jpg")


def davis_2017(root: Path, encode: Callable) -> None:
    for video in VIDEOS:
        write_images(root / "JPEGImages" / "480p" / video)
        write_labels(root / "Annotations" / "480p" / video, masks_of(video), (1, 2), range(FRAMES))
    (root / "ImageSets" / "2017").mkdir(parents=True)
    (root / "ImageSets" / "2017" / "train.txt").write_text("bear\ncamel\n")
    (root / "ImageSets" / "2017" / "val.txt").write_text("camel\n")


def davis_2016(root: Path, encode: Callable) -> None:
    lines = {}
    for video in VIDEOS:
        names = write_images(root / "JPEGImages" / "480p" / video)
        write_labels(root / "Annotations" / "480p" / video, masks_of(video)[:1], (255,), range(FRAMES))
        pairs = [(f"/JPEGImages/480p/{video}/{n}", f"/Annotations/480p/{video}/{n[:-4]}.png") for n in names]
        lines[video] = "".join(f"{image} {mask}\n" for image, mask in pairs)
    (root / "ImageSets" / "480p").mkdir(parents=True)
    (root / "ImageSets" / "480p" / "train.txt").write_text(lines["bear"] + lines["camel"])
    (root / "ImageSets" / "480p" / "val.txt").write_text(lines["camel"])


def mose(root: Path, encode: Callable) -> None:
    for video in VIDEOS:
        write_images(root / "train" / "JPEGImages" / video)
        write_labels(root / "train" / "Annotations" / video, masks_of(video), (3, 7), range(FRAMES))


def vipseg(root: Path, encode: Callable) -> None:
    for video in VIDEOS:
        write_images(root / "imgs" / video)
        write_labels(root / "panomasks" / video, masks_of(video), (6100, 6101), range(FRAMES), stuff=12)
    (root / "train.txt").write_text("bear\ncamel\n")
    (root / "val.txt").write_text("camel\n")


def vipseg_rgb(root: Path, encode: Callable) -> None:
    """As the official scripts convert it: colours, and a json that says which of them are things."""
    # Red is the lowest byte of an id.
    colours = {1: (1, 7, 0), 2: (3, 0, 0), 3: (90, 80, 70)}
    annotations = []
    for video in VIDEOS:
        names = write_images(root / "images" / video)
        (root / "panomasksRGB" / video).mkdir(parents=True)
        images = []
        for t, name in enumerate(names):
            colour = np.full((*SIZE, 3), colours[3], np.uint8)
            for n, tube in enumerate(masks_of(video), 1):
                colour[tube[t]] = colours[n]
            Image.fromarray(colour).save(root / "panomasksRGB" / video / f"{name[:-4]}.png")
            ids = {n: red + 256 * green + 65536 * blue for n, (red, green, blue) in colours.items()}
            rows = [{"id": ids[n], "category_id": 12 if n == 3 else 60} for n in colours]
            images.append({"image_id": name[:-4], "segments_info": rows})
        annotations.append({"video_id": video, "annotations": images})
    categories = [{"id": 12, "isthing": 0}, {"id": 60, "isthing": 1}]
    data = {"videos": [], "annotations": annotations, "categories": categories}
    (root / "panoptic_gt_VIPSeg.json").write_text(json.dumps(data))


def sav(root: Path, encode: Callable) -> None:
    root.mkdir(parents=True)
    for video in VIDEOS:
        shutil.move(encode(f"{video}.mp4", frames=FRAMES, size=SIZE, rate=24), root / f"{video}.mp4")
        for kind, tube in zip(("manual", "auto"), masks_of(video), strict=True):
            rows = [[code] for code in rle_encode(torch.from_numpy(tube[::4])).to_coco()]
            data = {"video_frame_count": float(FRAMES), "video_height": float(SIZE[0]), "video_width": float(SIZE[1])}
            data |= {"video_id": video, "masklet": rows, "masklet_num": 1}
            (root / f"{video}_{kind}.json").write_text(json.dumps(data))


def sav_frames(root: Path, encode: Callable) -> None:
    for video in VIDEOS:
        write_images(root / "JPEGImages_24fps" / video)
        for n, tube in enumerate(masks_of(video)):
            folder = root / "Annotations_6fps" / video / f"{n:03d}"
            write_labels(folder, tube[None], (255,), range(0, FRAMES, 4))
    (root / "sav_val.txt").write_text("camel\n")


# format, writer, instances of a video, every how many frames have masks
FORMATS = {
    "ytvis-2019": ("ytvis", ytvis_2019, 2, 1),
    "ytvis-2021": ("ytvis", ytvis_2021, 2, 1),
    "ovis": ("ytvis", ovis, 2, 1),
    "davis-2017": ("davis", davis_2017, 2, 1),
    "davis-2016": ("davis", davis_2016, 1, 1),
    "mose": ("mose", mose, 2, 1),
    "vipseg": ("vipseg", vipseg, 2, 1),
    "vipseg-rgb": ("vipseg", vipseg_rgb, 2, 1),
    "sav": ("sav", sav, 2, 4),
    "sav-frames": ("sav-frames", sav_frames, 2, 4),
}


@pytest.fixture(params=FORMATS)
def written(request, tmp_path, encode):
    """(name, root) of a small dataset in each format."""
    FORMATS[request.param][1](tmp_path / "root", encode)
    return request.param, tmp_path / "root"


def test_every_format_reads_into_the_same_types(written):
    name, root = written
    format, _, instances, every = FORMATS[name]
    dataset = open_dataset(root)
    assert (dataset.format, [sample.name for sample in dataset]) == (format, list(VIDEOS))
    for sample in dataset:
        video, tracks = sample.video(), sample.tracks()
        assert (video.num_frames, video.size, tracks.num_frames, tracks.size) == (FRAMES, SIZE, FRAMES, SIZE)
        difference = video.clip(0, FRAMES).permute(0, 2, 3, 1).float() - torch.from_numpy(pictures(FRAMES, SIZE))
        assert difference.abs().mean() < 12  # lossy; another frame differs by more than 30
        expected = masks_of(sample.name)[:instances]
        found = unpack_masks(tracks.bits()).numpy()
        assert np.array_equal(found[:, ::every], expected[:, ::every])
        annotated = np.zeros((instances, FRAMES), dtype=bool)
        annotated[:, ::every] = True
        if format == "ytvis":
            annotated &= expected.any((2, 3))
        assert np.array_equal(tracks.annotated.numpy(), annotated)


def test_every_format_is_written_as_ytvis_json(written, tmp_path):
    _, root = written
    dataset = open_dataset(root)
    assert write_dataset(tmp_path / "all.json", dataset, progress=False) == 2
    for sample, read in zip(dataset, read_ytvis(tmp_path / "all.json"), strict=True):
        tracks = sample.tracks()
        assert (read.video, read.size) == (sample.name, tracks.size)
        assert torch.equal(read.annotated, tracks.annotated)
        assert torch.equal(read.bits().words, tracks.bits().words)
    names = json.loads((tmp_path / "all.json").read_text())["videos"][0]["file_names"]
    if not isinstance(dataset[0].source, Path):
        assert names == [f"bear/{path.name}" for path in dataset[0].source]


def test_a_dataset_in_order_passes_the_check(written):
    name, root = written
    report = check_dataset(open_dataset(root), progress=False, decode=True)
    assert report.problems == ()
    assert (report.videos, report.frames, report.annotated) == (2, 2 * FRAMES, 2)
    assert report.instances == 2 * FORMATS[name][2]


@pytest.mark.parametrize("name", ["davis-2017", "davis-2016", "vipseg", "sav-frames"])
def test_splits_are_lists(tmp_path, encode, name):
    FORMATS[name][1](tmp_path / "root", encode)
    assert [sample.name for sample in open_dataset(tmp_path / "root", split="val")] == ["camel"]
    with pytest.raises(InputError, match=r"one of the splits .*val.*, got nope"):
        open_dataset(tmp_path / "root", split="nope")


def test_splits_are_json_files_or_folders(tmp_path, encode):
    ytvis_2019(tmp_path / "y", encode)
    shutil.copy(tmp_path / "y" / "train.json", tmp_path / "y" / "valid.json")
    with pytest.raises(InputError, match=r"one of the splits train, valid of .*, none was named"):
        open_dataset(tmp_path / "y")
    assert open_dataset(tmp_path / "y", split="train")[0].video().num_frames == FRAMES
    assert open_dataset(tmp_path / "y" / "train.json")[0].video().num_frames == FRAMES
    mose(tmp_path / "m", encode)
    (tmp_path / "m" / "train").rename(tmp_path / "m" / "valid")
    assert len(open_dataset(tmp_path / "m", split="valid")) == 2
    assert len(open_dataset(tmp_path / "m" / "valid")) == 2


def test_colours_of_vipseg_need_their_json(tmp_path, encode):
    vipseg_rgb(tmp_path, encode)
    file = tmp_path / "panoptic_gt_VIPSeg.json"
    file.write_text('{"categories": []}')
    with pytest.raises(InputError, match=r"panoptic json in .*'annotations'"):
        open_dataset(tmp_path)
    file.unlink()
    with pytest.raises(InputError, match=r"panoptic_gt_VIPSeg\*\.json in .*what colours are things, got none"):
        open_dataset(tmp_path)


def test_a_folder_of_videos_has_no_masks(tmp_path, encode):
    (tmp_path / "videos").mkdir()
    shutil.move(encode("a.mp4", frames=5), tmp_path / "videos" / "a.mp4")
    write_images(tmp_path / "videos" / "b")
    dataset = open_dataset(tmp_path / "videos")
    assert dataset.format == "videos"
    assert [(s.name, s.annotated, s.tracks(), s.video().num_frames) for s in dataset] == [
        ("a", False, None, 5),
        ("b", False, None, FRAMES),
    ]
    assert check_dataset(dataset, progress=False).problems == ()
    with pytest.raises(InputError, match="no split"):
        open_dataset(tmp_path / "videos", split="val")


def test_what_is_no_dataset(tmp_path):
    with pytest.raises(InputError, match="no such file or folder"):
        open_dataset(tmp_path / "nothing")
    with pytest.raises(InputError, match="got none of them"):
        open_dataset(tmp_path)
    with pytest.raises(InputError, match=r"one of davis, .*, got 'coco'"):
        open_dataset(tmp_path, format="coco")
    (tmp_path / "x.json").write_text("[]")
    with pytest.raises(InputError, match="another kind of json"):
        open_dataset(tmp_path / "x.json")


def remove(path: Path) -> None:
    path.unlink()


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def shrink(path: Path) -> None:
    Image.open(path).resize((20, 12)).save(path)


def shorten(path: Path) -> None:
    data = json.loads(path.read_text())
    data["annotations"][0]["segmentations"].pop()
    path.write_text(json.dumps(data))


def lengthen(path: Path) -> None:
    data = json.loads(path.read_text())
    data["videos"][0]["length"] += 1
    path.write_text(json.dumps(data))


FAULTS = {
    "missing frame": (ytvis_2019, "train/JPEGImages/bear/00003.jpg", remove, "missing frame"),
    "half a frame": (mose, "train/JPEGImages/bear/00003.jpg", halve, "unreadable frame"),
    "empty frame": (davis_2017, "JPEGImages/480p/bear/00003.jpg", empty, "unreadable frame"),
    "small frame": (ovis, "train/bear/img_0000003.jpg", shrink, "size"),
    "small label map": (mose, "train/Annotations/bear/00003.png", shrink, "masks"),
    "missing label map": (davis_2017, "Annotations/480p/bear/00003.png", remove, "masks"),
    "half a label map": (vipseg, "panomasks/bear/00003.png", halve, "masks"),
    "label map without image": (sav_frames, "JPEGImages_24fps/bear/00004.jpg", remove, "masks"),
    "short annotation": (ytvis_2019, "train.json", shorten, "masks"),
    "other length": (ytvis_2021, "train/instances.json", lengthen, "length"),
    "half a video": (sav, "bear.mp4", halve, "unreadable video"),
    "empty video": (sav, "bear.mp4", empty, "unreadable video"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_check_finds_what_is_wrong(tmp_path, encode, fault):
    write, place, harm, kind = FAULTS[fault]
    write(tmp_path / "root", encode)
    harm(tmp_path / "root" / place)
    result = CliRunner().invoke(app, ["dataset", "check", str(tmp_path / "root")])
    assert result.exit_code == 1, result.output
    report = check_dataset(open_dataset(tmp_path / "root"), progress=False)
    assert {problem.kind for problem in report.problems} >= {kind}
    assert {problem.video for problem in report.problems} <= {"bear", "video 1"}
    assert all("\n" not in problem.message for problem in report.problems)
    assert kind in result.output


def test_the_commands(tmp_path, encode):
    davis_2017(tmp_path / "root", encode)
    result = CliRunner().invoke(app, ["dataset", "check", str(tmp_path / "root"), "--split", "val"])
    assert result.exit_code == 0, result.output
    assert "davis dataset" in result.output
    arguments = ["dataset", "convert", str(tmp_path / "root"), "-o", str(tmp_path / "out.json")]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert CliRunner().invoke(app, arguments).exit_code == 2
    assert len(read_ytvis(tmp_path / "out.json")) == 2

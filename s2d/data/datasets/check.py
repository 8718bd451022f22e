"""Verify a dataset before a long run: every frame, every size, every annotation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from s2d.data.datasets.sample import Dataset, Sample
from s2d.data.image_folder import check_size, ends_early, read_image, upright_size
from s2d.data.types import Tracks
from s2d.errors import InputError

# What can be wrong, in the order of the table.
KINDS = ("missing frame", "unreadable frame", "size", "length", "unreadable video", "incomplete video", "masks")


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: a kind of `KINDS`, the video, and a sentence."""

    kind: str
    video: str
    message: str


@dataclass(frozen=True)
class CheckReport:
    """What `check_dataset` found.

    Attributes:
        videos: how many there are.
        frames: frames of the videos that could be opened.
        annotated: videos with masks.
        instances: instances of the videos whose masks could be read.
        problems: everything that is wrong.
    """

    videos: int
    frames: int
    annotated: int
    instances: int
    problems: tuple[Problem, ...]

    def counts(self) -> dict[str, int]:
        """How many problems there are of each kind that occurs."""
        found = Counter(problem.kind for problem in self.problems)
        return {kind: found[kind] for kind in KINDS if found[kind]}


def check_dataset(dataset: Dataset, *, decode: bool = False, progress: bool = True) -> CheckReport:
    """Look at every video, every frame and all masks; nothing that is wrong ends the check.

    Of images the header is read and the end of the file looked for; a video file is indexed, as `open_video` does.

    Args:
        decode: decode every frame, too.
        progress: whether to show a progress bar.
    """
    problems: list[Problem] = []
    frames = instances = 0
    bar = tqdm(dataset, desc=f"check {dataset.format}", unit="video", disable=not progress)
    for sample in bar:
        size, length, found = _check_frames(sample, decode)
        problems += found
        frames += length or 0
        tracks, found = _check_tracks(sample, size, length)
        problems += found
        instances += 0 if tracks is None else len(tracks)
        bar.set_postfix(problems=len(problems), refresh=False)
    return CheckReport(len(dataset), frames, sum(sample.annotated for sample in dataset), instances, tuple(problems))


def _check_frames(sample: Sample, decode: bool) -> tuple[tuple[int, int] | None, int | None, list[Problem]]:
    """(H, W) and number of the frames, where they are known, and what is wrong with them."""
    if not isinstance(sample.source, Path):
        problems = list(_image_problems(sample, decode))
        size = sample.size or next(filter(None, map(_size, sample.source)), None)
        return size, len(sample.source), problems
    try:
        video = sample.video()
        problems = [Problem("incomplete video", sample.name, note) for note in video.losses]
        if decode:
            for _ in video:
                pass
        return video.size, video.num_frames, problems
    except InputError as error:
        return None, None, [Problem("unreadable video", sample.name, str(error))]


def _image_problems(sample: Sample, decode: bool) -> Iterator[Problem]:
    if not sample.source:
        yield Problem("missing frame", sample.name, f"expected images of {sample.name}, got none")
    if sample.num_frames is not None and sample.num_frames != len(sample.source):
        message = f"expected {sample.num_frames} frames of {sample.name}, got names of {len(sample.source)}"
        yield Problem("length", sample.name, message)
    expected = sample.size
    for path in sample.source:
        if not path.is_file():
            yield Problem("missing frame", sample.name, f"expected an image at {path}, got nothing: no such file")
            continue
        try:
            size = upright_size(path)
            _check_complete(path, decode)
        except InputError as error:
            yield Problem("unreadable frame", sample.name, str(error))
            continue
        expected = expected or size
        try:
            check_size(path, size, expected)
        except InputError as error:
            yield Problem("size", sample.name, str(error))


def _check_complete(path: Path, decode: bool) -> None:
    """InputError for an image that ends early, as a copy that was broken off does."""
    if ends_early(path):
        raise InputError(f"expected an image in {path}, got a file that ends early")
    if decode:
        read_image(path)


def _size(path: Path) -> tuple[int, int] | None:
    try:
        return upright_size(path)
    except InputError:
        return None


def _check_tracks(
    sample: Sample, size: tuple[int, int] | None, length: int | None
) -> tuple[Tracks | None, list[Problem]]:
    try:
        tracks = sample.tracks()
    except InputError as error:
        return None, [Problem("masks", sample.name, str(error))]
    problems = []
    if tracks is not None and length is not None and tracks.num_frames != length:
        message = f"expected masks of the {length} frames of {sample.name}, got {tracks.num_frames} frames"
        problems.append(Problem("length", sample.name, message))
    if tracks is not None and size is not None and tracks.size != size:
        wanted, found = (f"{w} x {h}" for h, w in (size, tracks.size))
        problems.append(Problem("size", sample.name, f"expected masks of {wanted} of {sample.name}, got {found}"))
    return tracks, problems

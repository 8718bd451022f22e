"""What every dataset on disk is read into: a list of videos with, for most, instance tracks."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from s2d.data.files import write_json
from s2d.data.image_folder import listed_images
from s2d.data.types import Tracks
from s2d.data.video import Video, open_video
from s2d.data.ytvis import ytvis_dict


@dataclass(frozen=True, eq=False)
class Sample:
    """One video of a dataset; nothing of it is read before it is asked for.

    Attributes:
        name: of the video, unlike any other of its dataset.
        source: the images of its frames in order, or one video file or folder of images.
        size: (H, W) that the annotation says the frames have; None where it says nothing.
        num_frames: how many the annotation says there are; None where it says nothing.
        annotations: the files that the masks come from.
    """

    name: str
    source: tuple[Path, ...] | Path
    size: tuple[int, int] | None = None
    num_frames: int | None = None
    annotations: tuple[Path, ...] = ()
    _tracks: Callable[[], Tracks] | None = field(default=None, repr=False)

    @property
    def annotated(self) -> bool:
        """Whether there are masks."""
        return self._tracks is not None

    def video(self) -> Video:
        """Open its frames.

        Raises:
            InputError: as `open_video`; of listed images, the first is missing or cannot be read.
        """
        if isinstance(self.source, Path):
            return open_video(self.source)
        source = listed_images(self.source)
        return Video(self.name, source.size, source)

    def tracks(self) -> Tracks | None:
        """Its instances (`Keymasks` where the file holds those); None where there are no masks.

        Raises:
            InputError: a file of masks is missing, cannot be read or contradicts the others.
        """
        return None if self._tracks is None else self._tracks()


@dataclass(frozen=True, eq=False)
class Dataset(Sequence[Sample]):
    """The videos of a dataset.

    Attributes:
        format: which reader found them, a key of `s2d.data.datasets.FORMATS`.
        path: what was opened.
    """

    format: str
    path: Path
    samples: tuple[Sample, ...]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]


def write_dataset(path: str | os.PathLike, dataset: Sequence[Sample], *, progress: bool = True) -> int:
    """Write the annotated videos of a dataset as one YouTube-VIS json; ``file_names`` are those of its images.

    Returns:
        The number of videos written.

    Raises:
        InputError: masks that cannot be read, or a path that cannot be written to.
    """
    annotated = [sample for sample in dataset if sample.annotated]
    tracks = [sample.tracks() for sample in tqdm(annotated, desc="tracks", unit="video", disable=not progress)]
    written = ytvis_dict(tracks)
    for video, sample in zip(written["videos"], annotated, strict=True):
        if not isinstance(sample.source, Path):
            video["file_names"] = [f"{image.parent.name}/{image.name}" for image in sample.source]
    write_json(path, written)
    return len(annotated)

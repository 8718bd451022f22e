"""A folder of videos: for each a folder of images, or a video file."""

from __future__ import annotations

from pathlib import Path

from s2d.data.image_folder import SUFFIXES, list_images, natural_order
from s2d.errors import InputError

VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm")


def holds_videos(path: Path) -> bool:
    """Whether ``path`` is a folder of videos, and not the frames of one: no image is in it, but a folder or a video."""
    return path.is_dir() and not list_images(path, SUFFIXES) and any(map(_is_video, path.iterdir()))


def list_videos(folder: Path) -> dict[str, Path]:
    """The videos of a folder by name, in natural order.

    A folder is a video of that name, whatever is in it; a video file is one without its suffix. Hidden entries and
    other files are left out.

    Raises:
        InputError: two videos of one name.
    """
    videos: dict[str, Path] = {}
    for path in sorted(filter(_is_video, folder.iterdir()), key=lambda path: (natural_order(path.name), path.name)):
        name = path.name if path.is_dir() else path.stem
        if name in videos:
            raise InputError(f"expected one video named {name} in {folder}, got {videos[name].name} and {path.name}")
        videos[name] = path
    return videos


def find_proposals(folder: Path, video: str) -> Path:
    """The masks of one video in a folder parallel to that of the videos: ``folder/video`` or ``folder/video.json``.

    Raises:
        InputError: neither is there, or both are.
    """
    found = [path for path in (folder / video, folder / f"{video}.json") if path.exists()]
    if len(found) != 1:
        choice = f"a folder {video} of label maps or a file {video}.json"
        raise InputError(f"expected masks of {video} in {folder}, {choice}, got {'both' if found else 'neither'}")
    return found[0]


def _is_video(path: Path) -> bool:
    return path.name[0] != "." and (path.is_dir() or path.suffix.lower() in VIDEO_SUFFIXES)

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from s2d.data.video_folder import find_proposals, holds_videos, list_videos
from s2d.errors import InputError


def test_folders_and_files_are_videos_in_natural_order(tmp_path):
    for name in ("v10", "v2", ".hidden"):
        (tmp_path / name).mkdir()
    for name in ("v3.MP4", "notes.txt", ".v4.mp4"):
        (tmp_path / name).touch()
    assert list(list_videos(tmp_path).items()) == [
        ("v2", tmp_path / "v2"),
        ("v3", tmp_path / "v3.MP4"),
        ("v10", tmp_path / "v10"),
    ]
    (tmp_path / "v2.mkv").touch()
    with pytest.raises(InputError, match=r"one video named v2 in .*, got v2 and v2\.mkv"):
        list_videos(tmp_path)


def test_a_folder_with_images_is_one_video(tmp_path):
    assert not holds_videos(tmp_path)
    (tmp_path / "notes.txt").touch()
    assert not holds_videos(tmp_path / "notes.txt")
    assert not holds_videos(tmp_path)
    (tmp_path / "thumbnails").mkdir()
    assert holds_videos(tmp_path)
    Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(tmp_path / "00000.png")
    assert not holds_videos(tmp_path)


def test_masks_lie_parallel(tmp_path):
    with pytest.raises(InputError, match=r"a folder v of label maps or a file v\.json, got neither"):
        find_proposals(tmp_path, "v")
    (tmp_path / "v.json").touch()
    assert find_proposals(tmp_path, "v") == tmp_path / "v.json"
    (tmp_path / "v").mkdir()
    with pytest.raises(InputError, match="got both"):
        find_proposals(tmp_path, "v")

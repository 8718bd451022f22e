from __future__ import annotations

import errno
import json

import pytest

from s2d.data.files import abandoned_for, atomic_write, read_json, write_json
from s2d.errors import InputError


def test_atomic_write_replaces_the_file_at_the_end_only(tmp_path):
    path = tmp_path / "deep" / "er" / "notes.txt"
    with atomic_write(path) as temporary:
        temporary.write_text("first")
        assert not path.exists()
        assert temporary.suffix == ".txt"
        assert temporary.parent == path.parent
    assert path.read_text() == "first"
    assert [p.name for p in path.parent.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_atomic_write_leaves_the_old_file_when_interrupted(tmp_path, error):
    path = tmp_path / "notes.txt"
    path.write_text("old")

    def interrupted():
        with atomic_write(path) as temporary:
            temporary.write_text("half of the n")
            raise error

    with pytest.raises(error):
        interrupted()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_atomic_write_says_what_is_in_the_way(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(InputError, match="expected a folder that can be written to"),
        atomic_write(tmp_path / "file" / "x"),
    ):
        pass
    with pytest.raises(InputError, match="got a folder"), atomic_write(tmp_path):
        pass


def test_a_full_disk_is_told_and_other_errors_stay(tmp_path):
    def write(number):
        with atomic_write(tmp_path / "x"):
            raise OSError(number, "No space left on device")

    with pytest.raises(InputError, match=r"expected room on the disk for .*x, got: no space left on device"):
        write(errno.ENOSPC)
    with pytest.raises(OSError, match="No space"):
        write(errno.EIO)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a.json", "a.b.json", "a b.tar.gz", "plain"])
def test_what_a_killed_writer_leaves_is_known(tmp_path, name):
    with atomic_write(tmp_path / name) as temporary:
        assert abandoned_for(temporary) == name
    assert abandoned_for(tmp_path / name) is None
    assert abandoned_for(tmp_path / ".hidden.json") is None


def test_json_round_trip(tmp_path):
    data = {"b": [1, 2.5, None, "ü"], "a": {"nested": True}}
    write_json(tmp_path / "x.json", data)
    assert read_json(tmp_path / "x.json") == data
    assert list(json.loads((tmp_path / "x.json").read_text("utf-8"))) == ["b", "a"]
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "nan.json", {"x": float("nan")})
    assert not (tmp_path / "nan.json").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"a": 1,\n "b": }', "line 2, column 7"),
        (b"\xff\xfe\x00", "not json text"),
        (b"", "line 1"),
        (None, "no such file"),
    ],
)
def test_read_json_names_the_file_and_the_place(tmp_path, content, words):
    path = tmp_path / "x.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=words) as caught:
        read_json(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)

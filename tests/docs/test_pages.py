"""The docs run their code blocks: what fails ends the build, and what does not run says why."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def build(monkeypatch, tmp_path):
    """Runs a page with the given text; its source folder is ``tmp_path``."""
    monkeypatch.syspath_prepend(str(ROOT / "docs/_ext"))
    import blocks

    book = blocks.Pages(tmp_path, tmp_path / "build")

    def run(text, name="page"):
        (tmp_path / f"{name}.md").write_text(text)
        return book.run(name)

    return run


def block(head, code):
    return f"```{head}\n{code}\n```\n"


def test_blocks_share_names_and_folder_and_show_what_they_print(build):
    text, folder = build(
        block("python", "from pathlib import Path\nx = 20")
        + block("toml file: a.toml", "key = 1")
        + block("sh", "cat a.toml")
        + block("python", "print(x + len(Path('a.toml').read_text()))")
        + block("text", "as it is")
    )
    assert (folder / "a.toml").read_text() == "key = 1\n"
    assert ":class: output\n\nkey = 1\n" in text
    assert ":class: output\n\n28\n" in text
    assert block("text", "as it is") in text


def test_a_page_continues_where_another_ended(build):
    build(block("sh", "echo here > left"), "first")
    text, _ = build("---\nafter: first\n---\n" + block("sh", "cat left"), "second")
    assert ":class: output\n\nhere\n" in text
    assert "after:" not in text


@pytest.mark.parametrize(
    ("head", "code", "said"),
    [
        ("python", "raise ValueError('no good')", "no good"),
        ("sh", "echo broken >&2; false", "broken"),
        ("sh", "false | cat", "failed"),
        ("text said by: CMakeLists.txt", "S2D_CUDA=ON expects a miracle", "a miracle"),
    ],
)
def test_what_fails_ends_the_build(build, head, code, said):
    with pytest.raises(RuntimeError, match=said) as caught:
        build(block(head, code))
    assert "page: " in str(caught.value)


def test_what_does_not_run_says_why(build, tmp_path):
    text, folder = build(block("sh not run: needs a GPU", "touch ran"))
    assert ":caption: Not run here: needs a GPU" in text
    assert not (folder / "ran").exists()


def test_messages_are_held_against_the_sources(build):
    build(block("text said by: CMakeLists.txt", "expected torch >= 2.11 in the Python that builds (...), got none"))


def test_the_command_is_the_package_that_is_documented(build):
    import s2d

    assert f"s2d {s2d.__version__}" in build(block("sh", "s2d --version"))[0]


def test_numbers_of_both_kinds_of_files_and_of_none(build, monkeypatch, tmp_path):
    import numbers_of

    monkeypatch.setattr(numbers_of, "RESULTS", tmp_path)
    assert "No measurement of `rle`" in numbers_of.table("rle")
    machine = {"processor": "P", "cpu_isa": "avx2", "torch": "2", "commit": "abc"}
    pair = {"op": "encode", "case": "c", "peer": "p", "ratio": 7.04, "ratio_low": 6.9, "ratio_high": 7.2, "goal": 8}
    gap = {"op": "decode", "case": "c", "peer": "q", "threads": 1, "reason": "q is not installed"}
    measured = {"environment": machine, "pairs": [pair | {"threads": 1}, pair | {"threads": 2, "op": "other"}]}
    (tmp_path / "rle.json").write_text(json.dumps(measured))
    (tmp_path / "p_2_avx2-0.1.0.json").write_text(json.dumps({"suites": {"mask_cost": measured | {"missing": [gap]}}}))
    for room in ("rle", "mask_cost"):
        table = numbers_of.table(room)
        assert "| encode | c | p | **7.0** (6.9-7.2) | 8 |" in table
        assert "other" not in table
    assert "| decode | c | q | not measured: q is not installed | |" in numbers_of.table("mask_cost")
    assert "No measurement of `bitmask`" in numbers_of.table("bitmask")


def test_every_operator_has_a_page_and_a_picture(build):
    import pictures

    from s2d.ops._dispatch import ROOMS

    for room in ROOMS:
        page = ROOT / "docs/operators" / f"{room.name}.md"
        assert f"picture:{room.name})" in page.read_text()
        assert hasattr(pictures, f"draw_{room.name}")

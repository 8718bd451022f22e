"""The runner of CoTracker3, on a stand-in with the interface of its offline predictor: neither is at hand here."""

from __future__ import annotations

import sys
from textwrap import dedent

import pytest
import torch

from s2d.data.video import Video
from s2d.errors import InputError
from s2d.motion.cotracker3 import CoTracker3Prior
from s2d.motion.prior import make_prior

PREDICTOR = """
    import torch

    class CoTrackerPredictor(torch.nn.Module):
        def __init__(self, checkpoint):
            super().__init__()
            with open(checkpoint, "rb") as file:
                self.speed = torch.load(file, map_location="cpu")["speed"]
            self.calls = []

        def forward(self, video, queries=None, grid_size=0, grid_query_frame=0, backward_tracking=False):
            assert video.dtype == torch.float32 and video.dim() == 5 and not self.training
            batch, length, _, height, width = video.shape
            assert length > 1 and float(video.max()) > 1 and backward_tracking
            self.calls.append((grid_size, grid_query_frame))
            y, x = torch.meshgrid(*(torch.linspace(0, s - 1, grid_size) for s in (height, width)), indexing="ij")
            time = torch.arange(length)[None, :, None, None] - grid_query_frame
            tracks = torch.stack([x, y], -1).view(1, 1, -1, 2) + self.speed * time
            inside = (tracks >= 0) & (tracks <= torch.tensor([width - 1, height - 1]))
            return tracks, inside.all(-1)
"""


@pytest.fixture
def checkout(tmp_path):
    """A folder with the package; it is forgotten again afterwards."""
    folder = tmp_path / "co-tracker"
    (folder / "cotracker").mkdir(parents=True)
    (folder / "cotracker/__init__.py").touch()
    (folder / "cotracker/predictor.py").write_text(dedent(PREDICTOR))
    torch.save({"speed": torch.tensor([2.0, 0.0])}, tmp_path / "offline.pth")
    yield folder
    for name in [name for name in sys.modules if name.partition(".")[0] == "cotracker"]:
        del sys.modules[name]


@pytest.fixture
def checkpoint(checkout):
    return str(checkout.parent / "offline.pth")


def clip(length):
    return torch.full((length, 3, 20, 30), 200, dtype=torch.uint8)


def test_one_grid_each_on_a_few_frames(checkout, checkpoint):
    frames = clip(9)
    prior = make_prior(f"cotracker3:{checkout}:{checkpoint}", grid="4", query_frames="3")
    tracks, visible = prior.scene(frames, 0, Video.from_frames(frames))
    assert prior._predictor.calls == [(4, 0), (4, 4), (4, 8)]
    assert tracks.shape == (48, 9, 2)
    assert tracks.dtype == torch.float32
    assert visible.shape == (48, 9)
    assert visible.dtype == torch.bool
    for grid, query in enumerate((0, 4, 8)):
        points = tracks[16 * grid : 16 * grid + 16]
        assert torch.equal(points[0, query], torch.zeros(2))
        assert torch.equal(points[-1, query], torch.tensor([29.0, 19.0]))
        assert bool(visible[16 * grid : 16 * grid + 16, query].all())
    assert torch.allclose(tracks.diff(dim=1), torch.tensor([2.0, 0.0]), atol=1e-5)
    # What the first grid does not see in the last frame, the last one does.
    left = tracks[:, 8, 0] < 10
    assert not bool((visible[:16, 8] & left[:16]).any())
    assert bool((visible[32:, 8] & left[32:]).any())


@pytest.mark.parametrize(("length", "queries"), [(1, [0]), (2, [0, 1]), (4, [0, 1, 2, 3])])
def test_short_scenes(checkout, checkpoint, length, queries):
    frames = clip(length)
    prior = CoTracker3Prior(str(checkout), checkpoint, grid=3)
    tracks, visible = prior.scene(frames, 0, Video.from_frames(frames))
    assert [query for _, query in prior._predictor.calls] == queries
    assert tracks.shape == (9 * len(queries), length, 2)
    assert visible.shape == (9 * len(queries), length)


def test_the_path_is_as_before(checkout, checkpoint):
    before = list(sys.path)
    CoTracker3Prior(str(checkout), checkpoint)
    assert sys.path == before


def test_the_fingerprint_holds_settings_weights_and_code(checkout, checkpoint):
    def prints(**settings):
        return str(CoTracker3Prior(str(checkout), checkpoint, **settings).fingerprint())

    first = prints()
    assert first == prints()
    assert len({first, prints(grid=20), prints(query_frames=2)}) == 3
    torch.save({"speed": torch.tensor([1.0, 0.0])}, checkpoint)
    other_weights = prints()
    (checkout / "cotracker/predictor.py").write_text(dedent(PREDICTOR) + "\n")
    assert len({first, other_weights, prints()}) == 3


def test_what_is_refused(checkout, checkpoint, tmp_path):
    with pytest.raises(InputError, match="expected a checkout of CoTracker at"):
        CoTracker3Prior(str(tmp_path), checkpoint)
    with pytest.raises(InputError, match=r"expected a checkpoint of CoTracker3 at .* no such file"):
        CoTracker3Prior(str(checkout), str(tmp_path / "absent.pth"))
    for settings in ({"grid": 0}, {"query_frames": 0}):
        with pytest.raises(InputError, match="from 1 on"):
            CoTracker3Prior(str(checkout), checkpoint, **settings)
    (tmp_path / "text.pth").write_text("text")
    with pytest.raises(InputError, match="expected a checkpoint of CoTracker3 in") as caught:
        CoTracker3Prior(str(checkout), str(tmp_path / "text.pth"))
    assert "\n" not in str(caught.value)


def test_a_checkout_that_does_not_import(checkout, checkpoint):
    (checkout / "cotracker/predictor.py").write_text("import a_module_that_is_not_there")
    with pytest.raises(InputError, match=r"expected a checkout of CoTracker that imports .* ModuleNotFoundError"):
        CoTracker3Prior(str(checkout), checkpoint)
    assert str(checkout) not in sys.path


def test_one_checkout_is_not_taken_for_another(checkout, checkpoint, tmp_path):
    CoTracker3Prior(str(checkout), checkpoint)
    (tmp_path / "other/cotracker").mkdir(parents=True)
    (tmp_path / "other/cotracker/predictor.py").write_text(dedent(PREDICTOR))
    with pytest.raises(InputError, match="one that was imported before"):
        CoTracker3Prior(str(tmp_path / "other"), checkpoint)

"""Point tracks by CoTracker3 (Karaev et al., Simpler and Better Point Tracking by Pseudo-Labelling Real Videos)."""

from __future__ import annotations

import hashlib
import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from s2d.devices import find_device
from s2d.errors import InputError
from s2d.motion._networks import require_file, sha256_of
from s2d.ops import PointTracks

if TYPE_CHECKING:
    from s2d.data.video import Video


class CoTracker3Prior:
    """Runs the offline predictor of a local checkout, a few times a scene, as `s2d.motion.prior.MotionPrior`.

    A grid is laid over a few frames, evenly spaced from the first to the last, and each grid is tracked through the
    whole scene both ways. One grid would do for what its frame shows; the others hold what appears later or has left
    by then. The tracks of all grids are handed on together: G = query frames * grid * grid.

    Unlike points that flow carries, an occluded point goes on moving: ``tracks`` are the predictor's guesses there.

    A thin runner of ``CoTrackerPredictor(checkpoint)(video, grid_size=, grid_query_frame=, backward_tracking=True)``.
    The tests run it on a stand-in with this interface, as neither the code nor weights are among what they install.

    Args:
        checkout: folder of the official repository, in which ``cotracker/predictor.py`` lies. It is executed.
        checkpoint: weights of the offline model.
        grid: lines of the grid over a frame.
        query_frames: how many frames have a grid, at most.
        device: where the network runs; results are on the CPU. Not part of the fingerprint.

    Raises:
        InputError: no such checkout or checkpoint, one that does not load, or no such device.
    """

    name = "cotracker3"
    pure = True

    def __init__(
        self, checkout: str, checkpoint: str, *, grid: int = 50, query_frames: int = 5, device: str = "cpu"
    ) -> None:
        if min(grid, query_frames) < 1:
            found = f"{grid} and {query_frames}"
            raise InputError(f"expected grid and query_frames of the motion prior cotracker3 from 1 on, got {found}")
        folder = require_file(Path(checkout) / "cotracker" / "predictor.py", "a checkout of CoTracker").parent
        weights = require_file(checkpoint, "a checkpoint of CoTracker3")
        self._device = find_device(device)
        predictor = _predictor_class(folder)
        try:
            self._predictor = predictor(checkpoint=str(weights)).to(self._device).eval()
        except Exception as error:
            raise InputError(f"expected a checkpoint of CoTracker3 in {weights}, got: {_line(error)}") from None
        self._grid, self._query_frames = grid, query_frames
        self._sha256, self._code = sha256_of(weights), _sha256_of_code(folder)

    def fingerprint(self) -> dict[str, Any]:
        settings = {"grid": self._grid, "query_frames": self._query_frames}
        return {"prior": self.name, "weights": self._sha256, "code": self._code, **settings}

    @torch.no_grad()
    def scene(self, frames: Tensor, start: int, video: Video) -> PointTracks:
        length = len(frames)
        # A scene of one frame is shown twice: the predictor wants something to track through.
        clip = (frames if length > 1 else frames.repeat(2, 1, 1, 1)).to(self._device).float()[None]
        queries = torch.linspace(0, length - 1, min(self._query_frames, length)).round().long().tolist()
        tracks, visible = [], []
        for query in queries:
            points, seen = self._predictor(clip, grid_size=self._grid, grid_query_frame=query, backward_tracking=True)
            tracks.append(points[0, :length].transpose(0, 1).float().cpu())
            visible.append((seen[0, :length] > 0.5).T.cpu())
        return PointTracks(torch.cat(tracks), torch.cat(visible))


def _predictor_class(package: Path) -> type:
    """``CoTrackerPredictor`` of this checkout and no other; its folder is on the path for the import only."""
    checkout = str(package.parent.resolve())
    sys.path.insert(0, checkout)
    try:
        module = importlib.import_module("cotracker.predictor")
        predictor = module.CoTrackerPredictor
    except Exception as error:
        raise InputError(f"expected a checkout of CoTracker that imports in {checkout}, got: {_line(error)}") from None
    finally:
        sys.path.remove(checkout)
    found = Path(module.__file__).resolve().parent
    if found != package.resolve():
        raise InputError(f"expected cotracker from {checkout}, got one that was imported before, from {found.parent}")
    return predictor


def _sha256_of_code(package: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        digest.update(f"{file.relative_to(package)}\n".encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"

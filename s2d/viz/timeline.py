"""The timeline: for each instance, the frames in which it was proposed, kept as a keymask, and predicted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor

from s2d.data.files import atomic_write
from s2d.viz.palette import instance_colour, text_colour

INK = "#22262b"
FAINT = "#8b929a"
EMPTY = "#eceef1"
WIDTH = 11.0
# Height of the three rows of an instance, from the top, in units of the figure's rows.
ROWS = (("proposals", 0.20), ("keymasks", 0.28), ("predictions", 0.34))


@dataclass(frozen=True)
class Evidence:
    """Where in time each instance was seen, stage by stage. All values in [0, 1], 0 where there is nothing.

    Attributes:
        proposals: ``[N, T]``: overlap of the best single-frame mask with the prediction.
        keymasks: ``[N, T]``: score of the keymask.
        predictions: ``[N, T]``: 1 where the final track has a mask.
        scores: ``[N]``: score of the track.
        others: ``[T]`` int: single-frame masks that belong to no track.
    """

    proposals: np.ndarray
    keymasks: np.ndarray
    predictions: np.ndarray
    scores: np.ndarray
    others: np.ndarray


def draw_timeline(
    path: str | Path,
    evidence: Evidence,
    *,
    title: str,
    fps: float,
    pictures: Sequence[tuple[int, Tensor]] = (),
    most: int = 20,
) -> None:
    """Draw the figure as a PNG.

    Args:
        path: ends in ``.png``.
        evidence: what to show; instances beyond the first ``most`` are left out and counted in words.
        title: one line.
        fps: frames per second, for the second axis.
        pictures: (frame, uint8 ``[3, H, W]``) shown above the frames they belong to, ascending.
    """
    number, frames = evidence.predictions.shape
    shown = min(number, most)
    strip = _strip_height(pictures)
    body = 0.30 + 0.95 * max(shown, 1) * 0.92 + 0.42
    total = 0.72 + strip + body + 0.62
    figure = Figure(figsize=(WIDTH, total), dpi=140, facecolor="white")
    FigureCanvasAgg(figure)
    left, right = 1.35 / WIDTH, 1 - 1.55 / WIDTH
    axes = figure.add_axes((left, 0.62 / total, right - left, body / total))
    figure.text(0.3 / WIDTH, 1 - 0.36 / total, title, size=14, weight="bold", color=INK, va="center")
    _draw_rows(axes, evidence, shown)
    _finish_axes(axes, frames, fps, number - shown)
    _draw_pictures(figure, axes, pictures, bottom=(0.62 + body) / total, height=strip / total)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png")


def _draw_rows(axes: Axes, evidence: Evidence, shown: int) -> None:
    frames = evidence.predictions.shape[1]
    for index in range(shown):
        colour = np.array(instance_colour(index)) / 255
        top = index + 0.04
        kinds = (evidence.proposals[index], evidence.keymasks[index], evidence.predictions[index])
        for (name, height), values in zip(ROWS, kinds, strict=True):
            strength = np.where(values > 0, (0.35 + 0.65 * np.clip(values, 0, 1)), 0)
            _strip(axes, strength, colour, top, top + height - 0.03)
            count = int((values > 0).sum())
            middle = top + (height - 0.03) / 2
            axes.text(
                frames - 0.5 + 0.012 * frames,
                middle,
                f"{name}  {count}/{frames}",
                size=8,
                color=INK if name == "predictions" else FAINT,
                va="center",
            )
            top += height
        _badge(axes, index, float(evidence.scores[index]))
    if shown == 0:
        axes.text((frames - 1) / 2, 0.5, "no instance found", size=13, color=FAINT, ha="center", va="center")
    bottom = max(shown, 1) + 0.08
    busiest = max(int(evidence.others.max(initial=0)), 1)
    _strip(axes, 0.85 * evidence.others / busiest, np.array([0.35, 0.38, 0.42]), bottom, bottom + 0.2)
    note = f"unused proposals  {int(evidence.others.sum())}"
    axes.text(frames - 0.5 + 0.012 * frames, bottom + 0.1, note, size=8, color=FAINT, va="center")
    axes.set_ylim(bottom + 0.28, -0.05)


def _strip(axes: Axes, strength: np.ndarray, colour: np.ndarray, top: float, bottom: float) -> None:
    """One row of cells, a cell a frame: the colour over the empty ground, as strong as ``strength`` in [0, 1]."""
    ground = np.array([int(EMPTY[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    cells = ground + (colour - ground) * np.asarray(strength, dtype=float)[:, None]
    axes.imshow(
        cells[None],
        extent=(-0.5, len(strength) - 0.5, bottom, top),
        aspect="auto",
        interpolation="nearest" if len(strength) < 1000 else "antialiased",
    )


def _badge(axes: Axes, index: int, score: float) -> None:
    """The number of an instance as in the overlay, left of its rows, and its score below."""
    colour = instance_colour(index)
    axes.annotate(
        str(index + 1),
        (0, index + 0.34),
        xycoords=("axes fraction", "data"),
        xytext=(-40, 0),
        textcoords="offset points",
        size=12,
        weight="bold",
        ha="center",
        va="center",
        color=np.array(text_colour(colour)) / 255,
        bbox={"boxstyle": "circle,pad=0.35", "facecolor": np.array(colour) / 255, "edgecolor": "none"},
    )
    axes.annotate(
        f"score {score:.2f}",
        (0, index + 0.7),
        xycoords=("axes fraction", "data"),
        xytext=(-40, 0),
        textcoords="offset points",
        size=7.5,
        ha="center",
        va="center",
        color=FAINT,
    )


def _finish_axes(axes: Axes, frames: int, fps: float, hidden: int) -> None:
    axes.set_xlim(-0.5, frames - 0.5)
    axes.set_yticks([])
    axes.tick_params(axis="x", length=3, color=FAINT, labelcolor=FAINT, labelsize=8)
    for spine in axes.spines.values():
        spine.set_visible(False)
    label = f"frame  ({fps:.4g} a second)"
    if hidden:
        label += f"; {hidden} more instances are not drawn"
    axes.set_xlabel(label, size=8.5, color=FAINT)


def _strip_height(pictures: Sequence[tuple[int, Tensor]]) -> float:
    """Inches that the pictures need above the rows."""
    if not pictures:
        return 0.0
    height, width = pictures[0][1].shape[1:]
    each = (WIDTH - 2.9) / len(pictures) * 0.965
    return min(each * height / width, 2.6) + 0.3


def _draw_pictures(
    figure: Figure, axes: Axes, pictures: Sequence[tuple[int, Tensor]], bottom: float, height: float
) -> None:
    """Pictures side by side over the axes, each with a thin line down to its frame."""
    if not pictures:
        return
    box = axes.get_position()
    frames = axes.get_xlim()[1] + 0.5
    cell = box.width / len(pictures)
    gap = 0.3 / figure.get_figheight()
    for place, (frame, picture) in enumerate(pictures):
        area = (box.x0 + cell * place + cell * 0.0175, bottom + gap, cell * 0.965, height - gap)
        panel = figure.add_axes(area)
        panel.imshow(picture.permute(1, 2, 0).numpy())
        panel.set_anchor("S")
        panel.set_axis_off()
        x = box.x0 + box.width * (frame + 0.5) / frames
        middle = area[0] + area[2] / 2
        ends = (bottom + gap * 0.92, bottom - 0.02 / figure.get_figheight())
        figure.add_artist(Line2D([middle, x], ends, color="#c4c9cf", linewidth=0.8))
        panel.text(
            0.5, 1.02, f"frame {frame}", transform=panel.transAxes, size=7.5, color=FAINT, ha="center", va="bottom"
        )

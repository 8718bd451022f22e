"""A picture of every operator, drawn by the operator itself while the docs are built."""

from __future__ import annotations

import functools
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from scipy.optimize import linear_sum_assignment

from s2d.data.synthetic import SyntheticClip, SyntheticSettings, generate_clip, perturb_proposals
from s2d.ops import (
    attention_mask,
    connected_components,
    fill_holes,
    flow_consistency,
    flow_warp_iou,
    mask_cost,
    mask_iou,
    ms_deform_attn,
    remove_small,
    rle_decode,
    rle_encode,
    temporal_drop_loss,
    track_points,
    unpack_masks,
)
from s2d.viz import OverlayPainter

BLUE, ORANGE = "#2a6f97", "#e07a2f"
PARTS = ListedColormap(["white", BLUE, ORANGE, "#6a994e", "#a44a8b", "#c9a227", "#577590", "#bc4749"])

matplotlib.use("agg")


@functools.cache
def _clip() -> SyntheticClip:
    return generate_clip(SyntheticSettings(frames=16, size=(120, 208), objects=3, static_objects=0, camera=0.3), seed=3)


def _frame(t: int) -> np.ndarray:
    return _clip().video.frame(t).permute(1, 2, 0).numpy()


def _masks(t: int) -> torch.Tensor:
    return unpack_masks(_clip().tracks.bits(slice(t, t + 1)))[:, 0]


def _panels(number: int, width: float = 8.0, height: float = 2.0) -> tuple[Figure, np.ndarray]:
    figure, axes = plt.subplots(1, number, figsize=(width, height), layout="constrained", squeeze=False)
    for ax in axes[0]:
        ax.set(xticks=[], yticks=[])
    return figure, axes[0]


def _outline(ax: plt.Axes, mask: torch.Tensor, colour: str, style: str = "-") -> None:
    ax.contour(mask.numpy(), [0.5], colors=colour, linewidths=1.6, linestyles=style)


def draw_bitmask() -> Figure:
    """Proposals of a frame, and their IoU with the true masks."""
    t = 5
    proposals = perturb_proposals(_clip().tracks, 2, seed=4)
    found = rle_decode(proposals.rle[proposals.frames == t])
    figure, axes = _panels(2, height=2.4)
    painted = OverlayPainter(_clip().video.size).paint(_clip().video.frame(t), unpack_masks(found))
    axes[0].imshow(painted.permute(1, 2, 0))
    axes[0].set_title("masks of one frame, as proposed")
    overlaps = mask_iou(found, _masks(t))
    axes[1].imshow(overlaps, cmap="Blues", vmin=0, vmax=1)
    for (row, column), value in np.ndenumerate(overlaps.numpy()):
        axes[1].text(column, row, f"{value:.2f}", ha="center", va="center", color="white" if value > 0.5 else "black")
    axes[1].set(
        title="mask_iou with the true masks",
        ylabel="proposal",
        yticks=range(len(overlaps)),
        yticklabels=range(1, len(overlaps) + 1),
    )
    return figure


def draw_rle() -> Figure:
    """The runs of a small mask, down the columns."""
    mask = torch.zeros(7, 14, dtype=torch.bool)
    mask[2:6, 2:6] = mask[1:4, 5:11] = mask[5, 9:13] = True
    codes = rle_encode(mask[None])
    runs = codes.each()[0].tolist()
    number = np.repeat(np.arange(len(runs)), runs).reshape(mask.T.shape).T
    figure, axes = _panels(1, width=7, height=3.2)
    ax = axes[0]
    ax.imshow(np.where(mask, 0.35 + 0.4 * (number // 2 % 2), 0.06 * (number // 2 % 2)), cmap="Blues", vmin=0, vmax=1)
    for place in np.ndindex(*mask.shape):
        ax.text(
            *place[::-1], number[place], ha="center", va="center", fontsize=8, color="white" if mask[place] else "0.4"
        )
    ax.set_title(f"counts {runs}\nstring {codes.to_coco()[0]['counts']!r}", fontsize=9, loc="left")
    return figure


def draw_connected_components() -> Figure:
    """Noise cleaned up."""
    generator = np.random.default_rng(2)
    mask = _masks(5).any(0).numpy() ^ (generator.random((120, 208)) < 0.012)
    mask = torch.from_numpy(mask)
    labels, _ = connected_components(mask)
    figure, axes = _panels(4, width=10, height=1.9)
    axes[0].imshow(mask, cmap=PARTS, vmin=0, vmax=7)
    axes[0].set_title("a mask")
    axes[1].imshow(torch.where(labels > 0, 1 + labels % 7, 0), cmap=PARTS, vmin=0, vmax=7)
    axes[1].set_title(f"connected_components: {int(labels.max())}")
    axes[2].imshow(fill_holes(mask), cmap=PARTS, vmin=0, vmax=7)
    axes[2].set_title("fill_holes")
    axes[3].imshow(remove_small(fill_holes(mask), 50), cmap=PARTS, vmin=0, vmax=7)
    axes[3].set_title("then remove_small(50)")
    return figure


def draw_flow_warp_iou() -> Figure:
    """A mask carried from one frame onto the next by flow."""
    clip, t = _clip(), 3
    source, target = _masks(t - 1)[None], _masks(t)[None]
    flow, reverse = clip.backward[t - 1][None], clip.forward[t - 1][None]
    overlaps = flow_warp_iou(source, target, flow, reverse=reverse)[0].diagonal()
    plain = mask_iou(source[0], target[0]).diagonal()
    figure, axes = _panels(3, width=10, height=2.1)
    axes[0].imshow(_frame(t))
    for before, now in zip(source[0], target[0], strict=True):
        _outline(axes[0], before, ORANGE, "--")
        _outline(axes[0], now, "white")
    axes[0].set_title("masks before (dashed) and now")
    visible = flow_consistency(flow, reverse)[0]
    axes[1].imshow(visible, cmap="Greys_r")
    axes[1].set_title("flow_consistency: pixels that count")
    places = np.arange(len(plain))
    axes[2].bar(places - 0.2, plain, 0.4, color="0.75", label="as they are")
    axes[2].bar(places + 0.2, overlaps, 0.4, color=BLUE, label="warped")
    axes[2].set(ylim=(0, 1.4), yticks=[0, 0.5, 1], title="IoU, object by object", xticks=places, xticklabels=places + 1)
    axes[2].legend(frameon=False, fontsize=8, loc="upper left", ncols=2)
    return figure


def draw_point_tracks() -> Figure:
    """Points of one frame, carried through all."""
    clip = _clip()
    mask = _masks(0).any(0)
    rows, columns = torch.nonzero(mask[::7, ::7], as_tuple=True)
    points = torch.stack([7 * columns, 7 * rows], 1).float()
    tracked = track_points(points, torch.zeros(len(points), dtype=torch.int64), clip.forward, clip.backward)
    figure, axes = _panels(2, height=2.5)
    for ax, t in zip(axes, (0, 5), strict=True):
        ax.imshow(_frame(t))
        for path, seen in zip(tracked.tracks, tracked.visible, strict=True):
            if seen[t]:
                ax.plot(*path[: t + 1].T, color="white", linewidth=0.8)
                ax.scatter(*path[t], s=9, color=ORANGE, zorder=3)
        ax.set(xlim=(0, 207), ylim=(119, 0))
        ax.set_title(f"frame {t}: {int(tracked.visible[:, t].sum())} of {len(points)} points visible")
    return figure


def draw_masked_attention() -> Figure:
    """Which keys a query attends to on three levels of features."""
    mask = _masks(5)[0]
    logits = torch.nn.functional.avg_pool2d(20 * mask.float()[None, None] - 10, 2)[:, :, None]
    figure, axes = _panels(4, width=10, height=1.9)
    axes[0].imshow(_frame(5))
    _outline(axes[0], mask, "white")
    axes[0].set_title("what a query predicts")
    for ax, stride in zip(axes[1:], (4, 8, 16), strict=True):
        height, width = 120 // stride, 208 // stride
        bits = unpack_masks(attention_mask(logits, (height, width)))[0, 0]
        ax.imshow(bits.view(height, width), cmap=PARTS, vmin=0, vmax=7)
        ax.set_title(f"stride {stride}: {int(bits.sum())} of {bits.numel()} keys", fontsize=10)
    return figure


def draw_ms_deform_attn() -> Figure:
    """The points one query reads, found by the gradient of the operator."""
    shapes = [(15, 26), (8, 13), (4, 7)]
    value = torch.ones(1, sum(h * w for h, w in shapes), 1, 1, requires_grad=True)
    generator = torch.Generator().manual_seed(5)
    offsets = 0.25 * (torch.rand(1, 1, 1, 3, 4, 2, generator=generator) - 0.5)
    locations = torch.tensor([0.42, 0.5]) + offsets
    weights = torch.rand(1, 1, 1, 3, 4, generator=generator)
    ms_deform_attn(value, shapes, locations, weights / weights.sum()).sum().backward()
    figure, axes = _panels(3, width=10, height=2.1)
    levels = value.grad.flatten().split([h * w for h, w in shapes])
    for ax, level, (height, width), points in zip(axes, levels, shapes, locations[0, 0, 0], strict=True):
        ax.imshow(level.view(height, width), cmap="Blues", vmin=0, vmax=0.15)
        ax.scatter(points[:, 0] * width - 0.5, points[:, 1] * height - 0.5, s=14, color=ORANGE)
        ax.scatter(0.42 * width - 0.5, 0.5 * height - 0.5, s=40, color="black", marker="+")
        ax.set_title(f"level {width} x {height}")
    return figure


def draw_temporal_drop_loss() -> Figure:
    """The gradient of the loss: none on the frame that says nothing."""
    frames = (0, 1, 2, 3)
    target = torch.stack([_masks(t)[2, :, :140] for t in frames])[None]
    blurred = torch.nn.functional.avg_pool2d(target.float().roll(5, -1), 13, 1, 6)
    logits = (10 * blurred - 4).requires_grad_()
    keep = torch.tensor([[True, True, False, True]])
    bce, dice = temporal_drop_loss(logits, target, keep, 4000, generator=torch.Generator().manual_seed(0))
    (bce + dice).backward()
    figure, axes = _panels(len(frames), width=10, height=1.8)
    largest = float(logits.grad.abs().max()) / 6
    for ax, gradient, mask, kept in zip(axes, logits.grad[0], target[0], keep[0], strict=True):
        ax.imshow(gradient, cmap="RdBu", vmin=-largest, vmax=largest)
        if kept:
            _outline(ax, mask, "black")
        ax.set_title("keymask" if kept else "no keymask: nothing flows", fontsize=10)
    return figure


def draw_mask_cost() -> Figure:
    """Costs of noisy predictions and what the assignment takes."""
    truth = torch.stack([_masks(t) for t in (4, 5, 6)], 1)
    order = torch.tensor([2, 0, 1, 0, 2])
    shifts = (0, 4, 9, 14, 20)
    logits = torch.stack([10 * truth[n].float().roll(s, -1) - 5 for n, s in zip(order, shifts, strict=True)])
    points = torch.rand(3000, 2, generator=torch.Generator().manual_seed(0))
    bce, dice = mask_cost(logits, truth, points)
    cost = 5 * bce + 5 * dice
    figure, axes = _panels(1, width=5, height=2.8)
    axes[0].imshow(cost.T, cmap="Blues_r")
    chosen = set(zip(*linear_sum_assignment(cost), strict=True))
    for (query, target), value in np.ndenumerate(cost.numpy()):
        taken = (query, target) in chosen
        colour = "white" if value < 4 else "black"
        axes[0].text(
            query, target, f"{value:.1f}", ha="center", va="center", color=colour, weight=["normal", "bold"][taken]
        )
        if taken:
            axes[0].add_patch(plt.Rectangle((query - 0.5, target - 0.5), 1, 1, fill=False, color=ORANGE, linewidth=2.5))
    axes[0].set(title="5 bce + 5 dice, and the assignment", xlabel="query", ylabel="target")
    return figure


@functools.cache
def draw(room: str, folder: Path) -> Path:
    """The picture of a room as a file in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{room}.png"
    with plt.rc_context({"font.size": 9, "axes.titlesize": 10}):
        figure = globals()[f"draw_{room}"]()
        figure.savefig(path, dpi=150)
        plt.close(figure)
    return path

"""What distillation is measured on: clips with keymasks on some frames, the variants, and what each learns from."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import count, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from s2d.data.clip_plan import seeded
from s2d.data.clips import AnnotatedFrames, ClipBatch, ClipSettings, ClipTargets, annotate
from s2d.data.memory_loader import MemoryLoader, draw_clip
from s2d.data.synthetic import ProposalNoise, SyntheticSettings, generate_clip, perturb_proposals
from s2d.data.types import Tracks
from s2d.data.video import Video, open_video
from s2d.data.ytvis import read_ytvis
from s2d.metrics import at_size
from s2d.ops import BitMasks, mask_iou, pack_masks, rle_area, rle_encode, unpack_masks
from s2d.training.recipe import Recipe, load_recipe
from s2d.training.teacher import Teacher
from s2d.training.trainer import Feed

SIZE = (96, 160)
# Every second frame of a real clip, so many at most.
STRIDE, MOST_FRAMES = 2, 32
_DAVIS = ("blackswan", "car-shadow", "drift-chicane", "libby")
REAL = {
    **{name: (f"davis16/frames/{name}", "davis16/ytvis_240p.json") for name in _DAVIS},
    "dogs-scale": ("clips/dogs-scale/video.mp4", "clips/ytvis_dogs-scale_koala.json"),
    "koala": ("clips/koala/video.mp4", "clips/ytvis_dogs-scale_koala.json"),
    "boys-beach": ("clips/boys-beach/input_video.mp4", "clips/ytvis_boys-beach_camel.json"),
    "davis_camel": ("clips/davis_camel/input_video.mp4", "clips/ytvis_boys-beach_camel.json"),
}
# The IoU with the truth is 0.74 on average, between that of discovery's keymasks at noise levels 1 and 2.
NOISE = ProposalNoise(miss=0, split=0, merge=0, swell=0.06, shift=0.03, ripple=0.04, false_masks=0)
KEY_FRAMES, KEY_MASKS = 0.25, 0.6
MODEL = {"hidden_dim": 32, "mask_dim": 32, "encoder_ffn": 64, "decoder_ffn": 64, "num_queries": 8}


class Clip(NamedTuple):
    """A video in memory, the truth about it, and the keymasks, which are all that training sees of the truth."""

    video: Video
    truth: Tracks
    keymasks: Tracks

    @property
    def unseen(self) -> Tensor:
        """Frames without any keymask, int64."""
        return (~self.keymasks.annotated.any(0)).nonzero()[:, 0]


@dataclass(frozen=True)
class Data:
    """Clips to learn from and others, by seed or, real ones, by name."""

    training: tuple[int | str, ...]
    test: tuple[int | str, ...] = ()

    @property
    def parts(self) -> dict[str, tuple[int | str, ...]]:
        return {"training": self.training} | ({"test": self.test} if self.test else {})


GENERATED = Data(tuple(range(2000, 2024)), tuple(range(3000, 3012)))
TUNING = Data(tuple(range(7000, 7024)), tuple(range(8000, 8012)))
REAL_CLIPS = Data(tuple(REAL))


@cache
def load(name: int | str) -> Clip:
    """A clip by its seed or name."""
    return generated(name) if isinstance(name, int) else real(name)


def generated(seed: int) -> Clip:
    """16 frames of 160 x 96 with three or four animals."""
    settings = SyntheticSettings(frames=16, size=SIZE, objects=3, static_objects=seed % 2, object_size=(0.4, 0.6))
    clip = generate_clip(settings, seed=seed)
    return Clip(clip.video, clip.tracks, sparse_keymasks(clip.tracks, seed))


def real(name: str) -> Clip:
    """A clip of ``$S2D_TEST_DATA`` with its masks, drawn to 160 x 96."""
    folder = Path(os.environ["S2D_TEST_DATA"]) / "data"
    path, labels = REAL[name]
    video = open_video(folder / path, size=SIZE)
    frames = torch.arange(0, video.num_frames, STRIDE)[:MOST_FRAMES]
    truth = next(tracks for tracks in read_ytvis(folder / labels) if tracks.video == name)
    truth = at_size(on_frames(truth, frames), SIZE)
    seed = list(REAL).index(name)
    video = Video.from_frames(torch.stack([video.frame(t) for t in frames.tolist()]), name=name)
    return Clip(video, truth, sparse_keymasks(truth, seed))


def on_frames(tracks: Tracks, frames: Tensor) -> Tracks:
    """Some frames of tracks; those that have no pixel in them are left out."""
    index = torch.arange(tracks.annotated.numel()).view(tracks.annotated.shape)[:, frames]
    seen = (rle_area(tracks.rle)[index] > 0).any(1)
    rle = tracks.rle[index[seen].flatten()]
    return replace(tracks, rle=rle, annotated=tracks.annotated[seen][:, frames], scores=tracks.scores[seen])


def sparse_keymasks(truth: Tracks, seed: int, key_frames: float = KEY_FRAMES, key_masks: float = KEY_MASKS) -> Tracks:
    """Keymasks of this share of the frames, and in these of this share of the instances that are seen.

    Outlines are noisy. Every instance keeps at least one keymask if it is seen in such a frame; others are left out.
    """
    rng = np.random.default_rng(seed)
    number, length = truth.annotated.shape
    frames = torch.zeros(length, dtype=torch.bool)
    frames[rng.permutation(length)[: max(1, round(key_frames * length))]] = True
    keep = torch.zeros(number, length, dtype=torch.bool)
    masks = torch.zeros(number, length, *truth.size, dtype=torch.bool)
    for n in range(number):
        own = slice(n * length, (n + 1) * length)
        alone = replace(truth, rle=truth.rle[own], annotated=truth.annotated[[n]], scores=truth.scores[[n]])
        noisy = perturb_proposals(alone, NOISE, seed=int(rng.integers(2**31)))
        masks[n, noisy.frames] = unpack_masks(noisy.bits())
        usable = noisy.frames[frames[noisy.frames]]
        chosen = torch.from_numpy(rng.random(len(usable)) < key_masks)
        keep[n, usable[chosen] if chosen.any() else usable[:1]] = True
    masks &= keep[..., None, None]
    found = keep.any(1)
    rle = rle_encode(masks[found].flatten(0, 1))
    return Tracks(truth.video, truth.size, rle, keep[found], torch.ones(int(found.sum())))


def _annotated(clip: Clip, tracks: Tracks) -> AnnotatedFrames:
    return annotate(torch.stack(list(clip.video)), torch.arange(clip.video.num_frames), tracks)


def keymask_feed(clips: Sequence[Clip], variant: Variant, recipe: Recipe) -> Feed:
    """What a variant learns from first."""
    if variant.teacher != "itself":
        return InformedFeed(clips, recipe)
    keymasks = [clip.keymasks for clip in clips]
    if variant.many:
        keymasks = [sparse_keymasks(clip.truth, n, 0.8, 1.0) for n, clip in enumerate(clips)]
    videos = [_annotated(*pair) for pair in zip(clips, keymasks, strict=True)]
    return (PastedMasks if variant.pasted else MemoryLoader)(videos, recipe.clips, seed=recipe.seed)


def dense_feed(clips: Sequence[Clip], seen: Sequence[Tracks], recipe: Recipe) -> Feed:
    """Predictions as annotations of every frame; a clip without any keeps its keymasks."""
    videos = [
        # Where a track has no mask, its instance is absent.
        _annotated(clip, replace(tracks, annotated=torch.ones_like(tracks.annotated)) if len(tracks) else clip.keymasks)
        for clip, tracks in zip(clips, seen, strict=True)
    ]
    return MemoryLoader(videos, recipe.clips, seed=recipe.seed)


def dropped_share(clips: Sequence[Clip], recipe: Recipe, batches: int) -> float:
    """Share of the (instance, frame) rows of the drawn clips that have no keymask."""
    feed = keymask_feed(clips, VARIANTS["b"], recipe)
    keep = [target.keep.flatten() for batch in islice(feed.batches(0), batches) for target in batch.targets]
    return 1 - float(torch.cat(keep).double().mean())


class InformedFeed:
    """Clips with their keymasks, and beside each what is true of it.

    Attributes:
        truth: the instances of every clip of the present batch.
    """

    def __init__(self, clips: Sequence[Clip], recipe: Recipe) -> None:
        # Loaders draw the same clips where only masks differ.
        found, true = [], []
        for clip in clips:
            keys, truth = _annotated(clip, clip.keymasks), _annotated(clip, clip.truth)
            if len(keys.keep) != len(truth.keep):
                raise ValueError(f"expected a keymask of every instance in {keys.name}, some have none")
            found.append(keys)
            true.append(replace(keys, masks=truth.masks))
        self._found, self._true = (MemoryLoader(videos, recipe.clips, seed=recipe.seed) for videos in (found, true))
        self.truth: list[ClipTargets] = []

    def batches(self, step: int) -> Iterator[ClipBatch]:
        """The batches of a run from ``step`` on, without end."""
        for batch, true in zip(self._found.batches(step), self._true.batches(step), strict=True):
            self.truth = [ClipTargets(target.masks, torch.ones_like(target.keep)) for target in true.targets]
            yield batch


class Examined:
    """The targets of a teacher, counted and, if asked, put right by the truth of an `InformedFeed`.

    Attributes:
        clips: seen.
        targets: of the teacher, in all.
        right: those that overlap a true instance by more than a half (IoU of the tubes), the best of each instance.
        again: those that overlap an instance which a better one has.
        overlap: IoU of the right ones, summed.
        instances: true ones in the clips.
    """

    def __init__(self, teacher: Teacher, feed: InformedFeed, variant: Variant) -> None:
        self._ask, self._feed, self._variant = teacher.targets, feed, variant
        self.clips = self.targets = self.right = self.again = self.instances = 0
        self.overlap = 0.0

    def __call__(self, *arguments: Any) -> list[ClipTargets]:
        return [self._examined(*pair) for pair in zip(self._ask(*arguments), self._feed.truth, strict=True)]

    def _examined(self, found: ClipTargets, truth: ClipTargets) -> ClipTargets:
        self.clips += 1
        self.targets += len(found)
        self.instances += len(truth)
        meant: list[int] = []
        for values in mask_iou(found.bits, truth.bits).tolist():
            best = max(range(len(values)), key=values.__getitem__, default=None)
            if best is None or values[best] <= 0.5:
                continue
            if best in meant:
                self.again += 1
                continue
            meant.append(best)
            self.overlap += values[best]
        self.right += len(meant)
        if self._variant.teacher == "all instances":
            return truth
        return ClipTargets(truth.masks[meant], truth.keep[meant]) if self._variant.teacher == "exact" else found

    def summary(self) -> dict[str, float]:
        """Means over clips; ``iou`` over the right targets."""
        counts = {name: getattr(self, name) / max(self.clips, 1) for name in ("targets", "right", "again", "instances")}
        return counts | {"iou": self.overlap / max(self.right, 1)}


class PastedMasks:
    """Clips of a still frame over which the keymasks of another one move, as VideoCutLER makes them from images.

    The still's own keymasks stay where they are. Every frame is annotated.
    """

    def __init__(self, videos: Sequence[AnnotatedFrames], settings: ClipSettings, *, seed: int) -> None:
        self._videos, self._settings, self._seed = videos, settings, seed

    def batches(self, step: int) -> Iterator[ClipBatch]:
        """The batches of a run from ``step`` on, without end."""
        size = self._settings.batch
        for number in count(step):
            drawn = [self._clip(seeded(self._seed, clip)) for clip in range(number * size, (number + 1) * size)]
            clips, targets, times = zip(*drawn, strict=True)
            yield ClipBatch(torch.stack(clips), list(targets), ["pasted"] * size, torch.stack(times))

    def _clip(self, generator: torch.Generator) -> tuple[Tensor, ClipTargets, Tensor]:
        length = self._settings.frames
        frames, tubes = paste(*self._frame(generator), *self._frame(generator), length, generator)
        keep = torch.ones(tubes.shape[:2], dtype=torch.bool)
        pasted = AnnotatedFrames(frames, torch.arange(length), pack_masks(tubes), keep, keep.float())
        return draw_clip(pasted, self._settings, generator)

    def _frame(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """A frame with keymasks of a video: uint8 ``[3, H, W]`` and bool ``[G, H, W]``."""
        video = self._videos[int(torch.randint(len(self._videos), (), generator=generator))]
        t = int(torch.multinomial(video.weights.sum(0), 1, generator=generator))
        masks = unpack_masks(BitMasks(video.masks.words[:, t], video.masks.width))
        return video.frames[t], masks[video.keep[:, t]]


def paste(
    still: Tensor, still_masks: Tensor, source: Tensor, source_masks: Tensor, length: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """``length`` copies of a frame, over which the masks of another move and change in size at constant rates.

    Args:
        still, source: uint8 ``[3, H, W]``.
        still_masks, source_masks: bool ``[G, H, W]``.

    Returns:
        uint8 ``[T, 3, H, W]`` and the visible part of every mask, the still's first: bool ``[G, T, H, W]``.
    """
    clip = still.expand(length, *still.shape).float()
    tubes = [mask.expand(length, *mask.shape) for mask in still_masks]
    height, width = still.shape[-2:]
    for mask in source_masks:
        rows, columns = mask.nonzero().float().mean(0).tolist()
        centre = torch.tensor([2 * (columns + 0.5) / width - 1, 2 * (rows + 0.5) / height - 1])
        draw = torch.rand(7, generator=generator)
        time = torch.linspace(0, 1, length)[:, None]
        place = 1.6 * draw[:2] - 0.8 + time * (draw[2:4] - 0.5)
        scale = (0.7 + 0.6 * draw[4]) * (0.8 + 0.4 * draw[5]) ** time
        mirror = torch.tensor([-1.0 if draw[6] < 0.5 else 1.0, 1.0])
        # Coordinates of the clip to those of the source, both from -1 to 1.
        theta = torch.cat([torch.diag(mirror) / scale[:, :, None], (centre - mirror * place / scale)[:, :, None]], 2)
        grid = F.affine_grid(theta, [length, 1, height, width], align_corners=False)
        there = F.grid_sample(mask[None, None].float().expand(length, -1, -1, -1), grid, "nearest", align_corners=False)
        colours = F.grid_sample(source[None].float().expand(length, -1, -1, -1), grid, align_corners=False)
        clip = torch.where(there > 0.5, colours, clip)
        tubes = [tube & (there[:, 0] <= 0.5) for tube in tubes] + [there[:, 0] > 0.5]
    return clip.round().to(torch.uint8), torch.stack(tubes)


class Variant(NamedTuple):
    """One way to learn from keymasks.

    Attributes:
        title: in words.
        frames: see `s2d.training.settings.LossSettings`: ``"all"`` takes a missing keymask for an empty mask.
        pasted: whether the clips are those of `PastedMasks`.
        distill: whether the teacher's predictions are further targets.
        frame_drop, label_drop: see `s2d.training.settings.LossSettings`.
        then: what the run is called after a dense round, of a third of its steps on top.
        many: whether keymasks, as noisy as the others, are on four of five frames.
        teacher: whose the further targets are: ``"itself"``; ``"examined"``, which is counted, too; ``"exact"``, the
            true masks of the instances that it means; ``"all instances"``, the true masks of all. Its targets are then
            the paper's: from a score of 0.75, with the class loss.
    """

    title: str
    frames: str = "annotated"
    pasted: bool = False
    distill: bool = False
    frame_drop: float = 0.0
    label_drop: float = 0.0
    then: str | None = None
    many: bool = False
    teacher: str = "itself"


VARIANTS = {
    "a": Variant("missing is empty", frames="all"),
    "b": Variant("Temporal DropLoss"),
    "c": Variant("b + distillation", distill=True, then="d"),
    "e": Variant("pasted masks", pasted=True),
    "f": Variant("c + frame_drop 0.3", distill=True, frame_drop=0.3),
    "g": Variant("c + label_drop 0.2", distill=True, label_drop=0.2),
}
# Why the teacher helps or does not.
EXAMINED = {
    "h": Variant("b + targets from 0.75", distill=True, teacher="examined"),
    "i": Variant("h, masks made exact", distill=True, teacher="exact"),
    "j": Variant("h, all true masks", distill=True, teacher="all instances"),
    "k": Variant("b, keymasks on 80 %", many=True),
}
ALL = VARIANTS | EXAMINED
TITLES = {name: variant.title for name, variant in ALL.items()} | {"d": "c + dense round"}


def recipe(variant: Variant, seed: int, steps: int) -> Recipe:
    """The recipe ``cpu-small`` for this number of steps, smaller, at this size."""
    base = load_recipe("cpu-small")
    begin = 2 * steps // 5 if variant.distill else None
    rounds = [replace(base.rounds[0], steps=steps, distill_from=begin)]
    if variant.then:
        rounds.append(replace(base.rounds[1], steps=-(-steps // 3), threshold=0.6))
    return replace(
        base,
        seed=seed,
        checkpoint_every=100,
        model=replace(base.model, **MODEL, input_short_side=min(SIZE)),
        clips=replace(base.clips, balance=1.0, consecutive=0.0, crop=(0.8, 1.0)),
        loss=replace(
            base.loss,
            frames=variant.frames,
            # At cpu-small's 0.03 fragments score as high as animals, and the dense round takes them for true.
            no_object=0.2,
            frame_drop=variant.frame_drop,
            label_drop=variant.label_drop,
            distill_class=base.loss.distill_class if variant.teacher == "itself" else base.loss.class_loss,
        ),
        teacher=replace(base.teacher, threshold=0.9 if variant.teacher == "itself" else 0.75),
        rounds=tuple(rounds),
    )

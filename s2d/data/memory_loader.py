"""Batches of training clips from videos in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count

import torch
from torch import Tensor

from s2d.data.clip_plan import (
    ClipFormat,
    draw_frames,
    draw_plan,
    paste,
    present,
    seeded,
    transform_frames,
    transform_masks,
)
from s2d.data.clips import AnnotatedFrames, ClipBatch, ClipSettings, ClipTargets
from s2d.ops import BitMasks, unpack_masks


class MemoryLoader:
    """Clip n of a run is drawn from (seed, n) alone: nothing is kept to resume, and W processes see what one sees."""

    def __init__(
        self,
        videos: Sequence[AnnotatedFrames],
        settings: ClipSettings,
        *,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        """
        Args:
            videos: at least one; all clips have the size of the first (``settings.size`` is that of files' clips).
            settings: see `ClipSettings`.
            seed: of everything drawn.
            rank: number of this process among ``world``.
            world: processes that share each batch.

        Raises:
            InputError: the batch cannot be shared equally.
        """
        self._videos, self._settings, self._seed = videos, settings, seed
        self._rank, self._world, self._share = rank, world, settings.share(world)

    def batches(self, step: int = 0) -> Iterator[ClipBatch]:
        """The batches of a run from ``step`` on, without end, on the CPU."""
        for number in count(step):
            first = number * self._settings.batch + self._rank
            yield self._batch([first + self._world * i for i in range(self._share)])

    def _batch(self, numbers: list[int]) -> ClipBatch:
        videos = [self._video(number) for number in numbers]
        drawn = [self._draw(video, number) for video, number in zip(videos, numbers, strict=True)]
        clips, targets, times = zip(*drawn, strict=True)
        return ClipBatch(torch.stack(clips), list(targets), [video.name for video in videos], torch.stack(times))

    def _video(self, number: int) -> AnnotatedFrames:
        """The video of clip ``number``: each of them once an epoch, in an order of the epoch's own."""
        epoch, place = divmod(number, len(self._videos))
        if len(self._videos) == 1:
            return self._videos[0]
        return self._videos[int(torch.randperm(len(self._videos), generator=seeded(self._seed, 0, epoch))[place])]

    def _draw(self, video: AnnotatedFrames, number: int) -> tuple[Tensor, ClipTargets, Tensor]:
        generator = seeded(self._seed, 1, number)
        donor = self._videos[int(torch.randint(len(self._videos), (), generator=generator))]
        return draw_clip(video, self._settings, generator, size=self._videos[0].size, donor=donor)


def draw_clip(
    data: AnnotatedFrames,
    settings: ClipSettings,
    generator: torch.Generator,
    *,
    size: tuple[int, int] | None = None,
    donor: AnnotatedFrames | None = None,
) -> tuple[Tensor, ClipTargets, Tensor]:
    """One augmented clip and its targets; instances without a pixel in it are left out.

    Args:
        size: (h, w) of the clip; None: of the frames.
        donor: where the instances come from that are pasted onto it; None: the same video.

    Returns:
        ``[T, 3, h, w]`` float32 in 0..255, `ClipTargets`, and the numbers of the frames in the video, int64 ``[T]``.
    """
    size = size or data.size
    clip, targets, times = _draw_plain(data, size, settings, generator)
    if torch.rand((), generator=generator) < settings.copy_paste:
        other, pasted, _ = _draw_plain(donor or data, size, settings, generator)
        clip, targets = paste(clip, targets, other, pasted)
    return clip, present(targets), times


def _draw_plain(
    data: AnnotatedFrames, size: tuple[int, int], settings: ClipSettings, generator: torch.Generator
) -> tuple[Tensor, ClipTargets, Tensor]:
    index = draw_frames(data.times, data.keep, data.weights, settings, generator)
    plan = draw_plan(index, data.size, size, settings, generator)
    masks = unpack_masks(BitMasks(data.masks.words[:, index], data.masks.width))
    targets = ClipTargets(transform_masks(masks, plan, size), data.keep[:, index])
    return transform_frames(data.frames[index], plan, ClipFormat(size)), targets, data.times[index]

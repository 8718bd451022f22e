"""One clip: drawn from its place in an epoch, opened, and decoded by whoever is to do it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import av
import numpy as np
import torch
from torch import Tensor

from s2d.data import dali
from s2d.data.clip_plan import (
    ClipFormat,
    ClipPlan,
    draw_frames,
    draw_plan,
    paste,
    present,
    seeded,
    transform_frames,
    transform_masks,
)
from s2d.data.clips import ClipSettings, ClipTargets, frame_weights
from s2d.data.datasets.sample import Sample
from s2d.data.types import Tracks
from s2d.data.video import Video
from s2d.errors import InputError
from s2d.ops import rle_area, rle_decode, unpack_masks

# A dataset in which so many clips in a row cannot be read is not worth the search for one that can.
_ATTEMPTS = 20

# Videos whose index and masks are kept between clips.
_OPEN = 64


@dataclass(eq=False)
class Clip:
    """A drawn clip; decoded, or with a request of what DALI is to decode.

    Attributes:
        place: (epoch, place in it, attempt) that it was drawn from.
        sample: whose clip it is.
        plan: what it shows.
        keep: bool ``[G, T]``: where the instances seen in its frames are annotated.
        decoder: who made it.
        reason: why PyAV did although DALI was asked for.
        skipped: what could not be read before, at this place.
        donor: the clip whose instances are pasted onto it.
        frames: float32 ``[T, 3, h, w]``.
        masks: bool ``[G, T, h, w]``.
    """

    place: tuple[int, int, int]
    sample: Sample
    video: Video
    plan: ClipPlan
    source_masks: np.ndarray
    keep: Tensor
    decoder: str = "pyav"
    reason: str | None = None
    skipped: tuple[str, ...] = ()
    donor: Clip | None = None
    request: dali.Request | None = None
    frames: Tensor | None = None
    masks: Tensor | None = None

    def parts(self) -> list[Clip]:
        """The clip and what is pasted onto it."""
        return [self] if self.donor is None else [self, self.donor]

    def finished(self) -> tuple[Tensor, ClipTargets]:
        """Its frames, and the instances that have a pixel in them."""
        frames, targets = self.frames, self._targets()
        if self.donor is not None:
            frames, targets = paste(frames, targets, self.donor.frames, self.donor._targets())
        return frames, present(targets)

    def _targets(self) -> ClipTargets:
        return ClipTargets(self.masks, self.keep)


class ClipMaker:
    """Makes the clips of a loader; may be called from many threads.

    Attributes:
        busy: by thread, the video that it works on.
    """

    def __init__(
        self,
        dataset: Sequence[Sample],
        settings: ClipSettings,
        form: ClipFormat,
        device: torch.device,
        *,
        seed: int,
        clips: int,
    ) -> None:
        """
        Args:
            clips: how many an epoch has; each video comes equally often.
        """
        self._dataset, self._settings, self._form, self._device = dataset, settings, form, device
        self._seed, self._clips = seed, clips
        self._dali, self._one_at_a_time = dali.DaliDecoder(settings, form, device), threading.Lock()
        self._opened = lru_cache(maxsize=_OPEN)(_open)
        self._order = lru_cache(maxsize=2)(self._shuffled)
        self.busy: dict[int, str] = {}

    def prepare(self, epoch: int, place: int, attempt: int = 0, skipped: tuple[str, ...] = ()) -> Clip:
        """Draw the clip of a place and make it, or a request to DALI. What cannot be read is drawn again, elsewhere.

        Args:
            attempt: how often it was drawn in vain.
            skipped: why.

        Raises:
            InputError: a clip that cannot be read, where those are refused; or too many of them in a row.
        """
        for number in range(attempt, _ATTEMPTS):
            generator = seeded(self._seed, epoch, place, number)
            order = self._order(epoch)
            sample = self._dataset[int(order[place % len(order)])] if number == 0 else self._any(generator)
            try:
                clip = self._draw(sample, (epoch, place, number), generator)
                if torch.rand((), generator=generator) < self._settings.copy_paste:
                    sample = self._any(generator)
                    clip.donor = self._draw(sample, (epoch, place, number), generator)
                clip.skipped = skipped
                return clip
            except (InputError, OSError, av.FFmpegError) as error:
                skipped = (*skipped, self._refused(sample, error))
        found = f"{_ATTEMPTS} in a row that cannot; the last: {skipped[-1]}"
        raise InputError(f"expected a clip that can be read, got {found}")

    def finish(self, clips: list[Clip]) -> list[Clip]:
        """Let DALI decode what waits for it, all at once; one by one where something in it cannot be decoded."""
        waiting = [part for clip in clips for part in _waits(clip)]
        if not waiting:
            return clips
        try:
            with self._at_work(", ".join(clip.sample.name for clip in waiting)), self._one_at_a_time:
                decoded = self._dali.decode([clip.request for clip in waiting])
        except dali.DaliError as error:
            if len(clips) == 1:
                return [self._without_dali(clips[0], f"DALI failed: {error}")]
            return [self.finish([clip])[0] for clip in clips]
        for part, made in zip(waiting, decoded, strict=True):
            if made.exact or self._settings.decoder == "dali":
                part.frames, part.masks, part.decoder, part.request = made.frames, made.masks, "dali", None
        inexact = "DALI clips its colours, which are not BT.601's"
        return [self._without_dali(clip, inexact) if _waits(clip) else clip for clip in clips]

    @contextlib.contextmanager
    def _at_work(self, what: str) -> Iterator[None]:
        thread = threading.get_ident()
        self.busy[thread] = what
        try:
            yield
        finally:
            del self.busy[thread]

    def _any(self, generator: torch.Generator) -> Sample:
        return self._dataset[int(torch.randint(len(self._dataset), (), generator=generator))]

    def _shuffled(self, epoch: int) -> np.ndarray:
        """Numbers of the videos of an epoch, by place."""
        return np.random.default_rng([self._seed, epoch]).permutation(self._clips) % len(self._dataset)

    def _refused(self, sample: Sample, error: Exception) -> str:
        """What is wrong, where that is to be skipped; otherwise it is raised."""
        message = str(error)
        if not isinstance(error, InputError):
            message = f"expected a video that can be read, got {sample.name}: {error}"
        if self._settings.on_error == "refuse":
            raise InputError(message) from None
        return message

    def _draw(self, sample: Sample, place: tuple[int, int, int], generator: torch.Generator) -> Clip:
        with self._at_work(sample.name):
            video, tracks = self._opened(sample)
            index = draw_frames(*_marks(tracks, video.num_frames), self._settings, generator)
            plan = draw_plan(index, video.size, self._form.size, self._settings, generator)
            clip = Clip(place, sample, video, plan, *_targets(tracks, plan, video.size))
            if self._settings.decoder != "pyav":
                clip.reason = dali.refusal(video, self._device)
                if clip.reason is None:
                    clip.request = dali.request(video, plan, clip.source_masks)
                    clip.reason = None if clip.request else "no key frame is a clean start for the clip"
                if clip.reason is not None and self._settings.decoder == "dali":
                    raise InputError(f"expected a video that DALI decodes, got {sample.name}: {clip.reason}")
            if clip.request is None:
                self._decode(clip)
            return clip

    def _decode(self, clip: Clip) -> None:
        """By PyAV, or PIL for images."""
        frames = _read_frames(clip.video, clip.plan.times).to(self._device)
        clip.frames = transform_frames(frames, clip.plan, self._form)
        masks = torch.from_numpy(clip.source_masks).to(self._device)
        clip.masks = transform_masks(masks, clip.plan, self._form.size)

    def _without_dali(self, clip: Clip, reason: str) -> Clip:
        """A clip that DALI does not make: by PyAV where that is allowed, else refused or drawn again."""
        waiting = _waits(clip)
        names = " or ".join(part.sample.name for part in waiting)
        failure: Exception = InputError(f"expected a video that DALI decodes, got {names}: {reason}")
        if self._settings.decoder == "auto":
            try:
                for part in waiting:
                    part.request, part.reason = None, reason
                    self._decode(part)
                return clip
            except (InputError, OSError, av.FFmpegError) as unreadable:
                failure = unreadable
        message = self._refused(clip.sample, failure)
        epoch, place, attempt = clip.place
        return self.finish([self.prepare(epoch, place, attempt + 1, (*clip.skipped, message))])[0]


def _waits(clip: Clip) -> list[Clip]:
    """The clip and what is pasted onto it, where DALI is to decode them."""
    return [part for part in clip.parts() if part.request is not None]


def _open(sample: Sample) -> tuple[Video, Tracks | None]:
    video, tracks = sample.video(), sample.tracks()
    if tracks is not None and (tracks.num_frames, tracks.size) != (video.num_frames, video.size):
        (height, width), (h, w) = video.size, tracks.size
        wanted = f"masks of {width} x {height} on {video.num_frames} frames of {sample.name}"
        raise InputError(f"expected {wanted}, got {w} x {h} on {tracks.num_frames}")
    return video, tracks


def _marks(tracks: Tracks | None, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """What `draw_frames` asks for; where nothing is annotated, any frame will do."""
    if tracks is not None and bool(tracks.annotated.any()):
        return torch.arange(length), tracks.annotated, frame_weights(tracks)
    anywhere = torch.ones(1, length, dtype=torch.bool)
    return torch.arange(length), anywhere, anywhere.float()


def _targets(tracks: Tracks | None, plan: ClipPlan, size: tuple[int, int]) -> tuple[np.ndarray, Tensor]:
    """Masks uint8 ``[G, T, H, W]`` of the instances seen on the frames of the plan, and where each is annotated."""
    nothing = np.zeros((0, len(plan.times), *size), np.uint8), torch.zeros(0, len(plan.times), dtype=torch.bool)
    if tracks is None or len(tracks) == 0:
        return nothing
    times = torch.from_numpy(plan.times)
    index = torch.arange(tracks.annotated.numel()).view(tracks.annotated.shape)[:, times]
    seen = (rle_area(tracks.rle[index.reshape(-1)]).view(index.shape) > 0).any(1)
    if not seen.any():
        return nothing
    shown = unpack_masks(rle_decode(tracks.rle[index[seen].reshape(-1)]))
    return shown.numpy().view(np.uint8).reshape(-1, len(times), *size), tracks.annotated[:, times][seen]


def _read_frames(video: Video, times: np.ndarray) -> Tensor:
    """The frames with these ascending numbers, some of them perhaps several times: uint8 ``[T, 3, H, W]``."""
    distinct, place = np.unique(times, return_inverse=True)
    gaps = np.diff(distinct)
    step = int(gaps[0]) if len(gaps) and (gaps == gaps[0]).all() else 1
    first, last = int(distinct[0]), int(distinct[-1])
    read = video.clip(first, last + 1, step)
    return read[torch.from_numpy((distinct[place] - first) // step)]

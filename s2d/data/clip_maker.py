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
from s2d.data.clip_plan import ClipPlan, LoaderSettings, draw_plan, transform_frames, transform_masks
from s2d.data.clips import ClipTargets
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
    request: dali.Request | None = None
    frames: Tensor | None = None
    masks: Tensor | None = None

    def targets(self) -> ClipTargets:
        """The instances that have a pixel in the clip."""
        present = self.masks.flatten(1).any(1)
        return ClipTargets(self.masks[present], self.keep.to(present.device)[present])


class ClipMaker:
    """Makes the clips of a loader; may be called from many threads.

    Attributes:
        busy: by thread, the video that it works on.
    """

    def __init__(
        self,
        dataset: Sequence[Sample],
        settings: LoaderSettings,
        device: torch.device,
        *,
        seed: int,
        clips: int,
        threads: int,
    ) -> None:
        """
        Args:
            clips: how many an epoch has; each video comes equally often.
            threads: of DALI.
        """
        self._dataset, self._settings, self._device = dataset, settings, device
        self._seed, self._clips = seed, clips
        self._dali, self._one_at_a_time = dali.DaliDecoder(settings, device, threads), threading.Lock()
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
            draw = np.random.default_rng([self._seed, epoch, place, number])
            order = self._order(epoch)
            index = order[place % len(order)] if number == 0 else draw.integers(len(self._dataset))
            sample = self._dataset[int(index)]
            try:
                with self._at_work(sample.name):
                    clip = self._draw(sample, (epoch, place, number), draw)
                clip.skipped = skipped
                return clip
            except (InputError, OSError, av.FFmpegError) as error:
                skipped = (*skipped, self._refused(sample, error))
        found = f"{_ATTEMPTS} in a row that cannot; the last: {skipped[-1]}"
        raise InputError(f"expected a clip that can be read, got {found}")

    def finish(self, clips: list[Clip]) -> list[Clip]:
        """Let DALI decode what waits for it, all at once; one by one where something in it cannot be decoded."""
        waiting = [clip for clip in clips if clip.request is not None]
        if not waiting:
            return clips
        try:
            with self._at_work(", ".join(clip.sample.name for clip in waiting)), self._one_at_a_time:
                decoded = self._dali.decode([clip.request for clip in waiting])
        except dali.DaliError as error:
            if len(clips) == 1:
                return [self._without_dali(waiting[0], error)]
            return [self.finish([clip])[0] for clip in clips]
        for clip, (clip.frames, clip.masks) in zip(waiting, decoded, strict=True):
            clip.decoder, clip.request = "dali", None
        return clips

    @contextlib.contextmanager
    def _at_work(self, what: str) -> Iterator[None]:
        thread = threading.get_ident()
        self.busy[thread] = what
        try:
            yield
        finally:
            del self.busy[thread]

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

    def _draw(self, sample: Sample, place: tuple[int, int, int], draw: np.random.Generator) -> Clip:
        video, tracks = self._opened(sample)
        annotated = None if tracks is None else tracks.annotated.any(0).numpy()
        plan = draw_plan(video.num_frames, video.size, annotated, self._settings, draw)
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
        clip.frames = transform_frames(frames, clip.plan, self._settings)
        clip.masks = transform_masks(torch.from_numpy(clip.source_masks).to(self._device), clip.plan, self._settings)

    def _without_dali(self, clip: Clip, error: dali.DaliError) -> Clip:
        """A clip that DALI failed on: by PyAV where that is allowed, else refused or drawn again."""
        failure: Exception = InputError(f"expected a video that DALI decodes, got {clip.sample.name}: {error}")
        if self._settings.decoder == "auto":
            clip.request, clip.reason = None, f"DALI failed: {error}"
            try:
                self._decode(clip)
                return clip
            except (InputError, OSError, av.FFmpegError) as unreadable:
                failure = unreadable
        message = self._refused(clip.sample, failure)
        epoch, place, attempt = clip.place
        return self.finish([self.prepare(epoch, place, attempt + 1, (*clip.skipped, message))])[0]


def _open(sample: Sample) -> tuple[Video, Tracks | None]:
    video, tracks = sample.video(), sample.tracks()
    if tracks is not None and (tracks.num_frames, tracks.size) != (video.num_frames, video.size):
        (height, width), (h, w) = video.size, tracks.size
        wanted = f"masks of {width} x {height} on {video.num_frames} frames of {sample.name}"
        raise InputError(f"expected {wanted}, got {w} x {h} on {tracks.num_frames}")
    return video, tracks


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

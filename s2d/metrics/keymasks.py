"""How good keymasks are, against exact instances and against the proposals they were chosen from."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from s2d.data.types import FrameMasks, Tracks
from s2d.metrics.tubes import check_comparable, match_tubes
from s2d.ops import BitMasks, mask_iou


@dataclass(frozen=True)
class KeymaskQuality:
    """Counts of one video or, added up with ``+``, of many; the properties are shares of the sums.

    A mask *shows* the true instance of its frame with which its IoU is greatest, if that is above a threshold; else it
    shows none. A found instance *stands for* the true instance that most of its keymasks show.

    Attributes:
        keymasks: masks of all found instances.
        right: those of them that show the true instance which their found instance stands for.
        recovered: true masks (an instance in a frame) that the found instance assigned to that true instance shows
            there. The assignment is one to one and makes the sum greatest: of two halves of a track, one counts.
        proposed: true masks that some proposal shows: what could be recovered.
        objects_found: true instances that were assigned a found instance with a right keymask.
        objects_proposed: true instances that some proposal shows.
        instances: found instances.
        kept_iou, dropped_iou: sums, over the keymasks and over all other proposals, of the greatest IoU with a true
            mask of the frame.
        proposals: all of them, N.
    """

    keymasks: int = 0
    right: int = 0
    recovered: int = 0
    proposed: int = 0
    objects_found: int = 0
    objects_proposed: int = 0
    instances: int = 0
    kept_iou: float = 0.0
    dropped_iou: float = 0.0
    proposals: int = 0

    def __add__(self, other: KeymaskQuality) -> KeymaskQuality:
        return KeymaskQuality(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    @property
    def purity(self) -> float:
        """``right / keymasks``: NaN without keymasks."""
        return _share(self.right, self.keymasks)

    @property
    def recall(self) -> float:
        """``recovered / proposed``: NaN where no proposal shows anything."""
        return _share(self.recovered, self.proposed)

    @property
    def f1(self) -> float:
        """Harmonic mean of purity and recall, for methods that trade one for the other; 0 without keymasks."""
        if not self.keymasks or not self.proposed:
            return 0.0
        return 2 * self.purity * self.recall / max(self.purity + self.recall, 1e-12)

    @property
    def objects(self) -> float:
        """``objects_found / objects_proposed``."""
        return _share(self.objects_found, self.objects_proposed)

    @property
    def mean_kept_iou(self) -> float:
        return _share(self.kept_iou, self.keymasks)

    @property
    def mean_dropped_iou(self) -> float:
        return _share(self.dropped_iou, self.proposals - self.keymasks)


def keymask_quality(
    keymasks: Tracks, proposals: FrameMasks, truth: Tracks, *, threshold: float = 0.5
) -> KeymaskQuality:
    """Compare found instances with the true ones.

    Args:
        keymasks: found instances; their masks are proposals, each in one instance at most.
        proposals: what they were chosen from.
        truth: M instances of the same frames.
        threshold: IoU, in [0, 1), above which a mask shows a true one.

    Raises:
        ValueError: the three differ in number of frames or in mask size.
    """
    check_comparable(keymasks, truth)
    if (proposals.num_frames, *proposals.size) != (truth.num_frames, *truth.size):
        expected, got = (truth.num_frames, *truth.size), (proposals.num_frames, *proposals.size)
        raise ValueError(f"expected proposals of {expected} frames, height and width as the truth has, got {got}")
    instance, frame = keymasks.annotated.nonzero(as_tuple=True)
    bits = keymasks.bits()
    kept_best, shows = _shown(BitMasks(bits.words[instance, frame], bits.width), frame, truth, threshold)
    best, shown = _shown(proposals.bits(), proposals.frames, truth, threshold)
    votes = torch.zeros(len(keymasks), len(truth) + 1, dtype=torch.int64)
    votes.index_put_((instance, shows), torch.ones_like(instance), accumulate=True)
    # Votes for none come last and are not wanted.
    votes = votes[:, : len(truth)]
    # Two keymasks of an instance lie in different frames, so votes are true masks, too.
    matched = [pair for pair in match_tubes(votes.double()) if votes[pair] > 0]
    seen = shown < len(truth)
    return KeymaskQuality(
        keymasks=len(frame),
        right=int(votes.amax(1).sum()) if votes.numel() else 0,
        recovered=sum(int(votes[pair]) for pair in matched),
        proposed=len(torch.stack([shown[seen], proposals.frames[seen]]).unique(dim=1).T),
        objects_found=len(matched),
        objects_proposed=len(shown[seen].unique()),
        instances=len(keymasks),
        kept_iou=float(kept_best.sum()),
        dropped_iou=float(best.sum() - kept_best.sum()),
        proposals=len(proposals),
    )


def _shown(masks: BitMasks, frames: Tensor, truth: Tracks, threshold: float) -> tuple[Tensor, Tensor]:
    """Greatest IoU of each mask with a true one of its frame, float64, and whose that is; M where it shows none."""
    best = torch.zeros(len(frames), dtype=torch.float64)
    owner = torch.full((len(frames),), len(truth))
    for t in frames.unique().tolist() if len(truth) else ():
        here = (frames == t).nonzero().flatten()
        true = truth.bits(slice(t, t + 1))
        iou = mask_iou(BitMasks(masks.words[here], masks.width), BitMasks(true.words[:, 0], true.width)).double()
        best[here], index = iou.max(1)
        owner[here] = torch.where(best[here] > threshold, index, len(truth))
    return best, owner


def _share(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")

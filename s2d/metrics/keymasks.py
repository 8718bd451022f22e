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
    shows none. A found instance *stands for* the true instance that most of its keymasks show. Purity asks whether
    keymasks are of the object that their instance is of, recall which true masks are kept at all, linked recall whether
    in one instance; how exactly the outlines are drawn, the mean IoU says, and the threshold.

    Attributes:
        keymasks: masks of all found instances.
        right: those of them that show the true instance which their found instance stands for.
        recovered: true masks (an instance in a frame) that some right keymask shows.
        in_one_piece: of those the ones that a single found instance shows for each true one: true and found instances
            are assigned to each other one to one, so that this is greatest. Of two halves of a track, one counts.
        proposed: true masks that some proposal shows: what could be recovered.
        objects_found: true instances that some right keymask shows.
        objects_proposed: true instances that some proposal shows.
        instances: found instances.
        kept_iou, dropped_iou: sums, over the keymasks and over all other proposals, of the greatest IoU with a true
            mask of the frame.
        proposals: all of them, N.
    """

    keymasks: int = 0
    right: int = 0
    recovered: int = 0
    in_one_piece: int = 0
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
    def linked_recall(self) -> float:
        """``in_one_piece / proposed``: recall that counts one found instance for each true one."""
        return _share(self.in_one_piece, self.proposed)

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
    keymasks: Tracks, proposals: FrameMasks, truth: Tracks, *, threshold: float = 0.3
) -> KeymaskQuality:
    """Compare found instances with the true ones.

    Args:
        keymasks: found instances; their masks are proposals, each in one instance at most.
        proposals: what they were chosen from.
        truth: M instances of the same frames.
        threshold: IoU, in [0, 1), above which a mask shows a true one. At 0.5 outlines decide, too; at 0.3 a rough
            mask counts, and half an object.

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
    # The last column counts masks that show nothing.
    votes = votes[:, : len(truth)]
    stands_for = votes.argmax(1) if votes.numel() else torch.zeros(len(keymasks), dtype=torch.int64)
    right = (shows < len(truth)) & (shows == stands_for[instance])
    recovered = torch.stack([shows, frame])[:, right].unique(dim=1)
    seen = shown < len(truth)
    return KeymaskQuality(
        keymasks=len(frame),
        right=int(right.sum()),
        recovered=recovered.shape[1],
        # Keymasks of an instance lie in different frames, so that votes are true masks, too.
        in_one_piece=sum(int(votes[pair]) for pair in match_tubes(votes.double())),
        proposed=torch.stack([shown, proposals.frames])[:, seen].unique(dim=1).shape[1],
        objects_found=len(recovered[0].unique()),
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

"""The numbers of a training run, apart from the model's and the clips'."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LossSettings:
    """Weights, points and drops of the losses.

    Attributes:
        mask: weight of the point-sampled cross-entropy, in the loss and in the matching cost.
        dice: the same for dice.
        class_loss: weight of the class loss; 0 where a missing annotation is no evidence of absence.
        distill_class: weight of the class loss on the teacher's targets.
        match_class: weight of the class score in the matching cost.
        no_object: weight of a query without target in the class loss.
        num_points: points a mask row, and of the matching cost.
        oversample: candidates a point.
        importance: share of the points chosen by uncertainty.
        frames: ``"annotated"``: an instance counts where it is annotated (Temporal DropLoss); ``"all"``: everywhere, a
            frame without annotation being an empty mask.
        distill_frames: the same of the teacher's targets, which are annotated everywhere.
        behaviour: ``"corrected"``, or ``"official"``, as the released code: a frame is annotated where a target has a
            pixel, targets are matched on all frames, and auxiliary heads take the teacher's targets on ``frames``.
        label_drop: probability that a kept row is dropped from the losses.
        frame_drop: probability that the student's attention drops a frame in which nothing is annotated.
    """

    mask: float = 5.0
    dice: float = 5.0
    class_loss: float = 2.0
    distill_class: float = 2.0
    match_class: float = 2.0
    no_object: float = 0.1
    num_points: int = 12_544
    oversample: float = 3.0
    importance: float = 0.75
    frames: str = "annotated"
    distill_frames: str = "all"
    behaviour: str = "corrected"
    label_drop: float = 0.0
    frame_drop: float = 0.0


@dataclass(frozen=True)
class TeacherSettings:
    """The averaged model and its targets.

    Attributes:
        momentum: of the average; earlier steps use at most ``1 - 1 / (step + 1)``.
        threshold: least score of a target.
        most: at most so many targets a clip.
    """

    momentum: float = 0.999
    threshold: float = 0.75
    most: int = 100


@dataclass(frozen=True)
class OptimizerSettings:
    """AdamW and its schedule.

    Attributes:
        learning_rate: peak.
        backbone_multiplier: of the backbone's learning rate.
        weight_decay: 0 for norms, biases and embeddings whatever is said here.
        schedule: ``"cosine"`` (to ``final`` of the peak at the last step) or ``"step"`` (times ``final`` from each
            milestone on).
        warmup: steps of linear warm-up.
        milestones: steps of the round at which ``"step"`` lowers the rate.
        final: see ``schedule``.
        clip_norm: of the gradient of the whole model.
    """

    learning_rate: float = 1e-4
    backbone_multiplier: float = 0.1
    weight_decay: float = 0.05
    schedule: str = "cosine"
    warmup: int = 0
    milestones: tuple[int, ...] = ()
    final: float = 0.0
    clip_norm: float = 0.01


@dataclass(frozen=True)
class ExecutionSettings:
    """How a step is computed; what it computes is the same, rounding (and what dropout draws) aside.

    Attributes:
        precision: ``"fp32"``, ``"bf16"`` or ``"fp16"`` (with a loss scale) of the networks; weights are fp32.
        micro_batch: clips of a process that go through the model at a time; gradients add up. None: all at once.
        checkpointing: keep of every layer its input alone, and compute the rest again in the backward pass.
    """

    precision: str = "fp32"
    micro_batch: int | None = None
    checkpointing: bool = False


@dataclass(frozen=True)
class RoundSettings:
    """One round of training.

    Attributes:
        name: shown to the user.
        annotations: ``"keymasks"``, or ``"predictions"`` of the round before on every frame.
        steps: fixed number of optimizer steps.
        distill_from: step from which the teacher's predictions are further targets; None: never.
        rate: factor on the learning rate.
        threshold: least score of a prediction that becomes an annotation of a round on ``"predictions"``.
    """

    name: str
    annotations: str
    steps: int
    distill_from: int | None = None
    rate: float = 1.0
    threshold: float = 0.75

"""The whole model on the GPU: a clip predicted, a step of training, against the same model on definitions in torch."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from benchmarks.gpu.entry import Entry, Peer
from s2d import use_impl
from s2d.data.clips import ClipTargets
from s2d.models import ModelConfig, VideoMask2Former
from s2d.testing.cases.temporal_drop_loss import ellipses
from s2d.training.criterion import clip_losses, weighted_sum
from s2d.training.settings import LossSettings

NEEDS = ("mask_cost", "masked_attention", "ms_deform_attn", "temporal_drop_loss")

SMALL_MODEL = ModelConfig(
    depth=10, width=8, hidden_dim=16, nheads=2, mask_dim=8, encoder_layers=1, encoder_ffn=16, decoder_layers=2,
    decoder_ffn=16, num_queries=5,
)  # fmt: skip

# Model, frames, height, width.
FULL = [(ModelConfig(), 3, 360, 640), (ModelConfig(), 8, 360, 640)]
TINY = [(SMALL_MODEL, 2, 32, 64)]
SMALL: list[tuple] = []  # the sanitizers examine each operator by itself


@cache
def model_of(config: ModelConfig, device: str) -> VideoMask2Former:
    """One model a device with its random weights, in training mode but without dropout, so that calls agree."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = VideoMask2Former(config).to(device).train()
    for part in model.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    return model


def by_definition(call):
    def run(*inputs):
        with use_impl("reference"):
            return call(*inputs)

    return run


def near(ours: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> bool:
    """Layers add up rounding, and a query at the threshold of its mask may turn: most values agree."""
    return all(
        bool(((a - b).abs() <= 1e-2 * (1 + b.abs())).float().mean() > 0.99) for a, b in zip(ours, other, strict=True)
    )


def entries(config: ModelConfig, frames: int, height: int, width: int) -> list[Entry]:
    settings = LossSettings()

    def clip_of(device: str, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(0, 256, (1, frames, 3, height, width), generator=generator, dtype=torch.uint8).to(device)

    def make_training(device: str, seed: int) -> tuple:
        masks = ellipses(3, frames, (height, width), torch.Generator().manual_seed(seed))
        return clip_of(device, seed), masks.to(device), torch.ones(3, frames, dtype=torch.bool)

    @torch.inference_mode()
    def predict(clip: Tensor) -> tuple[Tensor, Tensor]:
        outputs = model_of(config, str(clip.device)).eval()(clip)
        return outputs["pred_logits"], outputs["pred_masks"]

    def train(clip: Tensor, masks: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
        """The loss, and how far the gradient would move the queries."""
        model = model_of(config, str(clip.device)).train()
        model.zero_grad(set_to_none=True)
        generator = torch.Generator(clip.device).manual_seed(0)
        losses = clip_losses(model(clip), [ClipTargets(masks, keep)], settings, [generator])
        total = weighted_sum(losses, settings)
        total.backward()
        queries = model.sem_seg_head.predictor.query_feat.weight.grad
        return total.detach()[None], queries.norm()[None]

    weights = 4 * sum(parameter.numel() for parameter in model_of(config, "cpu").parameters())
    pixels = 3 * frames * height * width
    case = f"ResNet-{config.depth}, Q={config.num_queries}, T={frames}, {height}x{width}"

    def entry(op: str, make, call, bytes: int, syncs: str = "") -> Entry:
        reference = by_definition(call)
        return Entry(
            op,
            case,
            make,
            call,
            lambda result, *inputs: near(result, reference(*inputs)),
            bytes=bytes,
            peers={"definitions in torch": Peer(reference, near, capturable=False)},
            syncs=syncs,
        )

    return [
        entry("predict", lambda device, seed: (clip_of(device, seed),), predict, weights + pixels),
        entry("train step", make_training, train, 3 * weights + pixels, "the assignment is solved on the CPU"),
    ]

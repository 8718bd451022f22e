"""ResNet: four feature maps of a frame, at strides 4, 8, 16 and 32."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s2d.models.config import BLOCKS, ModelConfig


class FrozenBatchNorm2d(nn.Module):
    """Batch norm whose statistics and affine part are constants: ``(x - mean) / sqrt(var + 1e-5) * weight + bias``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def affine(self) -> tuple[Tensor, Tensor]:
        """Scale and shift ``[C]``: the norm is ``x * scale + shift``."""
        scale = self.weight * (self.running_var + 1e-5).rsqrt()
        return scale, self.bias - self.running_mean * scale


def group_norm(channels: int) -> nn.GroupNorm:
    """Eight channels a group, and at most 32 groups: the official 32 groups at 256 channels, and sound ones below."""
    return nn.GroupNorm(min(32, channels // 8), channels)


class NormedConv2d(nn.Conv2d):
    """Convolution without bias, padded to keep its size, then a norm that is stored under its name."""

    def __init__(self, inputs: int, outputs: int, kernel: int, norm: nn.Module, stride: int = 1) -> None:
        # A strided 1x1 convolution reads one pixel in stride x stride. Taking those first gives the same numbers, and
        # avoids torch 2.13's own, whose weight gradient crashes on channels-last input of under 16 channels.
        self.every = stride if kernel == 1 else 1
        super().__init__(inputs, outputs, kernel, stride=stride // self.every, padding=kernel // 2, bias=False)
        self.norm = norm

    def reset_parameters(self) -> None:
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = x[..., :: self.every, :: self.every]
        if isinstance(self.norm, FrozenBatchNorm2d):
            # Constants scale the few weights instead of every pixel.
            scale, shift = self.norm.affine()
            return self._conv_forward(x, self.weight * scale[:, None, None, None], shift)
        return self.norm(super().forward(x))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and the identity."""

    expansion = 1

    def __init__(self, inputs: int, width: int, norm: type[nn.Module], stride: int) -> None:
        super().__init__()
        self.shortcut = _shortcut(inputs, width, norm, stride)
        self.conv1 = NormedConv2d(inputs, width, 3, norm(width), stride)
        self.conv2 = NormedConv2d(width, width, 3, norm(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu_(self.conv2(F.relu_(self.conv1(x))) + self.shortcut(x))


class Bottleneck(nn.Module):
    """1x1, 3x3 (which strides) and 1x1 convolutions, and the identity."""

    expansion = 4

    def __init__(self, inputs: int, width: int, norm: type[nn.Module], stride: int) -> None:
        super().__init__()
        self.shortcut = _shortcut(inputs, 4 * width, norm, stride)
        self.conv1 = NormedConv2d(inputs, width, 1, norm(width))
        self.conv2 = NormedConv2d(width, width, 3, norm(width), stride)
        self.conv3 = NormedConv2d(width, 4 * width, 1, norm(4 * width))

    def forward(self, x: Tensor) -> Tensor:
        residual = self.conv3(F.relu_(self.conv2(F.relu_(self.conv1(x)))))
        return F.relu_(residual + self.shortcut(x))


def _shortcut(inputs: int, outputs: int, norm: type[nn.Module], stride: int) -> nn.Module:
    return (
        nn.Identity() if inputs == outputs and stride == 1 else NormedConv2d(inputs, outputs, 1, norm(outputs), stride)
    )


class _Stem(nn.Module):
    def __init__(self, width: int, norm: type[nn.Module]) -> None:
        super().__init__()
        self.conv1 = NormedConv2d(3, width, 7, norm(width), stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(F.relu_(self.conv1(x)), 3, stride=2, padding=1)


class ResNet(nn.Module):
    """The residual network of a `ModelConfig`, with detectron2's names.

    Attributes:
        channels: of res2, res3, res4, res5.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        norm = FrozenBatchNorm2d if config.norm == "FrozenBN" else group_norm
        block = BasicBlock if config.depth < 50 else Bottleneck
        self.stem = _Stem(config.width, norm)
        self.channels = tuple(config.width * 2**stage * block.expansion for stage in range(4))
        inputs = config.width
        for stage, blocks in enumerate(BLOCKS[config.depth]):
            width = config.width * 2**stage
            layers = nn.Sequential()
            for index in range(blocks):
                layers.append(block(inputs, width, norm, stride=2 if stage and not index else 1))
                inputs = width * block.expansion
            self.add_module(f"res{stage + 2}", layers)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised images ``[N, 3, H, W]`` to features ``[N, C, H / s, W / s]`` for s = 4, 8, 16, 32."""
        # Channels last is what the convolutions of CPUs and of tensor cores run on.
        x = self.stem(images.contiguous(memory_format=torch.channels_last))
        features = []
        for stage in (self.res2, self.res3, self.res4, self.res5):
            x = stage(x)
            features.append(x)
        return features

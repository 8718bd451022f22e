"""The real architecture with small numbers, for tests that need a whole model."""

from __future__ import annotations

from s2d.models import ModelConfig

SMALL = ModelConfig(
    depth=10,
    width=8,
    norm="GN",
    hidden_dim=32,
    nheads=4,
    mask_dim=16,
    encoder_layers=1,
    encoder_ffn=32,
    decoder_layers=2,
    decoder_ffn=32,
    num_queries=5,
    input_short_side=32,
)

"""Modules over the operators, with the state dicts that people have."""

from s2d.nn.masked_cross_attention import MaskedCrossAttention
from s2d.nn.ms_deform_attn import MSDeformAttn

__all__ = ["MSDeformAttn", "MaskedCrossAttention"]

"""Inputs of the ``rle`` room."""

from __future__ import annotations

from s2d.testing.cases.bitmask import masks, tubes

__all__ = ["SHAPES", "masks", "tubes"]

SHAPES = [(1, 1), (1, 9), (9, 1), (5, 64), (33, 65), (130, 47)]

"""VideoMask2Former: backbone, pixel decoder, transformer decoder, and its checkpoints."""

from s2d.models.checkpoint import load_checkpoint, save_checkpoint
from s2d.models.config import ModelConfig
from s2d.models.video_mask2former import VideoMask2Former

__all__ = ["ModelConfig", "VideoMask2Former", "load_checkpoint", "save_checkpoint"]

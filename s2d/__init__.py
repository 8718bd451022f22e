"""s2d: fused mask, motion and attention operators, and unsupervised video instance segmentation on top of them."""

from s2d.accelerate import accelerate
from s2d.ops._dispatch import use_impl

__version__ = "0.1.0"
__all__ = ["__version__", "accelerate", "use_impl"]

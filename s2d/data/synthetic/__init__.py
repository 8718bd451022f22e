"""Generated clips with exact masks, flow and visibility, and a model of how proposals go wrong."""

from s2d.data.synthetic.clip import SyntheticClip, SyntheticSettings, demo_clip, generate_clip
from s2d.data.synthetic.proposal_noise import LEVELS, ProposalNoise, perturb_proposals

__all__ = [
    "LEVELS",
    "ProposalNoise",
    "SyntheticClip",
    "SyntheticSettings",
    "demo_clip",
    "generate_clip",
    "perturb_proposals",
]

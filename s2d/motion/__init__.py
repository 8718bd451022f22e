"""Motion priors that need no weights: optical flow, camera motion, moving regions."""

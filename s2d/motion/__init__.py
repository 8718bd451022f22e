"""Motion priors (`prior`: flow, point tracks, files, with a cache); camera motion and moving regions."""

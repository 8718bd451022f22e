"""Training: matcher, losses, teacher and the loop."""

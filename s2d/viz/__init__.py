"""Pictures of what was found: overlays on the video, and a timeline of instances."""

from s2d.viz.overlay import OverlayPainter, write_overlay
from s2d.viz.palette import instance_colour
from s2d.viz.table import text_table
from s2d.viz.timeline import Evidence, draw_timeline

__all__ = ["Evidence", "OverlayPainter", "draw_timeline", "instance_colour", "text_table", "write_overlay"]

"""``s2d doctor``."""

from __future__ import annotations


def doctor_command() -> None:
    """Say what was built, what runs here and what is missing."""
    from s2d.doctor import report

    print(report())

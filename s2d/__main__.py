"""``python -m s2d``: the same as the command ``s2d``."""

from s2d.cli import main

if __name__ == "__main__":
    main()

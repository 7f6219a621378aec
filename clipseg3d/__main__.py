"""``python -m clipseg3d`` is ``clipseg3d``."""

from clipseg3d.cli import main

if __name__ == "__main__":
    main()

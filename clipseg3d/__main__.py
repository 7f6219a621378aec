"""``python -m clipseg3d`` is ``clipseg3d``."""

import sys

from clipseg3d.cli.main import main

sys.exit(main())

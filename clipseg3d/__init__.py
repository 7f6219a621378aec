"""CLIP-guided 3D segmentation of brain tumours (arXiv 2507.09966).

Public names stand in ``__init__.pyi``. They load on first use, so ``import clipseg3d`` is fast.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__all__ += ["__version__"]

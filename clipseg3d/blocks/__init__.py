"""Reusable parts for 3D segmentation networks; torch and einops only.

Axes everywhere: b batch, c channels, x y z voxels, v views, n text tokens, e CLIP channels,
d semantic channels.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

"""Complete networks: the 3D U-Net, CLIPSeg3D and their presets."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

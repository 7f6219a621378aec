"""The LightningModule that trains and validates CLIPSeg3D, its plans and callbacks."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

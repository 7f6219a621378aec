"""Trained networks in formats of other programs: ONNX, torch.export, MONAI bundles."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

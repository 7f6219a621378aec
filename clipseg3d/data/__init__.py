"""BraTS releases, cases, the preprocessed cache and the DataModules; knows no model."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

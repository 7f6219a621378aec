"""Property tests for blocks, guidance, encoders and releases: ours, and yours.

Each function takes a part and raises an AssertionError that says which property does not hold. Call
them from tests of your own.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

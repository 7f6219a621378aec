"""Facts of a tumour, and texts that state, deny or leave out facts; knows no model.

Reports say what is there. Prompts ask for a part. Both are written here in many wordings, for
training; what is read from people is in :mod:`clipseg3d.data.reports` and :mod:`clipseg3d.clip`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

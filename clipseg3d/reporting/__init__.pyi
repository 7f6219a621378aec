from .case_page import CasePage as CasePage
from .curves import save_curves as save_curves
from .figures import save_maps as save_maps
from .figures import save_overlay as save_overlay
from .lesions import Lesion as Lesion
from .lesions import find_lesions as find_lesions

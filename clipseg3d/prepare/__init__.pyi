from .labels_back import carry_back as carry_back
from .pipeline import PreparedCase as PreparedCase
from .pipeline import prepare_case as prepare_case
from .scan_search import find_scans as find_scans

from .conversion import convert_series as convert_series
from .dicom_seg import write_dicom_seg as write_dicom_seg
from .series import Series as Series
from .series_choice import choose_sequences as choose_sequences
from .series_search import find_series as find_series

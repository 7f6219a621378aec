"""Names of sequences, regions and planes that all modules share. Imports nothing."""

SEQUENCES = ("t1", "t1ce", "t2", "flair")
"""The four MRI contrasts of BraTS, in the order of image channels."""
SEQUENCE_TITLES = {"t1": "T1", "t1ce": "T1ce", "t2": "T2", "flair": "FLAIR"}
"""Sequence -> its name in texts and figures."""
REGIONS = ("WT", "TC", "ET")
"""The regions that BraTS evaluates, from the outermost to the innermost."""
REGION_TITLES = {"WT": "whole tumour", "TC": "tumour core", "ET": "enhancing tumour"}
"""Region -> its name in texts and figures."""
LABEL = "label"
"""Key of the expert's label map, in mappings whose other keys are sequences."""
PLANES = ("axial", "coronal", "sagittal")
"""Planes of the views, in the order of :class:`clipseg3d.views.Views`."""

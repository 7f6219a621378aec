"""Names that everything shares: sequences, regions, planes. Imports nothing."""

SEQUENCES = ("t1", "t1ce", "t2", "flair")
"""The four MRI contrasts of BraTS, in the order of image channels."""
SEQUENCE_TITLES = {"t1": "T1", "t1ce": "T1ce", "t2": "T2", "flair": "FLAIR"}
"""Sequence -> how it is written for people."""
REGIONS = ("WT", "TC", "ET")
"""The regions that BraTS scores, from the outermost to the innermost."""
REGION_TITLES = {"WT": "whole tumour", "TC": "tumour core", "ET": "enhancing tumour"}
"""Region -> its name in words."""
LABEL = "label"
"""Key of the expert mask, where sequences go by their names."""
PLANES = ("axial", "coronal", "sagittal")
"""Planes of 2D views, in the order that views are cut."""

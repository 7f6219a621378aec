"""Scores of segmentations; knows no network and no Lightning."""

"""Whole networks: the 3D U-Net, CLIPSeg3D and their presets."""

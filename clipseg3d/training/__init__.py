"""The LightningModule that trains and validates CLIPSeg3D."""

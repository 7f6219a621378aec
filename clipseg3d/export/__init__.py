"""Trained networks in formats that others read: ONNX, torch.export, MONAI bundles."""

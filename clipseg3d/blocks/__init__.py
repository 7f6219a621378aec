"""Reusable parts for 3D segmentation networks; torch and einops only.

Axes everywhere: b batch, c channels, x y z voxels, v views, n text tokens, e CLIP channels,
d semantic channels.
"""

from clipseg3d.blocks.attention import SemanticAttention, SemanticGate
from clipseg3d.blocks.bridge import SemanticBridge
from clipseg3d.blocks.feature_fusion import AttentionGate, ResidualBlock
from clipseg3d.blocks.guidance import CrossModalGuidance
from clipseg3d.blocks.pixel_fusion import PixelFusion
from clipseg3d.blocks.semantic_fusion import SemanticFusion

__all__ = [
    "AttentionGate",
    "CrossModalGuidance",
    "PixelFusion",
    "ResidualBlock",
    "SemanticAttention",
    "SemanticBridge",
    "SemanticFusion",
    "SemanticGate",
]

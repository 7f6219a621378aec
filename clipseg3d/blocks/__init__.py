"""Reusable parts for 3D segmentation networks; torch and einops only.

Axes everywhere: b batch, c channels, x y z voxels, v views, n text tokens, e CLIP channels,
d semantic channels.
"""

from clipseg3d.blocks.adapter import ResidualAdapter
from clipseg3d.blocks.attention import SemanticAttention, SemanticGate, steer_logits
from clipseg3d.blocks.bridge import SemanticBridge, lift_patches
from clipseg3d.blocks.feature_fusion import AttentionGate, ResidualBlock
from clipseg3d.blocks.grade_classifier import GradeClassifier
from clipseg3d.blocks.guidance import CrossModalGuidance
from clipseg3d.blocks.nested_regions import NestedRegions
from clipseg3d.blocks.pixel_fusion import PixelFusion
from clipseg3d.blocks.pooling import GatedAttentionPooling
from clipseg3d.blocks.semantic_fusion import SemanticFusion
from clipseg3d.blocks.sequential_attention import SequentialCrossAttention
from clipseg3d.blocks.voxel_refinement import VoxelRefinement

__all__ = [
    "AttentionGate",
    "CrossModalGuidance",
    "GatedAttentionPooling",
    "GradeClassifier",
    "NestedRegions",
    "PixelFusion",
    "ResidualAdapter",
    "ResidualBlock",
    "SemanticAttention",
    "SemanticBridge",
    "SemanticFusion",
    "SemanticGate",
    "SequentialCrossAttention",
    "VoxelRefinement",
    "lift_patches",
    "steer_logits",
]

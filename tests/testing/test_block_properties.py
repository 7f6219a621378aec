"""Mirrors clipseg3d/testing/block_properties.py: all of our blocks pass, and bad ones do not."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from clipseg3d import blocks
from clipseg3d.testing import check_block, check_guidance
from clipseg3d.views import Views

B, C, X, Y, Z, D = 2, 8, 4, 5, 6, 12
FEATURES = torch.randn(B, C, X, Y, Z, generator=torch.Generator().manual_seed(0))
IMAGE = FEATURES[:, :4].abs() + 0.1
SUMMARY = FEATURES[:, :2, 0, 0].flatten(1)
TOKENS = torch.randn(B, 3, D, generator=torch.Generator().manual_seed(1))
REPORT = torch.randn(B, 5, D, generator=torch.Generator().manual_seed(4))
MASK = torch.ones(B, 3, dtype=torch.bool)
VIEWS = torch.randint(1, 256, (B, 3, 8, 8, 4), generator=torch.Generator().manual_seed(2)).byte()
MANY = torch.tensor([1, 2, 3, 4, 5, 6])[:, None, None, None].byte()
PLANES = torch.rand(B, 3, 3, generator=torch.Generator().manual_seed(3)) * 0.4 + 0.5


class Tower:
    """A frozen image tower in float32: colours of the parts of an image, as 12 channels."""

    embed_dim = D

    def encode_image(self, images):
        return F.adaptive_avg_pool2d(images, 2).flatten(1)

    def encode_patches(self, images):
        wide = F.pixel_unshuffle(F.adaptive_avg_pool2d(images, 6), 2)
        return self.encode_image(images), wide.movedim(1, 3)


class Bridge(nn.Module):
    """A bridge, called as a block is."""

    def __init__(self, **options):
        super().__init__()
        self.bridge = blocks.SemanticBridge(Tower(), mix_rgb=True, adapter=True, **options)

    def forward(self, images, planes):
        return self.bridge.embed(Views(images, planes)).tokens


class Fusion(nn.Module):
    """Semantic fusion as a network calls it, between a bottleneck and a head."""

    def __init__(self, kind, *, mode="residual"):
        super().__init__()
        self.fusion = blocks.SemanticFusion(
            blocks.SemanticBridge(Tower(), mix_rgb=True, adapter=True, dense=True),
            blocks.build_guidance(kind, D, D, num_heads=2),
            bottleneck_channels=C,
            decoder_channels=C,
            guided=("ET",),
            mode=mode,
            conditional=True,
        )
        self.head = blocks.PointwiseConv3d(C, 3)

    def forward(self, features, images, planes, text, mask):
        semantics = self.fusion.encode(Views(images, planes), text, mask)
        guided = self.fusion.guide(features, semantics)
        return guided, self.fusion.attend(features, semantics, self.head)


class Presence(nn.Module):
    """Presence as a network tells and applies it."""

    def __init__(self):
        super().__init__()
        self.presence = blocks.RegionPresence([C], 3)

    def forward(self, features, logits, evidence):
        presence = self.presence([features], evidence)
        weight = evidence[:, 0] * 0 + 1
        return blocks.apply_presence(logits, presence.log_odds, weight), *presence


class Answers(nn.Module):
    """Prompts, read and answered."""

    def __init__(self):
        super().__init__()
        self.head = blocks.PromptHead(D, 3)

    def forward(self, prompts, regions):
        reading = self.head.read(prompts)
        return self.head(reading, regions), reading.pick, reading.several


BLOCKS = {
    "AttentionGate": (lambda: blocks.AttentionGate(C, C), (FEATURES, FEATURES.flip(2)), True),
    "CBAM": (lambda: blocks.CBAM(C), (FEATURES,), True),
    "GateConvolution": (
        lambda: blocks.GateConvolution(C, D),
        (FEATURES, TOKENS[:, 0]),
        False,
    ),
    "GatedAttentionPooling": (lambda: blocks.GatedAttentionPooling(D), (TOKENS,), False),
    "GradeClassifier": (lambda: blocks.GradeClassifier(C), (FEATURES,), False),
    "InstanceNormAct": (lambda: blocks.InstanceNormAct(C), (FEATURES,), False),
    "NestedRegions": (blocks.NestedRegions, (FEATURES[:, :3],), False),
    "PixelFusion": (lambda: blocks.PixelFusion(differences=(("t1ce", "t1"),)), (IMAGE,), False),
    "PointwiseConv3d": (lambda: blocks.PointwiseConv3d(C, 3), (FEATURES,), False),
    "PromptHead": (Answers, (F.normalize(TOKENS, dim=-1), FEATURES[:, :3].sigmoid()), False),
    "RegionPresence": (Presence, (FEATURES, FEATURES[:, :3], SUMMARY[:, :3]), False),
    "ResidualAdapter": (lambda: blocks.ResidualAdapter(D), (TOKENS,), True),
    "ResidualBlock": (lambda: blocks.ResidualBlock(C, 6, dropout=0.5), (FEATURES,), False),
    "RunningCentering": (lambda: blocks.RunningCentering(D), (TOKENS, MASK), False),
    "RunningWhitening": (lambda: blocks.RunningWhitening(D), (TOKENS, MASK), False),
    "SemanticAttention": (
        lambda: blocks.SemanticAttention(C, D),
        (FEATURES, TOKENS[:, 0], TOKENS[:, 1]),
        False,
    ),
    "SemanticBridge": (
        lambda: Bridge(selection="attention"),
        (VIEWS.repeat_interleave(2, dim=1) * MANY, PLANES.repeat_interleave(2, dim=1)),
        False,
    ),
    "SemanticFusion": (
        lambda: Fusion("gate", mode="damped"),
        (FEATURES, VIEWS, PLANES, REPORT, REPORT[..., 0] < 9),
        True,
    ),
    "SemanticFusion, sequential": (
        lambda: Fusion("sequential"),
        (FEATURES, VIEWS, PLANES, REPORT, REPORT[..., 0] < 9),
        True,
    ),
    "SemanticGate": (lambda: blocks.SemanticGate(C, D), (FEATURES, TOKENS[:, 0]), True),
    "SentenceAttention": (
        lambda: blocks.SentenceAttention(D, 3),
        (REPORT, REPORT[..., 0] < 9),
        False,
    ),
    "SequentialCrossAttention": (
        lambda: blocks.SequentialCrossAttention(C, D, num_heads=2),
        (FEATURES, TOKENS, MASK),
        True,
    ),
    "VoxelRefinement": (
        lambda: blocks.VoxelRefinement(4, 3, hidden=6, cube=2),
        (FEATURES[:, :3, :, :4], FEATURES[:, 4:, :, :4]),
        True,
    ),
}
OTHERS = {"Guidance", "ImageEncoder", "PromptReading", "RegionMaps", "Semantics", "ViewTokens"}
"""A base class, a protocol and results."""


@pytest.mark.parametrize("name", BLOCKS)
def test_our_blocks_have_the_properties(name):
    make, inputs, starts_as_identity = BLOCKS[name]
    check_block(
        make,
        *inputs,
        starts_as_identity=starts_as_identity,
        keeps_type=name != "NestedRegions",  # its docstring says why
        is_graph=name == "CBAM",  # the others below: tracing takes seconds
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", BLOCKS)
def test_our_blocks_are_graphs(name):
    make, inputs, _ = BLOCKS[name]
    check_block(make, *inputs, keeps_type=name != "NestedRegions")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in BLOCKS if not name.startswith("SemanticFusion")])
def test_inductor_gives_the_same(name, randomise):
    make, inputs, _ = BLOCKS[name]
    block = randomise(make().eval())
    torch.compiler.reset()
    with torch.no_grad():
        compiled = torch.compile(block, fullgraph=True)(*inputs)
        torch.testing.assert_close(compiled, block(*inputs), rtol=1e-4, atol=1e-4)


def test_every_public_block_is_checked():
    classes = {n for n in blocks.__all__ if isinstance(getattr(blocks, n), type)}
    kinds = {kind.__name__ for kind in blocks.GUIDANCE.values()}
    assert classes - kinds - OTHERS == {name.partition(",")[0] for name in BLOCKS}


@pytest.mark.parametrize("kind", blocks.GUIDANCE)
def test_our_guidance_has_the_properties(kind):
    check_guidance(blocks.GUIDANCE[kind], is_graph=False)


@pytest.mark.slow
@pytest.mark.parametrize("kind", blocks.GUIDANCE)
def test_our_guidance_is_a_graph(kind):
    check_guidance(blocks.GUIDANCE[kind])


class Bad(nn.Module):
    """A block with one fault."""

    def __init__(self, fault):
        super().__init__()
        self.fault = fault
        self.conv = nn.Conv3d(C, C, 1)
        self.unused = nn.Linear(2, 2) if fault == "dead" else None
        self.hidden = torch.randn(())

    def forward(self, features):
        out = self.conv(features)
        if self.fault == "mixes":
            out = out - out.mean(dim=0)
        if self.fault == "random":
            out = nn.functional.dropout(out, 0.5)
        if self.fault == "state":
            out = out * self.hidden
        if self.fault == "in place":
            features.mul_(2)
        if self.fault == "wide":
            out = out.float()
        if self.fault == "mixed types":
            out = torch.einsum("bcxyz,cd->bdxyz", out, torch.eye(C))
        if self.fault == "overflows":
            out = out * 1e5 / 1e5
        if self.fault == "rounds":
            out = out + 1000 - 1000
        if self.fault == "layout":
            out = out.flatten(1) + features.view(len(features), -1)
        if self.fault == "branches" and out.sum() > 1e9:
            out = -out
        if self.fault == "branches in training" and self.training:
            out = out + 1 if out.sum() > 0 else out + 2
        if self.fault == "other when compiled" and torch.compiler.is_compiling():
            out = out * 2
        if self.fault == "other gradient when compiled" and torch.compiler.is_dynamo_compiling():
            out = out + (features - features.detach()).sum() + (out - out.detach())
        return out / 0 if self.fault == "infinite" else out


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("mixes", "depends on the other cases"),
        ("random", "is dropout on"),
        ("dead", "no gradient reaches unused"),
        ("state", "same state_dict gives other"),
        ("in place", "changed in place|other results"),
        ("infinite", "not finite"),
        ("wide", r"\.half\(\): a result is float32, not float16"),
        ("mixed types", r"\.half\(\) fails: RuntimeError"),
        ("overflows", r"\.half\(\): a result is not finite"),
        ("rounds", r"\.half\(\): a result differs from that in float32 by"),
        ("layout", "channels_last_3d fails: RuntimeError: view size is not compatible"),
        ("branches", "torch.export fails"),
        ("branches in training", "torch.compile in training fails"),
        ("other when compiled", "torch.export: the results differ"),
        ("other gradient when compiled", "torch.compile: the gradient of conv.weight differs"),
    ],
)
def test_a_fault_is_found(fault, message):
    with pytest.raises(AssertionError, match=message):
        check_block(lambda: Bad(fault), FEATURES.clone())


def test_a_good_block_passes_and_is_no_identity():
    check_block(lambda: Bad("none"), FEATURES)
    with pytest.raises(AssertionError, match="changes its first input"):
        check_block(lambda: Bad("none"), FEATURES, starts_as_identity=True)
    with pytest.raises(AssertionError, match="two cases or more"):
        check_block(lambda: Bad("none"), FEATURES[:1])


def test_exceptions_are_said_and_hold():
    check_block(lambda: Bad("wide"), FEATURES, keeps_type=False)
    with pytest.raises(AssertionError, match="a result is float16, not float32"):
        check_block(lambda: Bad("none"), FEATURES, keeps_type=False)
    check_block(lambda: Bad("branches"), FEATURES, is_graph=False)
    check_block(lambda: Bad("rounds"), FEATURES, rounding=100, tolerance=1e-3)


class Forgetful(blocks.CrossModalGuidance):
    """Guidance that ignores the mask of text."""

    def blend(self, views, text, *, views_valid=None, text_mask=None):
        return super().blend(views, text, views_valid=views_valid)


def test_guidance_with_a_fault_is_found():
    with pytest.raises(AssertionError, match="masked text token counts"):
        check_guidance(Forgetful)

"""The preset ``paper``: equations 1 to 7 of arXiv 2507.09966 through the whole network.

The reference is written from the equations, in float64. It takes the blocks of the U-Net and CLIP
as given functions, which have tests of their own, and everything else from the weights alone.
"""

import copy
import re
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import CLIPConfig, CLIPModel

from clipseg3d.clip.hugging_face_clip import HuggingFaceCLIP
from clipseg3d.networks.build import build_clipseg3d
from clipseg3d.networks.config import NetworkConfig
from clipseg3d.networks.presets import PRESETS, network_config
from clipseg3d.views import cut_views

TABLE = Path(__file__).parents[2] / ".github" / "PAPER.md"
SMALL = replace(
    network_config("paper"),
    channels=(4, 6, 8),
    num_auxiliary=1,
    semantic_dim=12,
    num_heads=3,
    clip="tiny-random",
)
T1, T1CE, T2, FLAIR = range(4)
REPORT = "Left frontal lesion with necrosis. Marked oedema."
OTHER_VALUES = {
    "norms": ("zscore",) * 4,
    "sequence_gate": True,
    "view_selection": "center",
    "mix_rgb": False,
    "guidance_tokens": "views",
    "running_norms": True,
    "guiding_text": "report",
    "attention_mode": "damped",
}
"""Switches of the preset, and what they are elsewhere; two others are for training only."""


@pytest.fixture(scope="module")
def clip(tiny_clip):
    """A small CLIP whose images have 224 pixels per side, as those of ViT-B/32 do."""
    config = copy.deepcopy(tiny_clip.frozen_model.config).to_dict()
    config["vision_config"].update(image_size=224, patch_size=56)
    torch.manual_seed(1)
    model = CLIPModel(CLIPConfig(**config))
    return HuggingFaceCLIP(model, tiny_clip.tokenizer, name="tiny-random")


@pytest.fixture(scope="module")
def volume():
    """A scan whose brain lies off its centre; background 0. Sizes differ pairwise."""
    generator = torch.Generator().manual_seed(2)
    coarse = torch.rand(1, 4, 4, 5, 3, generator=generator)
    smooth = F.interpolate(coarse, size=(14, 18, 11), mode="trilinear")
    brain = 200 + 300 * smooth + 60 * torch.rand(1, 4, 14, 18, 11, generator=generator)
    return F.pad(brain, (1, 3, 2, 1, 0, 5))


@pytest.fixture
def network(clip, randomise):
    def build(config=SMALL):
        torch.manual_seed(0)
        return randomise(build_clipseg3d(config, encoder=clip), size=0.2).eval()

    return build


def predict(network, volume, reports):
    """Return probabilities (b, 3, x, y, z) of a network."""
    views = cut_views(volume, selection=network.view_selection)
    text, mask = network.embed_text(reports)
    with torch.no_grad():
        return torch.sigmoid(network(volume, views=views, text=text, text_mask=mask))


# The reference


def statistics(sequence):
    """Return percentiles 0.5 and 99.5 (nearest rank), and mean and SD of what lies between."""
    values = np.sort(sequence[sequence != 0])
    low, high = (values[round((len(values) - 1) * p / 100)] for p in (0.5, 99.5))
    clipped = values.clip(low, high)
    return low, high, clipped.mean(), clipped.std()


def pixel_level(scan):
    """Return T1 and T1ce z-scored, T2 and FLAIR by their range; T1ce to the power 0.9."""
    fused = np.zeros_like(scan)
    for index, sequence in enumerate(scan):
        low, high, mean, sd = statistics(sequence)
        clipped = sequence.clip(low, high)
        is_t1 = index in (T1, T1CE)
        values = (clipped - mean) / sd if is_t1 else (clipped - low) / (high - low)
        values = values.clip(-5, 5)
        if index == T1CE:
            values = np.sign(values) * np.abs(values) ** 0.9
        fused[index] = np.where(sequence != 0, values, 0)
    return fused


def bridge(scan, weights, clip):
    """Return F3D (e,): the mean of CLIP's embeddings of the middle slices of three axes."""
    brain = (scan != 0).any(axis=0)
    ranged = [
        (s.clip(*statistics(s)[:2]) - statistics(s)[0]) / np.subtract(*statistics(s)[1::-1])
        for s in scan
    ]
    vision = copy.deepcopy(clip.frozen_model).double()
    embeddings = []
    for order in ((0, 1, 2), (0, 2, 1), (1, 2, 0)):
        arrays = [np.transpose(sequence * brain, order) for sequence in ranged]
        slices = np.stack([array[..., array.shape[-1] // 2] for array in arrays])
        resized = F.interpolate(torch.from_numpy(slices)[None], size=(224, 224), mode="bilinear")
        resized = (resized * 255).round() / 255
        hidden = F.conv2d(resized, weights["bridge.mixture.0.weight"], padding=1)
        hidden = hidden + weights["bridge.mixture.0.bias"].view(-1, 1, 1)
        mixed = F.conv2d(F.leaky_relu(hidden, 0.01), weights["bridge.mixture.2.weight"])
        rgb = resized[:, [T1CE, FLAIR, T2]] + mixed + weights["bridge.mixture.2.bias"].view(3, 1, 1)
        mean, sd = clip.mean.double(), clip.std.double()
        with torch.no_grad():
            pooled = vision.vision_model(pixel_values=(rgb.clamp(0, 1) - mean) / sd).pooler_output
            embedding = vision.visual_projection(pooled)[0]
        embeddings.append(embedding / embedding.norm())
    return torch.stack(embeddings).mean(dim=0)


def mapper(values, weights, name):
    """Return values (n, e) in the semantic space (n, d)."""
    hidden = values @ weights[f"{name}.0.weight"].T + weights[f"{name}.0.bias"]
    hidden = layer_norm(hidden, weights, f"{name}.1")
    hidden = 0.5 * hidden * (1 + torch.erf(hidden / 2**0.5))
    return hidden @ weights[f"{name}.3.weight"].T + weights[f"{name}.3.bias"]


def layer_norm(values, weights, name):
    centred = values - values.mean(dim=-1, keepdim=True)
    scaled = centred / (centred.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt()
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def self_attention(token, weights, heads):
    """Return MHSA of one token (1, d)."""
    packed = token @ weights["attention.in_proj_weight"].T + weights["attention.in_proj_bias"]
    queries, keys, values = packed.view(3, heads, 1, -1)
    shares = torch.softmax(queries @ keys.mT / queries.shape[-1] ** 0.5, dim=-1)
    read = (shares @ values).transpose(0, 1).reshape(1, -1)
    return read @ weights["attention.out_proj.weight"].T + weights["attention.out_proj.bias"]


def semantics(scan, text, network, clip):
    """Equations 3 to 5: return F (d,)."""
    weights = double(network.semantic_fusion)
    guidance = double(network.semantic_fusion.guidance)
    views = mapper(bridge(scan, weights, clip)[None], guidance, "map_views")
    texts = mapper(text.double(), guidance, "map_text").mean(dim=0, keepdim=True)
    gate = 1 / (1 + torch.exp(-texts))
    content = views * gate + texts * (1 - gate)
    attended = self_attention(content, guidance, network.config.num_heads)
    return layer_norm(content + attended, guidance, "norm")[0]


def reference(network, volume, reports, clip):
    """Return probabilities (b, 3, x, y, z) of WT, TC' and ET'."""
    unet = copy.deepcopy(network.unet).double()
    text, mask = network.embed_text(reports)
    weights = double(network.semantic_fusion)
    results = []
    for scan, tokens, is_token in zip(volume.double().numpy(), text, mask, strict=True):
        summary = semantics(scan, tokens[is_token], network, clip)
        with torch.no_grad():
            levels = unet.encode(torch.from_numpy(pixel_level(scan))[None])
            scale, shift = (
                weights[f"bottleneck.{name}.weight"] @ summary + weights[f"bottleneck.{name}.bias"]
                for name in ("scale", "shift")
            )
            gated = levels[-1] * (2 * torch.sigmoid(scale)).view(1, -1, 1, 1, 1)
            levels[-1] = gated + shift.view(1, -1, 1, 1, 1)
            d1 = unet.decode(levels)[0]
            y = torch.sigmoid(unet.heads[0](d1))[0]
        repeated = summary.view(1, -1, 1, 1, 1).expand(-1, -1, *d1.shape[2:])
        joined = torch.cat([d1, repeated], dim=1)
        whole, core, enhancing = y
        gates = [
            torch.sigmoid(
                F.conv3d(
                    joined,
                    weights[f"attention.{region}.weight"],
                    weights[f"attention.{region}.bias"],
                    padding=1,
                )
            )[0, 0]
            for region in ("TC", "ET")
        ]
        changed = torch.stack([whole, core * gates[0], enhancing * gates[1]])
        results.append(changed[:, : scan.shape[1], : scan.shape[2], : scan.shape[3]])
    return torch.stack(results)


def double(module):
    """Return the weights of a part in float64."""
    return {name: weight.double() for name, weight in module.state_dict().items()}


# Tests


@pytest.mark.parametrize("reports", [[REPORT], [""]], ids=["report", "prompts"])
def test_equations_hold_through_the_whole_network(network, volume, clip, reports):
    whole = network()
    expected = reference(whole, volume, reports, clip)
    actual = predict(whole, volume, reports)
    assert expected[0, 1:].std() > 0.1  # not saturated
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("switch", OTHER_VALUES)
def test_each_switch_of_the_preset_is_needed(network, volume, clip, switch):
    """With any switch as it is in ``recommended``, the result is not that of the equations."""
    whole = network()
    expected = reference(whole, volume, [REPORT], clip)
    other = network(replace(SMALL, **{switch: OTHER_VALUES[switch]}))
    own = other.state_dict()
    shared = {k: v for k, v in whole.state_dict().items() if k in own and v.shape == own[k].shape}
    other.load_state_dict({**own, **shared})
    assert (predict(other, volume, [REPORT]).double() - expected).abs().max() > 3e-4


def test_the_table_names_every_switch_of_the_preset():
    """And no switch of the preset is missing above."""
    default, paper = asdict(NetworkConfig()), asdict(PRESETS["paper"])
    switches = {name for name, value in paper.items() if value != default[name]}
    assert switches == {*OTHER_VALUES, "region_contrast", "plan"}
    rows = [line for line in TABLE.read_text(encoding="utf-8").splitlines() if line[:1] == "|"]
    named = set(re.findall(r"`(\w+)[`=]", "\n".join(rows)))
    assert switches <= named

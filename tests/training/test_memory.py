"""Mirrors clipseg3d/training/memory.py: predictions against what the CPU allocator gives out."""

import re
from dataclasses import replace
from functools import cache

import pytest
import torch
import yaml
from torch.profiler import ProfilerActivity, profile

from clipseg3d.configs import SHIPPED
from clipseg3d.intensity import intensity_statistics
from clipseg3d.losses import RegionLoss
from clipseg3d.networks.build import build_clipseg3d
from clipseg3d.networks.config import NetworkConfig
from clipseg3d.training.memory import AUTOCAST, PeakMemory, predict_peak_memory
from clipseg3d.training.plan import TrainingPlan
from clipseg3d.views import cut_views

pytestmark = pytest.mark.filterwarnings("ignore")
CONFIGS = sorted(SHIPPED.glob("*_*gb.yaml"))
CLIP_BYTES = 4 * 151.3e6
"""Of openai/clip-vit-base-patch32, in float32."""
SMALL = NetworkConfig(
    channels=(8, 12), num_auxiliary=0, semantic_dim=16, num_heads=2, clip="tiny-random"
)

PLAIN = replace(SMALL, semantics=False, cbam=False)
"""Predicted in half the time."""


@pytest.fixture(autouse=True)
def one_thread():
    """Every further thread has a workspace of its own in some kernels of the CPU."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def allocated(config, encoder, patch, *, batch_size=1, precision="32-true"):
    """Return the highest number of bytes that the allocator has given out in two real steps."""
    views = cut_views(torch.rand(batch_size, 4, 24, 24, 24), selection=config.view_selection)
    dtype = AUTOCAST[precision]
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        network = build_clipseg3d(config, encoder=encoder)
        optimizer = TrainingPlan().optimizer_for(network)
        image, label = torch.rand(batch_size, 4, *patch), torch.zeros(batch_size, 3, *patch)
        statistics = intensity_statistics(image)
        for _ in range(2):
            text, mask = network.embed_text(["A report."] * batch_size)
            semantics = network.encode_semantics(views, text, mask)
            with torch.autocast("cpu", dtype, enabled=dtype is not None):
                prediction = network.segment(image, semantics, statistics=statistics, deep=True)
                loss = RegionLoss()([prediction.logits, *prediction.auxiliary], label)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            del prediction, loss, semantics
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    total = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        total += event.nbytes()
        peak = max(peak, total)
    return peak


def frozen_bytes(network):
    """Return the bytes of CLIP, which the tests share and which is allocated before."""
    return sum(w.nbytes for w in network.parameters() if not w.requires_grad)


@pytest.mark.parametrize(
    ("changes", "patch", "options"),
    [
        ({"channels": (16, 24)}, (40, 48, 56), {}),
        pytest.param(
            {},
            (40, 24, 16),
            {"batch_size": 2, "precision": "bf16-mixed"},
            marks=pytest.mark.skipif(
                not torch.ops.mkldnn._is_mkldnn_bf16_supported(),
                reason="convolutions emulate bfloat16 on this CPU, in a large workspace",
            ),
        ),
        ({"checkpointing": True, "cbam": False}, (48, 40, 24), {"batch_size": 2}),
        ({"space_to_depth": 2, "semantics": False}, (48, 40, 32), {"batch_size": 3}),
    ],
)
@pytest.mark.slow
def test_prediction_is_what_the_allocator_gives_out(changes, patch, options, tiny_clip):
    config = replace(SMALL, **changes)
    network = build_clipseg3d(config, encoder=tiny_clip)
    predicted = predict_peak_memory(network, patch, **options).total - frozen_bytes(network)
    assert predicted == pytest.approx(allocated(config, tiny_clip, patch, **options), rel=0.15)


def test_a_prediction_changes_no_weight(tiny_clip):
    patch, options = (32, 24, 40), {"batch_size": 2}
    network = build_clipseg3d(SMALL, encoder=tiny_clip).eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    peak = predict_peak_memory(network, patch, **options)
    expected = allocated(SMALL, tiny_clip, patch, **options)
    assert peak.total - frozen_bytes(network) == pytest.approx(expected, rel=0.15)
    trained = [w.nbytes for w in network.parameters() if w.requires_grad]
    buffers = sum(buffer.nbytes for buffer in network.buffers())
    assert peak.weights == sum(trained) + frozen_bytes(network) + buffers
    assert peak.training == 3 * sum(trained)
    assert PeakMemory(1, 20, 300).total == 321
    after = network.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert not network.training
    assert all(weight.grad is None for weight in network.parameters())
    assert type(next(network.parameters()).data) is torch.Tensor


def test_a_network_in_training_stays_in_training():
    network = build_clipseg3d(PLAIN)
    predict_peak_memory(network, (16, 16, 16))
    assert network.training


@cache
def activations(patch, config, **options):
    return predict_peak_memory(build_clipseg3d(config), patch, **options).activations


def test_activations_grow_with_voxels_and_crops():
    one = activations((32, 48, 40), PLAIN)
    assert activations((64, 48, 40), PLAIN) == pytest.approx(2 * one, rel=0.02)
    assert activations((32, 48, 40), PLAIN, batch_size=2) == pytest.approx(2 * one, rel=0.02)


def test_checkpointing_and_half_precision_save_memory():
    patch = (32, 48, 40)
    usual = activations(patch, PLAIN)
    assert activations(patch, replace(PLAIN, checkpointing=True)) < 0.85 * usual
    assert activations(patch, PLAIN, precision="bf16-mixed") < 0.85 * usual


def test_unknown_precision_is_refused():
    network = build_clipseg3d(PLAIN)
    with pytest.raises(ValueError, match="precision='8-bit': choose from 32-true, bf16-mixed"):
        predict_peak_memory(network, (16, 16, 16), precision="8-bit")


@pytest.mark.slow
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configurations_fit_the_cards_they_name(path, tiny_clip):
    """A quarter is left for CUDA and workspace; the file states the prediction."""
    text = path.read_text()
    values = yaml.safe_load(text)
    card = int(re.search(r"_(\d+)gb", path.stem)[1]) * 2**30
    config = replace(NetworkConfig(**values["model"]["network"]), clip="tiny-random")
    network = build_clipseg3d(config, encoder=tiny_clip)
    data, trainer = values["data"]["init_args"], values["trainer"]
    peak = predict_peak_memory(
        network,
        data["patch_size"],
        batch_size=data["batch_size"],
        precision=trainer["precision"],
    )
    total = peak.total - frozen_bytes(network) + CLIP_BYTES
    assert 0.6 * card < total < 0.75 * card
    stated = float(re.search(r"([\d.]+) GB predicted", text)[1])
    assert stated == pytest.approx(total / 1e9, abs=0.1)

"""Mirrors clipseg3d/training/plan.py."""

import math
from dataclasses import asdict, replace

import pytest
import torch
from torch.optim import SGD, Adam, AdamW

from clipseg3d.networks.build import build_clipseg3d
from clipseg3d.networks.config import NetworkConfig
from clipseg3d.networks.presets import PRESETS
from clipseg3d.training.plan import (
    PLANS,
    TrainingPlan,
    resolve_plan,
    training_plan,
)

SMALL = NetworkConfig(
    channels=(4, 6),
    num_auxiliary=0,
    semantic_dim=12,
    num_heads=3,
    mix_rgb=True,
    adapter=True,
    grade_classifier=True,
    conditional_norm=True,
)


@pytest.fixture
def network(tiny_clip):
    return build_clipseg3d(SMALL, encoder=tiny_clip)


def rates(network, plan):
    """Return the learning rate of every weight, which must be in exactly one group."""
    found = {}
    names = {id(weight): name for name, weight in network.named_parameters()}
    for group in plan.optimizer_for(network).param_groups:
        for weight in group["params"]:
            assert names[id(weight)] not in found
            found[names[id(weight)]] = group["lr"]
    return found


def scheduled(plan, steps, *, lr=None):
    """Return the learning rates of all steps of a fit, of a single weight."""
    optimizer = SGD([torch.nn.Parameter(torch.zeros(()))], lr=plan.lr if lr is None else lr)
    schedule = plan.schedule_for(optimizer, steps)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step() if len(found) < steps else None
    return found


# groups


@pytest.mark.parametrize("name", PLANS)
def test_every_trainable_weight_is_in_one_group_and_clip_in_none(network, name):
    due = {name for name, weight in network.named_parameters() if weight.requires_grad}
    assert set(rates(network, PLANS[name])) == due
    assert any(not weight.requires_grad for weight in network.parameters())


def test_factors_of_the_papers_appendix(network):
    parts = {
        "unet.": 2e-3,
        "pixel_fusion.": 2e-3,
        "grade_classifier.": 2e-3,
        "semantic_fusion.bridge.": 1e-4,
        "semantic_fusion.guidance.": 3e-3,
        "semantic_fusion.bottleneck.": 3e-3,
        "semantic_fusion.condition.": 3e-3,
        "semantic_fusion.attention.": 3e-3,
    }
    found = rates(network, PLANS["paper_appendix"])
    for prefix, lr in parts.items():
        of_part = [found.pop(name) for name in list(found) if name.startswith(prefix)]
        assert of_part, prefix
        assert of_part == pytest.approx([lr] * len(of_part))
    assert found == {}


@pytest.mark.parametrize(("batch", "lr"), [(1, 3e-4), (4, 6e-4), (16, 1.2e-3)])
def test_the_rate_grows_with_the_square_root_of_the_batch(batch, lr):
    assert PLANS["recommended"].scaled_lr(batch) == pytest.approx(lr)


def test_equal_factors_share_a_group(network):
    assert len(PLANS["recommended"].optimizer_for(network).param_groups) == 1
    assert len(PLANS["paper_appendix"].optimizer_for(network).param_groups) == 3


@pytest.mark.parametrize(("name", "kind"), [("adam", Adam), ("adamw", AdamW)])
def test_optimizer_is_the_plans(network, name, kind):
    optimizer = TrainingPlan(optimizer=name, weight_decay=0.25).optimizer_for(network)
    assert type(optimizer) is kind
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.25}


def test_network_without_semantics_has_one_group(tiny_clip):
    plain = build_clipseg3d(replace(SMALL, semantics=False, conditional_norm=False))
    assert set(rates(plain, PLANS["paper_appendix"]).values()) == {2e-3}


# schedules


def test_onecycle_by_numbers():
    plan = TrainingPlan(lr=0.8, warmup=0.2, start_div=20.0, final_div=100.0)
    found = scheduled(plan, 101)
    assert found[0] == pytest.approx(0.8 / 20)
    top = 0.2 * 101 - 1
    assert max(range(101), key=found.__getitem__) == pytest.approx(top, abs=1)
    assert max(found) == pytest.approx(0.8, rel=5e-3)
    assert found[-1] == pytest.approx(0.8 / 20 / 100)
    assert found[:20] == sorted(found[:20])
    assert found[20:] == sorted(found[20:], reverse=True)
    # half-way up, half of the way to the peak: the rise is a cosine
    assert found[10] == pytest.approx(0.04 + (0.8 - 0.04) * (1 - math.cos(math.pi * 10 / top)) / 2)


def test_cosine_by_numbers():
    plan = TrainingPlan(lr=0.8, schedule="cosine", warmup=0.2)
    expected = [0.4 * (1 + math.cos(math.pi * step / 40)) for step in range(40)]
    assert scheduled(plan, 40) == pytest.approx(expected)


def test_every_group_has_its_own_peak(network):
    plan = PLANS["paper_appendix"]
    optimizer = plan.optimizer_for(network)
    peaks = [group["lr"] for group in optimizer.param_groups]
    schedule = plan.schedule_for(optimizer, 50)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx(
        [peak / 20 for peak in peaks]
    )
    betas = [group["betas"] for group in optimizer.param_groups]
    highest = peaks
    highest = [0.0] * len(peaks)
    for _ in range(49):
        optimizer.step()
        schedule.step()
        lrs = [group["lr"] for group in optimizer.param_groups]
        highest = [max(pair) for pair in zip(highest, lrs, strict=True)]
    assert highest == pytest.approx(peaks)
    assert lrs == pytest.approx([peak / 20 / 100 for peak in peaks])
    assert [group["betas"] for group in optimizer.param_groups] == betas


@pytest.mark.parametrize("steps", range(1, 31))
@pytest.mark.parametrize("name", PLANS)
def test_fits_of_any_length_can_be_scheduled(name, steps):
    found = scheduled(PLANS[name], steps)
    assert len(found) == steps
    assert all(0 <= lr <= PLANS[name].lr * (1 + 1e-6) for lr in found)


# plans


def test_the_papers_body():
    plan = PLANS["paper_body"]
    assert (plan.optimizer, plan.lr, plan.weight_decay) == ("adam", 1e-4, 1e-5)
    assert plan.schedule == "cosine"
    assert plan.semantic_ramp == (8, 10)


def test_the_papers_appendix():
    plan = PLANS["paper_appendix"]
    assert (plan.optimizer, plan.weight_decay, plan.schedule) == ("adamw", 1e-4, "onecycle")
    assert scheduled(plan, 1000)[0] == pytest.approx(5e-5)
    assert scheduled(plan, 1000)[-1] == pytest.approx(5e-7)
    assert max(scheduled(plan, 1000)) == scheduled(plan, 1000)[199]
    assert (plan.backbone_lr, plan.bridge_lr, plan.semantic_lr) == (2.0, 0.1, 3.0)


@pytest.mark.parametrize(
    ("ramp", "expected"),
    [
        ((8, 10), [0] * 8 + [1 / 3, 2 / 3, 1, 1, 1]),
        ((0, 0), [1, 1, 1]),
        ((0, 1), [0.5, 1, 1]),
        ((3, 3), [0, 0, 0, 1, 1]),
    ],
)
def test_semantic_strength_by_epoch(ramp, expected):
    plan = TrainingPlan(semantic_ramp=ramp)
    assert [plan.semantic_strength(epoch) for epoch in range(len(expected))] == expected


def test_plans_are_found_by_name():
    assert all(training_plan(name) == plan for name, plan in PLANS.items())
    with pytest.raises(ValueError, match=r"unknown plan 'fast': choose one of paper_body, .*tiny"):
        training_plan("fast")


@pytest.mark.parametrize(
    ("preset", "plan"),
    [
        ("paper", "paper_body"),
        ("paper_body", "paper_body"),
        ("paper_appendix", "paper_appendix"),
        ("recommended", "recommended"),
        ("fast", "recommended"),
        ("tiny", "tiny"),
    ],
)
def test_plan_goes_with_the_network_unless_given(preset, plan):
    network = PRESETS[preset]
    assert resolve_plan(None, network) == PLANS[plan]
    assert resolve_plan(None, replace(network, cbam=False)) == PLANS[plan]
    assert resolve_plan("paper_body", network) == PLANS["paper_body"]
    own = TrainingPlan(lr=0.5)
    assert resolve_plan(own, network) is own


def test_every_preset_has_a_plan():
    assert {preset.plan for preset in PRESETS.values()} <= set(PLANS)


@pytest.mark.parametrize("name", PLANS)
def test_plan_survives_as_plain_values(name, tmp_path):
    values = asdict(PLANS[name])
    torch.save(values, tmp_path / "plan.pt")
    loaded = torch.load(tmp_path / "plan.pt", weights_only=True)
    assert resolve_plan(loaded, NetworkConfig()) == PLANS[name]
    listed = {**values, "semantic_ramp": list(values["semantic_ramp"])}
    assert resolve_plan(listed, NetworkConfig()) == PLANS[name]
    assert resolve_plan({"lr": 0.1}, PRESETS["tiny"]) == TrainingPlan(lr=0.1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"optimizer": "sgd"}, "optimizer='sgd': choose from adam, adamw"),
        ({"schedule": "linear"}, "schedule='linear': choose from cosine, onecycle"),
        ({"semantic_ramp": (10, 8)}, r"semantic_ramp=\(10, 8\) ends before it begins"),
        ({"semantic_ramp": (5, 4)}, r"semantic_ramp=\(5, 4\) ends before it begins"),
    ],
)
def test_what_no_plan_can_mean_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        TrainingPlan(**values)
    with pytest.raises(ValueError, match=message):
        resolve_plan(values, PRESETS["tiny"])


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_a_rise_over_the_whole_fit(steps):
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    schedule = TrainingPlan(lr=1.0, warmup=1.0).schedule_for(optimizer, steps)
    rates = []
    for _ in range(steps):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates == sorted(rates)

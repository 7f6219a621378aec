"""Mirrors clipseg3d/cli/preset_options.py: a changed value leaves all others as they are."""

import json
import re
from dataclasses import asdict, replace

import pytest

from clipseg3d.cli.preset_options import expand_presets
from clipseg3d.configs import config_path
from clipseg3d.networks.config import NetworkConfig
from clipseg3d.networks.presets import PRESETS
from clipseg3d.training.plan import PLANS, TrainingPlan

pytestmark = pytest.mark.filterwarnings("ignore")
PHANTOM = config_path("phantom_tiny")
VALUES = {
    "clip": "tiny-random",
    "channels": [4, 8],
    "num_auxiliary": 0,
    "semantic_dim": 16,
    "num_heads": 2,
}
CHANGE = ("--model.network.cbam", "false")


def expanded(name):
    """Return the argument that stands for a preset."""
    return f"--model.network={json.dumps(asdict(PRESETS[name]))}"


def test_values_are_inserted_before_the_first_change():
    given = ["fit", "--model.network", "tiny", "--trainer.max_epochs", "3"]
    assert expand_presets([*given, *CHANGE, "--data.fold", "1"]) == [
        *(*given, expanded("tiny"), *CHANGE, "--data.fold", "1"),
    ]
    plan = ["--model.plan", "paper_body"]
    assert expand_presets([*given, *plan, *CHANGE]) == [*given, *plan, expanded("tiny"), *CHANGE]


def test_the_last_name_before_the_change_is_expanded(write):
    for option in ("-c", "--config"):
        given = ["fit", option, str(write(network="paper_body", plan=None))]
        assert expand_presets([*given, *CHANGE]) == [*given, expanded("paper_body"), *CHANGE]
        given += ["--model.network=tiny"]
        assert expand_presets([*given, *CHANGE]) == [*given, expanded("tiny"), *CHANGE]


def test_other_arguments_stay_as_they_are(write):
    for given in (
        ["fit", "--model.network", "tiny"],
        ["fit", *CHANGE],
        ["fit", *CHANGE, "--model.network", "tiny"],
        ["fit", "--model.network", json.dumps(VALUES), *CHANGE],
        ["fit", "--config", str(write(network=VALUES)), *CHANGE],
        ["fit", "--config", "{model: 3}", *CHANGE],
    ):
        assert expand_presets(given) == given


@pytest.mark.parametrize(
    ("name", "where"), [("tiny", "file"), ("paper", "option"), ("tiny", "one word")]
)
def test_a_change_leaves_the_other_values_of_a_preset(parsed, write, name, where):
    given = {
        "file": ("--config", write(network=name)),
        "option": ("--config", PHANTOM, "--model.network", name),
        "one word": (f"--config={PHANTOM}", f"--model.network={name}"),
    }[where]
    changes = ("--model.network.checkpointing=true", "--model.network.clip", "tiny-random")
    module = parsed(*given, *changes).model
    assert module.config == replace(PRESETS[name], checkpointing=True, clip="tiny-random")
    assert module.plan == replace(PLANS[PRESETS[name].plan], lr=module.plan.lr)


@pytest.mark.parametrize("name", ["tinny", "{"])
def test_a_change_of_no_preset_is_refused(parsed, name):
    with pytest.raises(ValueError, match=rf"{re.escape(repr(name))}.*recommended, tiny"):
        parsed("--config", PHANTOM, "--model.network", name, *CHANGE)


@pytest.mark.parametrize("network", ["tiny", VALUES])
def test_a_change_to_the_wrong_type_is_refused(parsed, write, network):
    with pytest.raises(ValueError, match=r"--model.network.cbam: .*maybe"):
        parsed("--config", write(network=network), "--model.network.cbam", "maybe")


def test_a_change_leaves_the_other_values_of_a_network(parsed, write):
    on_the_line = ("--config", PHANTOM, "--model.network", json.dumps(VALUES))
    expected = NetworkConfig(**{**VALUES, "channels": (4, 8)}, cbam=False)
    for given in (on_the_line, ("--config", write(network=VALUES))):
        assert parsed(*given, *CHANGE).model.config == expected


@pytest.mark.parametrize(
    ("plan", "expected"),
    [("recommended", PLANS["recommended"]), ({"lr": 0.5}, TrainingPlan(lr=0.5))],
)
def test_a_change_leaves_the_plan_of_a_file(parsed, write, plan, expected):
    assert parsed("--config", write(plan=plan, lr=None), *CHANGE).model.plan == expected

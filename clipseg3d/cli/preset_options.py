"""Presets of networks on the command line, with single values changed.

``--model.network tiny --model.network.cbam false`` is the preset ``tiny`` without CBAM.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from typing import Any

import yaml

from clipseg3d.cli.config_reader import CONFIG, read_configs
from clipseg3d.networks.presets import network_config
from clipseg3d.training.plan import PLANS

NETWORK, PLAN = "--model.network", "--model.plan"
_KEYS = {NETWORK: "network", PLAN: "plan"}


def expand_presets(arguments: Sequence[str]) -> list[str]:
    """Insert the values of a preset before the first option that changes one of them.

    Without them, the parser would take all other values from the defaults of NetworkConfig, since
    it does not know the preset, and the training plan of that name would be lost.

    Args:
        arguments: of a command; the preset is named among them or in a configuration file.

    Raises:
        ValueError: there is no such preset; a configuration file is damaged.
        FileNotFoundError: there is no such configuration file.
    """
    configs = read_configs(arguments)
    changes = [argument.startswith(f"{NETWORK}.") for argument in arguments]
    index = changes.index(True) if any(changes) else 0
    model: dict[str, Any] = {}
    for option, value in pairwise(
        word for argument in arguments[:index] for word in argument.split("=", 1)
    ):
        if option in (NETWORK, PLAN):
            model[option] = _parse_yaml(value)
        elif option in CONFIG:
            model |= _network_and_plan(configs[value])
    name = model.get(NETWORK)
    if not isinstance(name, str):  # it is given as values, or not at all
        return list(arguments)
    values = [f"{NETWORK}={json.dumps(asdict(network_config(name)))}"]
    if model.get(PLAN) is None and name in PLANS:
        values.append(f"{PLAN}={name}")
    return [*arguments[:index], *values, *arguments[index:]]


def _parse_yaml(text: str) -> Any:
    """Return the value of an argument; text that is not YAML is taken as a preset's name."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _network_and_plan(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return network and plan of a configuration; the parser reports what is wrong in it."""
    model = config.get("model")
    if isinstance(model, dict):
        model = model.get("init_args", model)
    if not isinstance(model, dict):
        return {}
    return {option: model[key] for option, key in _KEYS.items() if key in model}

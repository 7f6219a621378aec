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

NETWORK = "--model.network"


def expand_presets(arguments: Sequence[str]) -> list[str]:
    """Insert the values of a preset before the first option that changes one of them.

    Without them, the parser would take all other values from the defaults of NetworkConfig, since
    it does not know the preset.

    Args:
        arguments: of a command; the preset is named among them or in a configuration file.

    Raises:
        ValueError: there is no such preset; a configuration file is damaged.
        FileNotFoundError: there is no such configuration file.
    """
    configs = read_configs(arguments)
    changes = [argument.startswith(f"{NETWORK}.") for argument in arguments]
    index = changes.index(True) if any(changes) else 0
    network: Any = None
    for option, value in pairwise(
        word for argument in arguments[:index] for word in argument.split("=", 1)
    ):
        if option == NETWORK:
            network = _parse_yaml(value)
        elif option in CONFIG:
            network = _network(configs[value], network)
    if not isinstance(network, str):  # it is given as values, or not at all
        return list(arguments)
    values = f"{NETWORK}={json.dumps(asdict(network_config(network)))}"
    return [*arguments[:index], values, *arguments[index:]]


def _parse_yaml(text: str) -> Any:
    """Return the value of an argument; text that is not YAML is taken as a preset's name."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _network(config: Mapping[str, Any], before: Any) -> Any:
    """Return the network of a configuration, or the one before if it has none.

    The parser reports what is wrong in it.
    """
    model = config.get("model")
    if isinstance(model, dict):
        model = model.get("init_args", model)
    return model.get("network", before) if isinstance(model, dict) else before

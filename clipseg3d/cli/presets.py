"""Presets of networks on the command line: a switch changes one value and keeps the others.

``--model.network tiny --model.network.cbam false`` is the preset ``tiny`` without CBAM.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from clipseg3d.networks.config import network_config
from clipseg3d.training.plan import PLANS

NETWORK, PLAN = "--model.network", "--model.plan"
_KEYS = {NETWORK: "network", PLAN: "plan"}


def expand_presets(arguments: Sequence[str]) -> list[str]:
    """Insert the values of a preset before the first option that changes one of them.

    The parser would take all other values from NetworkConfig, since it knows only the preset's
    name, and the training plan of that name would be lost.

    Args:
        arguments: of a command; the preset is named among them or in a configuration file.

    Raises:
        ValueError: there is no such preset.
    """
    switches = [each.startswith(f"{NETWORK}.") for each in arguments]
    index = switches.index(True) if any(switches) else 0
    model: dict[str, Any] = {}
    for option, value in pairwise(
        word for each in arguments[:index] for word in each.split("=", 1)
    ):
        if option in (NETWORK, PLAN):
            model[option] = _parse_yaml(value)
        elif option in ("-c", "--config"):
            model |= _network_and_plan(Path(value))
    name = model.get(NETWORK)
    if not isinstance(name, str):  # values, or nothing
        return list(arguments)
    values = [f"{NETWORK}={json.dumps(asdict(network_config(name)))}"]
    if model.get(PLAN) is None and name in PLANS:
        values.append(f"{PLAN}={name}")
    return [*arguments[:index], *values, *arguments[index:]]


def _parse_yaml(text: str) -> Any:
    """Return what an argument says; what is no YAML can only be a name, which is then unknown."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _network_and_plan(path: Path) -> dict[str, Any]:
    """Return network and plan of a configuration file; the parser says what is wrong with it."""
    try:
        model = yaml.safe_load(path.read_text(encoding="utf-8"))["model"]
        return {option: model[key] for option, key in _KEYS.items() if key in model}
    except (OSError, UnicodeDecodeError, yaml.YAMLError, TypeError, KeyError):
        return {}

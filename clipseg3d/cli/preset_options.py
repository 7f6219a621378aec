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
from clipseg3d.text_files import read_text
from clipseg3d.training.plan import PLANS

NETWORK, PLAN = "--model.network", "--model.plan"
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""Reads plain values only, and refuses the same as that of the parser."""
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


def require_configurations(arguments: Sequence[str]) -> None:
    """Refuse configuration files that do not hold settings by name.

    Raises:
        ValueError: a file is not UTF-8, not YAML, holds itself, or is no mapping.
    """
    words = [word for argument in arguments for word in argument.split("=", 1)]
    for option, value in pairwise(words):
        if option in ("-c", "--config") and Path(value).is_file():
            _require_configuration(Path(value))


def _require_configuration(path: Path) -> None:
    """Raise a ValueError for one of these faults."""
    try:
        content = yaml.load(read_text(path), _LOADER)
        json.dumps(content, default=str, skipkeys=True)
    except (yaml.YAMLError, RecursionError) as error:
        reason = " ".join(str(error).replace('in "<unicode string>", ', "in ").split())
        raise ValueError(f"{path}: not valid YAML ({reason}); repair it") from error
    except ValueError as error:
        if str(error).startswith(f"{path}: "):
            raise
        raise ValueError(f"{path}: cannot be used ({error}); repair it") from error
    if not isinstance(content, dict):
        raise ValueError(
            f"{path}: holds a {type(content).__name__}, expected settings by name; give a file as "
            "in examples/configs"
        )


def _parse_yaml(text: str) -> Any:
    """Return the value of an argument; text that is not YAML is taken as a preset's name."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _network_and_plan(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return network and plan of a configuration; the parser reports what is wrong in it."""
    model = config.get("model")
    if not isinstance(model, dict):
        return {}
    return {option: model[key] for option, key in _KEYS.items() if key in model}

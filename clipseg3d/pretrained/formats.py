"""Formats of files of trained networks; files of an older format are upgraded when they are read.

Every checkpoint and every config.json states its format. Files that state none have format 1.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch

FORMAT = 4
"""The current format. Raise it, and extend this file, when a name in the files changes."""

_NETWORK = {"fold": "space_to_depth"}
_MODES = {"paper": "damped"}
"""Values of ``attention_mode`` in formats 1 and 2, and their names since."""
_PREDICTION = {"window": "roi_size"}
_FIT_SETTINGS = {
    "model.network.fold": "model.network.space_to_depth",
    "model.window": "model.roi_size",
}
_WEIGHTS = (
    (r"(semantic_fusion\.)(?:gate|sequential)\.", r"\1bottleneck."),
    (r"(semantic_fusion\.bottleneck\.)found\.", r"\1read_norm."),
    (r"(semantic_fusion\.(?:bottleneck|attention\.\w+)\.)place(_key)?\.", r"\1position\2."),
)
"""Patterns of weights' names, and their replacements, in order."""
_PROMPT_HEAD = r"(.*prompt_head\.)presence\.(\w+)"
"""Weights of prompt heads, which until format 3 did not read how many lesions a report is about."""
_STATE_DICTS = ("state_dict", "current_model_state")
"""Weights in a checkpoint. With weight averaging, the first holds the average, and the second the
weights that are being trained."""


def check_format(file_format: Any) -> int:
    """Return the format that a file states; None stands for format 1.

    Raises:
        ValueError: this version of the library does not know the format.
    """
    if file_format is None:
        return 1
    if not isinstance(file_format, int) or not 1 <= file_format <= FORMAT:
        raise ValueError(f"format {file_format!r}, expected 1 to {FORMAT}")
    return file_format


def upgrade_config(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config.json of an older format in the current format."""
    prediction = content["prediction"]
    return {
        **content,
        "format": FORMAT,
        "network": _upgrade_network(content["network"]),
        "prediction": None if prediction is None else _renamed(prediction, _PREDICTION),
    }


def upgrade_weights(weights: Mapping[str, Any]) -> dict[str, Any]:
    """Return weights of any format under their current names, in the same order.

    Those that an older format lacks come at the end, as in a new network.
    """
    upgraded = {}
    for name, weight in weights.items():
        for pattern, replacement in _WEIGHTS:
            name = re.sub(pattern, replacement, name)
        upgraded[name] = weight
    for name, weight in list(upgraded.items()):
        if found := re.fullmatch(_PROMPT_HEAD, name):
            upgraded.setdefault(f"{found[1]}several.{found[2]}", torch.zeros_like(weight))
    return upgraded


def upgrade_checkpoint(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return a checkpoint of an older format in the current format."""
    upgraded = {**content, "format": FORMAT}
    for key in _STATE_DICTS:
        if key in content:
            upgraded[key] = upgrade_weights(content[key])
    values = content.get("hyper_parameters")
    if isinstance(values, Mapping):
        values = _renamed(values, _PREDICTION)
        if isinstance(values.get("network"), Mapping):
            values["network"] = _upgrade_network(values["network"])
        upgraded["hyper_parameters"] = values
    if isinstance(content.get("settings"), Mapping):
        settings = _renamed(content["settings"], _FIT_SETTINGS)
        upgraded["settings"] = _with_current_mode(settings, "model.network.attention_mode")
    return upgraded


def _upgrade_network(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a network's config under their current names."""
    return _with_current_mode(_renamed(values, _NETWORK), "attention_mode")


def _with_current_mode(values: dict[str, Any], key: str) -> dict[str, Any]:
    """Return values with the current name of the attention mode under a key, if it is there."""
    return {k: _MODES.get(v, v) if k == key else v for k, v in values.items()}


def _renamed(values: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Return values under other names, in the same order."""
    return {names.get(name, name): value for name, value in values.items()}

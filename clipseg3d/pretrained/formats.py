"""Names in files of trained networks: the current ones, and those of older files.

Every checkpoint and every config.json says which format it has. Files without that mark were written
by the version that had format 1; they are brought up to date when they are read.
"""

import re
from collections.abc import Mapping
from typing import Any

FORMAT = 2
"""Raise it, and extend this file, when a name below changes."""

_NETWORK = {"fold": "space_to_depth"}
_PREDICTION = {"window": "roi_size"}
_SETTINGS = {
    "model.network.fold": "model.network.space_to_depth",
    "model.window": "model.roi_size",
}
_WEIGHTS = (
    (r"(semantic_fusion\.)(?:gate|sequential)\.", r"\1bottleneck."),
    (r"(semantic_fusion\.bottleneck\.)found\.", r"\1read_norm."),
    (r"(semantic_fusion\.(?:bottleneck|attention\.\w+)\.)place(_key)?\.", r"\1position\2."),
)
"""Patterns of weights' names, and what replaces them."""
_STATE_DICTS = ("state_dict", "current_model_state")
"""Weights of a checkpoint; the second are those that an average is taken of."""


def check_format(found: Any) -> int:
    """Return the format that a file says it has; None stands for format 1.

    Raises:
        ValueError: a newer version of this library wrote the file.
    """
    if found is None:
        return 1
    if not isinstance(found, int) or not 1 <= found <= FORMAT:
        raise ValueError(
            f"format {found!r} is not known; install the version of clipseg3d that wrote the file"
        )
    return found


def upgrade_config(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a config.json of format 1 under today's names."""
    upgraded = dict(content)
    upgraded["network"] = _renamed(content["network"], _NETWORK)
    if content["prediction"] is not None:
        upgraded["prediction"] = _renamed(content["prediction"], _PREDICTION)
    return upgraded


def upgrade_weights(weights: Mapping[str, Any]) -> dict[str, Any]:
    """Return the weights of a file of format 1 under today's names."""
    upgraded = {}
    for name, weight in weights.items():
        for old, new in _WEIGHTS:
            name = re.sub(old, new, name)
        upgraded[name] = weight
    return upgraded


def upgrade_checkpoint(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return a checkpoint of format 1 under today's names."""
    upgraded = dict(content)
    for key in _STATE_DICTS:
        if key in content:
            upgraded[key] = upgrade_weights(content[key])
    values = content.get("hyper_parameters")
    if isinstance(values, Mapping):
        values = _renamed(values, _PREDICTION)
        if isinstance(values.get("network"), Mapping):
            values["network"] = _renamed(values["network"], _NETWORK)
        upgraded["hyper_parameters"] = values
    if isinstance(content.get("settings"), Mapping):
        upgraded["settings"] = _renamed(content["settings"], _SETTINGS)
    return upgraded


def _renamed(values: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Return values under other names."""
    return {names.get(name, name): value for name, value in values.items()}

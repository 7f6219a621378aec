"""Configuration files of Lightning's commands, read with errors of one line."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from clipseg3d.text_files import read_yaml

CONFIG = ("-c", "--config")
CURE = "give a YAML file such as those in examples/configs"


def read_configs(arguments: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Read every configuration file that is given among the arguments of a command.

    The parser would not say which file is damaged.

    Returns:
        Value of ``--config`` -> settings.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a file is not UTF-8, not YAML, or holds no settings.
    """
    words = [word for argument in arguments for word in argument.split("=", 1)]
    return {value: read_config(value) for option, value in pairwise(words) if option in CONFIG}


def read_config(value: str) -> dict[str, Any]:
    """Read a configuration: a file, or settings as one line of YAML.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not UTF-8, not YAML, or holds no settings.
    """
    if _is_file(value):
        settings = read_yaml(Path(value))
        if isinstance(settings, dict):
            return settings
        raise ValueError(f"{value}: holds no settings; {CURE}")
    try:
        settings = yaml.safe_load(value)
    except (yaml.YAMLError, ValueError, RecursionError):
        settings = None
    if isinstance(settings, dict):
        return settings
    raise FileNotFoundError(f"{value}: no such file; {CURE}")


def _is_file(value: str) -> bool:
    """Return whether there is a file of this name."""
    try:
        return Path(value).is_file()
    except (OSError, ValueError):  # settings, which are too long for a name
        return False

"""Configuration files of Lightning's commands, read with errors of one line."""

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from clipseg3d.cli.terminal import UsageError
from clipseg3d.configs import config_names, config_path
from clipseg3d.ranges import nearest
from clipseg3d.text_files import read_yaml

CONFIG = ("-c", "--config")
CURE = "give a YAML file, or a name that 'clipseg3d configs' lists"


def named_configs(arguments: Sequence[str]) -> list[str]:
    """Return the arguments of a command, with files in the place of names of configurations."""
    named = []
    for before, word in pairwise(["", *arguments]):
        option, equals, value = ("", "", word) if before in CONFIG else word.partition("=")
        if (before in CONFIG or option in CONFIG) and value in config_names():
            word = f"{option}{equals}{find_config(value)}"
        named.append(word)
    return named


def find_config(value: str) -> Path:
    """Return the file of a configuration that is given by its path, or by its name.

    Raises:
        FileNotFoundError: there is no such file.
        UsageError: there is no configuration of this name.
    """
    if _is_file(value):
        return Path(value)
    if value in config_names():
        return config_path(value)
    raise _missing(value)


def read_configs(arguments: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Read every configuration that is given among the arguments of a command.

    The parser would not say which file is damaged.

    Returns:
        Value of ``--config`` -> settings.

    Raises:
        FileNotFoundError: there is no such file.
        UsageError: there is no configuration of this name.
        ValueError: a file is not UTF-8, not YAML, or holds no settings.
    """
    words = [word for argument in arguments for word in argument.split("=", 1)]
    return {value: read_config(value) for option, value in pairwise(words) if option in CONFIG}


def read_config(value: str) -> dict[str, Any]:
    """Read a configuration: a file, a name, or settings as one line of YAML.

    Raises:
        FileNotFoundError: there is no such file.
        UsageError: there is no configuration of this name.
        ValueError: the file is not UTF-8, not YAML, or holds no settings.
    """
    if _is_file(value) or value in config_names():
        settings = read_yaml(find_config(value))
        if isinstance(settings, dict):
            return settings
        raise ValueError(f"{value}: holds no settings; {CURE}")
    try:
        settings = yaml.safe_load(value)
    except (yaml.YAMLError, ValueError, RecursionError):
        settings = None
    if isinstance(settings, dict):
        return settings
    raise _missing(value)


def file_of(key: str, configs: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Return which of the configurations has a key, such as ``data.patch_size``; None if none has.

    Args:
        key: names joined by dots; ``init_args`` are left out.
        configs: from :func:`read_configs`.
    """
    for name, settings in configs.items():
        found: Any = settings
        for part in key.split("."):
            if not isinstance(found, dict):
                break
            given = found.get("init_args")
            if part not in found and isinstance(given, dict):
                found = given
            if part not in found:
                break
            found = found[part]
        else:
            return name
    return None


def _missing(value: str) -> OSError | ValueError:
    """Return what is wrong with a configuration that is not there."""
    path = Path(value)
    if path.stem in config_names():
        return FileNotFoundError(
            f"{value}: no such file; give {path.stem}, which comes with clipseg3d"
        )
    if re.fullmatch(r"[\w-]+", value):
        return UsageError(f"{value}: no such configuration; {nearest(value, config_names())}")
    return FileNotFoundError(f"{value}: no such file; {CURE}")


def _is_file(value: str) -> bool:
    """Return whether there is a file of this name."""
    try:
        return Path(value).is_file()
    except (OSError, ValueError):  # settings, which are too long for a name
        return False

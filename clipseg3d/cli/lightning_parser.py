"""The parser of Lightning's commands, with errors of one line."""

import inspect
import re
from argparse import Action
from collections.abc import Iterator
from importlib import import_module
from typing import Any, NoReturn

from pytorch_lightning.cli import LightningArgumentParser

from clipseg3d.ranges import nearest

MODEL = "clipseg3d.CLIPSeg3DModule"
"""Class of the module that is trained, unless another one is named."""
_UNKNOWN = (
    r"Option '(?P<option>[^']+)' is not accepted",
    r"does not accept option '(?P<option>[^']+)'",
    r"unrecognized arguments: (?P<option>[^\s=]+)",
)
_NO_ENCODER = (
    "does not correspond to a subclass of InjectedClip",
    "lacks a method of clipseg3d.clip.ClipEncoder; add it, and try your class with "
    "clipseg3d.testing.check_clip_encoder",
)
"""What jsonargparse says of a class that is no encoder, and what a user can do with."""


class OneLineLightningParser(LightningArgumentParser):
    """Raise what is wrong with an option as a ValueError of one line, without the usage."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise the error.

        Raises:
            ValueError: always; the message names option, value and cure.
        """
        if not self.exit_on_error:  # of the parser of a class, within another
            super().error(message, ex)
        raise ValueError(self._one_line(message, ex)) from ex

    def _one_line(self, message: str, error: BaseException | None) -> str:
        """Return a message of jsonargparse, which has a line for every type, as one line."""
        key = ".".join(re.findall(r'Parser key "([^"]+)"', message))
        for pattern in _UNKNOWN:
            if unknown := re.search(pattern, message):
                option = unknown["option"].removeprefix("--")
                paths = re.findall(r"given class_path '([^']+)'", message)
                allowed = _arguments(paths[-1]) if paths else sorted(self._options())
                name = unknown[0].split()[-1] if "unrecognized" in unknown[0] else f"--{option}"
                name = f"--{key}.{option}" if key else name
                return f"{name}: no such option; {nearest(option, allowed)}"
        cause = error
        while cause is not None and cause.__cause__ is not None:
            cause = cause.__cause__
        reason = " ".join(str(cause or message).split())
        value = re.search(r"Got value:\s*(.*)", reason)
        types = [_plain(kind) for kind in re.findall(r"Expected an? (.*)", message)]
        if value and types:
            kinds = " or ".join(dict.fromkeys(kind for kind in types if kind != "NoneType"))
            return f"--{key}: value {value[1] or repr('')} cannot be used; give {kinds}"
        reason = reason.replace(*_NO_ENCODER)
        if "; " not in reason:
            reason = f"{reason.rstrip('.')}; change or remove it"
        return f"--{key}: {reason}" if key else reason

    def _options(self) -> Iterator[str]:
        """Yield the names of all options, also of commands."""
        yield from (f"model.{name}" for name in _arguments(MODEL))
        for action in self._actions:
            yield from (word.lstrip("-") for word in action.option_strings if "--" in word)
            for parser in _commands(action).values():
                yield from parser._options()


def _commands(action: Action) -> dict[str, Any]:
    """Return the parsers of an action's commands, by name."""
    parsers = getattr(action, "_name_parser_map", None) or {}
    return {name: parser for name, parser in parsers.items() if hasattr(parser, "_options")}


def _arguments(class_path: str) -> list[str]:
    """Return the names of the arguments of a class and of its parents."""
    module, _, name = class_path.rpartition(".")
    kinds = inspect.getmro(getattr(import_module(module), name))
    return sorted({name for kind in kinds for name in inspect.signature(kind).parameters})


def _plain(kind: str) -> str:
    """Return a type in words: ``<class 'int'>. Got value: 3`` is ``int``."""
    kind = kind.partition(". Got value")[0]
    plain = re.sub(r"^<class '(.*)'>$", r"\1", kind)
    return re.sub(r"^typing\.Literal\[(.*)\]$", r"\1", plain)

"""The parser of Lightning's commands, with errors of one line."""

import inspect
import re
from argparse import Action
from collections.abc import Iterator
from importlib import import_module
from typing import Any, NoReturn

from pytorch_lightning import Callback, LightningDataModule, LightningModule
from pytorch_lightning.cli import LightningArgumentParser
from pytorch_lightning.loggers import Logger
from torch.nn.modules.loss import _Loss
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from clipseg3d.cli.terminal import UsageError, raised_here
from clipseg3d.ranges import UnknownNameError, nearest

MODEL = "clipseg3d.CLIPSeg3DModule"
"""Class of the module that is trained, unless another one is named."""
_UNKNOWN = (
    r"Option '(?P<option>[^']+)' is not accepted",
    r"does not accept option '(?P<option>[^']+)'",
    r"unrecognized arguments: (?P<option>[^\s=]+)",
)
_NO_CLASS = (
    r"Expected a dot import path string: (\S+)",
    r"module '[\w.]+' has no attribute '(\w+)'",
    r"No [\w.]+ attribute (\w+)",
    r"No module named '([\w.]+)'",
)
"""What is said of the name of a class that does not exist."""
_NO_MAPPING = re.compile(r"Subclass types expect one of|object has no attribute 'keys'")
_KINDS: dict[str, type] = {
    "data": LightningDataModule,
    "model": LightningModule,
    "loss": _Loss,
    "optimizer": Optimizer,
    "lr_scheduler": LRScheduler,
    "trainer.logger": Logger,
    "trainer.callbacks": Callback,
}
"""Option -> base of the classes that it takes."""
_LOSSES = "monai.losses"
_NO_ENCODER = (
    "does not correspond to a subclass of InjectedClip",
    "lacks a method of clipseg3d.clip.ClipEncoder; add it, and try your class with "
    "clipseg3d.testing.check_clip_encoder",
)
"""What jsonargparse says of a class that is no encoder, and what a user can do with."""


class OneLineLightningParser(LightningArgumentParser):
    """Raise what is wrong with an option as an error of one line, without the usage."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.allow_abbrev = False  # a slip that is the beginning of an option is no option

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise the error.

        Raises:
            UsageError: there is no such name, or the value has another type; the message names
                option, value and cure.
            ValueError: this library refuses the value.
        """
        if not self.exit_on_error:  # of the parser of a class, within another
            super().error(message, ex)
        cause = _innermost(ex)
        is_name = isinstance(cause, UnknownNameError)
        refused = isinstance(cause, ValueError) and raised_here(cause) and not is_name
        kind = ValueError if refused else UsageError
        raise kind(self._one_line(message, cause)) from ex

    def _one_line(self, message: str, cause: BaseException | None) -> str:
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
        reason = " ".join(str(cause or message).split())
        for pattern in _NO_CLASS:
            if unknown := re.search(pattern, reason):
                return f"--{key} {unknown[1]}: no such class; {_nearest_class(unknown[1], key)}"
        if _NO_MAPPING.search(message):
            return f"--{key}: names no class; give class_path: NAME, and its options as init_args"
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


def _innermost(error: BaseException | None) -> BaseException | None:
    """Return the error that the others were raised from."""
    while error is not None and error.__cause__ is not None:
        error = error.__cause__
    return error


def _commands(action: Action) -> dict[str, Any]:
    """Return the parsers of an action's commands, by name."""
    parsers = getattr(action, "_name_parser_map", None) or {}
    return {name: parser for name, parser in parsers.items() if hasattr(parser, "_options")}


def _arguments(class_path: str) -> list[str]:
    """Return the names of the arguments of a class and of its parents."""
    module, _, name = class_path.rpartition(".")
    kinds = inspect.getmro(getattr(import_module(module), name))
    return sorted({name for kind in kinds for name in inspect.signature(kind).parameters})


def _nearest_class(name: str, key: str) -> str:
    """Return which class may be meant by a name, among those that an option takes."""
    name = name.rpartition(".")[2]
    if key.startswith("loss"):  # most are MONAI's, by full path, since nothing imports them
        found = vars(import_module(_LOSSES)).items()
        paths = [f"{_LOSSES}.{loss}" for loss, value in found if isinstance(value, type)]
        cure = nearest(f"{_LOSSES}.{name}", paths)
        if cure.startswith("did"):
            return cure
    kinds = [kind for option, kind in _KINDS.items() if key.startswith(option)]
    names = {below.__name__ for kind in kinds for below in _subclasses(kind)}
    cure = nearest(name, sorted(names))
    return cure if cure.startswith("did") else "give its full path, such as my_file.MyClass"


def _subclasses(kind: type) -> Iterator[type]:
    """Yield the classes below a class, as far as they have been imported."""
    below: type
    for below in kind.__subclasses__():
        yield below
        yield from _subclasses(below)


def _plain(kind: str) -> str:
    """Return a type in words: ``<class 'int'>. Got value: 3`` is ``int``."""
    kind = kind.partition(". Got value")[0]
    plain = re.sub(r"^<class '(.*)'>$", r"\1", kind)
    return re.sub(r"^typing\.Literal\[(.*)\]$", r"\1", plain)

"""What libraries say while a command runs: kept from its user, who cannot act upon it."""

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from clipseg3d.cli.terminal import say

_LOGGERS = ("pytorch_lightning", "lightning_fabric", "lightning.pytorch", "lightning.fabric")
_NOISE = (
    r"Found \d+ module\(s\) in eval mode",  # the frozen encoders
    r"The number of training batches .* is smaller than the logging interval",
    r"The '?\w+_dataloader'? does not have many workers",
    r"You're resuming from a checkpoint that ended before the epoch ended",  # and goes on as it was
    r"Checkpoint directory .* exists and is not empty",
    r"It is recommended to use `self.log\(",  # scores are the same on every rank
    r"'pin_memory' argument is set as true but no accelerator is found",
)
"""Beginnings of warnings that are no news here."""


@contextmanager
def quiet() -> Iterator[None]:
    """Say warnings as notes of one line; leave out Lightning's news, and what is to be deprecated.

    With ``python -W`` or PYTHONWARNINGS, warnings are those that were asked for.
    """
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        if not sys.warnoptions:
            for category in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):
                warnings.simplefilter("ignore", category)
            for message in _NOISE:
                warnings.filterwarnings("ignore", message=rf"\s*{message}")
            warnings.showwarning = _note
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _note(message: Warning | str, *_: Any, **__: Any) -> None:
    """Say a warning in one line."""
    with tqdm.external_write_mode(file=sys.stderr):
        say(f"clipseg3d: note: {' '.join(str(message).split())}", stream=sys.stderr)

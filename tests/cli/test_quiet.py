"""Mirrors clipseg3d/cli/quiet.py."""

import logging
import sys
import warnings

import pytest

from clipseg3d.cli.quiet import quiet


@pytest.fixture(autouse=True)
def no_filters(monkeypatch):
    """As in a process that was started without -W."""
    monkeypatch.setattr(sys, "warnoptions", [])
    with warnings.catch_warnings():
        warnings.resetwarnings()
        yield


@pytest.mark.parametrize(
    ("message", "category"),
    [
        ("treespec is old", FutureWarning),
        ("will be removed", DeprecationWarning),
        ("Found 67 module(s) in eval mode at the start of training.", UserWarning),
        ("The number of training batches (4) is smaller than the logging interval", UserWarning),
        ("You're resuming from a checkpoint that ended before the epoch ended and", UserWarning),
        ("The 'train_dataloader' does not have many workers which may be", UserWarning),
    ],
)
def test_what_nobody_can_act_upon_is_left_out(message, category, capsys):
    with quiet():
        warnings.warn(message, category, stacklevel=1)
    assert capsys.readouterr() == ("", "")


def test_other_warnings_are_notes_of_one_line(capsys):
    with quiet():
        warnings.warn("the scans\n  are old", UserWarning, stacklevel=1)
    assert capsys.readouterr().err == "clipseg3d: note: the scans are old\n"


def test_warnings_that_were_asked_for_are_as_they_were(monkeypatch):
    monkeypatch.setattr(sys, "warnoptions", ["error"])
    with quiet(), pytest.warns(DeprecationWarning, match="old"):
        warnings.warn("old", DeprecationWarning, stacklevel=1)


def test_news_of_lightning_are_back_afterwards():
    logger = logging.getLogger("pytorch_lightning")
    level = logger.level
    with quiet():
        assert not logging.getLogger("pytorch_lightning.utilities.rank_zero").isEnabledFor(
            logging.INFO
        )
    assert logger.level == level

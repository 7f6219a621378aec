"""Reading checkpoint files of training; no code in them is run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import torch

from clipseg3d.pretrained.formats import FORMAT, check_format, upgrade_checkpoint

_DIRECTORY = 0x10
"""Attribute of directories in an archive."""


def read_checkpoint_file(
    path: Path, map_location: Any = "cpu", *, weights_only: bool = True
) -> dict[str, Any]:
    """Read a checkpoint, and upgrade it to the current format.

    Args:
        path: file written by training.
        map_location: device of its tensors, as for :func:`torch.load`.
        weights_only: read plain values and tensors only; False may run code in the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, no checkpoint, or of a newer format.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; give a checkpoint written by training")
    path.open("rb").close()  # missing permissions are an error of their own
    try:
        _check_sums(path)
        content = torch.load(path, map_location=map_location, weights_only=weights_only)
    except Exception as error:  # the readers raise errors of any kind on damaged files
        raise ValueError(
            f"{path}: not a whole checkpoint; give another one, or copy it again"
        ) from error
    weights = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(weights, Mapping) or not all(isinstance(name, str) for name in weights):
        raise ValueError(f"{path}: not a checkpoint; give a file written by training")
    try:
        file_format = check_format(content.get("format"))
    except ValueError as error:
        raise ValueError(
            f"{path}: not understood by this version of clipseg3d ({error}); install the version "
            "that wrote it"
        ) from error
    return content if file_format == FORMAT else upgrade_checkpoint(content)


def _check_sums(path: Path) -> None:
    """Raise a BadZipFile if the file is damaged; torch does not verify check sums."""
    with ZipFile(path) as archive:
        damaged = archive.testzip()
        # torch returns uninitialised memory for an entry that is marked as a directory
        directories = [e.filename for e in archive.infolist() if e.external_attr & _DIRECTORY]
    if damaged is not None or directories:
        raise BadZipFile(f"{damaged or directories[0]} is damaged")

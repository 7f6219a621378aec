"""Checkpoint files of training: read whole, without running any code in them."""

import pickle
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import torch

from clipseg3d.pretrained.formats import FORMAT, check_format, upgrade_checkpoint


def read_checkpoint_file(
    path: Path, map_location: Any = "cpu", *, weights_only: bool = True
) -> dict[str, Any]:
    """Read a checkpoint, under today's names.

    Args:
        path: file written by training.
        map_location: where tensors go, as for :func:`torch.load`.
        weights_only: read plain values and tensors only; False may run code in the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, no checkpoint, or of a newer version.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; give a checkpoint written by training")
    try:
        with ZipFile(path) as archive:
            if archive.testzip() is not None:  # torch does not verify check sums
                raise BadZipFile("a check sum is wrong")
        content = torch.load(path, map_location=map_location, weights_only=weights_only)
    except (pickle.UnpicklingError, RuntimeError, EOFError, BadZipFile, KeyError) as error:
        raise ValueError(
            f"{path}: not a whole checkpoint; copy it again, or give another one"
        ) from error
    if not isinstance(content, dict) or "state_dict" not in content:
        raise ValueError(f"{path}: not a checkpoint; give a file written by training")
    try:
        file_format = check_format(content.get("format"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return content if file_format == FORMAT else upgrade_checkpoint(content)

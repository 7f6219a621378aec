"""Checkpoints on disk: whole or not at all, and the last one that can be read."""

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Trainer
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.utilities import rank_zero_warn

from clipseg3d.atomic_write import atomic_write
from clipseg3d.pretrained.checkpoint import read_checkpoint_file

MANIFEST = "manifest"
"""Key of a checkpoint under which its manifest is, and the end of the name of the file beside."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write a checkpoint, and its manifest beside it as JSON, each all or nothing.

    Lightning's own writes to the system's folder for temporary files, from which a file of another
    disk is copied, not moved. Give it to ``Trainer(plugins=...)``; ``clipseg3d fit`` uses it.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write a checkpoint; a full disk leaves the one that was there.

        Raises:
            OSError: it cannot be written.
        """
        path = Path(path)
        content = BytesIO()  # written in one go: torch hides why its own writing failed
        torch.save(checkpoint, content)
        _write(path, content.getbuffer())
        if manifest := checkpoint.get(MANIFEST):
            text = f"{json.dumps(manifest, indent=2)}\n"
            _write(_manifest_path(path), memoryview(text.encode()))

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint; code in it is never run, unless ``weights_only`` is False.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is not whole, or no checkpoint.
        """
        return read_checkpoint_file(
            Path(path), map_location, weights_only=weights_only is not False
        )

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint and its manifest."""
        super().remove_checkpoint(path)
        _manifest_path(Path(path)).unlink(missing_ok=True)


def find_last(trainer: Trainer) -> Path | None:
    """Return the newest ``last-*.ckpt`` of a fit that can be read; damaged ones are told.

    Looked for where the trainer's checkpoints go, or, if that is a folder for each run, in those
    of all runs.

    Raises:
        ValueError: there are some, and none can be read.
    """
    folders = {
        Path(folder)
        for callback in trainer.checkpoint_callbacks
        if (folder := getattr(callback, "dirpath", None)) is not None
    }
    if not folders:
        roots = [
            Path(log.save_dir or trainer.default_root_dir, str(log.name)) for log in trainer.loggers
        ]
        folders = {folder for root in roots for folder in root.glob("*/checkpoints")}
        folders.add(Path(trainer.default_root_dir, "checkpoints"))
    files = [path for folder in folders for path in folder.glob("last-*.ckpt")]
    files.sort(key=lambda path: (path.stat().st_mtime_ns, path.name), reverse=True)
    for path in files:
        try:
            read_checkpoint_file(path)
        except ValueError:
            rank_zero_warn(f"{path}: not a whole checkpoint; going on from the one before")
        else:
            return path
    if files:
        raise ValueError(
            f"{files[0]}: not a whole checkpoint, nor is any other last-*.ckpt; give another file, "
            "or leave --ckpt_path out to start anew"
        )
    return None


def _write(path: Path, content: memoryview) -> None:
    """Write a file all or nothing."""
    with atomic_write(path, tmp_name=f".writing{path.suffix}") as tmp:
        tmp.write_bytes(content)


def _manifest_path(path: Path) -> Path:
    """Return where the manifest of a checkpoint lies."""
    return path.with_name(f"{path.stem}.{MANIFEST}.json")

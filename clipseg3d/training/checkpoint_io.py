"""Checkpoints on disk: atomic writing, and the newest one that can be read."""

import json
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Trainer
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.utilities import rank_zero_warn

from clipseg3d.atomic_write import atomic_files
from clipseg3d.pretrained.checkpoint import read_checkpoint_file
from clipseg3d.training.fit_settings import changed_settings

MANIFEST = "manifest"
"""Key of the manifest in a checkpoint, and part of the name of the file beside it."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write a checkpoint and, beside it, its manifest as JSON: each completely or not at all.

    Lightning's own class writes to the system's folder for temporary files. If that is on another
    disk, the file is copied from there, and a copy can be cut short. Give this class to
    ``Trainer(plugins=...)``; ``clipseg3d fit`` uses it.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write a checkpoint; if that fails, an older file of that name stays.

        Raises:
            OSError: it cannot be written.
        """
        path = Path(path)
        content = BytesIO()  # torch, when it writes to a file, hides why that failed
        torch.save(checkpoint, content)
        manifest = checkpoint.get(MANIFEST)
        # The manifest first: a fit resumed from this checkpoint would not write it any more.
        beside = [_manifest_path(path)] if manifest else []
        with atomic_files(*beside, path) as files:
            files[-1].write_bytes(content.getbuffer())
            if manifest:
                files[0].write_text(f"{json.dumps(manifest, indent=2)}\n", encoding="utf-8")

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint; no code in it is run unless ``weights_only`` is False.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is damaged, or no checkpoint.
        """
        return read_checkpoint_file(
            Path(path), map_location, weights_only=weights_only is not False
        )

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint and its manifest."""
        super().remove_checkpoint(path)
        _manifest_path(Path(path)).unlink(missing_ok=True)


def find_last(trainer: Trainer, settings: Mapping[str, Any]) -> Path | None:
    """Return the newest ``last-*.ckpt`` of a fit that can be read; None if there is none at all.

    The search is in the folder for the trainer's checkpoints or, if every run has its own folder,
    in those of all runs. It warns of every damaged file, and of every newer run that it passes over
    since its settings are others. If all have other settings, it returns the newest one, which the
    module refuses or goes on with.

    Args:
        trainer: that will fit.
        settings: of :func:`clipseg3d.training.fit_settings.fit_settings`, without content.

    Raises:
        ValueError: there are some, and all are damaged.
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
    others: dict[Path, tuple[Path, list[str]]] = {}
    for path in files:
        if path.parent in others:
            continue
        try:
            before = read_checkpoint_file(path).get("settings", settings)
        except ValueError:
            rank_zero_warn(f"{path}: damaged; going on from the checkpoint before it")
            continue
        changed = changed_settings(before, settings, content=False)
        if not changed:
            for other, reasons in others.values():
                rank_zero_warn(f"{other}: passed over, saved with {'; '.join(reasons)}")
            return path
        others[path.parent] = path, changed
    if files and not others:
        raise ValueError(
            f"{files[0]}: damaged, and so is every other last-*.ckpt; give another file, or leave "
            "--ckpt_path out to start anew"
        )
    return next((path for path, _ in others.values()), None)


def _manifest_path(path: Path) -> Path:
    """Return the path of a checkpoint's manifest."""
    return path.with_name(f"{path.stem}.{MANIFEST}.json")

"""What a fit was set to, as plain values, and what is another in the fit that goes on."""

from collections.abc import Mapping
from typing import Any

from pytorch_lightning import Trainer

from clipseg3d.data.sampling import global_seed
from clipseg3d.training.averaged_weights import AveragedWeights

PLACES = ("root", "cache_dir", "num_workers", "reports", "splits", "release")
"""Arguments of a data module that change no sample, or whose content is compared instead."""
OF_TRAINER = (
    *("world_size", "accumulate_grad_batches", "precision", "gradient_clip_val"),
    *("gradient_clip_algorithm", "max_epochs", "max_steps", "limit_train_batches"),
)


def fit_settings(hparams: Mapping[str, Any], trainer: Trainer) -> dict[str, Any]:
    """Return all that the weights of a fit follow from, by dotted name.

    Args:
        hparams: of the module.
        trainer: set up, with its data module where there is one.
    """
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    settings = {
        "seed": global_seed(),
        "model": dict(hparams),
        "trainer": {name: getattr(trainer, name) for name in OF_TRAINER},
        "averaged_weights": [
            callback.decay
            for callback in trainer.callbacks  # type: ignore[attr-defined]
            if isinstance(callback, AveragedWeights)
        ],
    }
    if data is not None:
        options = {name: value for name, value in data.hparams.items() if name not in PLACES}
        settings["data"] = options
        if hasattr(data, "provenance"):
            found = data.provenance()
            options["split"] = found["split"]["sha256"]
            options["content"] = found["sha256"]
    return dict(_flat(settings, ""))


def changed_settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return what differs, one ``name: value then -> value now`` for each."""
    names = [*before, *(name for name in now if name not in before)]
    return [
        f"{name}: {before.get(name)} -> {now.get(name)}"
        for name in names
        if before.get(name) != now.get(name)
    ]


def _flat(values: Mapping[str, Any], prefix: str) -> list[tuple[str, Any]]:
    """Return the values of nested mappings under dotted names, tuples as lists."""
    flat: list[tuple[str, Any]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat += _flat(value, f"{prefix}{name}.")
        else:
            plain = list(value) if isinstance(value, tuple) else value
            flat.append((f"{prefix}{name}", plain))
    return flat

"""The settings of a fit as plain values, and which of them a resumed fit has changed."""

from collections.abc import Mapping
from typing import Any

from pytorch_lightning import Trainer

from clipseg3d.data.sample_order import global_seed
from clipseg3d.training.averaged_weights import AveragedWeights

IRRELEVANT = ("root", "cache_dir", "num_workers", "reports", "splits", "release")
"""Arguments of a data module that change no sample, or whose contents are compared instead."""
TRAINER_SETTINGS = (
    *("world_size", "accumulate_grad_batches", "precision", "gradient_clip_val"),
    *("gradient_clip_algorithm", "max_epochs", "max_steps", "limit_train_batches"),
)


def fit_settings(
    module: Any, trainer: Trainer, data: Any = None, *, content: bool = True
) -> dict[str, Any]:
    """Return all settings that the weights of a fit depend on, by dotted name.

    Args:
        module: a :class:`clipseg3d.training.module.CLIPSeg3DModule`.
        trainer: that will fit it.
        data: data module; None if there is none.
        content: whether to add the split and the check sum of the data, which must be set up.
    """
    settings = {
        "seed": global_seed(),
        "model": _that_matter(module.hparams),
        **module.replaced,
        "trainer": {name: getattr(trainer, name) for name in TRAINER_SETTINGS},
        "averaged_weights": [
            callback.decay
            for callback in trainer.callbacks  # type: ignore[attr-defined]
            if isinstance(callback, AveragedWeights)
        ],
    }
    if data is not None:
        options = {name: value for name, value in data.hparams.items() if name not in IRRELEVANT}
        settings["data"] = options
        if content and hasattr(data, "provenance"):
            provenance = data.provenance()
            options["split"] = provenance["split"]["sha256"]
            options["content"] = provenance["sha256"]
    return dict(_flat(settings, ""))


def _that_matter(model: Mapping[str, Any]) -> dict[str, Any]:
    """Return a module's arguments without the name of a plan, and without rules for predictions.

    The plan's values are among the arguments. Checkpoints from before networks named a plan hold
    none, and may be resumed.
    """
    network = {name: value for name, value in model["network"].items() if name != "plan"}
    rest = {name: value for name, value in model.items() if name != "postprocessing"}
    return {**rest, "network": network}


def changed_settings(
    before: Mapping[str, Any], now: Mapping[str, Any], *, content: bool = True
) -> list[str]:
    """Return the differences, each as ``name: value before -> value now``.

    Args:
        before: settings of a checkpoint.
        now: settings of a fit.
        content: whether ``now`` has the split and the check sum of the data.
    """
    names = [*before, *(name for name in now if name not in before)]
    if not content:
        names = [name for name in names if name not in ("data.split", "data.content")]
    return [
        f"{name}: {before.get(name)} -> {now.get(name)}"
        for name in names
        if before.get(name) != now.get(name)
    ]


def is_plain(value: Any) -> bool:
    """Return whether a value is one of YAML, so that checkpoints can hold it."""
    if isinstance(value, list | tuple):
        return all(map(is_plain, value))
    if isinstance(value, dict):
        return all(isinstance(name, str) for name in value) and is_plain(list(value.values()))
    return value is None or type(value) in (bool, int, float, str)


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

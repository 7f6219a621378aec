"""``clipseg3d cross-validate``."""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from clipseg3d.atomic_write import atomic_write
from clipseg3d.cli.config_reader import find_config
from clipseg3d.cli.terminal import Commands, require_output, say

if TYPE_CHECKING:
    from filelock import BaseFileLock

    from clipseg3d.metrics.score_table import ScoreTable

LOG = "fit.log"
"""What a fit prints, in the folder of its fold."""
RESERVED = ("data.fold", "ckpt_path", "scores", "checkpoint.dirpath", "trainer.default_root_dir")
"""Options of a fit that this command sets."""


def add_command(commands: Commands) -> None:
    """Add the command to the command line."""
    cross = commands.add_parser(
        "cross-validate",
        help="train and score all folds, or compare two configs",
        description="Train every fold, score its cases with the best checkpoint, and print mean "
        "and SD of Dice; for two configurations, also their differences case by case. If it is "
        "interrupted, run the same command again: it skips finished folds and resumes the one that "
        "was being trained.",
    )
    cross.add_argument(
        "config",
        nargs="+",
        metavar="CONFIG",
        help="YAML file or name, as for 'clipseg3d fit --config'",
    )
    cross.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder for checkpoints and scores; those of a fold are in DIR/CONFIG/fold_N",
    )
    cross.add_argument(
        "--fit",
        nargs=argparse.REMAINDER,
        default=[],
        metavar="OPTION",
        help="everything after it is passed on to every 'clipseg3d fit', such as --data.root "
        "BraTS2018",
    )
    cross.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> int:
    """Run ``clipseg3d cross-validate``."""
    configs = [find_config(config) for config in arguments.config]
    options = arguments.fit
    _check_arguments(configs, options)
    require_output(arguments.output, folder=True)

    from clipseg3d.cli.lightning_cli import count_folds
    from clipseg3d.metrics.comparison import difference_table
    from clipseg3d.metrics.score_table import ScoreTable, join_tables

    names = [config.stem for config in configs]
    commands = [["fit", "--config", str(config), *options] for config in configs]
    folds = [count_folds(command) for command in commands]
    if len(set(folds)) > 1:
        raise ValueError(
            f"{configs[0]} has {folds[0]} folds and {configs[1]} has {folds[1]}; give both the "
            "same folds"
        )
    results = []
    for config, name, command in zip(configs, names, commands, strict=True):
        folder = arguments.output / name
        _check_settings(folder, config, options)
        tables = []
        say(f"{name}: {folds[0]} folds, with a log of each in {folder / 'fold_N' / LOG}")
        for fold in range(folds[0]):
            fold_folder = folder / f"fold_{fold}"
            scores = fold_folder / "scores.csv"
            finished = scores.is_file()
            if not finished:
                _train(command, fold_folder, fold, scores)
            tables.append(ScoreTable.read(scores))
            note = ", finished before" if finished else ""
            say(f"{name}, fold {fold}: {_means(tables[-1])}{note}")
            sys.stdout.flush()
        joined = join_tables(tables)
        with atomic_write(folder / "scores.csv") as tmp:
            tmp.write_text(joined.csv(), encoding="utf-8")
        results.append(joined)
        say(f"\n{_summary(name, joined, tables)}\n{folder / 'scores.csv'}\n")
    if len(results) > 1:
        say(
            f"{names[0]} - {names[1]}: mean, 95 % bootstrap interval, Wilcoxon's p (signed ranks, "
            f"not corrected for the number of tests)\n{difference_table(*results)}"
        )
    return 0


def _check_arguments(configs: Sequence[Path], options: Sequence[str]) -> None:
    """Refuse arguments that cannot be run."""
    if len(configs) > 2:
        raise ValueError(f"{len(configs)} configurations are given; give one, or two to compare")
    if len({config.stem for config in configs}) < len(configs):
        raise ValueError(f"two configurations are called {configs[0].stem}; rename one file")
    for option in options:
        name = option.removeprefix("--").partition("=")[0]
        if option.startswith("--") and name in RESERVED:
            raise ValueError(f"--{name} is set for every fold; leave it out after --fit")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(
            "cross-validate starts the processes of its fits itself; run it without torchrun or "
            "srun, or train the folds with 'clipseg3d fit --data.fold'"
        )


def _check_settings(folder: Path, config: Path, options: Sequence[str]) -> None:
    """Store the settings of all folds, or compare them with those stored by an earlier run."""
    settings = {"config": config.read_text(encoding="utf-8"), "options": list(options)}
    path = folder / "settings.json"
    if path.is_file():
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:  # of JSON, or of UTF-8
            raise ValueError(
                f"{path}: not valid JSON ({error}); remove it, or give another --output"
            ) from error
        if not isinstance(stored, dict) or not settings.keys() <= stored.keys():
            raise ValueError(
                f"{path}: not settings of cross-validate; remove it, or give another --output"
            )
        changed = [name for name, value in settings.items() if stored[name] != value]
        if changed:
            raise ValueError(
                f"{folder}: begun with another {' and other '.join(changed)}, see {path}; give the "
                "same again, or another --output"
            )
        return
    with atomic_write(path) as tmp:
        tmp.write_text(f"{json.dumps(settings, indent=2)}\n", encoding="utf-8")


def _train(command: Sequence[str], folder: Path, fold: int, scores: Path) -> None:
    """Train one fold, or resume it, and score its best checkpoint.

    The fit runs in a process of its own, so that all its memory is freed. It goes on if only this
    process is killed. The next command waits for both: each holds a lock.

    Raises:
        ValueError: the fit fails.
    """
    from filelock import FileLock

    from clipseg3d.cli.lightning_cli import fit_lock

    folder.mkdir(parents=True, exist_ok=True)
    options = {
        "data.fold": fold,
        "trainer.default_root_dir": folder,
        "checkpoint.dirpath": folder,
        "ckpt_path": "last",
        "scores": scores,
    }
    with _acquired(FileLock(folder / ".lock"), folder):
        with _acquired(fit_lock(folder), folder):
            pass  # the fit needs this lock
        if scores.is_file():
            return
        arguments = [*command, *(f"--{name}={value}" for name, value in options.items())]
        code = _call(arguments, folder / LOG)
    if code:
        raise ValueError(
            f"{folder}: the fit ended with code {code} ({_last_line(folder / LOG)}); see "
            f"{folder / LOG}, and run the same command again to resume it"
        )


def _acquired(lock: "BaseFileLock", folder: Path) -> "BaseFileLock":
    """Acquire a lock; say so if another process holds it."""
    from filelock import Timeout

    try:
        lock.acquire(blocking=False)
    except Timeout:
        say(f"{folder}: still being trained by an earlier command; waiting for it")
        lock.acquire()
    return lock


def _call(arguments: Sequence[str], log: Path) -> int:
    """Run a command of this library in a process of its own, which writes to the end of a log.

    Returns:
        Its exit code.
    """
    command = [sys.executable, "-m", "clipseg3d", *arguments]
    with log.open("a", encoding="utf-8") as file:
        return subprocess.run(command, check=False, stdout=file, stderr=file).returncode


def _last_line(log: Path) -> str:
    """Return the last line of a log, which says why a fit has ended."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    return lines[-1].removeprefix("clipseg3d: ") if lines else "without a word"


def _means(table: "ScoreTable") -> str:
    """Return the mean Dice of a fold over its cases."""
    dice = table.means()[:, 0]
    regions = ", ".join(
        f"{region} {score:.3f}" for region, score in zip(table.regions, dice, strict=True)
    )
    return f"Dice {dice.mean():.3f} ({regions}), {len(table.case_ids)} cases"


def _summary(name: str, joined: "ScoreTable", tables: Sequence["ScoreTable"]) -> str:
    """Return a table of mean and SD of Dice, over cases and over folds."""
    import numpy as np

    from clipseg3d.metrics.score_table import ScoreTable

    folds = ScoreTable(
        tuple(str(fold) for fold in range(len(tables))),
        joined.regions,
        joined.scores,
        np.stack([table.means() for table in tables]),
    )
    return (
        f"{name}, mean ± SD over {len(joined.case_ids)} cases, each scored with the network that "
        f"was not trained on it:\n{joined.summary()}\n"
        f"mean ± SD over the means of {len(tables)} folds:\n{folds.summary()}\n"
        "The best epoch of a fold was chosen on the same cases, so these scores are biased "
        "upwards."
    )

"""The options of Lightning's commands that most people need, for a help that can be read.

The commands themselves have some hundred options; those here are checked against them by a test.
"""

import argparse

from clipseg3d.cli.terminal import Commands

HELP_ALL = "--help-all"
_COMMON = {
    "--config": ("NAME|FILE", "one of 'clipseg3d configs', or a file"),
    "--data": ("CLASS", "data module, such as BraTS2020DataModule"),
    "--data.root": ("DIR", "folder with the cases"),
    "--data.num_folds": ("N", "parts that the patients are split into"),
    "--data.fold": ("N", "the part to validate on, from 0"),
    "--data.num_workers": ("N", "processes that load data, per device"),
    "--data.cache_dir": ("DIR", "folder for preprocessed cases"),
    "--model.network": ("NAME", "preset: tiny, fast, recommended, paper"),
    "--model.network.clip": ("NAME|DIR", "CLIP: tiny, a folder, or a hub name"),
    "--model.roi_size": ("[X,Y,Z]", "sliding window, in voxels"),
    "--trainer.accelerator": ("NAME", "gpu or cpu (default: what there is)"),
    "--trainer.devices": ("N", "number of devices"),
    "--trainer.precision": ("NAME", "32-true, bf16-mixed, 16-mixed"),
}
_TRAINING = {
    "--data.patch_size": ("[X,Y,Z]", "training crop, in voxels"),
    "--data.batch_size": ("N", "crops per device and step"),
    "--data.reports": ("FILE", "reports of all cases, .json or .csv"),
    "--model.ablation": ("NAME", "leave out a part: unet3d, no_text"),
    "--model.lr": ("RATE", "learning rate"),
    "--trainer.max_epochs": ("N", "epochs to train"),
    "--trainer.check_val_every_n_epoch": ("N", "epochs between validations"),
    "--trainer.default_root_dir": ("DIR", "folder for logs and checkpoints"),
    "--ckpt_path": ("last|FILE", "go on from the newest run, or a file"),
    "--scores": ("FILE", "write Dice of every case, as .csv"),
    "--seed_everything": ("N", "equal seeds give equal numbers"),
    "--dry-run": (None, "only say what this fit will need"),
    "--print_config": (None, "only print all settings as YAML"),
}
_CHECKPOINT = {"--ckpt_path": ("FILE", "checkpoint, such as best.ckpt")}
_SCORING = {**_CHECKPOINT, "--scores": ("FILE", "write Dice of every case, as .csv")}
_PREDICTING = {
    **_CHECKPOINT,
    "--output": ("DIR", "folder for the labels"),
    "--prompts": ("[TEXT,...]", "what to segment as well, a mask each"),
}
OPTIONS: dict[str, dict[str, tuple[str | None, str]]] = {
    "fit": {**_COMMON, **_TRAINING},
    "validate": {**_COMMON, **_SCORING},
    "test": {**_COMMON, **_SCORING},
    "predict": {**_COMMON, **_PREDICTING},
}
"""Command -> option -> what stands for its value (None for a switch), and what it does."""


def add_lightning_command(commands: Commands, name: str, *, summary: str, description: str) -> None:
    """Add a command whose help shows a choice of its options; LightningCLI parses them."""
    parser = commands.add_parser(
        name,
        usage=f"clipseg3d {name} --config NAME --data.root DIR [OPTION VALUE]...",
        help=summary,
        description=description,
        epilog=f"These are the options that most people need. 'clipseg3d {name} {HELP_ALL}' shows "
        f"all of them, 'clipseg3d {name} --data.help BraTS2020DataModule' those of a class.",
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=38),
    )
    for option, (value, text) in OPTIONS[name].items():
        if value is None:
            parser.add_argument(option, action="store_true", help=text)
        else:
            parser.add_argument(option, metavar=value, help=text)

"""Wrong settings of a fit end in one line that names them, before anything is computed.

Cases config_typos.py, dropout_out_of_range.py, outputs.py and fit_on_a_wrong_folder.py.
"""

import json
import re
from importlib.util import find_spec

import pytest
import yaml

from clipseg3d.cli.lightning_cli import CLIPSeg3DCLI
from clipseg3d.cli.main import main
from clipseg3d.configs import config_path

pytestmark = pytest.mark.filterwarnings("ignore")
PHANTOM = config_path("phantom_tiny")
SMALL = {"channels": [4, 8], "num_auxiliary": 0, "semantic_dim": 16, "num_heads": 2}
NETWORK = {**SMALL, "clip": "tiny-random"}

EARLY = "--trainer.callbacks+=EarlyStopping --trainer.callbacks.monitor=x"


def network(**changes):
    return json.dumps({**NETWORK, **changes})


@pytest.fixture(autouse=True)
def only_fit(monkeypatch, tmp_path):
    """Build the parser of one command only, and work in a folder of its own."""
    methods = CLIPSeg3DCLI.subcommands()
    monkeypatch.setattr(CLIPSeg3DCLI, "subcommands", staticmethod(lambda: {"fit": methods["fit"]}))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def fit(phantom_folder, tmp_path, capsys):
    """Return the line that a fit ends in; it must be the only one."""

    def run(*options, config=PHANTOM, data=True):
        given = ["fit", "--config", str(config)]
        if data:
            given += ["--data.root", str(phantom_folder), "--data.num_cases", "5"]
            given += ["--data.spacing_mm", "8", "--data.cache_dir", str(tmp_path / "cache")]
        code = main([*given, *map(str, options)])
        (line,) = (
            line
            for line in capsys.readouterr().err.splitlines()
            if "Loading weights" not in line and "Seed set" not in line
        )
        assert line.startswith("clipseg3d: ")
        assert code == (
            2
            if re.search(r"(no such|names no) (option|class|setting)|cannot be used; give", line)
            else 1
        )
        assert not list(tmp_path.glob("cache/*"))
        return line.removeprefix("clipseg3d: ")

    return run


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--data.batch_size", 0, "batch_size=0 is not positive"),
        ("--data.patch_size", "[0,64,64]", "patch_size=0 is not positive"),
        ("--data.num_cases", 0, "num_cases=0 is not positive"),
        ("--data.num_workers", -1, "num_workers=-1 is negative"),
        ("--data.spacing_mm", -1, "spacing_mm=-1.0 is not above 0"),
        ("--data.fold", -1, "fold=-1 is negative"),
        ("--data.first_seed", -1, "first_seed=-1 is negative"),
        ("--model.lr", "nan", "--model.lr: value nan cannot be used; give float"),
        ("--model.lr", -1, "lr=-1.0 is not above 0"),
        ("--model.report_dropout", 15, "report_dropout=15.0 is not in [0, 1]"),
        ("--model.report_dropout", "nan", "--model.report_dropout: value nan cannot be used"),
        ("--model.sequence_dropout", 2, "sequence_dropout=2.0 is not in [0, 1]"),
        ("--model.sequence_dropout", -1, "sequence_dropout=-1.0 is not in [0, 1]"),
        ("--model.overlap", 1, "overlap=1.0 is not in [0, 1)"),
        ("--model.plan", '{"lr": "abc"}', "lr='abc' is not above 0"),
        ("--model.plan", '{"semantic_ramp": [1]}', "semantic_ramp=(1,): give two epochs"),
        ("--model.plan", '{"warmp": 1}', "plan.warmp: no such setting; did you mean warmup?"),
        ("--model.network", network(dropout=2), "dropout=2.0 is not in [0, 1]"),
        ("--model.network", network(channels=[-1, 2]), "channels=-1 is not positive"),
        ("--model.network", network(channels=[10**9, 8]), "channels=1000000000 is too large"),
        (
            "--model.network",
            network(dropot=0),
            "--model.network.dropot: no such option; did you mean dro",
        ),
        ("--seed_everything", -1, "seed_everything=-1 is negative"),
        ("--trainer.max_steps", 0, "max_steps=0 is not positive"),
        ("--trainer.max_epochs", 0, "max_epochs=0 is not positive"),
        ("--trainer.gradient_clip_val", -1, "gradient_clip_val=-1 is not a finite number"),
        ("--trainer.limit_train_batches", -1, "limit_train_batches=-1 is not a finite number"),
        ("--trainer.precision", 8, "--trainer.precision: value 8 cannot be used; give 64, 32, 16"),
        ("--model.lrr", 1, "--model.lrr: no such option; did you mean lr?"),
        ("--modl.lr", 1, "--modl.lr: no such option; did you mean model.lr?"),
        ("--data.batchsize", 1, "--data.batchsize: no such option; did you mean batch_size?"),
        ("--data.batch_size", "some", "--data.batch_size: value some cannot be used; give int"),
        ("--trainer.epochs", 3, "--trainer.epochs: no such option; did you mean trainer.m"),
        (
            "--data",
            "BraTS2020DataModul",
            "--data BraTS2020DataModul: no such class; did you mean Br",
        ),
        ("--data", "clipseg3d.PhantmDataModule", "--data PhantmDataModule: no such class; did you"),
        (
            "--loss",
            "DiceFocalLos",
            "--loss DiceFocalLos: no such class; did you mean monai.losses.Dice",
        ),
        ("--optimizer", "SDG", "--optimizer SDG: no such class; did you mean SGD?"),
        ("--optimizer", "my.Own", "--optimizer my: no such class; give its full path, such as"),
        (
            "--trainer.logger",
            "CSVLoger",
            "--trainer.logger CSVLoger: no such class; did you mean CSV",
        ),
        ("--config", "gone.yaml", "gone.yaml: no such file; give a YAML file, or a name that"),
    ],
)
def test_wrong_values_and_misspelt_options_are_named(fit, option, value, message):
    assert fit(option, value).startswith(message)


@pytest.mark.parametrize(
    ("option", "value", "reason"),
    [
        ("--trainer.accelerator", "warp", "invalid accelerator name"),
        ("--trainer.devices", 0, "not a valid input"),
        ("--trainer.accelerator", "gpu", "No supported gpu backend found; change the options of"),
        (f"{EARLY} --trainer.callbacks.mode", "mx", "can be min, max"),
        ("--last.every_n_train_steps", -5, "every_n_train_steps=-5 is negative"),
    ],
)
def test_what_lightning_refuses_is_one_line(fit, option, value, reason):
    assert reason in fit("--model.network", network(), *option.split(), value)


def test_a_logger_that_is_not_installed_is_named(fit):
    if find_spec("wandb") is not None:
        pytest.skip("W&B is installed")
    assert "wandb" in fit("--model.network", network(), "--trainer.logger", "WandbLogger")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model": {"netwrk": "tiny"}}, "model.netwrk: no such option; did you mean network?"),
        ({"data": {"rot": "x"}}, "data.rot: no such option; did you mean root?"),
        (
            {"trainer": {"max_epoch": 1}},
            "trainer.max_epoch: no such option; did you mean trainer.max_epochs?",
        ),
    ],
)
def test_misspelt_keys_of_a_file_are_named(fit, tmp_path, values, message):
    (part, keys), *_ = values.items()
    config = yaml.safe_load(PHANTOM.read_text())
    config[part]["init_args"] = {**config[part].get("init_args", {}), **keys}
    if part != "data":
        config[part] = {k: v for k, v in config[part].items() if k != "init_args"} | keys
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    path = tmp_path / "config.yaml"
    assert fit(config=path, data=False) == f"{path}: {message}"


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("trainer", "trainer: value 3 cannot be used; give its options"),
        ("data", "data: names no class; give class_path: NAME, and its options as init_args"),
    ],
)
def test_a_value_in_place_of_options_is_named(fit, tmp_path, part, message):
    config = {**yaml.safe_load(PHANTOM.read_text()), part: 3}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    assert fit(config=path, data=False) == f"{path}: {message}"


def test_beginnings_of_options_are_no_options(fit):
    assert fit("--model.network", network(), "--trainer.max_epoch", 1) == (
        "--trainer.max_epoch: no such option; did you mean trainer.max_epochs?"
    )


@pytest.mark.parametrize("command", ["fit", "cross-validate"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"seed_everything: [0\nmodel", "not valid YAML (line 2, column 6: expected ',' or ']'"),
        (b"a: b: c", "not valid YAML (line 1, column 5: mapping values are not allowed"),
        (b"a: !!python/object:os.system x", "not valid YAML (line 1, column 4: could not"),
        (b"a: &a [*a]", "not valid YAML (Circular reference detected); repair it"),
        (b"a: \x00", "not valid YAML (unacceptable character #x0000"),
        (b"a: \xff", "not UTF-8 text (invalid start byte); save it as UTF-8"),
        (b"", "holds no settings; give a YAML file, or a name"),
        (b"- 1", "holds no settings; give a YAML file"),
        (None, "no such file; give a YAML file"),
    ],
)
def test_a_damaged_or_missing_config_is_named(tmp_path, capsys, command, content, message):
    if content is not None:
        (tmp_path / "config.yaml").write_bytes(content)
    given = {"fit": ["--config", "config.yaml"], "cross-validate": ["config.yaml", "-o", "folds"]}
    assert main([command, *given[command]]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"clipseg3d: config.yaml: {message}")


def test_settings_may_be_given_in_place_of_a_file(fit):
    settings = json.dumps(yaml.safe_load(PHANTOM.read_text()))
    assert fit("--model.lr", "-1", config=settings).startswith("lr=-1.0")


@pytest.mark.parametrize("command", ["fit", "cross-validate"])
@pytest.mark.parametrize("content", [None, b"\0" * 128 + b"DICM"])
def test_a_wrong_folder_is_one_line_also_with_release_auto(tmp_path, capsys, command, content):
    root = tmp_path / "scans"
    if content is not None:
        root.mkdir()
        (root / "IM0001").write_bytes(content)
    config = {
        "model": {"network": NETWORK},
        "data": {"class_path": "clipseg3d.BraTSDataModule", "init_args": {"root": str(root)}},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    path = str(tmp_path / "config.yaml")
    given = ["--config", path] if command == "fit" else [path, "-o", str(tmp_path / "folds")]
    assert main([command, *given]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    expected = "no such folder; give the folder that holds the cases" if content is None else ""
    assert line.startswith(f"clipseg3d: {root}: {expected}")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--trainer.default_root_dir", "file"),
        ("--checkpoint.dirpath", "file/checkpoints"),
        ("--scores", "file/scores.csv"),
        ("--scores", "folder"),
    ],
)
def test_results_that_cannot_be_written_are_found_out_first(fit, tmp_path, option, value):
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    line = fit("--model.network", network(), option, value)
    assert value.partition("/")[0] in line
    assert (tmp_path / "file").read_text() == "x"
    assert not (tmp_path / "lightning_logs").exists()


@pytest.mark.parametrize("cache", ["file", "file/cache"])
def test_a_file_in_place_of_the_cache_is_found_out_first(fit, tmp_path, monkeypatch, cache):
    (tmp_path / "file").write_text("x")
    expected = "is a file; set another folder as cache_dir or $CLIPSEG3D_CACHE"
    assert fit("--data.cache_dir", cache).endswith(f"file: {expected}")
    monkeypatch.setenv("CLIPSEG3D_CACHE", cache)
    assert fit("--data.cache_dir", "null", "--dry-run").endswith(f"file: {expected}")
    assert not (tmp_path / "lightning_logs").exists()


def test_misspelt_commands_and_options_are_one_line(capsys):
    for given, message in (
        (["sgment"], "sgment: no such command; did you mean segment?"),
        (["phantom", "-o", "p", "--spacin_mm", "2"], "--spacin_mm: no such option; did you mean"),
        (["phantom", "-o", "p", "--spac", "2"], "--spac: no such option; did you mean --spacing?"),
        # of another command
        (
            ["evaluate", "a", "b", "--prompt", "x"],
            "evaluate: --prompt: no such option; choose one of --compare, ",
        ),
        (["phantom", "-o", "p", "-n", "x"], "-n/--number: invalid int value: 'x'"),
    ):
        with pytest.raises(SystemExit) as caught:
            main(given)
        assert caught.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line

"""An encoder that a configuration names by its class, in whole runs of a few steps."""

import json

import pytest
import torch

from clipseg3d.cli.main import main

pytestmark = pytest.mark.filterwarnings("ignore")
ENCODERS = """
from clipseg3d.clip import HuggingFaceCLIP


class Plain:
    '''Without annotations.'''

    frozen = True

    def __init__(self, seed=0):
        self.clip = HuggingFaceCLIP.tiny_random(seed=seed)
        self.name = f"plain {seed}"
        self.embed_dim, self.max_tokens = self.clip.embed_dim, self.clip.max_tokens

    def count_tokens(self, text):
        return self.clip.count_tokens(text)

    def encode_text(self, texts):
        return self.clip.encode_text(texts)

    def encode_image(self, images):
        return self.clip.encode_image(images)

    def encode_patches(self, images):
        return self.clip.encode_patches(images)

    def fingerprint(self):
        return self.clip.fingerprint()


class Blind:
    def encode_text(self, texts):
        return texts
"""
VALUES = {"channels": [4, 8], "num_auxiliary": 0, "semantic_dim": 16, "num_heads": 2}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def command(phantom_folder, cache, write, only, tmp_path, monkeypatch):
    """Run a command on five small patients, with an encoder of the configuration."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "encoders_of_mine.py").write_text(ENCODERS)
    monkeypatch.syspath_prepend(tmp_path)
    encoder = {"class_path": "encoders_of_mine.Plain", "init_args": {"seed": 3}}
    path = write(network=VALUES, roi_size=[24, 24, 24], encoder=encoder)

    def run_command(name, *options):
        only(name)
        return main(
            [
                *(name, "--config", str(path), "--data.root", str(phantom_folder)),
                *("--data.cache_dir", str(cache), "--data.num_cases", "5"),
                *("--data.spacing_mm", "8", "--data.patch_size", "[16, 16, 16]"),
                *("--data.num_workers", "0", "--trainer.accelerator", "cpu"),
                *("--trainer.check_val_every_n_epoch", "1"),
                *("--trainer.enable_progress_bar", "false", "--trainer.logger", "false"),
                *("--trainer.num_sanity_val_steps", "0", "--data.crops_per_case", "1"),
                *("--trainer.default_root_dir", str(tmp_path)),
                *map(str, options),
            ]
        )

    return run_command


@pytest.mark.slow
def test_a_fit_is_resumed_validated_and_recorded_with_it(command, tmp_path):
    short = ("--trainer.limit_train_batches", 1)
    assert command("fit", "--dry-run", *short) == 0
    assert not (tmp_path / "checkpoints").exists()
    assert command("fit", *short, "--trainer.max_epochs", 1) == 0
    best = tmp_path / "checkpoints" / "best.ckpt"
    content = torch.load(best, weights_only=True)
    assert content["encoders"]["CLIP"]["name"] == "plain 3"
    assert content["hyper_parameters"]["network"]["clip"] == "plain 3"
    assert "encoder" not in content["hyper_parameters"]
    manifest = json.loads(best.with_suffix(".manifest.json").read_text())
    assert manifest["config"]["model"]["init_args"]["encoder"] == {
        "class_path": "encoders_of_mine.Plain",
        "init_args": {"seed": 3},
    }
    assert manifest["encoders"] == content["encoders"]
    more = ("--trainer.max_epochs", 2, "--model.resume_changed", "true", "--ckpt_path", "last")
    assert command("fit", *short, *more) == 0
    *_, last = sorted(best.parent.glob("last-*.ckpt"))
    assert torch.load(last, weights_only=True)["global_step"] == 2
    assert command("validate", "--ckpt_path", best) == 0


@pytest.mark.parametrize("options", [["--model.encoder=encoders_of_mine.Plain"], []])
def test_it_is_built_as_the_options_say(command, monkeypatch, options):
    built = []
    monkeypatch.setattr(
        "clipseg3d.cli.lightning_cli.dry_run", lambda module, *_: built.append(module) or fine()
    )
    assert command("fit", "--dry-run", *options, "--model.encoder.seed=5") == 0
    assert built[0].config.clip == "plain 5"


def fine():
    """A dry run without faults."""

    class Fine:
        faults = ()

    return Fine()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("encoders_of_mine.Blind", "lacks a method of clipseg3d.clip.ClipEncoder"),
        ("collections.OrderedDict", "lacks a method of clipseg3d.clip.ClipEncoder"),
        ("encoders_of_mine.Gone", "--model.encoder Gone: no such class"),
    ],
)
def test_a_class_that_is_no_encoder_is_named(command, capsys, name, message):
    assert command("fit", "--model.encoder", name) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("clipseg3d: --model.encoder")
    assert name.rpartition(".")[2] in line
    assert message in line

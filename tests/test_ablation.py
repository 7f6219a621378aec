"""examples/ablation.py: its rows are what their names say, and as large as their results say."""

import csv
import runpy
import warnings
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest

from clipseg3d.clip.registry import load_encoder
from clipseg3d.networks import build
from clipseg3d.networks.presets import ABLATIONS, network_config

EXAMPLES = Path(__file__).parents[1] / "examples"
BACKBONE = (
    *("channels", "space_to_depth", "refinement", "pixel_fusion", "norms", "sequence_gate"),
    *("difference_channels", "cbam", "attention_skips", "num_auxiliary", "dropout", "head"),
)
"""Switches of the U-Net and its input."""


class OtherText:
    """Stands for MiniLM, which reads texts in the rows ``other text``: 384 channels."""

    name, embed_dim = "other", 384


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.syspath_prepend(str(EXAMPLES))
        return SimpleNamespace(**runpy.run_path(str(EXAMPLES / "ablation.py")))


@pytest.fixture(scope="module")
def networks(script, tmp_path_factory):
    """What the script says of its rows."""
    path = tmp_path_factory.mktemp("ablation") / "networks.csv"
    arguments = SimpleNamespace(
        backbone_steps=300, simulated_steps=120, steps=96, text_encoder="other"
    )
    encoder = load_encoder("tiny")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "load_encoder", lambda *args, **options: encoder)
        patch.setattr(build, "load_text_encoder", lambda *args, **options: OtherText())
        rows = [*script.ROWS, *script.VARIANTS, *script.READING_ROWS, *script.OTHER_TEXT]
        script.write_networks(arguments, rows, path)
    with path.open() as file:
        return {row["row"]: row for row in csv.DictReader(file)}


def test_every_ablation_is_a_row(script):
    assert set(ABLATIONS) <= set(script.ROWS)


def test_networks_are_as_large_as_the_results_say(script, networks):
    with (EXAMPLES / "results" / script.NETWORKS).open() as file:
        stored = {row["row"]: row for row in csv.DictReader(file)}
    assert len(stored) > 15
    assert {row: networks[row] for row in stored} == stored


def test_rows_leave_weights_out(networks):
    whole = int(networks["recommended"]["parameters"])
    smaller = ("no_pixel", "no_semantic", "no_guidance", "no_attention", "plain_backbone")
    assert all(int(networks[row]["parameters"]) < whole for row in smaller)
    assert int(networks["unet3d"]["parameters"]) == min(
        int(n["parameters"]) for n in networks.values()
    )


def test_rows_with_other_u_nets_train_their_own(script):
    def backbone(row):
        values = asdict(script.row_config(row, "other"))
        return {name: values[name] for name in BACKBONE}

    rows = (*script.ROWS, *script.VARIANTS, *script.OTHER_TEXT)
    own = {row for row in rows if backbone(row) != backbone("recommended")}
    assert own == set(script.OWN_BACKBONE)


def test_the_plain_rows_do_what_their_names_say(script):
    backbone, bridge = (script.row_config(row, None) for row in ("plain_backbone", "plain_bridge"))
    assert not any((backbone.cbam, backbone.attention_skips))
    assert backbone.semantics
    assert bridge == network_config(script.NETWORK, ablation="plain_bridge") != script.NETWORK

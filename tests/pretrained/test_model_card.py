"""Mirrors clipseg3d/pretrained/model_card.py."""

import pytest

import clipseg3d

pytestmark = pytest.mark.filterwarnings("ignore")


def test_card_states_what_is_known_and_leaves_the_rest_to_the_author(trained, folder):
    card = (folder / "README.md").read_text()
    assert card.startswith("---\n")
    assert "library_name: clipseg3d" in card
    head, body = card[4:].split("---\n", 1)
    assert "license" not in head  # the author's to choose
    network = trained()
    for fact in (
        "(WT, TC, ET) in MRI (t1, t1ce, t2, flair)",
        f"`clipseg3d` {clipseg3d.__version__}",
        "label convention: brats2023_gli",
        "voxel size: 1.5 mm",
        "16 x 24 x 20 voxels, overlap 0.25",
        "cases that lack sequences: yes",
        network.semantic_fusion.bridge.encoder.fingerprint(),
        "To be filled in by the author: Dice and HD95 per region",
        "Not a medical device",
    ):
        assert fact in body
    own = network.state_dict()
    count = sum(w.numel() for name, w in network.named_parameters() if name in own)
    assert f"with {count:,} parameters" in body
    assert "post-processing" not in body
    assert "{{" not in card
    assert "{%" not in card


def test_card_takes_texts_of_the_author(trained, tmp_path):
    texts = {"name": "Mine", "metrics": "WT 0.9", "data": "BraTS", "limits": "Adults."}
    trained().save_pretrained(tmp_path, model_card_kwargs=texts)
    card = (tmp_path / "README.md").read_text()
    assert "# Mine\n" in card
    assert "WT 0.9" in card
    assert "Adults. Not a medical device." in card
    assert "To be filled in" not in card


def test_card_says_that_settings_are_unknown(trained, tmp_path):
    network = trained(semantics=False)
    network.settings = None
    network.save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "Not stated." in card
    assert "- none\n" in card  # of the frozen encoders

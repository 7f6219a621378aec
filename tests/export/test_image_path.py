"""Mirrors clipseg3d/export/image_path.py: the same logits as the whole network, without CLIP."""

import pytest
import torch

from clipseg3d.export.image_path import ImagePath, example_inputs

pytestmark = pytest.mark.filterwarnings("ignore")
REPORT = "Large oedema. Ring of enhancement on the left."
SIZE = (16, 24, 12)
VARIANTS = {
    "default": {},
    "dense": {"dense": True, "guidance": "sequential", "view_selection": "attention"},
    "learned colours": {"mix_rgb": True, "adapter": True, "guidance_tokens": "mean"},
    "nested damped": {"head": "nested", "attention_mode": "damped", "guidance": "film"},
    "paper": {
        "attention_mode": "paper",
        "guidance_tokens": "mean",
        "view_selection": "volume_center",
        "running_norms": False,
        "guiding_text": "all",
        "sequence_gate": False,
    },
    "conditional": {"conditional_norm": True, "attention_mode": "gain", "grade_classifier": True},
    "no pixel fusion": {"pixel_fusion": False},
    "no semantics": {"semantics": False},
}


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_logits_are_those_of_the_whole_network(trained, case, changes):
    network = trained(**changes)
    report = REPORT if network.text_bank is not None else ""
    inputs, complete = case(network, report)
    with torch.no_grad():
        expected = network(complete.pop("image"), **complete)
        assert torch.equal(ImagePath(network, report=report)(**inputs), expected)


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_example_inputs_are_what_the_network_needs(trained, case, changes):
    network = trained(**changes)
    examples = example_inputs(network, SIZE)
    expected, _ = case(network, "")
    if not network.pixel_fusion:
        del expected["statistics"]
    assert examples.keys() == expected.keys()
    for name, example in examples.items():
        assert (example.shape, example.dtype) == (expected[name].shape, expected[name].dtype)
    assert ImagePath(network)(**examples).shape == (1, 3, *SIZE)


def test_nothing_of_clip_is_kept_and_the_network_keeps_its_own(trained, case):
    network = trained()
    bridge = network.semantic_fusion.bridge
    path = ImagePath(network, report=REPORT)
    assert network.semantic_fusion.bridge is bridge
    kept = {id(weight) for weight in path.parameters()}
    assert not kept & {id(weight) for weight in bridge.encoder.parameters()}
    own = sum(w.numel() for name, w in network.named_parameters() if "frozen_model" not in name)
    assert sum(weight.numel() for weight in path.parameters()) == own
    inputs, complete = case(network)
    with torch.no_grad():
        assert torch.equal(network(complete.pop("image"), **complete), path(**inputs))


def test_a_network_that_is_being_trained_is_put_into_evaluation_mode(trained, case):
    network = trained(dropout=0.5)
    inputs, complete = case(network)
    with torch.no_grad():
        expected = network(complete.pop("image"), **complete)
        path = ImagePath(network.train(), report=REPORT)
        torch.testing.assert_close(path(**inputs), expected, rtol=0, atol=0)


def test_views_that_are_not_valid_leave_text_alone_to_guide(trained, case):
    network = trained()
    inputs, complete = case(network)
    blind = {**inputs, "view_tokens": torch.zeros_like(inputs["view_tokens"])}
    blind["views_valid"] = torch.tensor([False])
    del complete["views"]
    with torch.no_grad():
        expected = network(complete.pop("image"), **complete)
        result = ImagePath(network, report=REPORT)(**blind)
    torch.testing.assert_close(result, expected)
    assert not torch.allclose(result, ImagePath(network, report=REPORT)(**inputs), atol=1e-2)


def test_the_report_is_read_once_and_kept(trained, case):
    network = trained()
    inputs, _ = case(network)
    with torch.no_grad():
        prompts, left, right = (
            ImagePath(network, report=report)(**inputs) for report in ("", REPORT, "On the right.")
        )
    assert not torch.allclose(left, right, atol=1e-3)
    assert not torch.allclose(prompts, left, atol=1e-3)


def test_a_report_for_a_network_that_reads_none_is_refused(trained):
    with pytest.raises(ValueError, match="reads no text; leave the report out"):
        ImagePath(trained(text="none"), report=REPORT)
    ImagePath(trained(text="none"))

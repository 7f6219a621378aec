"""Mirrors clipseg3d/export/graph.py: graphs on disk give what the network gives."""

import json
import resource
import sys
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

import clipseg3d
from clipseg3d.export.graph import (
    _log_sigmoid,
    _logaddexp,
    _metadata,
    write_onnx,
    write_torch,
)

pytestmark = pytest.mark.filterwarnings("ignore")
REPORT = "Large oedema. Ring of enhancement on the left."
# modes that compute in log space, and all inputs; the test of the command exports a plain network
NETWORK = {"head": "nested", "attention_mode": "damped", "guided": ("ET",), "dense": True}
PAPER = {"attention_mode": "paper", "running_norms": False, "guiding_text": "all"}


@torch.no_grad()
def eager(network, complete):
    return network(**complete)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [NETWORK, PAPER], ids=["all", "paper"])
def test_onnx_gives_the_networks_logits(trained, case, settings, tmp_path, changes):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    network = trained(**changes)
    with torch.no_grad():
        network.unet.heads[0].bias[::2] += 130.0  # exp(-130) is 0 in float32
    path = tmp_path / "graphs" / "net.onnx"
    write_onnx(network, path, settings, report=REPORT)
    assert [file.name for file in path.parent.iterdir()] == ["net.onnx"]
    session = runtime.InferenceSession(path)
    inputs, complete = case(network)
    assert [one.name for one in session.get_inputs()] == list(inputs)
    assert [one.name for one in session.get_outputs()] == ["logits"]
    (result,) = session.run(None, {name: value.numpy() for name, value in inputs.items()})
    expected = eager(network, complete)
    assert (torch.from_numpy(result) - expected).abs().max() <= 1e-4
    assert expected.std() > 0.1
    about = session.get_modelmeta().custom_metadata_map
    assert about["clipseg3d"] == clipseg3d.__version__
    assert (about["release"], about["spacing_mm"]) == ("phantom", "8")
    assert (about["sequences"], about["regions"]) == ("t1,t1ce,t2,flair", "WT,TC,ET")
    assert about["report"] == REPORT
    assert json.loads(about["encoders"]) == network.encoder_identities()
    # the frozen CLIP would be many times larger
    assert path.stat().st_size < 1_000_000


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param(NETWORK, id="all", marks=pytest.mark.slow),
        pytest.param(PAPER, id="paper", marks=pytest.mark.slow),
        pytest.param({"semantics": False}, id="none"),
    ],
)
def test_exported_program_gives_the_networks_logits(trained, case, settings, tmp_path, changes):
    network = trained(**changes)
    report = REPORT if network.text_bank is not None else ""
    path = tmp_path / "net.pt2"
    write_torch(network, path, settings, report=report)
    assert list(tmp_path.iterdir()) == [path]
    extra = {"clipseg3d.json": ""}
    program = torch.export.load(path, extra_files=extra)
    inputs, complete = case(network)
    result = program.module()(**inputs)
    assert (result - eager(network, complete)).abs().max() <= 1e-5
    about = json.loads(extra["clipseg3d.json"])
    assert (about["release"], about["spacing_mm"], about["report"]) == ("phantom", "8", report)
    assert not [name for name in program.state_dict if "frozen_model" in name]


def test_metadata_say_what_a_user_of_the_graph_must_know(trained, settings):
    network = trained()
    rules = {"enhancing_to_core": 0.5}
    told = _metadata(network, replace(settings, postprocessing=rules), REPORT)
    assert json.loads(told["postprocessing"]) == rules
    assert _metadata(network, settings, REPORT) == {
        "clipseg3d": clipseg3d.__version__,
        "release": "phantom",
        "spacing_mm": "8",
        "report": REPORT,
        "postprocessing": "{}",
        "encoders": json.dumps(network.encoder_identities()),
        "sequences": "t1,t1ce,t2,flair",
        "regions": "WT,TC,ET",
    }


def test_log_space_is_exact_where_onnx_would_overflow():
    values = torch.tensor([-2e4, -500.0, -90.0, -3.0, 0.0, 4.0, 90.0, 2e4])
    torch.testing.assert_close(_log_sigmoid(values), F.logsigmoid(values))
    a, b = values[:, None], values[None]
    torch.testing.assert_close(_logaddexp(a, b), torch.logaddexp(a, b))
    nothing = torch.full_like(values, -torch.inf)
    assert torch.equal(_logaddexp(nothing, values), values)
    assert torch.equal(_logaddexp(values, nothing), values)


@pytest.mark.parametrize(("write", "expected"), [(write_onnx, ".onnx"), (write_torch, ".pt2")])
def test_another_ending_is_refused(trained, settings, tmp_path, write, expected):
    with pytest.raises(ValueError, match=rf"net\.bin: does not end in {expected}; rename it"):
        write(trained(), tmp_path / "net.bin", settings)
    assert list(tmp_path.iterdir()) == []


def test_without_onnx_the_extra_is_named(trained, settings, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r'pip install "clipseg3d\[export\]"'):
        write_onnx(trained(), tmp_path / "net.onnx", settings)


def test_a_place_that_cannot_be_written_is_named(trained, settings, tmp_path):
    (tmp_path / "file").write_text("mine")
    path = tmp_path / "file" / "net.pt2"
    with pytest.raises(OSError, match=rf"{path}: cannot be written .*; free some space"):
        write_torch(trained(semantics=False), path, settings)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(("write", "name"), [(write_onnx, "a.onnx"), (write_torch, "a.pt2")])
def test_a_full_disk_leaves_the_graph_before(trained, settings, tmp_path, write, name):
    """A limit on the size of files: PyTorch's own writer would end the process."""
    path = tmp_path / name
    path.write_text("old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10**4, limits[1]))
    try:
        with pytest.raises(OSError, match=rf"^{path}: cannot be written \(File too large\); free"):
            write(trained(semantics=False), path, settings)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]

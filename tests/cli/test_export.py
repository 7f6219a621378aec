"""Mirrors clipseg3d/cli/export.py: what training wrote, published in every format."""

import sys
from dataclasses import replace

import pytest
import torch
from pytorch_lightning import Trainer

from clipseg3d.cli.main import main
from clipseg3d.clip.hugging_face_clip import HuggingFaceCLIP
from clipseg3d.export.image_path import example_inputs
from clipseg3d.inference.predictor import Predictor
from clipseg3d.networks.clipseg3d import CLIPSeg3D
from clipseg3d.networks.config import NetworkConfig
from clipseg3d.networks.prediction_settings import PredictionSettings
from clipseg3d.training.module import CLIPSeg3DModule
from clipseg3d.views import cut_views

pytestmark = pytest.mark.filterwarnings("ignore")
SMALL = NetworkConfig(
    channels=(4, 6),
    space_to_depth=2,
    num_auxiliary=0,
    semantic_dim=12,
    num_heads=3,
    clip="tiny-random",
)
ROI_SIZE = (16, 24, 12)
REPORT = "Large oedema on the left."


def checkpoint(path, **changes):
    """Write a checkpoint as ``fit`` does, of a network as if trained."""
    torch.manual_seed(0)
    module = CLIPSeg3DModule(
        replace(SMALL, **changes),
        release="brats2023_gli",
        spacing_mm=1.5,
        sequence_dropout=0.2,
        roi_size=ROI_SIZE,
        overlap=0.25,
    )
    with torch.no_grad():
        for weight in module.parameters():
            if weight.requires_grad:
                weight += 0.3 * torch.randn(weight.shape)
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_model_summary=False
    )
    trainer.strategy.connect(module)
    trainer.save_checkpoint(path)
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("fit") / "best.ckpt")


@torch.no_grad()
def logits(network):
    generator = torch.Generator().manual_seed(3)
    volume = 100 * torch.rand(1, 4, *ROI_SIZE, generator=generator) + 5
    text, mask = network.embed_text([REPORT])
    views = cut_views(volume, selection=network.view_selection, size=48)
    return network(volume, views=views, text=text, text_mask=mask)


def export(*arguments):
    return main(["export", *map(str, arguments)])


def test_a_checkpoint_becomes_a_folder_with_identical_logits(weights, tmp_path, capsys):
    assert export(weights, "-o", tmp_path / "net") == 0
    assert capsys.readouterr().out == f"{tmp_path / 'net'}\n"
    network = CLIPSeg3D.from_pretrained(tmp_path / "net")
    trained = Predictor.from_checkpoint(weights, device="cpu").network
    assert (logits(network) - logits(trained)).abs().max() == 0
    assert network.settings == PredictionSettings(
        release="brats2023_gli", spacing_mm=1.5, roi_size=ROI_SIZE, overlap=0.25, allow_missing=True
    )
    assert export(tmp_path / "net", "-o", tmp_path / "again", "--format", "pretrained") == 0
    for name in ("config.json", "model.safetensors", "README.md"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "net" / name).read_bytes()


def test_clip_is_named_as_given_and_must_be_the_same(weights, tmp_path, capsys):
    for seed in (0, 1):
        clip = HuggingFaceCLIP.tiny_random(seed=seed)
        clip.frozen_model.save_pretrained(tmp_path / f"clip{seed}")
        clip.tokenizer.save_pretrained(tmp_path / f"clip{seed}")
    assert export(weights, "-o", tmp_path / "net", "--clip", tmp_path / "clip0") == 0
    name = str(tmp_path / "clip0")
    assert CLIPSeg3D.from_pretrained(tmp_path / "net").config.clip == name
    capsys.readouterr()
    for source in (weights, tmp_path / "net"):
        assert export(source, "-o", tmp_path / "x", "--clip", tmp_path / "clip1") == 1
        assert "clip1' has other weights than" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
def test_graphs_of_both_kinds_agree_and_hold_the_report(weights, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    report = tmp_path / "report.txt"
    report.write_text(f"{REPORT}\n")
    onnx, torch_file = tmp_path / "net.onnx", tmp_path / "net.pt2"
    assert export(weights, "-o", onnx, "--format", "onnx", "--text", REPORT) == 0
    assert export(weights, "-o", torch_file, "--format", "torch", "--text", report) == 0
    network = Predictor.from_checkpoint(weights, device="cpu").network
    torch.manual_seed(4)
    inputs = example_inputs(network, ROI_SIZE)
    program = torch.export.load(torch_file).module()
    session = runtime.InferenceSession(onnx)
    (found,) = session.run(None, {name: value.numpy() for name, value in inputs.items()})
    with torch.no_grad():
        assert (torch.from_numpy(found) - program(**inputs)).abs().max() <= 1e-4
    assert session.get_modelmeta().custom_metadata_map["report"] == REPORT
    assert session.get_inputs()[0].shape == [1, 4, *ROI_SIZE]


def test_a_bundle_is_written_from_a_folder(weights, tmp_path):
    assert export(weights, "-o", tmp_path / "net") == 0
    assert export(tmp_path / "net", "-o", tmp_path / "bundle", "--format", "bundle") == 0
    again = CLIPSeg3D.from_pretrained(tmp_path / "bundle" / "models")
    network = Predictor.from_checkpoint(weights, device="cpu").network
    assert (logits(again) - logits(network)).abs().max() == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gone.ckpt", "-o", "o"], "gone.ckpt: no such file"),
        (["notes.txt", "-o", "o"], "notes.txt: not a"),
        (["gone", "-o", "o"], "no weights are called 'gone'"),
        (["./gone", "-o", "o"], "./gone: no such folder; check the path"),
        (["empty", "-o", "o"], "empty: holds no config.json"),
        (["BEST", "-o", "o", "--text", "x"], "only for graphs, not for --format pretrained"),
        (["BEST", "-o", "o", "--format", "bundle", "--text", "x"], "not for --format bundle"),
        (["BEST", "-o", "o.bin", "--format", "onnx"], "o.bin: does not end in .onnx; rename it"),
        (["BEST", "-o", "o.bin", "--format", "torch"], "o.bin: does not end in .pt2; rename it"),
        (["BEST", "-o", "full", "--format", "bundle"], "full: holds something already; give a new"),
        (["BEST", "-o", "o.pt2", "--format", "torch", "--text", "g.txt"], "g.txt: no such file"),
    ],
)
def test_bad_input_ends_in_one_message(arguments, message, weights, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("no weights")
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    assert export(*(weights if one == "BEST" else one for one in arguments)) == 1
    error = capsys.readouterr().err
    assert error.startswith("clipseg3d: ")
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.glob("o*"))


def test_a_hub_id_without_network_is_one_message(tmp_path, monkeypatch, capsys):
    def fail(repo_id, **options):
        raise ConnectionError("refused")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    assert export("me/net", "-o", tmp_path / "net") == 1
    error = capsys.readouterr().err
    assert error.startswith("clipseg3d: 'me/net' is no local folder, not in the Hugging Face cache")
    assert error.count("\n") == 1


def test_weights_for_no_known_scans_become_no_bundle(weights, tmp_path, capsys):
    network = Predictor.from_checkpoint(weights, device="cpu").network
    network.settings = None
    network.save_pretrained(tmp_path / "net")
    assert export(tmp_path / "net", "-o", tmp_path / "bundle", "--format", "bundle") == 1
    assert "does not say which scans the network is for" in capsys.readouterr().err


def test_a_report_for_a_network_without_text_is_refused(tmp_path, capsys):
    weights = checkpoint(tmp_path / "best.ckpt", semantics=False)
    code = export(weights, "-o", tmp_path / "o.pt2", "--format", "torch", "--text", REPORT)
    assert code == 1
    assert "reads no text; leave the report out" in capsys.readouterr().err


def test_a_missing_extra_is_one_message(weights, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert export(weights, "-o", tmp_path / "o.onnx", "--format", "onnx") == 1
    error = capsys.readouterr().err
    assert error.endswith('onnx and onnxscript: pip install "clipseg3d[export]"\n')

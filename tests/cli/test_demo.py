"""Mirrors clipseg3d/cli/demo.py, on a coarse patient and with small weights."""

from types import SimpleNamespace

import numpy as np
import pytest

from clipseg3d.cli import demo
from clipseg3d.cli.main import main
from clipseg3d.data.releases import PHANTOM
from clipseg3d.inference.predictor import Predictor


class Answer:
    text = demo.PROMPT

    def __str__(self):
        return "1.5 ml, presence 0.9"


class FakePredictor:
    """Finds the patient's own mask with the report, and nothing without."""

    def __init__(self, label, *, answers):
        self.label, self.asked = label, []
        self.networks = [SimpleNamespace(prompt_head=object() if answers else None)]

    def __call__(self, scan, *, text=None, prompts=(), explain=False):
        self.asked.append((text, list(prompts)))
        found = SimpleNamespace(
            release=PHANTOM,
            label=self.label if text is None else np.zeros_like(self.label),
            prompts=[Answer() for _ in prompts],
        )
        found.save = lambda path: path.write_text("labels")
        found.save_case_page = lambda path, reference: path.write_text("page")
        found.save_prompts = lambda folder: folder.mkdir()
        return found


@pytest.mark.parametrize("answers", [False, True])
def test_the_demo_fits_a_screen_and_says_last_what_to_open(
    answers, phantoms, tmp_path, monkeypatch, capsys
):
    predictor = FakePredictor(phantoms[0].label, answers=answers)
    monkeypatch.setattr(Predictor, "from_pretrained", lambda: predictor)
    monkeypatch.setattr("clipseg3d.phantom.simulate.simulate_phantom", lambda *_, **__: phantoms[0])
    assert main(["demo", "-o", str(tmp_path / "out")]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    lines = out.splitlines()
    assert len(lines) <= 24
    assert lines[-1] == f"Open {tmp_path / 'out' / 'Phantom_00012.html'} in a browser."
    assert "Dice with the report     WT 1.000   TC 1.000   ET 1.000" in lines
    assert f"Changed by the report    {np.count_nonzero(phantoms[0].label)} voxels" in lines
    assert predictor.asked == [(None, [demo.PROMPT] * answers), ("", [])]
    assert any(line.split(maxsplit=1)[:1] == ["Prompt"] for line in lines) == answers
    assert any(line.endswith(str(Answer())) for line in lines) == answers
    for file in ("Phantom_00012.nii.gz", "Phantom_00012.png", "Phantom_00012.html"):
        assert (tmp_path / "out" / file).is_file()


def test_the_demo_that_trains_is_there(tmp_path, monkeypatch, capsys):
    result = SimpleNamespace(
        report="A lesion.", dice={"WT": 0.5}, case="c", segmentation="s", picture="p", weights="w"
    )
    monkeypatch.setattr("clipseg3d.cli.demo_training.train_demo", lambda out: result)
    assert main(["demo", "--train", "-o", str(tmp_path)]) == 0
    assert "Dice  WT 0.500" in capsys.readouterr().out

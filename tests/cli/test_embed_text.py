"""Mirrors clipseg3d/cli/embed_text.py."""

import json

import pytest
import torch

from clipseg3d.cli.main import main
from clipseg3d.clip.prompts import REGION_PROMPTS, TEMPLATES
from clipseg3d.clip.text_bank import TextBank
from clipseg3d.clip.text_cache import TextCache

pytestmark = pytest.mark.filterwarnings("ignore:the weights of the tiny CLIP are random")
REGIONS = tuple(REGION_PROMPTS)
PROMPTS = len(REGIONS) * len(TEMPLATES)
LONG = "The lesion lies in the left frontal lobe and enhances. " * 12


class DeafEncoder:
    """The tiny CLIP, but it may not be asked to encode anything."""

    def __init__(self, clip):
        self.clip = clip

    def __getattr__(self, name):
        return getattr(self.clip, name)

    def encode_text(self, texts):
        raise AssertionError(f"asked for {texts}")


@pytest.fixture
def sources(tmp_path):
    """A folder of two cases, a text file and a JSON file, and the four reports with text."""
    root = tmp_path / "cases"
    for name, report in {"a/b/C_1": LONG, ".hidden/C_3": "Hidden.", "C_2": " \n"}.items():
        path = root / f"{name}_flair_text.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(report)
    (root / "readme.txt").write_text("No report.")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "C_4_flair_text.txt").write_text("Linked oedema.")
    (root / "link").symlink_to(elsewhere, target_is_directory=True)
    text = tmp_path / "alone.txt"
    text.write_text("Right temporal oedema.", encoding="utf-8-sig")
    table = tmp_path / "reports.json"
    table.write_text(
        json.dumps({"C_5": "One lesion.", "C_6": {"report": "左额叶肿瘤。"}, "C_7": ""})
    )
    reports = [LONG, "Linked oedema.", "Right temporal oedema.", "One lesion.", "左额叶肿瘤。"]
    return [root, text, table], reports


def embed(*arguments, encoder="tiny-random"):
    return main(["embed-text", *map(str, arguments), "--encoder", encoder])


def test_a_bank_with_the_file_needs_no_encoder(sources, tmp_path, tiny_clip, capsys):
    paths, reports = sources
    out = tmp_path / "new" / "texts.safetensors"
    assert embed(*paths, "-o", out) == 0
    plain = TextBank(tiny_clip, REGIONS)
    cached = TextBank(DeafEncoder(tiny_clip), REGIONS, cache=out)
    for report in [*reports, ""]:
        torch.testing.assert_close(cached([report]), plain([report]), rtol=0, atol=1e-5)
    torch.testing.assert_close(cached(reports), plain(reports), rtol=0, atol=1e-5)
    chunks = {chunk for report in reports for chunk in plain.chunks(report)}
    assert len(chunks) > len(reports)
    page = capsys.readouterr().out
    assert page == (
        f"{out}: {PROMPTS + len(chunks)} texts (prompts and 5 reports) embedded by tiny-random\n"
    )
    stored = TextCache.load(out)
    assert len(stored.embeddings) == PROMPTS + len(chunks)
    assert (stored.encoder, stored.sha256) == ("tiny-random", tiny_clip.fingerprint())


def test_a_saved_clip_is_taken_by_its_folder(sources, tmp_path, tiny_clip):
    tiny_clip.frozen_model.save_pretrained(tmp_path / "clip")
    tiny_clip.tokenizer.save_pretrained(tmp_path / "clip")
    out = tmp_path / "texts.safetensors"
    assert embed(sources[0][1], "-o", out, encoder=str(tmp_path / "clip")) == 0
    assert TextCache.load(out).encoder == str(tmp_path / "clip")
    assert (
        len(TextBank(tiny_clip, REGIONS, cache=out)(["Right temporal oedema."])[0][0])
        == len(REGIONS) + 1
    )


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.txt", None, "gone.txt: no such file"),
        ("gone.json", None, "gone.json: no such file"),
        ("gone", None, "gone: no folder, .txt or .json file"),
        ("scan.nii.gz", "x", "scan.nii.gz: no folder, .txt or .json file"),
        ("blank.txt", " \n", "blank.txt: holds no report; give a .txt file"),
        ("blank.json", "{}", "blank.json: holds no report"),
        ("bad.json", "{", "bad.json: not valid JSON"),
        ("bad.json", '{"a": 3}', "bad.json: the report of a is a int, expected text"),
    ],
)
def test_a_source_without_report_ends_in_one_message(
    name, content, message, sources, tmp_path, capsys
):
    if content is not None:
        (tmp_path / name).write_text(content)
    out = tmp_path / "new" / "texts.safetensors"
    assert embed(sources[0][1], tmp_path / name, "-o", out) == 1
    error = capsys.readouterr().err
    assert error.startswith("clipseg3d: ")
    assert message in error
    assert not out.parent.exists()


def test_a_folder_without_report_is_named(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert embed(tmp_path / "empty", "-o", tmp_path / "t.safetensors") == 1
    assert "empty: holds no report" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["texts", "texts.pt", "texts.safetensors.bak"])
def test_another_ending_is_refused(sources, tmp_path, capsys, name):
    assert embed(sources[0][1], "-o", tmp_path / name) == 1
    assert f"{name}: does not end in .safetensors" in capsys.readouterr().err
    assert not (tmp_path / name).exists()


def test_a_missing_encoder_is_named(sources, tmp_path, capsys):
    out = tmp_path / "t.safetensors"
    assert embed(sources[0][1], "-o", out, encoder=str(tmp_path / "absent")) == 1
    assert "absent: no such folder" in capsys.readouterr().err


def test_help_says_what_an_encoder_can_be(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["embed-text", "--help"])
    assert stop.value.code == 0
    page = " ".join(capsys.readouterr().out.split())
    assert "(default: openai/clip-vit-base-patch32)" in page
    assert "*_flair_text.txt" in page

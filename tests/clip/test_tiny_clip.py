"""The trained CLIP that comes with the package, and the script that trains it."""

import importlib.util
import shutil
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange

from clipseg3d.clip import HuggingFaceCLIP, load_encoder
from clipseg3d.clip.registry import load_text_encoder
from clipseg3d.phantom.simulate import simulate_phantom
from clipseg3d.views import cut_views
from clipseg3d.weights import BUNDLED

FOLDER = BUNDLED / "tiny" / "clip"
SCRIPT = Path(__file__).parents[2] / "examples" / "train_tiny_clip.py"
SIDES = ("a tumour in the left hemisphere", "a tumour in the right hemisphere")


@pytest.fixture(scope="module")
def clip():
    return load_encoder("tiny")


@pytest.fixture(scope="module")
def script():
    """The training script as a module."""
    spec = importlib.util.spec_from_file_location("train_tiny_clip", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture(scope="module")
def samples(script, phantoms):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(script, "simulate_phantom", lambda seed, spacing_mm: phantoms[seed])
        return [script.phantom_sample(seed, 8.0) for seed in range(5)]


# the weights


def test_it_is_small():
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 6e6


def test_it_is_loaded_by_name_and_by_folder(clip):
    assert clip.name == "tiny"
    assert clip.max_tokens >= 128
    assert load_text_encoder("tiny").fingerprint() == clip.fingerprint()
    folder = HuggingFaceCLIP.from_pretrained(str(FOLDER))
    assert folder.fingerprint() == clip.fingerprint()
    assert {p.dtype for p in folder.parameters()} == {torch.float32}


def test_vectors_have_unit_norm(clip):
    texts = clip.encode_text([*SIDES, ""])
    vectors, patches = clip.encode_patches(torch.rand(2, 3, 50, 70))
    for some in (texts, vectors, patches):
        torch.testing.assert_close(some.norm(dim=-1), torch.ones(some.shape[:-1]))
    assert not torch.allclose(texts[0], texts[1], atol=0.1)


def test_tokenizer_files_of_old_and_new_agree(clip, tmp_path):
    text = "Edema surrounds the lesion; 3.5 cm, LEFT temporal lobe (naïve)."
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(FOLDER / name, tmp_path)
    shutil.copy(FOLDER / "tokenizer_config.json", tmp_path)
    old = type(clip.tokenizer).from_pretrained(tmp_path)
    assert old(text)["input_ids"] == clip.tokenizer(text)["input_ids"]


def test_a_folder_of_its_name_is_not_taken_for_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("tiny").mkdir()
    Path("tiny", "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"both a folder here and an encoder .* give ./tiny"):
        load_encoder("tiny")


@pytest.mark.slow
def test_it_tells_left_from_right_on_unseen_patients(clip):
    """Mirroring the patient turns the answer round."""
    texts = clip.encode_text(SIDES)
    correct = 0
    for seed in range(1_000_200, 1_000_204):
        phantom = simulate_phantom(seed, spacing_mm=4.0)
        for image, side in ((phantom.image, 0), (phantom.image[:, ::-1].copy(), 1)):
            if phantom.facts.side == "right":
                side = 1 - side
            views = cut_views(torch.from_numpy(image)[None], selection="energy").images[0]
            colours = rearrange(views[..., [1, 3, 2]], "v h w c -> v c h w").float() / 255
            image_vector = F.normalize(clip.encode_image(colours).mean(dim=0), dim=0)
            correct += int((texts @ image_vector).argmax()) == side
    assert correct >= 6


# the script


def test_mirroring_turns_words_round(script, samples):
    report = "The left frontal lobe; Right of it, nothing. Lefty stays."
    turned = script.mirrored_text(report)
    assert turned == "The right frontal lobe; Left of it, nothing. Lefty stays."
    facts = samples[0].facts
    assert {facts.side, script.mirrored_facts(facts).side} == {"left", "right"}
    assert script.mirrored_facts(script.mirrored_facts(facts)) == facts


def test_slices_show_the_regions(script, samples):
    for sample in samples:
        assert sample.images.shape == (3, 10, 96, 96, 4)
        wt, tc, et, brain = sample.shares.float().unbind(dim=2)
        assert (wt <= brain + 64).all()  # blurred edges
        assert (tc <= wt + 1).all()
        assert (et <= tc + 1).all()
        # Brain is where the picture is not black.
        shown = F.avg_pool2d((sample.images.amax(dim=-1) > 0).flatten(0, 1).float(), 4)
        assert (shown - brain.flatten(0, 1) / 255).abs().mean() < 0.1


def test_an_interrupted_run_is_the_same_run(script, samples, tmp_path, monkeypatch):
    torch.manual_seed(0)
    tokenizer = script.train_tokenizer(script.texts_to_read(None, samples), 700)
    setting = {"steps": 2, "batch_size": 3, "lr": 1e-3, "save_every": 1}

    def train(name):
        return script.train(samples, samples[:1], tokenizer, tmp_path / name, **setting)

    whole = train("whole.pt").fingerprint()
    save = script.save

    def die(path, value):
        save(path, value)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(script, "save", die)
        with pytest.raises(KeyboardInterrupt):
            train("cut.pt")
    assert torch.load(tmp_path / "cut.pt")["step"] == 1
    torch.manual_seed(5)
    clip = train("cut.pt")
    assert clip.fingerprint() == whole

    script.write_clip(clip, tmp_path / "clip")
    loaded = HuggingFaceCLIP.from_pretrained(str(tmp_path / "clip"))
    torch.testing.assert_close(
        loaded.encode_text(SIDES), clip.encode_text(SIDES), rtol=0, atol=5e-3
    )

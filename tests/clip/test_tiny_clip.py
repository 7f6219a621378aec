"""The trained CLIP that comes with the package, and the script that trains it."""

import importlib
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from transformers import CLIPTokenizer

from clipseg3d.clip import HuggingFaceCLIP, load_encoder
from clipseg3d.clip.registry import load_text_encoder
from clipseg3d.data.releases import PHANTOM
from clipseg3d.intensity import intensity_statistics
from clipseg3d.phantom.simulate import simulate_phantom
from clipseg3d.texts import Statement, statement_of
from clipseg3d.views import cut_views
from clipseg3d.weights import BUNDLED

NAMES = ("tiny",)
SETTINGS = {"steps": 2, "batch_size": 3, "lr": 1e-3, "save_every": 1}
SIDES = ("a tumour in the left hemisphere", "a tumour in the right hemisphere")


@pytest.fixture(scope="module", params=NAMES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def clip(name):
    return load_encoder(name)


@pytest.fixture(scope="module")
def folder(name):
    return BUNDLED / name / "clip"


@pytest.fixture(scope="module")
def script():
    """The training script as a module."""
    examples = str(Path(__file__).parents[2] / "examples")
    sys.path.insert(0, examples)
    try:
        return importlib.import_module("train_tiny_clip")
    finally:
        sys.path.remove(examples)


@pytest.fixture(scope="module")
def cases(script, phantoms):
    """The samples of five simulated patients."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(script, "simulate_phantom", lambda seed, **_: phantoms[seed])
        return [script.cut_phantom(seed, 8.0) for seed in range(5)]


@pytest.fixture(scope="module")
def samples(cases):
    return [sample for case in cases for sample in case]


@pytest.fixture(scope="module")
def tokenizer(script):
    return script.train_tokenizer(script.texts_of_vocabulary([], lessons=1), 800)


@pytest.fixture
def untrained(script, tokenizer):
    """Return a CLIP and readers with the random weights of a seed."""

    def build(seed=0):
        torch.manual_seed(seed)
        clip = script.build_clip(tokenizer)
        return clip, script.Readers(clip.embed_dim)

    return build


# the weights


def test_it_is_small(folder):
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 6_000_000


def test_it_is_loaded_by_name_and_by_folder(clip, name, folder):
    assert clip.name == name
    assert clip.max_tokens >= 128
    assert load_text_encoder(name).fingerprint() == clip.fingerprint()
    read = HuggingFaceCLIP.from_pretrained(str(folder))
    assert read.fingerprint() == clip.fingerprint()
    assert {p.dtype for p in read.parameters()} == {torch.float32}


def test_it_reads_what_is_denied():
    """A paraphrase is nearer than the opposite, in words that are not those of the other."""
    clip = load_encoder("tiny")
    for said, paraphrase, opposite in (
        ("No contrast enhancement is seen.", "The lesion fails to enhance.", "An enhancing rim."),
        ("There is no necrosis.", "The tumour is not necrotic.", "The centre is necrotic."),
        ("Extensive oedema.", "Marked swelling surrounds it.", "Hardly any oedema."),
        ("A single lesion.", "The tumour is solitary.", "Several lesions."),
        ("the enhancing rim", "bright ring on post-contrast T1", "the kidney"),
    ):
        vectors = clip.encode_text([said, paraphrase, opposite])
        similar = vectors[0] @ vectors[1:].T
        assert similar[0] > similar[1] + 0.3, (said, similar)


def test_vectors_have_unit_norm(clip):
    texts = clip.encode_text([*SIDES, ""])
    vectors, patches = clip.encode_patches(torch.rand(2, 3, 50, 70))
    for some in (texts, vectors, patches):
        torch.testing.assert_close(some.norm(dim=-1), torch.ones(some.shape[:-1]))
    assert not torch.allclose(texts[0], texts[1], atol=0.1)


def test_tokenizer_files_of_old_and_new_agree(clip, folder, tmp_path):
    text = "Edema surrounds the lesion; 3.5 cm, LEFT temporal lobe (naïve)."
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(folder / name, tmp_path)
    shutil.copy(folder / "tokenizer_config.json", tmp_path)
    old = CLIPTokenizer.from_pretrained(tmp_path)
    assert old(text)["input_ids"] == clip.tokenizer.encode(text).ids


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


def test_mirroring_turns_words_and_facts_round(script):
    report = "The left frontal lobe; Right of it, nothing. Lefty stays."
    turned = script.mirrored_text(report)
    assert turned == "The right frontal lobe; Left of it, nothing. Lefty stays."
    right = Statement(side="right", sites=("frontal",), necrosis=True)
    assert script.mirrored(right) == replace(right, side="left")
    assert script.mirrored(script.mirrored(right)) == right


def test_an_image_answers_what_is_certain_of_it(script):
    said = Statement("rim", True, "extensive", "single", "left", ("temporal",), compressed=False)
    shown = script.answers_shown(said)
    places = dict.fromkeys(("frontal", "parietal", "occipital"), "unsaid")
    rest = {
        **{"oedema": "extensive", "foci": "single", "side": "left", "compressed": "no"},
        **{"temporal": "named", **places},
    }
    assert shown == {"enhancement": "yes", "kind": "rim", "necrosis": "yes", **rest}
    assert script.answers_shown(script.without_t1ce(said)) == rest


def test_twins_have_no_contrast(script, cases, phantoms):
    enhancing = [phantom.facts.enhancing for phantom in phantoms[:5]]
    assert len(set(enhancing)) == 2
    for case, phantom in zip(cases, phantoms, strict=False):
        assert case[0].statement == statement_of(phantom.facts)
        assert len(case) == 1 + phantom.facts.enhancing
        if not phantom.facts.enhancing:
            continue
        sample, twin = case
        shown = script.answers_shown(twin.statement)
        assert shown["enhancement"] == "no"
        assert {"kind", "necrosis"}.isdisjoint(shown)
        assert replace(twin.statement, enhancement="rim", necrosis=None) == replace(
            sample.statement, enhancement="rim", necrosis=None
        )
        assert sample.shares[:, :, 2].any()
        assert not twin.shares[:, :, 2].any()
        # slices of energy may lie elsewhere; evenly spaced ones are the same
        spaced = slice(None), slice(0, script.ENERGY)
        same = [0, 1, 3]
        assert torch.equal(twin.shares[spaced][:, :, same], sample.shares[spaced][:, :, same])
        assert torch.equal(
            twin.images[spaced][..., [0, 2, 3]], sample.images[spaced][..., [0, 2, 3]]
        )
        assert not torch.equal(twin.images[spaced][..., 1], sample.images[spaced][..., 1])


def test_a_radiologist_has_not_seen_the_twin(script):
    """A report of the scan with contrast is not one of the scan without."""
    label = np.zeros((30, 28, 26), np.uint8)
    label[10:20, 8:16, 8:18] = 4
    rng = np.random.default_rng(0)
    image = torch.from_numpy(rng.uniform(1, 9, (4, *label.shape)).astype(np.float32))
    image[1] = 2 * image[0]
    image[1, 10:20, 8:16, 8:18] = 30
    statistics = intensity_statistics(image[None])[0]
    said = Statement(enhancement="solid", side="left", sites=("frontal",))
    sample, twin = script.cut_case(image, statistics, label, PHANTOM, said, "A solid lesion.")
    assert (sample.report, twin.report) == ("A solid lesion.", "")


def test_samples_come_back_from_their_files(script, cases, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "cut_phantom", lambda seed, spacing_mm: cases[seed])
    script.collect_phantoms(tmp_path, range(2), 8.0)
    monkeypatch.setattr(script, "cut_phantom", None)
    for back, case in zip(script.collect_phantoms(tmp_path, range(2), 8.0), cases, strict=False):
        assert len(back) == len(case)
        for one, other in zip(back, case, strict=True):
            assert torch.equal(one.images, other.images)
            assert (one.statement, one.report) == (other.statement, other.report)


def test_parts_of_prompts_make_up_the_tumour(script):
    wt, tc, et = torch.tensor([0.9]), torch.tensor([0.5]), torch.tensor([0.2])
    parts = {name: part(wt, tc, et).item() for name, part in script.PARTS.items()}
    expected = {"whole": 0.9, "core": 0.5, "enhancing": 0.2, "necrosis": 0.3, "oedema": 0.4}
    assert parts == pytest.approx({**expected, "none": 0.0})
    assert list(script.PARTS) == list(script.TARGETS)


def test_every_case_is_left_out_by_one_fold(script):
    names = ["d", "b", "a", "c", "e"]
    assert script.left_out(names, None, 2) == []
    assert script.left_out(names, 0, 2) == ["a", "c", "e"]
    assert script.left_out(names, 1, 2) == ["b", "d"]


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


def test_an_interrupted_run_is_the_same_run(script, untrained, samples, tmp_path, monkeypatch):
    def train(name):
        clip, readers = untrained()
        torch.manual_seed(len(name))
        script.learn_images(clip, readers, samples, samples[:1], tmp_path / name, **SETTINGS)
        return clip

    whole = train("whole.pt").fingerprint()
    tower_texts = sys.modules[script.fit.__module__]
    save = tower_texts.save

    def die(path, value):
        save(path, value)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tower_texts, "save", die)
        with pytest.raises(KeyboardInterrupt):
            train("cut.pt")
    assert torch.load(tmp_path / "cut.pt")["step"] == 1
    clip = train("cut.pt")
    assert clip.fingerprint() == whole

    script.write_clip(clip, tmp_path / "clip")
    loaded = HuggingFaceCLIP.from_pretrained(str(tmp_path / "clip"))
    torch.testing.assert_close(
        loaded.encode_text(SIDES), clip.encode_text(SIDES), rtol=0, atol=5e-3
    )


def test_images_change_neither_text_tower_nor_readers(script, untrained, samples, tmp_path):
    clip, readers = untrained()
    towers = {**clip.frozen_model.state_dict(), **readers.state_dict()}
    before = {name: weight.clone() for name, weight in towers.items()}
    script.learn_images(clip, readers, samples, [], tmp_path / "images.pt", **SETTINGS)
    changed = {name for name, weight in towers.items() if not torch.equal(weight, before[name])}
    of_images = {name for name in before if name.startswith(("vision_model", "visual_projection"))}
    unused = {"vision_model.embeddings.position_ids"}
    assert changed == (of_images | {"logit_scale"}) - unused


def test_images_do_not_continue_other_texts(script, untrained, samples, tmp_path):
    script.learn_images(*untrained(), samples, [], tmp_path / "images.pt", **SETTINGS)
    with pytest.raises(ValueError, match=r"images.pt continues other texts .* remove it"):
        script.learn_images(*untrained(1), samples, [], tmp_path / "images.pt", **SETTINGS)

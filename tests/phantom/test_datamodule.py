"""Mirrors clipseg3d/phantom/datamodule.py."""

import shutil
from collections import Counter

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml

from clipseg3d.batch import Batch
from clipseg3d.data import cache, cases
from clipseg3d.data.nifti import read_voxels
from clipseg3d.data.releases import PHANTOM
from clipseg3d.phantom import write
from clipseg3d.phantom.datamodule import PhantomDataModule

SPACING = 8.0
PATCH = (9, 8, 6)
NUMBERS = range(1, 6)
NAMES = [f"Phantom_{number:05d}" for number in NUMBERS]


@pytest.fixture(scope="module")
def written(phantom_folder, tmp_path_factory):
    """Five patients with numbers 1 to 5, and the cache of them; only to be read."""
    root = tmp_path_factory.mktemp("phantoms")
    for name in NAMES:
        shutil.copytree(phantom_folder / name, root / "cases" / name)
    make(root).prepare_data()
    return root


@pytest.fixture
def root(written, tmp_path):
    """A copy that a test may change."""
    return shutil.copytree(written, tmp_path / "copy")


@pytest.fixture
def simulated(phantoms, monkeypatch):
    """Stand in for the simulation of the shared patients; list seeds and spacings."""
    calls = []

    def simulate(seed, *, spacing_mm, **shares):
        calls.append((seed, spacing_mm))
        return phantoms[seed]

    monkeypatch.setattr(write, "simulate_phantom", simulate)
    return calls


def make(root, **options):
    defaults = {
        "num_cases": 5,
        "first_seed": 1,
        "spacing_mm": SPACING,
        "patch_size": PATCH,
        "num_workers": 0,
        "cache_dir": str(root / ".cache"),
    }
    return PhantomDataModule(str(root / "cases"), **{**defaults, **options})


def times(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def ready(module):
    module.prepare_data()
    module.setup("fit")
    return module


def names(data):
    return [case.case_id for case in data.cases]


def train_and_val(module):
    return sorted(names(module.train_set) + names(module.val_set))


def test_writes_the_patients_asked_for(tmp_path, simulated):
    make(tmp_path).prepare_data()
    assert simulated == [(seed, SPACING) for seed in NUMBERS]
    assert sorted(path.name for path in (tmp_path / "cases").iterdir()) == NAMES
    case = tmp_path / "cases" / "Phantom_00002"
    assert sorted(path.name for path in case.iterdir()) == sorted(
        [f"Phantom_00002_{suffix}.nii.gz" for suffix in ("t1", "t1ce", "t2", "flair", "seg")]
        + ["Phantom_00002_flair_text.txt"]
    )
    affine = nib.load(case / "Phantom_00002_t1.nii.gz").affine
    assert nib.affines.voxel_sizes(affine) == pytest.approx([SPACING] * 3)


def test_end_to_end(written):
    module = make(written, batch_size=2)
    assert module.release is PHANTOM
    ready(module)
    assert train_and_val(module) == NAMES
    assert len(module.val_set) == 1
    train = [module.on_after_batch_transfer(batch, 0) for batch in module.train_dataloader()]
    assert len(train) == 2
    for batch in train:
        assert batch.keys() == Batch.__annotations__.keys()
        assert batch["image"].shape == (2, 4, *PATCH)
        assert torch.isfinite(batch["image"]).all()
    (brain,) = module.val_dataloader()
    (name,) = brain["case_id"]
    assert brain["label"].flatten(2).any(dim=2).tolist()[0][0]  # there is a tumour
    report = (written / "cases" / name / f"{name}_flair_text.txt").read_text().strip()
    assert brain["report"] == [report]
    stored = read_voxels(written / "cases" / name / f"{name}_seg.nii.gz")
    voxels = [int(count) for count in brain["label"][0].flatten(1).sum(dim=1)]
    assert voxels == [int(np.isin(stored, PHANTOM.regions[r]).sum()) for r in ("WT", "TC", "ET")]


def test_cavities_are_a_region_of_a_release_that_has_it(tmp_path):
    options = {"release": "brats2024_gli", "cavity_share": 1.0, "num_cases": 2, "num_folds": 2}
    module = ready(make(tmp_path, **options))
    assert train_and_val(module) == ["BraTS-GLI-00001-100", "BraTS-GLI-00002-100"]
    assert list(module.release.regions) == ["WT", "TC", "ET", "RC"]
    (brain,) = module.val_dataloader()
    voxels = brain["label"][0].flatten(1).sum(dim=1)
    assert voxels[0] > 0
    assert voxels[3] > 0
    assert module.survey().notes == ()
    assert module.hparams["release"] == "brats2024_gli"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"plain_share": 2}, "plain_share=2 is not in"),
        ({"cavity_share": 0.5}, "phantom has no region RC"),
        ({"release": "msd_task01"}, "msd_task01 does not keep"),
    ],
)
def test_refuses_shares_and_releases(options, message):
    with pytest.raises(ValueError, match=message):
        PhantomDataModule(**options)


def test_a_second_prepare_data_writes_nothing(written, simulated):
    before = times(written)
    ready(make(written))
    assert times(written) == before
    assert simulated == []


def test_every_file_is_opened_once_in_a_run(root, simulated, monkeypatch):
    headers, fingerprints = Counter(), Counter()
    open_nifti, fingerprint = cases.open_nifti, cache.fingerprint

    def count_headers(path, **options):
        headers[path] += 1
        return open_nifti(path, **options)

    def count_fingerprints(path):
        fingerprints[path] += 1
        return fingerprint(path)

    monkeypatch.setattr(cases, "open_nifti", count_headers)
    monkeypatch.setattr(cache, "fingerprint", count_fingerprints)
    module = ready(make(root))
    module.setup("validate")
    files = dict.fromkeys(root.rglob("*.nii.gz"), 1)
    assert len(files) == 5 * len(NAMES)
    assert dict(headers) == dict(fingerprints) == files
    module.teardown("fit")
    shutil.rmtree(root / "cases" / NAMES[2])
    module.setup("fit")  # which looks again, and finds a patient missing
    assert simulated == [(NUMBERS[2], SPACING)]
    assert train_and_val(module) == NAMES
    assert dict(headers) == dict(fingerprints) == dict.fromkeys(files, 2)


def test_provenance_is_computed_once_for_each_setup(written, monkeypatch):
    described, describe = [], PhantomDataModule._describe_data

    def count(module):
        described.append(module)
        return describe(module)

    monkeypatch.setattr(PhantomDataModule, "_describe_data", count)
    module = ready(make(written))
    first = module.provenance()
    assert module.provenance() is first
    assert sorted(first["cache_files"]) == NAMES
    module.setup("fit")
    assert module.provenance() == first
    assert module.provenance() is not first
    assert len(described) == 2


def test_a_smaller_number_of_cases_takes_the_first(written):
    module = ready(make(written, num_cases=3, num_folds=3))
    assert train_and_val(module) == NAMES[:3]


def test_other_seeds_are_other_patients(root, simulated):
    module = ready(make(root, num_cases=2, first_seed=0, num_folds=2))
    assert train_and_val(module) == ["Phantom_00000", "Phantom_00001"]
    assert simulated == [(0, SPACING)]
    assert len(list((root / "cases").iterdir())) == 6


def test_shuffled_reports_and_views_are_those_of_the_base(written):
    own = ready(make(written))
    other = ready(make(written, shuffle_reports=True, view_selection="attention"))
    reports = [
        {case.case_id: case.report for case in [*module.train_set.cases, *module.val_set.cases]}
        for module in (own, other)
    ]
    assert sorted(reports[0].values()) == sorted(reports[1].values())
    assert all(reports[0][name] != reports[1][name] for name in reports[0])
    assert other.val_set[0]["views"].planes.shape == (24, 3)


@pytest.mark.parametrize("num_cases", [0, -1])
def test_refuses_no_patients(num_cases):
    with pytest.raises(ValueError, match=f"num_cases={num_cases} is not positive"):
        PhantomDataModule(num_cases=num_cases)


def test_options_of_the_base_are_checked():
    with pytest.raises(ValueError, match="batch_size=0 is not positive"):
        PhantomDataModule(batch_size=0)
    with pytest.raises(TypeError, match="patch"):
        PhantomDataModule(patch=(4, 4, 4))


def test_nothing_is_written_before_prepare_data(tmp_path):
    make(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_hyperparameters_are_plain_values(tmp_path):
    module = make(tmp_path, seed=4)
    saved = dict(module.hparams)
    assert saved["num_cases"] == 5
    assert saved["first_seed"] == 1
    assert saved["spacing_mm"] == SPACING
    assert saved["seed"] == 4
    torch.save(saved, tmp_path / "saved.pt")
    assert torch.load(tmp_path / "saved.pt", weights_only=True) == saved
    listed = {key: list(v) if isinstance(v, tuple) else v for key, v in saved.items()}
    again = PhantomDataModule(**yaml.safe_load(yaml.safe_dump(listed)))
    assert (again.num_cases, again.seed, tuple(again.patch_size)) == (5, 4, PATCH)


def test_a_survey_counts_who_is_there_and_who_is_planned(root, tmp_path):
    shutil.rmtree(root / "cases" / "Phantom_00004")
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    data = make(root, num_folds=5, cache_dir=str(tmp_path / "empty"))
    survey = data.survey()
    assert (survey.training, survey.validation, survey.faults) == (4, 1, ())
    assert survey.notes == ("1 of 5 patients are still to be simulated",)
    assert survey.disk == {
        tmp_path / "empty": int(5 * 20e6 / SPACING**3),
        root / "cases": int(12e6 / SPACING**3),
    }
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before
    assert not (tmp_path / "empty").exists()


def test_a_survey_lists_every_fault(root):
    (root / "cases" / "Phantom_00002" / "Phantom_00002_t2.nii.gz").unlink()
    (root / "cases" / "Phantom_00003" / "Phantom_00003_seg.nii.gz").write_bytes(b"no image")
    survey = make(root, num_folds=6).survey()
    assert any("Phantom_00002_t2" in fault for fault in survey.faults)
    assert any("Phantom_00003_seg" in fault for fault in survey.faults)
    assert any("5 patients cannot fill num_folds=6" in fault for fault in survey.faults)
    assert (survey.training, survey.validation) == (0, 0)


def test_what_is_prepared_needs_no_disk(root):
    data = make(root)
    data.prepare_data()
    assert data.survey().disk == {}

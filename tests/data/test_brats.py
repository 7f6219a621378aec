"""Mirrors clipseg3d/data/brats.py."""

import json
import multiprocessing
import pickle
import shutil
from collections import Counter
from functools import partial

import numpy as np
import pytest
import torch
import yaml

from clipseg3d.batch import Batch
from clipseg3d.data import brats, cache, cases
from clipseg3d.data.brats import BraTS2018DataModule, BraTS2020DataModule, BraTSDataModule
from clipseg3d.data.cases import DataError, find_cases
from clipseg3d.data.releases import BRATS_2018, BRATS_2023_GLI, PHANTOM, RELEASES
from clipseg3d.data.sample_order import Draw
from clipseg3d.data.splits import Splits
from clipseg3d.data.transforms import Augmentation
from clipseg3d.views import Views

NAMES = [f"Brats18_2013_{patient}_1" for patient in range(2, 7)] + ["Brats18_2013_2_2"]
PATCH = (5, 6, 4)
BOX = (11, 14, 7)


@pytest.fixture(scope="module")
def shared(tmp_path_factory, write_case):
    """Six scans of five patients, and a cache for them; only to be read."""
    folder = tmp_path_factory.mktemp("shared")
    for seed, name in enumerate(NAMES):
        grade = "HGG" if seed % 2 else "LGG"
        write_case(folder / "cases" / grade / name, name, seed=seed, report=f"report {seed}")
    return folder


@pytest.fixture
def make(shared):
    def make_module(kind=BraTS2018DataModule, *, folder=shared, **options):
        defaults = {"patch_size": PATCH, "num_workers": 0, "cache_dir": str(folder / "cache")}
        return kind(str(folder / "cases"), **{**defaults, **options})

    return make_module


@pytest.fixture
def root(shared, tmp_path):
    """A copy of the scans, which a test may change."""
    return shutil.copytree(shared / "cases", tmp_path / "cases")


@pytest.fixture
def make_own(make, root, tmp_path):
    """Make modules of the copy, with a cache of its own."""
    return partial(make, folder=tmp_path)


def ready(module):
    module.prepare_data()
    module.setup("fit")
    return module


def ids(cases):
    return [case.case_id for case in cases.cases]


def test_there_is_one_module_for_each_release():
    kinds = [kind for kind in vars(brats).values() if isinstance(kind, type)]
    modules = [kind for kind in kinds if issubclass(kind, BraTSDataModule)]
    modules.remove(BraTSDataModule)
    assert len(modules) == len({kind.published.name for kind in modules})
    assert {kind("anywhere").release.name for kind in modules} == RELEASES.keys() - {PHANTOM.name}


def test_the_release_may_be_named_detected_or_that_of_the_class(make):
    named = make(BraTSDataModule, release="brats2023_gli")
    assert named.release is BRATS_2023_GLI
    assert make(BraTSDataModule).release is BRATS_2018
    assert make(BraTS2018DataModule, release="brats2018").release is BRATS_2018
    module = ready(make(BraTSDataModule))
    assert sorted(ids(module.train_set) + ids(module.val_set)) == sorted(NAMES)


def test_a_release_that_cannot_be(make_own, root, write_case):
    with pytest.raises(ValueError, match="unknown release 'brats1999'"):
        make_own(BraTSDataModule, release="brats1999")
    with pytest.raises(ValueError, match="reads brats2018, not release='brats2020'; use BraTSData"):
        make_own(BraTS2018DataModule, release="brats2020")
    write_case(root, "BraTS20_Training_001")
    with pytest.raises(ValueError, match=r"cases of brats2018 .* and brats2020 "):
        make_own(BraTSDataModule).release  # noqa: B018 - detecting it fails


def test_every_scan_is_validated_once_and_patients_stay_together(make):
    validated = []
    for fold in range(5):
        module = ready(make(fold=fold))
        train, val = ids(module.train_set), ids(module.val_set)
        assert sorted(train + val) == sorted(NAMES)
        together = {"Brats18_2013_2_1", "Brats18_2013_2_2"}
        assert len(together & set(train)) in (0, 2)
        validated += val
    assert sorted(validated) == sorted(NAMES)


def test_folds_and_seed_reach_the_split(make):
    two = ready(make(num_folds=2))
    assert {len(two.train_set), len(two.val_set)} <= {2, 3, 4}
    held_out = {tuple(ids(ready(make(seed=seed)).val_set)) for seed in range(8)}
    assert len(held_out) > 1


def test_folds_of_a_file(make, shared, tmp_path):
    splits = Splits.draw(find_cases(shared / "cases", BRATS_2018), num_folds=3, seed=9)
    splits.write(tmp_path / "splits.json")
    drawn = ready(make(num_folds=3, seed=9, fold=1))
    read = ready(make(splits=str(tmp_path / "splits.json"), fold=1))
    assert ids(read.val_set) == ids(drawn.val_set) == list(splits.folds[1])
    assert ids(read.train_set) == ids(drawn.train_set)
    assert ids(read.test_set) == ids(read.val_set)


def test_test_cases_of_a_file_are_neither_trained_nor_validated_on(make, tmp_path):
    one, two, three = sorted(NAMES)[2:5]
    rest = [name for name in sorted(NAMES) if name not in (one, two, three)]
    content = {"folds": [[one], rest], "test": [three, two]}
    (tmp_path / "splits.json").write_text(json.dumps(content))
    module = ready(make(splits=str(tmp_path / "splits.json")))
    assert (ids(module.train_set), ids(module.val_set)) == (rest, [one])
    assert [batch["case_id"] for batch in module.test_dataloader()] == [[two], [three]]


def test_a_file_of_folds_is_checked_before_the_cache_is_filled(make_own, tmp_path):
    (tmp_path / "splits.json").write_text(json.dumps({"folds": [["x"], NAMES]}))
    with pytest.raises(DataError, match="names x, not among the cases found"):
        make_own(splits=str(tmp_path / "splits.json")).prepare_data()
    assert not (tmp_path / "cache").exists()


def test_grades_are_spread_over_folds(make):
    module = ready(make(num_folds=2))
    for part in (module.train_set, module.val_set):
        grades = [case.grade for case in part.cases]
        assert 1 <= sum(grades) <= 2


def test_missing_sequences_are_refused_unless_allowed(make_own, root):
    (root / "LGG" / NAMES[0] / f"{NAMES[0]}_t2.nii.gz").unlink()
    with pytest.raises(DataError, match=f"{NAMES[0]}_t2.nii.gz: missing"):
        make_own().prepare_data()
    module = ready(make_own(allow_missing_sequences=True))
    assert NAMES[0] in ids(module.train_set) + ids(module.val_set)


def test_training_batches(make):
    module = ready(make(batch_size=2, crops_per_case=3))
    assert len(module.train_set) == 3 * len(module.train_set.cases)
    batches = [module.on_after_batch_transfer(batch, 0) for batch in module.train_dataloader()]
    assert len(batches) == len(module.train_set) // 2
    for batch in batches:
        assert batch.keys() == Batch.__annotations__.keys()
        assert batch["image"].shape == (2, 4, *PATCH)
        assert batch["label"].shape == (2, 3, *PATCH)
        assert batch["crop_box"].shape == (2, 4, 3)
        assert batch["statistics"].shape == (2, 4, 4)
        assert isinstance(batch["views"], Views)
        assert batch["views"].images.shape == (2, 3, 224, 224, 4)
        assert batch["views"].planes.shape == (2, 3, 3)
        assert batch["grade"].shape == (2,)
        assert all(report.startswith("report ") for report in batch["report"])
    names = {name for batch in batches for name in batch["case_id"]}
    assert names <= set(ids(module.train_set))


def test_workers_send_packed_crops(make):
    """A quarter of the bytes; the device unpacks and augments them."""
    for augment in (False, True):
        module = ready(make(augment=augment))
        batch = next(iter(module.train_dataloader()))
        assert batch["image"].dtype == batch["label"].dtype == torch.uint8
        assert batch["label"].shape == (1, *PATCH)
        unpacked = module.on_after_batch_transfer(batch, 0)
        assert unpacked["image"].dtype == unpacked["label"].dtype == torch.float32
        assert unpacked["label"].shape == (1, 3, *PATCH)
        assert set(unpacked["label"].unique().tolist()) <= {0, 1}
        share = (batch["image"] == 0).float().mean()  # rotation moves some of it out of the crop
        assert abs((unpacked["image"] == 0).float().mean() - share) < (0.2 if augment else 1e-6)
        again = module.on_after_batch_transfer(unpacked, 0)
        assert torch.equal(again["image"], unpacked["image"])
        assert torch.equal(again["label"], unpacked["label"])


def test_training_order_is_shuffled(make):
    module = ready(make(crops_per_case=4))
    loader, orders = module.train_dataloader(), set()
    for epoch in range(4):
        loader.sampler.set_epoch(epoch)
        orders.add(tuple(batch["case_id"][0] for batch in loader))
    assert len(orders) > 1


def test_a_fit_goes_on_within_the_epoch_of_a_checkpoint(make):
    """The fit after that begins at the beginning."""
    torch.manual_seed(0)
    module = ready(make(crops_per_case=3, batch_size=2))
    assert module.state_dict() == {}
    loader = module.train_dataloader()
    loader.sampler.set_epoch(4)
    given = [batch["crop_box"] for batch in loader]
    steps = iter(loader)
    next(steps), next(steps)
    saved = module.state_dict()
    assert saved == {"epoch": 4, "batches": 2}
    resumed = ready(make(crops_per_case=3, batch_size=2))
    resumed.load_state_dict(saved)
    rest = [batch["crop_box"] for batch in resumed.train_dataloader()]
    assert len(rest) == len(given) - 2 > 0
    assert all(map(torch.equal, rest, given[2:]))
    assert len(list(resumed.train_dataloader())) == len(given)
    assert resumed.state_dict() == {"epoch": 0, "batches": len(given)}


@pytest.mark.parametrize("loader", ["val_dataloader", "test_dataloader"])
def test_validation_batches_are_whole_brains_in_order(make, loader):
    module = ready(make(batch_size=3, num_folds=2, crops_per_case=2))
    batches = list(getattr(module, loader)())
    assert [batch["case_id"][0] for batch in batches] == ids(module.val_set)
    for batch in batches:
        assert batch["image"].shape == (1, 4, *BOX)
        assert batch["crop_box"].tolist() == [[[0, 0, 0], [1, 1, 1]]]


def test_validation_is_never_augmented(make):
    module = ready(make())
    one, other = (next(iter(module.val_dataloader())) for _ in range(2))
    assert torch.equal(one["image"], other["image"])


@pytest.mark.parametrize("augment", [True, False])
def test_augmentation_can_be_switched_off(make, augment):
    module = ready(make(augment=augment, crops_per_case=10))
    mirrored = any((batch["crop_box"][:, 1] < 0).any() for batch in module.train_dataloader())
    assert mirrored == augment


def test_a_batch_larger_than_the_training_set_is_refused(make):
    module = ready(make(batch_size=50, crops_per_case=2))
    with pytest.raises(ValueError, match=r"batch_size=50 is more than the \d+ samples .* lower it"):
        module.train_dataloader()


def test_folds_are_counted(make, tmp_path):
    assert make(num_folds=3).count_folds() == 3
    Splits.draw(find_cases(make().root, BRATS_2018), num_folds=2).write(tmp_path / "folds.json")
    assert make(splits=str(tmp_path / "folds.json")).count_folds() == 2


def test_loaders_with_workers(make):
    module = ready(make(num_workers=1))
    assert len(list(module.train_dataloader())) == len(module.train_set)


def test_reports_of_one_file(make, tmp_path):
    path = tmp_path / "reports.json"
    path.write_text(json.dumps({name: f"of {name}" for name in NAMES}))
    module = ready(make(reports=str(path)))
    assert [case.report for case in module.val_set.cases] == [
        f"of {name}" for name in ids(module.val_set)
    ]


@pytest.mark.parametrize(("selection", "count"), [("center", 3), ("energy", 3), ("attention", 24)])
def test_views_are_those_selected(make, selection, count, equal_views):
    module = ready(make(view_selection=selection, num_workers=1))
    (entry, *_) = module.val_set.cases
    batch = next(iter(module.val_dataloader()))
    assert batch["views"].images.shape == (1, count, 224, 224, 4)
    assert equal_views(Views(*(part[0] for part in batch["views"])), entry.views())
    for batch in module.train_dataloader():
        assert batch["views"].planes.shape == (1, count, 3)


def test_selections_do_not_share_entries(make_own, tmp_path):
    for count, selection in enumerate(("center", "energy", "attention"), start=1):
        make_own(view_selection=selection).prepare_data()
        assert len(list((tmp_path / "cache" / "brats2018").iterdir())) == count * len(NAMES)


def test_grades_come_from_the_folders(make):
    module = ready(make())
    grades = {name: int(seed % 2) for seed, name in enumerate(NAMES)}  # odd ones lie in HGG
    for loader in (module.train_dataloader(), module.val_dataloader()):
        for batch in loader:
            assert batch["grade"].tolist() == [grades[name] for name in batch["case_id"]]


def reports_of(module):
    return {case.case_id: case.report for case in [*module.train_set.cases, *module.val_set.cases]}


@pytest.mark.parametrize("seed", range(3))
def test_shuffled_reports_are_those_of_other_cases(make, seed):
    own = reports_of(ready(make(seed=seed)))
    module = ready(make(seed=seed, shuffle_reports=True))
    shuffled = reports_of(module)
    assert sorted(shuffled.values()) == sorted(own.values())
    assert all(shuffled[name] != own[name] for name in NAMES)
    module.setup("validate")
    assert reports_of(module) == shuffled
    assert reports_of(ready(make(seed=seed, shuffle_reports=True))) == shuffled
    assert reports_of(ready(make(seed=seed, shuffle_reports=True, fold=1))) == shuffled


def test_seeds_shuffle_reports_differently(make):
    shuffled = [reports_of(ready(make(seed=seed, shuffle_reports=True))) for seed in range(4)]
    assert len({tuple(reports.values()) for reports in shuffled}) > 1


def test_shuffling_leaves_everything_but_reports(make):
    one, other = ready(make()), ready(make(shuffle_reports=True))
    for a, b in zip(one.train_set.cases, other.train_set.cases, strict=True):
        assert (a.case_id, a.path, a.grade) == (b.case_id, b.path, b.grade)


def test_cache_lies_where_it_is_asked_for(make_own, tmp_path, monkeypatch, root, content):
    before = content(root)
    monkeypatch.setenv("CLIPSEG3D_CACHE", str(tmp_path / "elsewhere"))
    ready(make_own())
    assert not (tmp_path / "elsewhere").exists()
    assert len(list((tmp_path / "cache" / "brats2018").iterdir())) == len(NAMES)
    ready(make_own(cache_dir=None))
    assert len(list((tmp_path / "elsewhere" / "brats2018").iterdir())) == len(NAMES)
    assert content(root) == before


def test_folds_share_the_cache(make_own, tmp_path):
    make_own(fold=0).prepare_data()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*")}
    ready(make_own(fold=1, num_folds=3, seed=4, patch_size=(7, 5, 6)))
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*")} == before


def test_setup_may_run_more_than_once_and_on_its_own(make):
    module = make()
    module.setup("fit")
    first = ids(module.train_set), ids(module.val_set)
    module.setup("validate")
    assert (ids(module.train_set), ids(module.val_set)) == first


def test_prepare_data_adds_no_attribute(make):
    """Only one rank runs it, so nothing may depend on what it leaves behind."""
    module = make()
    before = set(vars(module))
    module.prepare_data()
    assert set(vars(module)) == before


@pytest.fixture
def calls(monkeypatch):
    """Count, file by file, how often headers are opened and fingerprints are taken."""

    def counted(module, name):
        function, counts = getattr(module, name), Counter()

        def count(path, **options):
            counts[path] += 1
            return function(path, **options)

        monkeypatch.setattr(module, name, count)
        return counts

    return counted(cases, "open_nifti"), counted(cache, "fingerprint")


def volumes(folder, times=1):
    return dict.fromkeys(folder.rglob("*.nii.gz"), times)


@pytest.mark.parametrize("kind", [BraTS2018DataModule, BraTSDataModule])
def test_every_file_is_opened_once_in_a_run(make_own, root, calls, write_case, kind):
    module = ready(make_own(kind))
    module.setup("validate")
    assert module.count_folds() == 5
    first = volumes(root)
    assert len(first) == 5 * len(NAMES)
    assert [dict(counts) for counts in calls] == [first, first]
    module.teardown("fit")
    new = "Brats18_2013_9_1"
    write_case(root / "new", new, seed=9)
    module.setup("fit")
    assert sorted(ids(module.train_set) + ids(module.val_set)) == sorted([*NAMES, new])
    second = {**volumes(root, 2), **volumes(root / "new")}
    assert [dict(counts) for counts in calls] == [second, second]


def test_ranks_that_prepare_nothing_open_every_file_once(make, shared, calls):
    make().setup("fit")
    assert [dict(counts) for counts in calls] == [volumes(shared / "cases")] * 2


def test_a_file_that_was_removed_from_the_cache_is_built_again(make_own, root, calls):
    module = make_own()
    module.prepare_data()
    removed, *_ = sorted((root.parent / "cache" / "brats2018").iterdir())
    removed.unlink()
    module.setup("fit")
    assert removed.is_file()
    _, fingerprints = calls
    (name,) = [name for name in NAMES if removed.name.startswith(name)]
    assert {path.parent.name for path, count in fingerprints.items() if count > 1} == {name}


def test_a_run_after_an_interrupted_one_reads_the_folder_again(make_own, root, write_nifti):
    """Lightning calls no teardown after an error."""
    module = ready(make_own())
    before = module.provenance()["cache_files"]
    mask = root / "LGG" / NAMES[0] / f"{NAMES[0]}_seg.nii.gz"
    write_nifti(mask, np.full((13, 17, 11), 3, np.uint8))
    shutil.rmtree(root / "HGG" / NAMES[5])
    with pytest.raises(DataError, match="holds label 3"):
        module.prepare_data()
    label = np.zeros((13, 17, 11), np.uint8)
    label[6, 8, 5] = 2
    write_nifti(mask, label)
    after = ready(module).provenance()["cache_files"]
    assert sorted(after) == sorted(NAMES[:5])
    assert {name for name, file in after.items() if before[name] != file} == {NAMES[0]}


def test_provenance_is_computed_once_for_each_setup(make, monkeypatch):
    described, describe = [], BraTSDataModule._describe_data

    def count(module):
        described.append(module)
        return describe(module)

    monkeypatch.setattr(BraTSDataModule, "_describe_data", count)
    module = ready(make())
    first = module.provenance()
    assert first["split"]["validation"] == ids(module.val_set)
    assert module.provenance() is first
    assert len(described) == 1
    module.fold = 1
    module.setup("fit")
    second = module.provenance()
    assert second["split"]["validation"] == ids(module.val_set) != first["split"]["validation"]
    assert second["split"]["sha256"] != first["split"]["sha256"]
    assert module.provenance() is second
    assert len(described) == 2


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("patch_size", (4, 0, 4)),
        ("patch_size", (-1, 4, 4)),
        ("batch_size", 0),
        ("crops_per_case", -2),
    ],
)
def test_refuses_numbers_that_are_not_positive(make, name, value):
    shown = min(value) if isinstance(value, tuple) else value
    with pytest.raises(ValueError, match=f"{name}={shown} is not positive"):
        make(**{name: value})


@pytest.mark.parametrize("size", [(4, 4), (4, 4, 4, 4), ()])
def test_refuses_a_patch_that_has_not_three_sizes(make, size):
    with pytest.raises(ValueError, match="needs three sizes"):
        make(patch_size=size)


@pytest.mark.parametrize("options", [{"fold": 5}, {"fold": 1, "num_folds": 1}, {"num_folds": 6}])
def test_refuses_a_split_that_cannot_be_made(make, options):
    with pytest.raises(ValueError, match=r"num_folds=|fold=5 is not in 0\.\.4"):
        make(**options).setup("fit")


def test_wrong_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        BraTS2018DataModule(str(tmp_path / "absent")).prepare_data()


def test_another_spacing_is_refused_unless_asked_for(make_own, root, write_case):
    write_case(root / "x", "Brats18_2013_9_1", affine=np.diag([-2.0, -2, 2, 1]))
    with pytest.raises(DataError, match="voxels of 2x2x2 mm, expected 1 mm"):
        make_own().prepare_data()
    write_case(root / "x", "Brats18_2013_8_1", affine=np.diag([-2.0, -2, 2, 1]))
    module = BraTS2018DataModule(
        str(root / "x"), spacing_mm=2.0, num_folds=2, cache_dir=make_own().hparams["cache_dir"]
    )
    module.prepare_data()


def test_all_faults_of_headers_at_once(make_own, root):
    (root / "LGG" / NAMES[0] / f"{NAMES[0]}_t2.nii.gz").unlink()
    (root / "HGG" / NAMES[3] / f"{NAMES[3]}_seg.nii.gz").write_bytes(b"")
    with pytest.raises(DataError) as error:
        make_own().prepare_data()
    first, second = sorted(error.value.faults, key=lambda fault: "missing" not in fault)
    assert f"{NAMES[0]}_t2.nii.gz: missing" in first
    assert f"{NAMES[3]}_seg.nii.gz: the file is empty" in second


def test_all_faults_of_voxels_at_once(make_own, root, write_nifti, tmp_path):
    bad = np.full((13, 17, 11), 3, np.uint8)
    for number, group in ((1, "HGG"), (4, "LGG")):
        write_nifti(root / group / NAMES[number] / f"{NAMES[number]}_seg.nii.gz", bad)
    with pytest.raises(DataError) as error:
        make_own().prepare_data()
    assert len(error.value.faults) == 2
    for number, fault in zip((1, 4), error.value.faults, strict=True):
        assert f"{NAMES[number]}_seg.nii.gz: holds label 3, but brats2018" in fault
    assert len(list((tmp_path / "cache" / "brats2018").iterdir())) == len(NAMES) - 2


def test_hyperparameters_are_plain_values(make, tmp_path):
    module = make(fold=2, num_folds=3, reports=None, augment=False)
    saved = dict(module.hparams)
    assert saved["fold"] == 2
    assert saved["patch_size"] == PATCH
    assert saved["augment"] is False
    torch.save(saved, tmp_path / "saved.pt")
    assert torch.load(tmp_path / "saved.pt", weights_only=True) == saved
    listed = {key: list(v) if isinstance(v, tuple) else v for key, v in saved.items()}
    again = BraTS2018DataModule(**yaml.safe_load(yaml.safe_dump(listed)))
    assert tuple(again.patch_size) == PATCH
    assert dict(again.hparams) == listed
    assert "release" not in saved  # the module stores it; Lightning refuses two that differ
    assert make(BraTSDataModule, release="brats2018").hparams["release"] == "brats2018"


def test_defaults_are_those_documented():
    module = BraTS2020DataModule("anywhere")
    assert module.patch_size == (128, 128, 128)
    assert (module.fold, module.num_folds, module.batch_size) == (0, 5, 1)
    assert module.spacing_mm == 1.0


def test_augmented_samples_from_a_pickle(make):
    module = ready(make())
    data = pickle.loads(pickle.dumps(module.train_set))
    assert isinstance(data.augment, Augmentation)
    torch.manual_seed(3)
    expected = module.train_set[0]
    torch.manual_seed(3)
    sample = data[0]
    for key in ("image", "label", "crop_box"):
        assert torch.equal(sample[key], expected[key])


def test_an_own_augmentation_of_samples_replaces_ours(make):
    module = ready(make())
    module.train_set.augment = lambda sample: {**sample, "report": "mine"}
    for batch in module.train_dataloader():
        assert batch["report"] == ["mine"]
        assert module.on_after_batch_transfer(batch, 0)["crop_box"].shape == (1, 2, 3)


@pytest.mark.parametrize("augment", [True, False])
def test_twins_and_others_share_a_batch(make, augment):
    """Some twins have left the range of the codes; read as codes, they would be wrong."""
    module = ready(make(augment=augment, text_twins=0.5, batch_size=4, crops_per_case=8))
    plain = ready(make(augment=False, crops_per_case=8)).train_set
    for batch in module.train_dataloader():
        assert batch["image"].dtype == torch.float16
        moved = module.transfer_batch_to_device(batch, torch.device("cpu"), 0)
        image = module.on_after_batch_transfer(moved, 0)["image"]
        limits = plain[0]["statistics"][:, :2].aminmax()
        assert image.min() > limits.min - 3
        assert image.max() < limits.max + 3


def test_augmented_batches_do_not_depend_on_workers_and_ranks(make):
    """A batch of two on one rank holds what two ranks have in batches of one."""

    def batches(workers, replicas, rank):
        module = ready(make(num_workers=workers, crops_per_case=4, batch_size=2 // replicas))
        loader = module.train_dataloader()
        loader.sampler.num_replicas, loader.sampler.rank = replicas, rank
        loader.sampler.num_samples = len(module.train_set) // replicas
        loader.sampler.total_size = loader.sampler.num_samples * replicas
        return [module.on_after_batch_transfer(batch, 0) for batch in loader]

    whole = batches(0, 1, 0)
    first, second = batches(2, 2, 0), batches(1, 2, 1)
    assert len(whole) == len(first) == len(second) > 2
    for batch, one, other in zip(whole, first, second, strict=True):
        assert batch["case_id"] == one["case_id"] + other["case_id"]
        for key in ("image", "label", "crop_box"):
            assert torch.equal(batch[key], torch.cat([one[key], other[key]]))


@pytest.mark.slow  # a new process imports the whole library
def test_loader_under_spawn(make):
    module = ready(make(crops_per_case=1))
    loader = torch.utils.data.DataLoader(
        module.train_set,
        num_workers=1,
        multiprocessing_context=multiprocessing.get_context("spawn"),
    )
    assert [batch["case_id"][0] for batch in loader] == ids(module.train_set)


def test_training_samples_may_become_twins_and_validation_never_does(make):
    plain, twins = (ready(make(text_twins=share, written_reports=share)) for share in (0.0, 1.0))
    own = {case.report for case in plain.train_set.cases}
    torch.manual_seed(1)
    assert {plain.train_set[index]["report"] for index in range(4)} <= own
    assert not {twins.train_set[index]["report"] for index in range(4)} & own
    assert twins.val_set[0]["report"] == plain.val_set[0]["report"]
    again = [twins.train_set[draw]["report"] for draw in [Draw(1, 5)] * 2]
    assert again[0] == again[1]


def test_reports_are_not_both_shuffled_and_written(make):
    with pytest.raises(ValueError, match="shuffle_reports with text_twins or written_reports"):
        make(shuffle_reports=True, written_reports=0.5)

"""Mirrors clipseg3d/data/release.py: records of any sequences, regions and file names."""

from itertools import product
from pathlib import Path

import numpy as np
import pytest
import yaml

from clipseg3d.data.release import BraTSRelease
from clipseg3d.data.releases import BRATS_2020, BRATS_2024_GLI, get_release, release_values
from clipseg3d.vocabulary import LABEL

STROKE = {
    "name": "stroke",
    "sequences": {"dwi": "{case}_dwi", "adc": "{case}_adc"},
    "regions": {"lesion": [1, 2], "core": [2]},
}


def record(**changes):
    return BraTSRelease.from_values({**STROKE, **changes}, source="stroke.yaml")


def test_a_yaml_file_of_your_own(tmp_path):
    path = tmp_path / "stroke.yaml"
    path.write_text(
        yaml.safe_dump({**STROKE, "prompts": {"lesion": "a bright lesion"}}, sort_keys=False)
    )
    release = get_release(path)
    assert get_release(str(path)) == release
    assert tuple(release.sequences) == ("dwi", "adc")
    assert release.regions == {"lesion": (1, 2), "core": (2,)}
    assert release.labels_out == {"lesion": 1, "core": 2}
    assert release.parse(Path("sub-1_dwi")) == ("sub-1", "dwi")
    assert release.parse(Path("sub-1_seg")) == ("sub-1", LABEL)
    assert release.patient("sub-1") == "sub-1"


def test_values_give_the_same_release():
    for release in (record(), BRATS_2020):
        assert BraTSRelease.from_values(release.to_values(), source="x") == release
    assert release_values(BRATS_2020) == "brats2020"
    assert get_release(release_values(record())) == record()
    assert get_release(record()) == record()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sequnces": {}}, "release.sequnces: no such setting; did you mean sequences?"),
        ({"regions": {}}, "has 0 regions; give 1 to 16"),
        ({"regions": {"lesion": []}}, r"region lesion has the labels \(\); give whole numbers"),
        ({"regions": {"lesion": 0}}, r"region lesion has the labels \(0,\)"),
        ({"regions": {"lesion": "one"}}, "lesion: 'one' are no labels"),
        ({"regions": ["lesion"]}, "give region: labels"),
        ({"sequences": {"dwi": "dwi"}}, "'dwi' of dwi does not hold {case} once; write it as"),
        ({"sequences": {"dwi": "{case}_x", "adc": "{case}_x"}}, "two files of a case share one"),
        ({"sequences": {"dwi": 3}}, "give name: text"),
        ({"sequences": {}}, "name at least one sequence"),
        ({"labels_out": {"lesion": 1}}, "regions and labels_out differ in core"),
        ({"labels_out": {"lesion": 1, "core": 1}}, "writes 1 for core, which is no label of it"),
        ({"case_pattern": r"sub-\d+"}, "no group called patient"),
        ({"case_pattern": "(?P<patient>"}, "is no regular expression"),
        ({"prompts": {"tumour": "x"}}, "prompts for tumour, which is no region"),
        ({"skull_stripped": "yes"}, "skull_stripped='yes' is no bool"),
    ],
)
def test_faults_name_the_file_and_the_cure(changes, message):
    with pytest.raises(ValueError, match=message) as error:
        record(**changes)
    assert str(error.value).startswith("stroke.yaml: not a release (")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n", "not a release"),
        ("a: [", "not valid YAML"),
        ("a: !!python/object/apply:os.system [ls]", "not valid YAML"),
        ("name: brats2020\n", "brats2020 is taken"),
        ("name: mine\n", "has no sequences, regions; add it"),
    ],
)
def test_files_that_are_no_release(tmp_path, text, message):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        get_release(path)
    assert str(error.value).startswith(f"{path}: ")
    with pytest.raises(FileNotFoundError, match=r"gone\.yaml: no such file"):
        get_release(tmp_path / "gone.yaml")


def test_patterns_may_name_folders_and_several_may_end_alike():
    release = record(
        sequences={"dwi": "{case}/dwi", "adc": "{case}/map_adc", "t1": "{case}_adc"},
        label="{case}/lesion_mask",
    )
    assert release.parse(Path("root/sub-1/dwi")) == ("sub-1", "dwi")
    assert release.parse(Path("root/sub-1/map_adc")) == ("sub-1", "adc")
    assert release.parse(Path("root/sub-1/x_adc")) == ("x", "t1")
    assert release.parse(Path("root/sub-1/lesion_mask")) == ("sub-1", LABEL)
    assert release.parse(Path("dwi")) is None
    assert release.file_name("sub-1", "dwi") == "dwi"
    assert release.file_name("sub-1", "t1") == "sub-1_adc"


@pytest.mark.parametrize(
    "regions",
    [
        {"a": (1, 2, 3), "b": (2, 3), "c": (3,)},  # nested
        {"a": (1, 2), "b": (2, 3)},  # overlapping
        {"a": (1,), "b": (2,), "c": (3, 5)},  # apart
        {"c": (3,), "a": (1, 2, 3), "b": (2, 3)},  # nested, the innermost first
        {f"r{n}": (n,) for n in range(1, 10)},  # nine
    ],
)
def test_labels_of_regions_come_back_however_regions_lie(regions):
    release = record(regions=regions, labels_out={})
    label = np.random.default_rng(0).choice(release.labels, (5, 6, 7)).astype(np.uint8)
    masks = release.to_regions(label)
    assert masks.shape == (len(regions), 5, 6, 7)
    for name, mask in zip(regions, masks, strict=True):
        np.testing.assert_array_equal(mask, np.isin(label, regions[name]))
    np.testing.assert_array_equal(release.to_regions(release.to_labels(masks)), masks)


def test_where_no_label_is_in_just_these_regions_the_last_to_be_written_wins():
    release = record(regions={"a": [1], "b": [2], "c": [3]}, labels_out={"b": 2, "c": 3, "a": 1})
    masks = np.array(list(product([False, True], repeat=3))).T.reshape(3, 8, 1, 1)
    assert release.to_labels(masks).ravel().tolist() == [0, 3, 2, 3, 1, 1, 1, 1]


def test_one_label_of_several_is_written():
    release = record(regions={"a": [3, 1, 2]}, labels_out={"a": 2})
    assert release.to_labels(np.ones((1, 1, 1, 1), bool)).item() == 2
    assert record(regions={"a": [3, 1, 2]}).labels_out == {"a": 3}


def test_inner_and_outer_regions():
    assert BRATS_2024_GLI.inner("WT") == ["WT", "TC", "ET"]
    assert BRATS_2024_GLI.outer("ET") == ["WT", "TC", "ET"]
    assert BRATS_2024_GLI.inner("RC") == BRATS_2024_GLI.outer("RC") == ["RC"]


def test_some_sequences_and_regions_in_another_order():
    release = BRATS_2024_GLI.select(sequences=["flair", "t1ce"], regions=["RC", "ET"])
    assert list(release.sequences) == ["flair", "t1ce"]
    assert release.labels == BRATS_2024_GLI.labels  # a mask may still hold the others
    label = np.arange(5, dtype=np.uint8)[:, None, None]
    masks = release.to_regions(label)
    assert masks[:, :, 0, 0].tolist() == [[False] * 4 + [True], [False] * 3 + [True, False]]
    assert release.to_labels(masks).ravel().tolist() == [0, 0, 0, 3, 4]
    assert BRATS_2020.select() is BRATS_2020
    with pytest.raises(ValueError, match="brats2020 has no region RC; choose from WT, TC, ET"):
        BRATS_2020.select(regions=["RC"])
    with pytest.raises(ValueError, match="brats2020 has no sequence adc; choose from t1, t1ce"):
        BRATS_2020.select(sequences=["adc"])

"""Mirrors clipseg3d/prepare/series_choice.py."""

from pathlib import Path

import pytest

from clipseg3d.prepare import Series, choose_sequences


def make(number, sequence, *, description="", alternatives=(), fault="", folder=None):
    return Series(
        files=(Path(folder or f"/scans/{number}", "0001"),),
        number=str(number),
        description=description or f"series of {sequence}",
        num_slices=24,
        slice_thickness_mm=5.0,
        echo_time_ms=12.0,
        repetition_time_ms=550.0,
        inversion_time_ms=None,
        contrast_agent=False,
        scanning_sequence=("SE",),
        sequence=sequence,
        alternatives=alternatives,
        reason="of this test",
        fault=fault,
    )


STUDY = [
    make(1, None, description="localizer"),
    make(2, "t1"),
    make(3, "t2"),
    make(4, "flair"),
    make(5, "t1ce", description="AX T1 POST"),
]


def numbers(series, **told):
    return {name: item.number for name, item in choose_sequences(series, told=told).items()}


def refused(series, **told):
    with pytest.raises(ValueError, match=r".") as error:
        choose_sequences(series, told=told)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_one_of_each_is_chosen_in_the_order_of_brats():
    chosen = numbers(STUDY[::-1])
    assert chosen == {"t1": "2", "t1ce": "5", "t2": "3", "flair": "4"}
    assert list(chosen) == ["t1", "t1ce", "t2", "flair"]


def test_missing_sequences_are_left_out():
    assert numbers(STUDY[:3]) == {"t1": "2", "t2": "3"}


def test_two_that_could_be_t1ce_are_listed_with_the_way_to_tell():
    message = refused([*STUDY, make(9, "t1ce", description="COR T1 POST")])
    assert "2 series could be T1ce" in message
    assert "5 'AX T1 POST'" in message
    assert "9 'COR T1 POST'" in message
    assert "24 slices of 5 mm" in message
    assert "--t1ce 5" in message


@pytest.mark.parametrize("value", ["9", "COR T1 POST", "cor  t1 post"])
def test_what_is_told_settles_it(value):
    study = [*STUDY, make(9, "t1ce", description="COR T1 POST")]
    assert numbers(study, t1ce=value)["t1ce"] == "9"


def test_a_folder_tells_its_series(tmp_path):
    (tmp_path / "cor").mkdir()
    study = [*STUDY, make(9, "t1ce", folder=tmp_path / "cor")]
    assert numbers(study, t1ce=str(tmp_path / "cor"))["t1ce"] == "9"


def test_a_told_series_is_named_as_told():
    series = choose_sequences(STUDY, told={"t1ce": "1"})["t1ce"]
    assert (series.number, series.sequence, series.reason) == ("1", "t1ce", "as told by --t1ce")


def test_a_told_series_is_no_candidate_for_another_sequence():
    study = [make(2, "t1", description="AX T1"), make(7, "t1", description="AX T1 again")]
    assert "2 series could be T1:" in refused(study)
    assert numbers(study, t1ce="7") == {"t1": "2", "t1ce": "7"}


def test_a_doubtful_series_is_passed_over_where_another_is_sure():
    doubtful = make(7, "t1", alternatives=("t1ce",))
    assert numbers([*STUDY, doubtful])["t1"] == "2"


def test_a_doubtful_series_alone_is_asked_about():
    doubtful = make(7, "t1", alternatives=("t1ce",))
    message = refused([STUDY[1], doubtful])
    assert "1 series is perhaps T1ce: 7" in message
    assert "of this test" in message
    assert numbers([STUDY[1], doubtful], t1ce="7") == {"t1": "2", "t1ce": "7"}


def test_a_fault_is_told_only_where_there_is_no_sound_series():
    broken = make(7, "t1ce", fault="series 7: a slice is missing; copy it again")
    assert numbers([*STUDY, broken])["t1ce"] == "5"
    assert refused([*STUDY[:4], broken]) == broken.fault
    assert refused([*STUDY, broken], t1ce="7") == broken.fault


def test_what_is_told_must_fit_one_series():
    assert "choose from 1 'localizer'" in refused(STUDY, t1ce="17")
    twins = [make("5.1", "t1ce", description="T1 KM"), make("5.2", "t1ce", description="T1 KM")]
    message = refused(twins, t1ce="T1 KM")
    assert "--t1ce 'T1 KM' fits 2 series" in message
    assert "give the number" in message
    assert "are the same series" in refused(STUDY, t1="2", t1ce="2")
    assert "'adc' is no sequence" in refused(STUDY, adc="2")


def test_a_study_without_any_of_them_is_refused():
    message = refused(STUDY[:1])
    assert "none of 1 series is T1, T1ce, T2 or FLAIR: 1 'localizer'" in message

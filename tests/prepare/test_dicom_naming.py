"""Mirrors clipseg3d/prepare/series_naming.py. Descriptions are in the habits of several vendors."""

from dataclasses import replace
from pathlib import Path

import pytest

from clipseg3d.prepare.image_header import ImageHeader
from clipseg3d.prepare.series_naming import MIN_SLICES, name_sequence

SPIN_T1 = {"echo_time_ms": 12.0, "repetition_time_ms": 550.0, "scanning_sequence": ("SE",)}
MPRAGE = {
    "echo_time_ms": 2.9,
    "repetition_time_ms": 2200.0,
    "inversion_time_ms": 900.0,
    "scanning_sequence": ("GR", "IR"),
}
SPIN_T2 = {"echo_time_ms": 95.0, "repetition_time_ms": 4800.0, "scanning_sequence": ("SE",)}
FLAIR = {
    "echo_time_ms": 120.0,
    "repetition_time_ms": 9000.0,
    "inversion_time_ms": 2400.0,
    "scanning_sequence": ("SE", "IR"),
}
HEADER = ImageHeader(
    file=Path("0001"),
    patient="p",
    study="1",
    series="2",
    instance="3",
    modality="MR",
    secondary_capture=False,
    number=1,
    description="",
    protocol="",
    body_part="",
    image_type=("ORIGINAL", "PRIMARY"),
    contrast_agent=False,
    scanning_sequence=(),
    echo_time_ms=None,
    repetition_time_ms=None,
    inversion_time_ms=None,
    slice_thickness_mm=5.0,
    size=(256, 256, 1),
    pixel_spacing_mm=(1.0, 1.0),
    orientation=(1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
    positions=((0.0, 0.0, 0.0),),
    scalings=0,
    truncated=False,
)


def name(description, times=(), *, num_slices=24, **changes):
    header = replace(HEADER, description=description, **dict(times), **changes)
    return name_sequence(header, num_slices)


@pytest.mark.parametrize(
    ("description", "times", "expected"),
    [
        ("t1_mprage_sag_p2_iso", MPRAGE, "t1"),
        ("t1_mpr_tra", MPRAGE, "t1"),
        ("Ax T1", SPIN_T1, "t1"),
        ("AXT1 FSE", SPIN_T1, "t1"),
        ("Sag 3D BRAVO", {}, "t1"),
        ("sT1W_3D_TFE", {}, "t1"),
        ("T1 FLAIR AX", {**FLAIR, "echo_time_ms": 9.0, "inversion_time_ms": 860.0}, "t1"),
        ("Ax T1 w/o", SPIN_T1, "t1"),
        ("T1 AX PRE GD", SPIN_T1, "t1"),
        ("t1_tse_tra ohne KM", SPIN_T1, "t1"),
        ("T1 non-contrast", SPIN_T1, "t1"),
        ("T1 SIN CONTRASTE", SPIN_T1, "t1"),
        ("t1_mprage_sag_KM", MPRAGE, "t1ce"),
        ("AX T1 POST GD", SPIN_T1, "t1ce"),
        ("Ax 3D T1 BRAVO +C", {}, "t1ce"),
        ("T1 AX C+", SPIN_T1, "t1ce"),
        ("+C Ax T1 FSE", SPIN_T1, "t1ce"),
        ("T1W_3D_TFE_GADO", {}, "t1ce"),
        ("t1_se_tra_GD", SPIN_T1, "t1ce"),
        ("T1ce", {}, "t1ce"),
        ("T1c", {}, "t1ce"),
        ("T1Gd", {}, "t1ce"),
        ("t1_fl3d_tra nach KM", {}, "t1ce"),
        ("T1 3D mdc", {}, "t1ce"),
        ("SAG T1 ENHANCED", {}, "t1ce"),
        ("T1 APRÈS GADO", {}, "t1ce"),
        ("T1 CON CONTRASTE", {}, "t1ce"),
        ("T1 POSTERIOR FOSSA", SPIN_T1, "t1"),
        ("T1 POST OP", SPIN_T1, "t1"),
        ("T1 post surgery", SPIN_T1, "t1"),
        ("AX T1 WO CONTRAST", SPIN_T1, "t1"),
        ("T1 WO GAD", SPIN_T1, "t1"),
        ("T1 NON GAD", SPIN_T1, "t1"),
        ("T1 NON CE", SPIN_T1, "t1"),
        ("AX T1 -C", SPIN_T1, "t1"),
        ("AX T1 -GD", SPIN_T1, "t1"),
        ("T1 BEFORE CONTRAST", SPIN_T1, "t1"),
        ("T1 nach OP", SPIN_T1, "t1"),
        ("T1 mit Fettsaettigung", SPIN_T1, "t1"),
        ("PRE-OP T1 GD", SPIN_T1, "t1ce"),
        ("AX T1-GD", SPIN_T1, "t1ce"),
        ("t2_tse_tra_320_p2", SPIN_T2, "t2"),
        ("Ax T2 PROPELLER", SPIN_T2, "t2"),
        ("T2W_TSE_DRIVE", SPIN_T2, "t2"),
        ("AX PD/T2", SPIN_T2, "t2"),
        ("t2_space_sag", {"echo_time_ms": 410.0, "repetition_time_ms": 3200.0}, "t2"),
        ("t2_tse_tra_restore", SPIN_T2, "t2"),
        ("t2_tirm_tra_dark-fluid", FLAIR, "flair"),
        ("t2_space_dark-fluid_sag", FLAIR, "flair"),
        ("Ax T2 FLAIR", FLAIR, "flair"),
        ("CUBE FLAIR SAG", FLAIR, "flair"),
        ("FLAIR_longTR", FLAIR, "flair"),
        ("3D_VIEW_FLAIR", {}, "flair"),
        ("Ax FLAIR +C", FLAIR, "flair"),
        ("AX FLAIR", SPIN_T2, "flair"),
        ("", FLAIR, "flair"),
        ("", SPIN_T2, "t2"),
        ("HEAD", SPIN_T1, "t1"),
        ("AX T1 BRAIN AND SPINE", SPIN_T1, "t1"),
        ("", MPRAGE, "t1"),
    ],
)
def test_a_sequence_is_named(description, times, expected):
    sequence, alternatives, reason = name(description, times)
    assert (sequence, alternatives) == (expected, ()), reason
    assert reason


@pytest.mark.parametrize(
    ("description", "times"),
    [
        ("localizer", {}),
        ("3-plane loc", {}),
        ("AAHead_Scout", {}),
        ("Survey", {}),
        ("ep2d_diff_3scan_trace_p2", SPIN_T2),
        ("Ax DWI b1000", SPIN_T2),
        ("ADC (10^-6 mm2/s)", SPIN_T2),
        ("SWI_Images", {}),
        ("t2_fl2d_tra_hemo", {}),
        ("AX T2*", {}),
        ("T2 STAR", {}),
        ("ep2d_perf", {}),
        ("relCBV", {}),
        ("TOF_3D_multi-slab", {}),
        ("PHASE CONTRAST VENOGRAM", {}),
        ("csi_slaser", {}),
        ("ep2d_bold_rest", {}),
        ("pd_tse_tra", {"echo_time_ms": 15.0, "repetition_time_ms": 3000.0}),
        ("AX PD/T2", {"echo_time_ms": 15.0, "repetition_time_ms": 3000.0}),
        ("t2_stir_cor", SPIN_T2),
        ("t2_tirm_cor", {**FLAIR, "inversion_time_ms": 160.0}),
        ("T1 SUB", SPIN_T1),
        ("t2_tse_sag C SPINE", SPIN_T2),
        ("KNEE t2", SPIN_T2),
        ("field_mapping", {}),
        ("something", {}),
        ("", {}),
    ],
)
def test_other_series_are_none(description, times):
    sequence, alternatives, reason = name(description, times)
    assert (sequence, alternatives) == (None, ())
    assert reason


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"image_type": ("DERIVED", "SECONDARY", "MPR")}, "reformatted"),
        ({"image_type": ("DERIVED", "SECONDARY", "OTHER")}, "derived"),
        ({"image_type": ("ORIGINAL", "PRIMARY", "P", "ND")}, "phase"),
        ({"image_type": ("ORIGINAL", "PRIMARY", "PHASE MAP", "ND")}, "phase"),
        ({"image_type": ("ORIGINAL", "PRIMARY", "LOCALIZER")}, "localizer"),
        ({"image_type": ("DERIVED", "PRIMARY", "DIFFUSION", "ADC")}, "map"),
        ({"secondary_capture": True}, "secondary capture"),
        ({"modality": "CT"}, "CT, not MR"),
        ({"size": (256, 256, 3)}, "colour"),
        ({"body_part": "knee"}, "knee"),
        ({"num_slices": MIN_SLICES - 1}, "only 7 slices"),
    ],
)
def test_images_that_are_no_scans_say_what_they_are(changes, reason):
    sequence, _, why = name("AX T1 POST GD", SPIN_T1, **changes)
    assert sequence is None
    assert reason in why


def test_an_agent_in_the_header_makes_t1_a_t1ce():
    assert name("AX T1", SPIN_T1, contrast_agent=True)[:2] == ("t1ce", ())
    assert name("AX FLAIR", FLAIR, contrast_agent=True)[:2] == ("flair", ())
    assert name("", MPRAGE, contrast_agent=True)[:2] == ("t1ce", ())


def test_an_agent_against_the_words_is_in_doubt():
    assert name("AX T1 PRE", SPIN_T1, contrast_agent=True)[:2] == ("t1", ("t1ce",))


@pytest.mark.parametrize(
    ("description", "times", "other"),
    [
        ("AX T2", SPIN_T1, "t1"),
        ("AX T1", SPIN_T2, "t2"),
        ("AX T2", FLAIR, "flair"),
        ("FLAIR", {**FLAIR, "echo_time_ms": 9.0, "inversion_time_ms": 860.0}, "t1"),
    ],
)
def test_times_against_the_words_are_in_doubt(description, times, other):
    sequence, alternatives, reason = name(description, times)
    assert sequence == description.split()[-1].lower()
    assert alternatives == (other,)
    assert "but" in reason


def test_the_protocol_speaks_where_the_description_does_not():
    assert name("AXIAL", protocol="t1_se_tra_KM")[0] == "t1ce"
    # the protocol of a whole examination is not that of a series
    assert name("AX T1", SPIN_T1, protocol="BRAIN WITH CONTRAST")[0] == "t1"
    sequence, alternatives, reason = name("AX 3D BRAIN", SPIN_T1, protocol="BRAIN W CONTRAST")
    assert (sequence, alternatives) == ("t1ce", ("t1",))
    assert "perhaps of the whole examination" in reason


def test_w_and_wo_says_nothing():
    assert name("AX T1 W/WO", SPIN_T1)[0] == "t1"
    assert name("AX T1 W/WO", SPIN_T1, contrast_agent=True)[:2] == ("t1ce", ())

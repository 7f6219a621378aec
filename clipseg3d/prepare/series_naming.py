"""Which MRI sequence a series is, by the words and the numbers of its header."""

import re

from clipseg3d.prepare.image_header import ImageHeader

_PLANES = (
    r"(?<![a-z0-9])"
    r"(?:ax|axial|sag|sagittal|cor|coronal|tra|trans|3d|2d|s|e|vol|wip|iso|se|tse|fse)*"
)
"""What scanners put before T1 or T2 without a space; no other letters, as in POST1."""
_T1 = re.compile(_PLANES + r"t1(?!\d)|mp ?rage|bravo|spgr|tfl3d")
_T2 = re.compile(_PLANES + r"t2(?!\d)")
_FLAIR = re.compile(r"flair|dark ?fluid|\btirm|spcir|\btir2d")
_OTHER_KINDS = {
    "a localizer": (
        r"locali[sz]er|scout|survey|\bloc\b|3 ?plane|three ?plane|smart ?brain|\bpilot"
    ),
    "a diffusion image": r"dwi|\bdti|diff|\badc|trace|ep2d|tensor|\bfa\b|b ?1000",
    "an image of susceptibility": (
        r"swi\b|\bswi|swan|venbold|t2 ?star|t2 ?w? ?\*|hemo|\bt2 gre|t2 fl2d"
    ),
    "a perfusion image": (r"perf|\bdsc|\bdce|\bpwi|\bp?c?asl\b|cb[fv]\b|\bmtt|\bttp|tmax|k ?trans"),
    "an angiography": r"\btof|\bmr[av]\b|angio|venogra|phase contrast",
    "a spectroscopy": r"\bmrs\b|\bcsi\b|\bsvs|spectro",
    "a functional image": r"fmri|\bbold|\brest\b|resting",
    "a STIR or DIR image": r"\bstir|\bdir\b|double inversion",
    "a CISS or FIESTA image": r"\bciss|fiesta",
    "a calibration": r"calib|field ?map|b0 ?map|coil ?sens|sense ?ref|ref ?scan",
    "a report": r"phoenix|exam ?card|screen ?save|\breport|summary",
    "a subtraction": r"\bsub\b|subtract",
    "a map": r"t[12] ?map|\bquant|synthetic",
    "a reformatted image": r"reformat|mpr range|\bmip\b|min ?ip",
}
"""Reason -> words of series that are none of the four sequences."""
_PROTON_DENSITY = re.compile(r"\bpd ?w?\b|proton")
_OTHER_BODY_PARTS = re.compile(
    r"knee|spine|spinal|lumbar|cervical|abdom|pelvis|chest|thorax|breast|heart|cardiac|shoulder"
    r"|\bhip\b|ankle|\bfoot|\bhand\b|wrist|elbow|prostate|liver"
)
_HEAD = re.compile(r"head|brain|skull|cereb|cran")
_BEFORE_AND_AFTER = re.compile(r"with and without|pre (and )?post|with without")
_NO_THERAPY = (
    r"\b(?! ?(op|rt|surg|resec|resek|radi|bestr|biops|treat|therap|chemo|chir|trauma|stroke))"
)
"""After words such as *pre* and *post*: not of an operation or therapy."""
_WITHOUT_CONTRAST = re.compile(
    rf"\b(pre|avant|vor|before){_NO_THERAPY}|precon|nativ|\bohne\b|without|\bwo\b"
    r"|\bnon ?(contrast|enh|gd|gad|ce\b|c\b)|noncon|unenhanced|\bsans\b|\bsenza\b|\bsin\b"
    r"|\bplain\b|\bno (contrast|gd|gad|km|ce\b)"
)
_WITH_CONTRAST = re.compile(
    rf"\+ ?c\b|\bc ?\+|\+ ?gd|\bgd|\bgad|\b(post|apres|nach){_NO_THERAPY}|\bkm\b|contrast|kontrast"
    rf"|\bmdc\b|\bce\b|\benh|t1 ?w?i? ?(ce?|gd\w*|gad\w*|post{_NO_THERAPY}|km|\+)(?![a-z])"
    r"|dotarem|\binj"
)
_PHASE_COMPONENTS = {"P", "PHASE", "PHASE MAP", "VELOCITY", "R", "REAL", "I", "IMAGINARY"}
_REFORMATTED = {"MPR", "REFORMATTED", "PROJECTION IMAGE", "MIP", "MINIP", "MNIP", "RESAMPLED"}
_MAPS = {"ADC", "SUBTRACTION", "T1 MAP", "T2 MAP", "MEAN", "STDEV", "DIFFUSION", "TRACEW", "FA"}
MIN_SLICES = 8
"""Fewer slices do not cover a brain."""
_LONG_TE_MS = 60.0
_SHORT_TE_MS = 45.0
_LONG_TR_MS = 2000.0
_GRADIENT_TE_MS = 10.0
"""Gradient echoes are T1 weighted below it."""
_FAT_TI_MS = 300.0
"""Inversion times at which fat is dark are below it."""
_FLUID_TI_MS = (1400.0, 3500.0)
"""Inversion times at which fluid is dark."""


def name_sequence(header: ImageHeader, num_slices: int) -> tuple[str | None, tuple[str, ...], str]:
    """Tell which of t1, t1ce, t2 and flair a series is.

    Words come first: the description, or the protocol where that says nothing. Echo, repetition
    and inversion time check them, and speak alone where there are none.

    Args:
        header: of one of its images.
        num_slices: number of slices.

    Returns:
        The likeliest sequence, or None for anything else; other sequences that it could be; why.
    """
    if (reason := _unfit(header, num_slices)) is not None:
        return None, (), reason
    words = normalise_words(header.description)
    weighting = _weighting(words)
    source = "by its description"
    protocol = ""
    if weighting is None:
        protocol = normalise_words(header.protocol)
        weighting = _weighting(f"{words} {protocol}")
        source = "by its protocol"
        if weighting is not None:
            words, protocol = f"{words} {protocol}", ""
    measured = _measured_weighting(header)
    if weighting is None:
        weighting, source = measured, "by its echo and repetition time alone"
    if weighting is None:
        return None, (), "neither its words nor its times are those of T1, T1ce, T2 or FLAIR"
    if weighting == "t1":
        name, alternatives, why = _contrast(words, protocol, header)
        source = f"{source}; {why}"
    else:
        name, alternatives = weighting, ()
    # Without an inversion time, a FLAIR has the times of a T2.
    if measured not in (None, weighting) and (weighting, measured) != ("flair", "t2"):
        source = f"{source}, but its times are those of {measured}"
        alternatives = (*alternatives, measured)
    return name, alternatives, source


def _unfit(header: ImageHeader, num_slices: int) -> str | None:
    """Return what a series is that is no scan of these sequences; None if it may be one."""
    if header.secondary_capture:
        return "a secondary capture, a picture of a screen"
    if header.modality != "MR":
        return f"{header.modality or 'an unknown modality'}, not MR"
    if header.size[2] != 1:
        return "a colour image"
    kinds = set(header.image_type)
    if "LOCALIZER" in kinds:
        return "a localizer"
    if "MOSAIC" in kinds:
        return "a functional or diffusion image, a mosaic of slices"
    if kinds & _PHASE_COMPONENTS:
        return "a phase image or a component of one"
    if kinds & _REFORMATTED:
        return "a reformatted image (MPR, projection)"
    if kinds & _MAPS or any(kind.startswith(("CSA", "T1_MAP", "T2_MAP")) for kind in kinds):
        return "a derived map"
    if header.image_type[:2] == ("DERIVED", "SECONDARY"):
        return "a derived image, not one of the scanner's own"
    words = normalise_words(header.description)
    for reason, pattern in _OTHER_KINDS.items():
        if re.search(pattern, words):
            return reason
    echo, inversion = header.echo_time_ms, header.inversion_time_ms
    if _PROTON_DENSITY.search(words) and (echo is None or echo < _LONG_TE_MS):
        return "an image of proton density"
    if inversion is not None and inversion < _FAT_TI_MS:
        return "a STIR image, by its inversion time"
    place = f"{header.body_part} {words}"
    if (part := _OTHER_BODY_PARTS.search(place)) and not _HEAD.search(place):
        return f"of another part of the body ({part.group().strip()})"
    if num_slices < MIN_SLICES:
        return f"only {num_slices} slice{'s' * (num_slices != 1)}, as localizers have"
    return None


def _weighting(words: str) -> str | None:
    """Return t1, t2 or flair by words; None if there are none, or if they contradict."""
    t1, t2 = _T1.search(words) is not None, _T2.search(words) is not None
    fluid = _FLAIR.search(words) is not None
    if t1 and t2:
        return None
    if t1:  # also of T1 FLAIR
        return "t1"
    if fluid:
        return "flair"
    return "t2" if t2 else None


def _measured_weighting(header: ImageHeader) -> str | None:
    """Return t1, t2 or flair by times; None where they do not tell."""
    echo, repetition = header.echo_time_ms, header.repetition_time_ms
    inversion = header.inversion_time_ms
    if echo is None or repetition is None or "EP" in header.scanning_sequence:
        return None
    long_echo = echo >= _LONG_TE_MS and repetition >= _LONG_TR_MS
    if inversion is not None and _FLUID_TI_MS[0] <= inversion <= _FLUID_TI_MS[1] and long_echo:
        return "flair"
    if long_echo and inversion is None and "GR" not in header.scanning_sequence:
        return "t2"
    short = repetition < _LONG_TR_MS or (inversion is not None and inversion < _FLUID_TI_MS[0])
    longest = _GRADIENT_TE_MS if "GR" in header.scanning_sequence else _SHORT_TE_MS
    return "t1" if echo <= longest and short else None


def _contrast(words: str, protocol: str, header: ImageHeader) -> tuple[str, tuple[str, ...], str]:
    """Tell whether a T1 is with contrast agent.

    Args:
        words: that tell of this series.
        protocol: that may tell of the whole examination; what they say is in doubt.
        header: of one of its images.
    """
    without, told = find_contrast(words)
    if without and header.contrast_agent:
        return "t1", ("t1ce",), f"its words say {without!r}, its header a contrast agent"
    if told:
        return "t1ce", (), f"{told!r} says contrast agent"
    if header.contrast_agent:
        return "t1ce", (), "its header names a contrast agent"
    _, told = find_contrast(protocol)
    if told and not without:
        why = f"{told!r} says contrast agent, perhaps of the whole examination"
        return "t1ce", ("t1",), why
    return "t1", (), "no contrast agent is named"


def find_contrast(words: str) -> tuple[str, str]:
    """Return the words that say that there is no contrast agent, or else those that there is.

    Args:
        words: of :func:`normalise_words`.

    Returns:
        Two texts, of which one at most is not empty.
    """
    words = _BEFORE_AND_AFTER.sub(" ", words)
    if (without := _WITHOUT_CONTRAST.search(words)) is not None:
        return without.group().strip(), ""
    told = _WITH_CONTRAST.search(words)
    return "", told.group().strip() if told else ""


def normalise_words(text: str) -> str:
    """Return words in lower case, with one space between them; + and * stay."""
    text = text.lower().replace("è", "e").replace("é", "e")
    text = re.sub(r"\bw/?(?:&|and)?[ /]?w/?o\b", " with and without ", text)
    text = re.sub(r"(?:^|\s)-(?:c|ce|gd|gad|km)\b", " without ", text)
    text = re.sub(r"\bw/o\b|\bs/c\b|\bc-(?!\w)", " without ", text)
    text = re.sub(r"\bc/c\b", " with contrast ", text)
    return " ".join(re.sub(r"[^a-z0-9+*äöüß]+", " ", text).split())

"""Mirrors clipseg3d/reporting/case_page.py. Sizes differ pairwise, so a swapped axis fails.

What the script of the page does is tested in test_case_page_js.py.
"""

import base64
import errno
import hashlib
import json
import re
import resource
import zlib
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from clipseg3d.reporting.figures import REGION_COLOURS, shared_scale
from clipseg3d.reporting.packing import grey_levels, map_levels, view_png
from clipseg3d.vocabulary import PLANES

SHAPE = X, Y, Z = 24, 30, 18
EVIL = (
    "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>"
    '" onload="window.hacked = 3" {{ 7 * 7 }} &lt; \u2028\u2029 ${1} ` \'née\' 脳'
)


class Page(HTMLParser):
    """A case page, read as a browser reads it, without running its script.

    Attributes:
        text: the file.
        elements: (tag, attributes, text up to the next tag), in order.
        rows: cells of the table, row by row.
    """

    def __init__(self, path):
        super().__init__()
        self.text = path.read_text(encoding="utf-8")
        self.elements, self.rows = [], []
        self.is_open = self.in_table = False
        self.feed(self.text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs), []))
        self.is_open = True
        if tag == "table":
            self.in_table = True
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("th", "td", "small") and self.in_table:
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        self.is_open = False
        if tag == "table":
            self.in_table = False

    def handle_data(self, data):
        if self.is_open:
            self.elements[-1][2].append(data)
        if self.in_table and self.rows and self.rows[-1]:
            self.rows[-1][-1] = " ".join(f"{self.rows[-1][-1]} {data}".split())

    def find(self, tag, **attributes):
        """Return (attributes, text) of all elements with a tag and with these attributes."""
        return [
            (result, "".join(text))
            for name, result, text in self.elements
            if name == tag and attributes.items() <= result.items()
        ]

    def data(self):
        """Return what the script is given."""
        ((_, text),) = self.find("script", id="data")
        return json.loads(text)

    def volume(self, name):
        """Return a volume that the page holds, (x, y, z)."""
        ((_, text),) = self.find("script", id=name)
        stored = np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8)
        stored = stored.reshape(SHAPE[::-1]).transpose(2, 1, 0)
        return np.cumsum(stored, axis=0, dtype=np.uint8)


@pytest.fixture
def written(make, tmp_path):
    """Write a case page and read it."""

    def save_and_read(**changes):
        make(**changes).save(tmp_path / "case.html")
        return Page(tmp_path / "case.html")

    return save_and_read


def test_numbers_are_those_counted_by_hand(written):
    # Voxels of 4.5 mm3. WT: 144 + 8 against 144, 72 in both; ET: 4 against 4, none in both.
    assert written().rows == [
        ["Region", "Dice", "Volume, ml", "Lesions"],
        ["WT whole tumour", f"{2 * 72 / 296:.3f}", "0.68", "0.65", "2", "1"],
        ["TC tumour core", "1.000", "0.14", "0.14", "1", "1"],
        ["ET enhancing tumour", "0.000", "0.02", "0.02", "1", "1"],
    ]


def test_prompts_have_a_box_each_a_score_and_a_volume(make, written):
    rng = np.random.default_rng(0)
    masks = [rng.random(SHAPE) > 0.9 for _ in range(9)] + [np.zeros(SHAPE, bool)]
    prompts = [(f"prompt <{n}>", mask, n / 10) for n, mask in enumerate(masks)]
    page = written(prompts=prompts, reference=None)
    for n, mask in enumerate(masks):
        bits = page.volume(f"prompts-{n // 8}")
        np.testing.assert_array_equal(bits >> n % 8 & 1, mask)
        ((box, _),) = page.find("input", id=f"prompt-{n}")
        assert ("checked" in box) == mask.any()
        assert ("disabled" in box) == (not mask.any())
    assert [text for _, text in page.find("bdi")][1:] == [text for text, *_ in prompts]
    scores = [text for _, text in page.find("small") if "presence" in text]
    volume = masks[3].sum() * 4.5 / 1000
    assert scores[3] == f"{volume:.2f} ml, presence 0.30"
    assert [text for _, text in page.find("strong")] == ["not found"]
    colours = page.data()["prompts"]
    assert len(colours) == 10
    assert not set(colours) & set(REGION_COLOURS.values())
    plain = written(reference=None)
    assert plain.data()["prompts"] == []
    assert not plain.find("fieldset", id="prompts")


def test_presence_of_regions_is_a_column(written):
    rows = written(presence={"WT": 0.995, "ET": 0.031}, reference=None).rows
    assert [row[-1] for row in rows] == ["Presence", "0.99", "", "0.03"]


def test_without_a_reference_there_is_nothing_to_compare(written):
    page = written(reference=None)
    assert page.rows[:2] == [["Region", "Volume, ml", "Lesions"], ["WT whole tumour", "0.68", "2"]]
    assert not page.find("input", id="show-reference")


def test_two_empty_masks_agree(written):
    empty = np.zeros((3, *SHAPE), bool)
    page = written(prediction=empty, reference=empty)
    assert page.rows[1] == ["WT whole tumour", "1.000", "not found", "0.00", "0", "0"]
    assert "No tumour was segmented." in page.text


def test_a_region_that_is_not_found_is_said_so_and_has_nothing_to_tick(make, written):
    found = make().prediction.copy()
    found[2] = False
    page = written(prediction=found, reference=None, presence={"ET": 0.2})
    assert page.rows[1:] == [
        ["WT whole tumour", "0.68", "2", ""],
        ["TC tumour core", "0.14", "1", ""],
        ["ET enhancing tumour", "not found", "0", "0.20"],
    ]
    boxes = {name: page.find("input", id=f"show-{name}")[0][0] for name in REGION_COLOURS}
    assert [name for name, box in boxes.items() if "disabled" in box] == ["ET"]
    assert [name for name, box in boxes.items() if "checked" in box] == ["WT", "TC"]
    # The reference has some, whose outline can be shown or not.
    ((box, _),) = written(prediction=found).find("input", id="show-ET")
    assert "disabled" not in box
    assert "checked" in box


def test_one_legend_explains_every_colour_once(make, written):
    rim = make().prediction[2]
    page = written(prompts=[("rim", rim, 0.9), ("cavity", ~rim & rim, 0.1)])
    strokes = [attributes["stroke"] for attributes, _ in page.find("line")]
    colours = [*REGION_COLOURS.values(), "currentColor", *page.data()["prompts"]]
    assert strokes == colours
    assert len(set(colours)) == 6
    boxes = [a["id"] for a, _ in page.find("input", type="checkbox")]
    assert boxes == [
        *(f"show-{name}" for name in (*REGION_COLOURS, "reference")),
        "prompt-0",
        "prompt-1",
        "crosshair",
    ]


def test_every_picture_is_described_in_words(written):
    page = written()
    pictures = page.find("canvas", **{"class": "picture", "role": "img"})
    labels = [attributes["aria-label"] for attributes, _ in pictures]
    assert len(labels) == 4 * 3 + 6
    assert labels[:5] == ["T1, axial", "T1ce, axial", "T2, axial", "FLAIR, axial", "T1, coronal"]
    assert labels[12] == "Semantic attention TC, axial"
    assert all(plane in a["alt"] for plane, (a, _) in zip(PLANES, page.find("img"), strict=True))


def test_text_and_lines_stand_out_from_their_ground(written):
    """Contrast as of WCAG 2.2, 1.4.3 and 1.4.11."""
    page = written(prompts=[(f"{n}", np.ones(SHAPE, bool), 0.5) for n in range(6)])
    ((_, style),) = page.find("style")
    rules = re.findall(r":root \{[^}]*", style)
    themes = [dict(re.findall(r"--(\w+): (#\w+)", rule)) for rule in rules]

    def luminance(colour):
        stored = np.array(to_rgb(colour))
        linear = np.where(stored <= 0.04045, stored / 12.92, ((stored + 0.055) / 1.055) ** 2.4)
        return linear @ (0.2126, 0.7152, 0.0722)

    def contrast(one, other):
        dark, light = sorted(map(luminance, (one, other)))
        return (light + 0.05) / (dark + 0.05)

    assert contrast("#000", "#fff") == pytest.approx(21)
    screen, paper = themes[0], themes[0] | themes[1]
    for theme in (screen, paper):
        for ground in ("paper", "panel"):
            assert contrast(theme["ink"], theme[ground]) > 7
            assert contrast(theme["faint"], theme[ground]) > 4.5
    for colour in (*REGION_COLOURS.values(), *page.data()["prompts"], screen["accent"]):
        assert contrast(colour, screen["panel"]) > 3


def test_the_file_is_one_and_names_no_address(make, tmp_path):
    make().save(tmp_path / "new" / "case.HTML")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["case.HTML"]
    page = (tmp_path / "new" / "case.HTML").read_text(encoding="utf-8")
    assert "http://" not in page
    assert "https://" not in page
    assert set(re.findall(r'(?:src|href)="(.{5})', page)) == {"data:", "#maps", "#view", "#prov"}


def test_the_page_holds_scans_maps_and_regions(make, written):
    case, page = make(), written()
    brain = case.images["t1"] != 0
    for name, image in case.images.items():
        np.testing.assert_array_equal(page.volume(f"image-{name}"), grey_levels(image))
    groups = (case.attention, case.similarity, *({"": m} for m in case.uncertainty.values()))
    maps = [
        map_levels(values, shared_scale(v[brain] for v in group.values()), brain=brain)
        for group in groups
        for values in group.values()
    ]
    for number, levels in enumerate(maps):
        np.testing.assert_array_equal(page.volume(f"map-{number}"), levels)
    assert len(page.find("script", type="application/octet-stream")) == 4 + 6 + 1
    bits = page.volume("regions-0")
    for number, mask in enumerate([*case.prediction, *case.reference]):
        np.testing.assert_array_equal(bits & 1 << number > 0, mask)
    assert bits.max() < 64
    pictures = [attributes["src"] for attributes, _ in page.find("img")]
    assert pictures == [view_png(name, view) for name, view in case.views]


def test_the_script_is_given_names_sizes_and_colours(written):
    data = written().data()
    assert data["shape"] == [*SHAPE]
    assert data["spacing"] == [1.0, 1.5, 3.0]
    assert data["sequences"] == [["t1", "T1"], ["t1ce", "T1ce"], ["t2", "T2"], ["flair", "FLAIR"]]
    assert data["regions"] == [[name, colour] for name, colour in REGION_COLOURS.items()]
    assert [(entry["title"], entry["region"]) for entry in data["maps"]] == [
        ("Semantic attention TC", "TC"),
        ("Semantic attention ET", "ET"),
        ("Text-voxel similarity TC", "TC"),
        ("Text-voxel similarity ET", "ET"),
        ("Uncertainty: entropy", ""),
        ("Uncertainty: ensemble variance", ""),
    ]
    attention, entropy = data["maps"][0], data["maps"][4]
    assert attention["low"] == -attention["high"] == pytest.approx(-2.876, abs=1e-3)
    assert (entropy["low"], entropy["id"]) == (0, "map-4")
    assert len(attention["colours"]) == len(entropy["colours"]) == 255
    low, middle, high = (np.array(to_rgb(attention["colours"][n])) for n in (0, 127, 254))
    assert low[2] - low[0] > 0.3  # blue
    assert high[0] - high[2] > 0.3  # orange
    assert middle.max() < 0.1
    assert max(to_rgb(entropy["colours"][0])) < 0.1


def test_maps_are_drawn_over_t1ce_or_the_first_sequence(make, written):
    maps = [a for a, _ in written().find("canvas", **{"class": "picture"}) if "data-map" in a]
    assert [entry["data-sequence"] for entry in maps] == ["t1ce"] * 6
    images = make().images
    page = written(images={"t2": images["t2"], "flair": images["flair"]})
    maps = [a for a, _ in page.find("canvas", **{"class": "picture"}) if "data-map" in a]
    assert [entry["data-sequence"] for entry in maps] == ["t2"] * 6


def button(slices, volume):
    label = f"Go to the lesion of {volume}"
    return {"type": "button", "data-slices": slices, "aria-label": label}


def test_it_begins_in_the_largest_lesion_and_leads_to_the_others(make, written):
    prediction = make().prediction.copy()
    prediction[0, 15:17, 20:23, 12:16] = True  # 24 voxels of 4.5 mm3 instead of 8
    page = written(prediction=prediction)
    assert page.data()["start"] == [6, 7, 6]
    assert page.find("button") == [
        (button("6 7 6", "0.65 ml"), "0.65 ml"),
        (button("15 20 12", "0.11 ml"), "0.11 ml"),
    ]
    assert "under 0.1 ml" not in page.text


def test_small_lesions_are_one_line(written):
    prediction = np.zeros((3, *SHAPE), bool)
    prediction[0, ::4, ::10, 5] = True  # 6 x 3 of 0.0045 ml
    prediction[0, 1:4, 2:8, 10:12] = True  # 36 voxels
    prediction[0, 9:20, 4:6, 10] = True  # 22, 0.099 ml
    page = written(prediction=prediction)
    assert page.rows[1][4] == "20"
    assert [text for _, text in page.find("button")] == ["0.16 ml"]
    assert " and 19 under 0.1 ml" in page.text
    prediction[0, :, :, 10:] = False
    page = written(prediction=prediction)
    assert [text for _, text in page.find("button")] == ["0.00 ml"]  # the largest is always there
    assert " and 17 under 0.1 ml" in page.text


def test_without_a_prediction_it_begins_in_the_reference(written):
    assert written(prediction=np.zeros((3, *SHAPE), bool)).data()["start"] == [6, 7, 8]


def test_text_of_a_case_is_never_markup(written):
    page = written(
        case_id=EVIL,
        text=EVIL,
        provenance={EVIL: EVIL},
        uncertainty={EVIL: np.ones(SHAPE)},
        views=[(f"axial {EVIL}", np.full((20, 20, 3), 99, np.uint8))],
        prompts=[(EVIL, np.ones(SHAPE, bool), 0.5)],
    )
    for tag, times in (("bdi", 2), ("blockquote", 1), ("dt", 1), ("dd", 1)):
        assert [text for _, text in page.find(tag)] == [EVIL] * times
    assert page.find("title")[0][1] == f"{EVIL} · clipseg3d"
    assert page.data()["maps"][4]["title"] == f"Uncertainty: {EVIL}"
    assert len([a for a, _ in page.find("script") if "type" not in a]) == 1
    assert len(page.find("img")) == 1
    assert not [a for _, a, _ in page.elements for name in a if name.startswith("on")]


def test_the_policy_allows_the_pages_own_style_and_script_and_no_other(written):
    page = written()
    ((policy, _),) = page.find("meta", **{"http-equiv": "Content-Security-Policy"})
    rules = dict(rule.split(" ", 1) for rule in policy["content"].split("; "))
    ((_, style),) = page.find("style")
    (script,) = [text for attributes, text in page.find("script") if "type" not in attributes]
    for name, text in (("style-src", style), ("script-src", script)):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert rules.pop(name) == f"'sha256-{digest}'"
        assert len(text) > 1000
    nothing = {"default-src", "base-uri", "form-action"}
    assert rules == {**dict.fromkeys(nothing, "'none'"), "img-src": "data:"}


def test_what_is_not_there_is_left_out(written):
    page = written(attention={}, similarity={}, uncertainty={}, views=(), text="", provenance={})
    assert not page.find("section", id="maps")
    assert not page.find("section", id="views")
    assert not page.find("select", id="map")
    assert "None was given." in page.text
    assert "Not recorded." in page.text
    assert page.data()["maps"] == []


def test_file_names_that_are_no_text_are_shown_as_escapes(make, tmp_path):
    make(case_id="patient_\udcff", provenance={"file": "a\udcff"}).save(tmp_path / "case.html")
    page = (tmp_path / "case.html").read_text(encoding="utf-8")
    assert "patient_\\udcff" in page
    assert "a\\udcff" in page


def test_arrays_given_are_left_as_they_are(make, tmp_path):
    page = make()
    arrays = (page.prediction, page.images["t2"], page.attention["ET"])
    before = [array.copy() for array in arrays]
    for array in arrays:
        array.flags.writeable = False
    page.save(tmp_path / "case.html")
    for array, old in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(array, old)


def test_a_full_disk_leaves_the_old_file_and_nothing_else(make, tmp_path):
    path = tmp_path / "case.html"
    path.write_text("old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    page = make()
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, limits[1]))  # a page is larger
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            page.save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.errno == errno.EFBIG
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["case.html"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": {}}, "Case_001: images is empty; pass at least one"),
        ({"images": {"t1": np.ones((4, 5))}}, r"has shape \(4, 5\); pass \(x, y, z\)"),
        ({"images": {"t1": np.ones((4, 0, 5))}}, r"has shape \(4, 0, 5\); pass"),
        (
            {"images": {"t1": np.ones(SHAPE), "t2": np.ones((X, Y, 3))}},
            r"images\['t2'\] has shape \(24, 30, 3\), the first image \(24, 30, 18\)",
        ),
        ({"images": {"t1": np.full(SHAPE, np.nan)}}, r"images\['t1'\] holds 12960 NaN"),
        ({"spacing_mm": (1.0, 0.0, 1.0)}, r"spacing_mm=\(1.0, 0.0, 1.0\); pass three positive"),
        ({"spacing_mm": (1.0, float("nan"), 1.0)}, "pass three positive"),
        ({"spacing_mm": (1.0, 1.0)}, "pass three positive"),
        ({"prediction": np.zeros((2, *SHAPE), bool)}, r"prediction is bool of shape \(2, .*WT"),
        ({"prediction": np.zeros((3, *SHAPE), np.uint8)}, "prediction is uint8 .*; pass bool"),
        ({"reference": np.zeros((3, X, Z, Y), bool)}, r"reference .* as \(3, 24, 30, 18\)"),
        ({"attention": {"NET": np.ones(SHAPE)}}, r"attention has \['NET'\]; choose from"),
        ({"attention": {"ET": np.full(SHAPE, np.inf)}}, r"attention\['ET'\] holds 12960 NaN or"),
        ({"similarity": {"ET": np.full(SHAPE, -1.5)}}, r"similarity\['ET'\] reaches 1.5; pass cos"),
        ({"similarity": {"et": np.ones(SHAPE)}}, r"similarity has \['et'\]"),
        ({"uncertainty": {"entropy": np.ones((3, *SHAPE))}}, r"uncertainty\['entropy'\] has shape"),
        ({"views": [("oblique", np.zeros((9, 9, 3), np.uint8))]}, "views has 'oblique'; begin"),
        ({"views": [("axial", np.zeros((9, 9, 2), np.uint8))]}, r"uint8 .*\(9, 9, 2\); pass uint8"),
        ({"views": [("axial", np.zeros((9, 9, 3)))]}, "view 'axial' is float64"),
        ({"prompts": [("rim", np.zeros(SHAPE), 0.5)]}, "the mask of prompt 'rim' is float64 of"),
        ({"prompts": [("rim", np.zeros((X, Z, Y), bool), 0.5)]}, r"shape \(24, 18, 30\); pass a"),
        ({"prompts": [("rim", np.zeros(SHAPE, bool), 1.5)]}, "presence of 'rim' is 1.5; pass a sh"),
        ({"presence": {"WT": float("nan")}}, "presence of 'WT' is nan; pass a share"),
        ({"presence": {"NET": 0.5}}, r"presence has \['NET'\]; choose from"),
    ],
)
def test_what_does_not_fit_is_named_with_its_cure(make, changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        make(**changes)
    assert str(caught.value).startswith("Case_001: ")
    assert "\n" not in str(caught.value)


def test_another_ending_is_refused(make, tmp_path):
    with pytest.raises(ValueError, match=r"case\.pdf does not end in \.html"):
        make().save(tmp_path / "case.pdf")
    assert list(tmp_path.iterdir()) == []


def test_without_a_tumour_it_begins_in_the_middle(written):
    page = written(prediction=np.zeros((3, *SHAPE), bool), reference=None)
    assert page.data()["start"] == [X // 2, Y // 2, Z // 2]

"""Mirrors clipseg3d/reporting/templates/case_page.js, in a headless Chromium."""

import re

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from clipseg3d.reporting.figures import REGION_COLOURS

pytestmark = pytest.mark.slow
SHAPE = X, Y, Z = 24, 30, 18
SEQUENCES = ("t1", "t1ce", "t2", "flair")
EVIL = (
    "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>"
    '" onload="window.hacked = 3" {{ 7 * 7 }} &lt; \u2028\u2029 ${1} ` \'née\' 脳'
)


@pytest.fixture
def show(make, browse, tmp_path):
    """Write a case page and open it."""

    def save_and_open(*, fragment="", width=1400, **changes):
        make(**changes).save(tmp_path / "case.html")
        return browse(tmp_path / "case.html", fragment=fragment, width=width)

    return save_and_open


def canvas(plane, sequence="t1", where="#viewer"):
    return f'{where} canvas[data-plane="{plane}"][data-sequence="{sequence}"]'


def near(pixels, colour):
    """Whether pixels are of a colour, as lines are where nothing is mixed in."""
    return np.abs(pixels - to_rgb(colour)).max(axis=-1) < 0.06


def outlined(page, region, plane="axial"):
    """Number of pixels in a region's own colour."""
    return near(page.picture(canvas(plane)), REGION_COLOURS[region]).sum()


def plain(page, plane="axial", sequence="t1"):
    """A slice with nothing over it, in [0, 1]."""
    for name in REGION_COLOURS:
        page.set(f"show-{name}", False)
    page.set("crosshair", False)
    return page.picture(canvas(plane, sequence))


def test_it_opens_without_complaint_and_shows_pictures(show, tmp_path):
    page = show()
    pictures = [
        *(canvas(plane, name) for plane in ("axial", "coronal", "sagittal") for name in SEQUENCES),
        *(f'#maps canvas.picture[data-map="{i}"]' for i in range(6)),
    ]
    assert page.evaluate("document.querySelectorAll('canvas.picture').length") == len(pictures)
    for selector in pictures:
        assert page.picture(selector).std() > 0.1, selector
    assert page.evaluate("[...document.images].map((image) => image.naturalWidth)") == [20, 20, 20]
    assert page.complaints() == []
    assert page.addresses() == {(tmp_path / "case.html").as_uri()}


@pytest.mark.parametrize(
    "changes",
    [
        {"reference": None, "attention": {}, "similarity": {}, "views": (), "text": ""}
        | {"uncertainty": {}, "provenance": {}},
        {"prediction": np.zeros((3, *SHAPE), bool)},
        {"prediction": np.zeros((3, *SHAPE), bool), "reference": None},
        {"images": {"t1": np.zeros(SHAPE)}},
        {"attention": {"TC": np.zeros(SHAPE)}, "similarity": {"WT": np.zeros(SHAPE)}},
        {"text": "A very long report. " * 2000},
    ],
    ids=["bare", "not predicted", "empty", "no signal", "maps of zeros", "long text"],
)
def test_it_opens_with_little_or_much_to_show(show, changes):
    page = show(**changes)
    assert page.complaints() == []
    assert page.evaluate("document.getElementById('problem').hidden")
    assert page.picture(canvas("axial")).std() > 0.01
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_it_begins_in_the_largest_lesion(make, show):
    prediction = make().prediction.copy()
    prediction[0, 15:17, 20:23, 12:16] = True
    page = show(prediction=prediction)
    assert page.evaluate(
        "['sagittal', 'coronal', 'axial'].map((p) => +document.getElementById(p).value)"
    ) == [
        7,
        8,
        7,
    ]
    page.evaluate("[...document.querySelectorAll('button[data-slices]')].at(-1).click()")
    assert page.evaluate("location.hash") == "#axial=13&coronal=21&sagittal=16"


def test_without_a_prediction_it_begins_in_the_reference(show):
    page = show(prediction=np.zeros((3, *SHAPE), bool))
    assert page.evaluate("+document.getElementById('axial').value") == 9


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_slider_wheel_and_keys_move_the_slice(show, plane):
    page = show(fragment="#axial=8&coronal=8&sagittal=8")
    pictures_so_far = [page.picture(canvas(plane))]

    def check(value):
        assert page.evaluate(f"+document.getElementById('{plane}').value") == value
        assert page.evaluate("location.hash").count(f"{plane}={value}") == 1
        pictures_so_far.append(page.picture(canvas(plane)))
        assert np.abs(pictures_so_far[-1] - pictures_so_far[-2]).mean() > 0.02

    page.set(plane, 12)
    check(12)
    page.mouse("mouseWheel", canvas(plane), deltaX=0, deltaY=-100)
    page.settle()
    check(13)
    page.mouse("mouseWheel", canvas(plane), deltaX=0, deltaY=100)
    page.mouse("mouseWheel", canvas(plane), deltaX=0, deltaY=100)
    page.settle()
    check(11)
    page.evaluate(f"document.getElementById('{plane}').focus()")
    page.press("ArrowRight")
    check(12)
    page.press("Home")
    assert page.evaluate("location.hash").count(f"{plane}=1&" if plane != "sagittal" else "=1") >= 1


def test_the_ends_hold(show):
    page = show(fragment=f"#axial={Z}&coronal=15&sagittal=12")
    before = page.picture(canvas("axial"))
    page.mouse("mouseWheel", canvas("axial"), deltaX=0, deltaY=-100)
    page.settle()
    assert page.evaluate("location.hash") == f"#axial={Z}&coronal=15&sagittal=12"
    np.testing.assert_array_equal(page.picture(canvas("axial")), before)
    assert page.complaints() == []


def test_position_is_told_in_slices_and_millimetres(show):
    page = show(fragment="#axial=5&coronal=7&sagittal=3")
    shown = page.evaluate(
        "[...document.querySelectorAll('.slider output')].map((o) => o.textContent)"
    )
    assert shown == [
        "5 of 18 · 12.0 mm from the bottom",
        "7 of 30 · 9.0 mm from the front",
        "3 of 24 · 2.0 mm from the right",
    ]
    assert (
        page.evaluate("document.getElementById('axial').getAttribute('aria-valuetext')") == shown[0]
    )
    label = f"document.querySelector({canvas('coronal', 't2')!r}).getAttribute('aria-label')"
    assert page.evaluate(label) == "T2, coronal slice 7 of 30, nothing segmented"
    page.set("coronal", 9)
    assert page.evaluate(label) == "T2, coronal slice 9 of 30, with WT TC"
    assert "voxel 2, 8, 4 of" in page.evaluate("document.getElementById('position').textContent")


def test_a_link_leads_to_a_slice_and_nonsense_does_no_harm(show):
    page = show(fragment="#axial=5&coronal=999&sagittal=%3Cscript%3E&map=length&only=__proto__")
    assert page.evaluate("+document.getElementById('axial').value") == 5
    assert page.evaluate("+document.getElementById('coronal').value") == 8
    assert page.evaluate("document.getElementById('map').value") == ""
    assert page.complaints() == []
    page.evaluate("location.hash = '#axial=9&map=3&only=t1ce-coronal'")
    page.settle()
    assert page.evaluate("+document.getElementById('axial').value") == 9
    assert page.evaluate("document.getElementById('map').value") == "3"
    assert page.evaluate(f"document.querySelector({canvas('axial')!r}).clientWidth") == 0


@pytest.mark.parametrize(
    ("plane", "spot", "row", "column"),
    [
        ("axial", (18, 7, 9), 7.5 / Y, 18.5 / X),  # front up, left on the right
        ("coronal", (18, 15, 4), 1 - 4.5 / Z, 18.5 / X),  # head up, left on the right
        ("sagittal", (12, 7, 4), 1 - 4.5 / Z, 7.5 / Y),  # head up, front on the left
    ],
)
def test_pictures_are_turned_as_radiologists_see_them(show, plane, spot, row, column):
    image = np.full(SHAPE, 10, np.float32)
    image[tuple(slice(at - 2, at + 3) for at in spot)] = 99
    at = dict(zip(("sagittal", "coronal", "axial"), (i + 1 for i in spot), strict=True))
    page = show(images={"t1": image}, fragment="#" + "&".join(f"{k}={v}" for k, v in at.items()))
    pixels = plain(page, plane)[..., 0]
    pixels[:20], pixels[-20:], pixels[:, :20], pixels[:, -20:] = 0, 0, 0, 0  # letters
    middle = [
        where.mean() / size
        for where, size in zip(np.nonzero(pixels > 0.8), pixels.shape, strict=True)
    ]
    assert middle == pytest.approx([row, column], abs=0.02)


@pytest.mark.parametrize(
    ("plane", "letters"),
    [
        ("axial", {"left": "R", "right": "L", "top": "A", "bottom": "P"}),
        ("coronal", {"left": "R", "right": "L", "top": "S", "bottom": "I"}),
        ("sagittal", {"left": "A", "right": "P", "top": "S", "bottom": "I"}),
    ],
)
def test_letters_stand_at_the_sides_they_name(show, plane, letters):
    page = show(images={"t1": np.ones(SHAPE)})
    page.evaluate("""(() => {
        window.written = [];
        const write = CanvasRenderingContext2D.prototype.fillText;
        CanvasRenderingContext2D.prototype.fillText = function (word, x, y) {
            const { width, height, dataset } = this.canvas;
            window.written.push([dataset.plane, word, x / width, y / height]);
            write.call(this, word, x, y);
        };
    })()""")
    page.set("fill", 1)
    written = {w: (x, y) for p, w, x, y in page.evaluate("window.written") if p == plane}
    assert written[letters["left"]][0] < 0.2
    assert written[letters["right"]][0] > 0.8
    assert written[letters["top"]][1] < 0.2
    assert written[letters["bottom"]][1] > 0.8


def test_pictures_have_the_proportions_of_the_patient(show):
    page = show()
    sizes = {}
    for plane in ("axial", "coronal", "sagittal"):
        element = f"document.querySelector({canvas(plane)!r})"
        sizes[plane] = page.evaluate(f"{element}.clientWidth / {element}.clientHeight")
    assert sizes["axial"] == pytest.approx(24 / 45, rel=0.02)
    assert sizes["coronal"] == pytest.approx(24 / 54, rel=0.02)
    assert sizes["sagittal"] == pytest.approx(45 / 54, rel=0.02)


def test_regions_and_reference_can_be_switched_off(show):
    page = show(fragment="#axial=9&coronal=10&sagittal=9")
    page.set("crosshair", False)
    page.set("fill", 0)
    paler = [0.5 + 0.5 * c for c in to_rgb(REGION_COLOURS["TC"])]
    for region in ("WT", "TC"):
        page.set("show-reference", False)
        assert outlined(page, region) > 30
        page.set(f"show-{region}", False)
        assert outlined(page, region) == 0
        page.set(f"show-{region}", True)
    without = near(page.picture(canvas("axial")), paler).sum()
    page.set("show-reference", True)
    assert near(page.picture(canvas("axial")), paler).sum() > without + 20


def test_masks_of_prompts_can_be_switched_on_and_off(show):
    masks = [np.zeros(SHAPE, bool) for _ in range(10)]
    for n, mask in enumerate(masks[:-1]):
        mask[2 + 2 * n : 4 + 2 * n, 15:19, 8] = True  # beside each other, all outside of regions
    prompts = [(f"prompt {n}", mask, 0.9) for n, mask in enumerate(masks)]
    page = show(prompts=prompts, reference=None, fragment="#axial=9&coronal=17&sagittal=20")
    page.set("crosshair", False)
    page.set("fill", 100)
    colours = page.evaluate("JSON.parse(document.getElementById('data').textContent).prompts")

    def shown(n):
        pixels = page.picture(canvas("axial"))
        height, width = pixels.shape[:2]
        pixel = pixels[int(17 / Y * height), int((3 + 2 * n) / X * width)]
        return bool(near(pixel, colours[n]))

    assert [shown(n) for n in range(9)] == [True] * 9
    assert "prompts 9" in page.evaluate("document.getElementById('position').textContent")
    for n in (0, 8):
        page.set(f"prompt-{n}", False)
    assert [shown(n) for n in range(9)] == [False, *[True] * 7, False]
    assert outlined(page, "WT") > 30
    page.set("axial", 8)
    assert not any(shown(n) for n in range(9))
    assert page.evaluate("document.getElementById('prompt-9').disabled")
    assert page.complaints() == []


def test_the_reference_is_dashed_where_it_lies(show):
    page = show(fragment="#axial=9&coronal=2&sagittal=2")  # both have the same square there
    page.set("fill", 0)
    page.set("crosshair", False)
    page.set("show-reference", False)
    solid = outlined(page, "WT")
    page.set("show-reference", True)
    assert 0.2 * solid < outlined(page, "WT") < 0.8 * solid
    page.set("axial", 12)  # only the reference reaches that far
    paler = [0.5 + 0.5 * c for c in to_rgb(REGION_COLOURS["WT"])]
    assert near(page.picture(canvas("axial")), paler).sum() > 20
    assert outlined(page, "WT") == 0


def test_outlines_lie_around_their_region(show):
    page = show(fragment="#axial=7&coronal=2&sagittal=2", reference=None)
    page.set("fill", 0)
    page.set("crosshair", False)
    rows, columns = np.nonzero(near(page.picture(canvas("axial")), REGION_COLOURS["WT"]))
    height, width = page.picture(canvas("axial")).shape[:2]
    # x from 6 to 12, y from 7 to 13, drawn halfway between centres: half a voxel further in
    assert columns.min() / width == pytest.approx(6 / X, abs=0.02)
    assert columns.max() / width == pytest.approx(12 / X, abs=0.02)
    assert rows.min() / height == pytest.approx(7 / Y, abs=0.02)
    assert rows.max() / height == pytest.approx(13 / Y, abs=0.02)


def test_outlines_are_closed_and_voxels_that_touch_at_a_corner_stay_apart(show):
    prediction = np.zeros((3, *SHAPE), bool)
    prediction[0, 4:9, 4:9, 6] = True
    prediction[0, 6, 6, 6] = False  # a hole
    for x, y in ((12, 12), (13, 13), (17, 18), (18, 17)):  # two pairs, one along each diagonal
        prediction[0, x, y, 6] = True
    page = show(prediction=prediction, reference=None, fragment="#axial=1")
    page.evaluate("""(() => {
        window.loops = 0;
        const start = Path2D.prototype.moveTo;
        Path2D.prototype.moveTo = function (x, y) {
            window.loops++;
            start.call(this, x, y);
        };
    })()""")
    page.set("axial", 7)
    assert page.evaluate("window.loops") == 2 + 4


def test_a_map_of_a_region_shows_the_outline_of_that_region(show):
    page = show(fragment="#axial=8", reference=None)
    page.set("opacity", 0)
    for index, region, other in ((0, "TC", "WT"), (1, "ET", "TC")):
        pixels = page.picture(f'#maps canvas.picture[data-map="{index}"]')
        assert near(pixels, REGION_COLOURS[region]).sum() > 10
        assert near(pixels, REGION_COLOURS[other]).sum() == 0


def test_fill_colours_the_innermost_region(show):
    page = show(fragment="#axial=8&coronal=1&sagittal=1", reference=None)
    page.set("crosshair", False)
    page.set("fill", 100)
    pixels = page.picture(canvas("axial"))
    height, width = pixels.shape[:2]
    colours = np.array([to_rgb(colour) for colour in REGION_COLOURS.values()])
    for i, (x, y) in enumerate([(6.6, 12.4), (7.6, 8.6), (9, 10)]):
        pixel = pixels[int(y / Y * height), int(x / X * width)]
        assert np.abs(colours - pixel).sum(axis=1).argmin() == i
        assert pixel == pytest.approx(colours[i], abs=0.1)


def test_a_map_is_laid_over_the_slices_in_blue_and_orange(show):
    page = show(fragment="#axial=9&coronal=2&sagittal=2", reference=None)
    before = plain(page)
    height, width, _ = before.shape
    middle = slice(height // 4, 2 * height // 5)  # no letters
    assert np.ptp(before[middle], axis=-1).max() == 0  # grey
    page.set("map", 0)  # attention of TC rises with x
    pixels = page.picture(canvas("axial"))
    warm = pixels[..., 0] - pixels[..., 2]
    assert warm[middle, width // 8 : width // 4].mean() < -0.2
    assert warm[middle, -width // 4 : -width // 8].mean() > 0.2
    bar = page.evaluate(
        "[...document.querySelectorAll('#map-bar span span')].map((e) => e.textContent)"
    )
    assert bar == ["\u22122.9", "2.9"]
    page.set("opacity", 0)
    np.testing.assert_allclose(page.picture(canvas("axial")), before, atol=0.01)
    page.set("opacity", 70)
    page.set("map", "")
    np.testing.assert_allclose(page.picture(canvas("axial")), before, atol=0.01)


def test_brightness_and_contrast_change_the_scan(show):
    page = show(fragment="#axial=9")
    grey = plain(page)
    page.set("brightness", 30)
    assert page.picture(canvas("axial")).mean() > grey.mean() + 0.05
    page.set("brightness", 0)
    page.set("contrast", 60)
    assert page.picture(canvas("axial")).std() > grey.std() + 0.05


def test_a_click_cuts_all_planes_there_and_hands_keys_to_the_slider(show):
    page = show(fragment="#axial=9&coronal=9&sagittal=9")
    page.click(canvas("coronal"), ((18 + 0.5) / X, 1 - (4 + 0.5) / Z))
    assert page.evaluate("location.hash") == "#axial=5&coronal=9&sagittal=19"
    page.press("ArrowRight")
    assert page.evaluate("location.hash") == "#axial=5&coronal=10&sagittal=19"


def test_a_double_click_shows_one_picture_large_and_all_again(show):
    page = show()
    width = f"document.querySelector({canvas('sagittal', 't2')!r}).clientWidth"
    small = page.evaluate(width)
    page.click(canvas("sagittal", "t2"), times=2)
    assert page.evaluate(width) > 1.5 * small
    assert page.evaluate(f"document.querySelector({canvas('axial')!r}).clientWidth") == 0
    assert "only=t2-sagittal" in page.evaluate("location.hash")
    page.click(canvas("sagittal", "t2"), times=2)
    assert page.evaluate(width) == small
    page.set("only", "t2")
    assert page.evaluate(width) > 1.2 * small
    assert page.evaluate(f"document.querySelector({canvas('sagittal')!r}).clientWidth") == 0


def test_the_position_of_the_crosshair_is_described(show):
    page = show(fragment="#axial=8&coronal=10&sagittal=9")
    page.set("map", 1)
    shown = page.evaluate("document.getElementById('position').textContent")
    assert "prediction WT TC ET" in shown
    assert "reference TC" in shown
    x = np.linspace(-1.05, 1.05, X)[8]
    assert f"Semantic attention ET \u2212{abs(3 * x):.2f}"[:-1] in shown


def test_nothing_in_a_case_can_run(show):
    rng = np.random.default_rng(1)
    page = show(
        case_id=EVIL,
        text=EVIL,
        provenance={EVIL: EVIL},
        uncertainty={EVIL: rng.uniform(size=SHAPE)},
        views=[(f"axial {EVIL}", np.full((20, 20, 3), 99, np.uint8))],
        prompts=[(EVIL, np.ones(SHAPE, bool), 0.5)],
    )
    page.set("map", 4)
    page.settle()
    assert page.evaluate("window.hacked === undefined")
    assert page.evaluate("document.querySelectorAll('script:not([type])').length") == 1
    assert page.evaluate("document.images.length") == 1
    for selector in ("h1", "blockquote", "dt", "dd", "#prompts bdi"):
        assert page.evaluate(f"document.querySelector({selector!r}).textContent") == EVIL
    assert page.evaluate("document.title") == f"{EVIL} · clipseg3d"
    assert page.complaints() == []


def test_the_page_allows_no_other_code_and_no_address(show):
    page = show()
    page.evaluate("""document.body.insertAdjacentHTML("beforeend",
        "<img src='data:,' onerror='window.hacked = 1'>" +
        "<a id=trap href='javascript:window.hacked = 2'>")""")
    page.evaluate("document.getElementById('trap').click()")
    page.evaluate("""(() => {
        const script = document.createElement("script");
        script.textContent = "window.hacked = 3";
        document.body.append(script);
    })()""")
    refused = page.evaluate("fetch('https://example.org').then(() => false, () => true)")
    page.settle()
    assert refused
    assert page.evaluate("window.hacked === undefined")


def test_a_damaged_file_says_so(make, browse, tmp_path):
    path = tmp_path / "case.html"
    make().save(path)
    page = path.read_text(encoding="utf-8")
    path.write_text(re.sub(r'(id="image-t2">).{40}', r"\1" + "A" * 40, page), encoding="utf-8")
    assert "The pictures cannot be shown" in browse(path).evaluate(
        "document.getElementById('problem').innerText"
    )


PHONE = 390
SHOWN = "[...document.querySelectorAll('#viewer canvas.picture')].filter((e) => e.clientWidth)"
PROMPTS = [
    ("the enhancing rim of the lesion in the right frontal lobe", np.ones(SHAPE, bool), 0.9),
    ("a resection cavity", np.zeros(SHAPE, bool), 0.1),
]


def test_nothing_overlaps_or_sticks_out(show):
    page = show(prompts=PROMPTS, presence={"WT": 0.9, "TC": 0.8, "ET": 0.7})
    for width, only in [(1440, ""), (768, ""), (PHONE, ""), (PHONE, "t1"), (360, "t2-sagittal")]:
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        page.call("Emulation.setDeviceMetricsOverride", **size)
        page.set("only", only)
        page.settle()
        wide = page.evaluate("""[...document.body.querySelectorAll("*")]
            .filter((e) => e.getBoundingClientRect().right > window.innerWidth + 1)
            .map((e) => e.outerHTML.slice(0, 90))""")
        assert wide == [], width
        overlaps = page.evaluate("""(() => {
            const isText = (node) => node.nodeType === Node.TEXT_NODE && node.data.trim();
            const seen = "canvas, img, input, select, svg";
            const shown = [...document.body.querySelectorAll("*")].filter((e) =>
                e.checkVisibility() && !e.closest("option, script, svg *")
                && (e.matches(seen) || [...e.childNodes].some(isText)));
            const boxes = shown.map((e) => [e, [...e.getClientRects()]]);
            const meet = (a, b) => a.left + 1 < b.right && b.left + 1 < a.right
                && a.top + 1 < b.bottom && b.top + 1 < a.bottom;
            return boxes.flatMap(([one, these], i) => boxes.slice(i + 1)
                .filter(([other, those]) => !one.contains(other)
                    && these.some((a) => those.some((b) => meet(a, b))))
                .map(([other]) => [one.outerHTML.slice(0, 90), other.outerHTML.slice(0, 90)]));
        })()""")
        assert overlaps == [], width


def test_on_a_phone_pictures_fill_the_width(show):
    page = show(width=PHONE)
    names = f"{SHOWN}.map((e) => e.dataset.sequence + '-' + e.dataset.plane)"
    assert page.evaluate(names) == ["t1ce-axial"]
    assert page.evaluate("location.hash") == ""

    def widths():
        room = page.evaluate("document.getElementById('viewer').clientWidth")
        assert room > 0.88 * PHONE
        return [width / room for width in page.evaluate(f"{SHOWN}.map((e) => e.clientWidth)")]

    assert widths() == pytest.approx([1], abs=0.01)
    page.set("only", "t2")
    assert widths() == pytest.approx([1, 1, 1], abs=0.01)
    page.set("only", "")
    assert len(widths()) == 12
    assert max(widths()) == pytest.approx(0.5, abs=0.02)
    assert "only=" in page.evaluate("location.hash")


def test_a_swipe_leads_through_the_slices(show):
    page = show(width=PHONE, fragment="#axial=9&coronal=9&sagittal=9")
    picture = canvas("axial", "t1ce")
    page.swipe(picture, 0.25)  # of 18 slices
    assert page.evaluate("location.hash") == "#axial=14&coronal=9&sagittal=9"
    page.swipe(picture, -0.4)
    assert page.evaluate("+document.getElementById('axial').value") == 7
    page.swipe(picture, 0.49)
    page.swipe(picture, 0.49)
    assert page.evaluate("+document.getElementById('axial').value") == 18
    page.swipe(picture, 0.0, 0.3)  # scrolls the page
    assert page.evaluate("location.hash") == "#axial=18&coronal=9&sagittal=9"


def test_a_drag_with_the_mouse_scrolls_and_is_no_click(show):
    page = show(fragment="#axial=9&coronal=9&sagittal=9")
    page.mouse("mousePressed", canvas("axial"), (0.3, 0.3), button="left", clickCount=1)
    page.mouse("mouseMoved", canvas("axial"), (0.8, 0.3), button="left", buttons=1)
    page.mouse("mouseReleased", canvas("axial"), (0.8, 0.3), button="left", clickCount=1)
    page.settle()
    assert page.evaluate("location.hash") == "#axial=18&coronal=9&sagittal=9"
    page.mouse("mouseMoved", canvas("axial"), (0.2, 0.3))
    page.settle()
    assert page.evaluate("+document.getElementById('axial').value") == 18


def test_every_control_has_a_name(show):
    page = show()
    controls = "input, select, button, canvas.picture"
    unnamed = page.evaluate(f"""[...document.querySelectorAll("{controls}")]
        .filter((e) => !(e.labels?.length || e.ariaLabel || e.textContent)).map((e) => e.id)""")
    assert unnamed == []


def test_it_prints_on_white_without_controls(show):
    page = show()
    page.call("Emulation.setEmulatedMedia", media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate("document.getElementById('axial').clientWidth") == 0
    assert page.evaluate("document.getElementById('map').clientWidth") == 0


def test_pictures_are_finer_in_print(show):
    page = show()
    coarse = page.picture(canvas("axial")).shape
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert page.picture(canvas("axial")).shape == pytest.approx(
        [3 * n for n in coarse[:2]] + [3], abs=2
    )
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert page.picture(canvas("axial")).shape == coarse

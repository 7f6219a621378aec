"""Mirrors clipseg3d/reporting/figures.py. Sizes differ pairwise, so a swapped axis fails."""

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from clipseg3d.reporting.figures import REGION_COLOURS, save_maps, save_overlay, shared_scale

X, Y, Z = 30, 38, 12
LUMINANCE = np.array([0.2126, 0.7152, 0.0722])


@pytest.fixture
def image():
    x, y, z = np.meshgrid(*(np.linspace(-1.1, 1.1, n) for n in (X, Y, Z)), indexing="ij")
    brain = x**2 + y**2 + z**2 < 1
    noise = np.random.default_rng(0).uniform(100, 200, (4, X, Y, Z))
    return (noise * brain).astype(np.float32)


def cube(x, y, z, size=4):
    """Nested regions, (3, x, y, z), around one voxel."""
    regions = np.zeros((3, X, Y, Z), bool)
    for region, half in zip(regions, (size, size - 1, size - 2), strict=True):
        region[x - half : x + half, y - half : y + half, z - 1 : z + 2] = True
    return regions


def coloured(path, region):
    """Rows and columns, as fractions, of the pixels above the legend in a region's colour."""
    pixels = imread(path)[..., :3]
    height, width = pixels.shape[:2]
    near = np.abs(pixels - to_rgb(REGION_COLOURS[region])).max(axis=-1) < 0.03
    rows, columns = np.nonzero(near[: height - 85])
    return rows / height, columns / width


def save_on_flair(path, image, **options):
    """Draw with one sequence only, which takes a third of the time."""
    save_overlay(path, image[3:], sequences=("flair",), **options)


def test_draws_every_region_of_reference_and_prediction(tmp_path, image):
    path = tmp_path / "new" / "case.png"
    save_overlay(path, image, prediction=cube(15, 20, 6), reference=cube(15, 20, 6), title="Case")
    pixels = imread(path)[..., :3]
    assert pixels.std() > 0.1
    assert [p.name for p in path.parent.iterdir()] == ["case.png"]
    for region in REGION_COLOURS:
        rows, columns = coloured(path, region)
        assert rows.size > 50
        assert rows.min() > 0.5  # the second row of panels
        assert (columns > 2 / 3).any()  # prediction
        assert ((columns > 1 / 3) & (columns < 2 / 3)).any()  # reference
        assert not (columns < 1 / 3).any()  # FLAIR itself stays grey


def test_prediction_alone_is_drawn_on_two_sequences(tmp_path, image):
    save_overlay(tmp_path / "case.png", image, prediction=cube(15, 20, 6))
    _, columns = coloured(tmp_path / "case.png", "ET")
    assert (columns > 2 / 3).any()
    assert ((columns > 1 / 3) & (columns < 2 / 3)).any()


def test_nothing_segmented_is_drawn_as_nothing(tmp_path, image):
    save_on_flair(tmp_path / "case.png", image, prediction=np.zeros((3, X, Y, Z), bool))
    assert imread(tmp_path / "case.png")[..., :3].std() > 0.1
    for region in REGION_COLOURS:
        assert coloured(tmp_path / "case.png", region)[0].size == 0


def test_front_is_up_and_the_patients_left_is_on_the_right(tmp_path, image):
    # Two panels side by side; array x grows to the left of the patient, y to the back.
    image[3, 20:25, 10:15] *= 10
    save_overlay(
        tmp_path / "case.png",
        image[3:],
        prediction=cube(22, 12, 6),
        sequences=("flair",),
    )
    rows, columns = coloured(tmp_path / "case.png", "WT")
    assert rows.mean() < 0.45
    assert columns.mean() > 0.78
    grey = imread(tmp_path / "case.png")[64:-85, :, 0]
    rows, columns = np.nonzero(grey[:, : grey.shape[1] // 2] > 0.7)
    assert rows.mean() < 0.45 * grey.shape[0]
    assert columns.mean() > 0.28 * grey.shape[1]


def test_shows_the_largest_slice_of_the_reference(tmp_path, image):
    reference, prediction = cube(15, 20, 3), cube(15, 20, 8)
    save_on_flair(tmp_path / "both.png", image, prediction=prediction, reference=reference)
    assert not (coloured(tmp_path / "both.png", "WT")[1] > 2 / 3).any()
    save_on_flair(tmp_path / "empty.png", image, prediction=prediction, reference=reference & False)
    assert (coloured(tmp_path / "empty.png", "WT")[1] > 2 / 3).any()


def test_a_region_one_voxel_wide_is_visible(tmp_path, image):
    thin = np.zeros((3, X, Y, Z), bool)
    thin[:, 15, 14:26, 6] = True
    save_on_flair(tmp_path / "case.png", image, prediction=thin)
    assert coloured(tmp_path / "case.png", "ET")[0].size > 20


def test_accepts_standardised_and_empty_images(tmp_path, image):
    standard = np.where(image > 0, (image - 150) / 30, 0)
    for name, volume in (("standard", standard), ("empty", np.zeros_like(image))):
        save_on_flair(tmp_path / f"{name}.png", volume, prediction=cube(15, 20, 6))
        assert coloured(tmp_path / f"{name}.png", "WT")[0].size > 50


def test_mismatches_are_named(tmp_path, image):
    good, path = cube(15, 20, 6), tmp_path / "case.png"
    with pytest.raises(ValueError, match=r"prediction .*\(3, 30, 38, 11\).*\(4, 30, 38, 12\)"):
        save_overlay(path, image, prediction=good[..., 1:])
    with pytest.raises(ValueError, match=r"reference .*\(2, 30, 38, 12\).*\(4, 30, 38, 12\)"):
        save_overlay(path, image, prediction=good, reference=good[:2])
    with pytest.raises(ValueError, match=r"image .*\(3, 30, 38, 12\).*flair"):
        save_overlay(path, image[:3], prediction=good)
    with pytest.raises(ValueError, match=r"\.jpg"):
        save_overlay(tmp_path / "case.jpg", image, prediction=good)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_save_leaves_nothing_behind(tmp_path, image):
    (tmp_path / "case.png").mkdir()
    with pytest.raises(OSError, match=r"case\.png"):
        save_on_flair(tmp_path / "case.png", image, prediction=cube(15, 20, 6))
    assert [p.name for p in tmp_path.iterdir()] == ["case.png"]


def range_of(*maps):
    scale = shared_scale(np.array(values) for values in maps)
    return *scale.get_clim(), scale.cmap.name


def test_maps_that_are_compared_share_a_scale():
    assert range_of([0.2, 0.7], [0.0, 1.5]) == (0.0, 1.5, "inferno")
    assert range_of([0.2, 0.7], [-2.0, 1.5]) == (-2.0, 2.0, "berlin")
    assert range_of([1.0], [-0.5, -0.1]) == (-1.0, 1.0, "berlin")
    assert range_of([-0.5, -0.1]) == (-0.5, 0.5, "berlin")
    assert range_of([0.5, 1.0]) == (0.0, 1.0, "inferno")  # from 0, not from the lowest value


@pytest.mark.parametrize("values", [np.zeros(3), np.zeros(0), np.zeros((2, 3, 4))])
def test_a_map_without_voxels_or_of_zeros_has_a_scale(values):
    scale = shared_scale([values])
    assert scale.get_clim() == (0.0, 0.0)
    np.testing.assert_array_equal(scale.norm(values), 0)
    assert scale.to_rgba(values)[..., :3].max(initial=0) < 0.05  # dark


def test_values_lie_along_the_scale_and_stop_at_its_ends():
    scale = shared_scale([np.array([-2.0, 1.0])])
    shares = scale.norm(np.array([-9.0, -2.0, -1.0, 0.0, 2.0, 9.0]))
    np.testing.assert_allclose(shares, [0, 0, 0.25, 0.5, 1, 1])
    scale = shared_scale([np.array([4.0])])
    np.testing.assert_allclose(scale.norm(np.array([0.0, 1.0, 4.0, 5.0])), [0, 0.25, 1, 1])


def test_stronger_values_are_lighter_for_every_kind_of_colour_vision():
    up = np.linspace(0, 1, 21)
    for lowest in (0.0, -1.0):
        scale = shared_scale([np.array([lowest, 1.0])])
        for sign in (1, -1) if lowest else (1,):
            luminance = (scale.to_rgba(sign * up)[:, :3] ** 2.2) @ LUMINANCE
            assert (np.diff(luminance) > 0).all()
            assert luminance[0] < 0.01


def test_values_below_zero_are_blue_and_values_above_are_orange():
    below, zero, above = shared_scale([np.array([-1.0])]).to_rgba(np.array([-0.6, 0.0, 0.6]))
    assert below[2] - below[0] > 0.3
    assert above[0] - above[2] > 0.3
    assert zero[:3].max() < 0.1


@pytest.fixture
def ramp():
    """A map that rises along x, from -1 to 1."""
    return np.linspace(-1, 1, X)[:, None, None] * np.ones((1, Y, Z))


def test_maps_are_drawn_for_each_region_in_blue_and_orange(tmp_path, image, ramp):
    path = tmp_path / "new" / "maps.png"
    maps = {"Attention": {"TC": ramp, "ET": ramp}, "Similarity": {"ET": ramp}}
    save_maps(path, image[1], maps=maps, prediction=cube(15, 20, 6), title="Case")
    assert [p.name for p in path.parent.iterdir()] == ["maps.png"]
    pixels = imread(path)[..., :3]
    height, width = pixels.shape[:2]
    panel = pixels[height // 3 : height // 2, : width // 3]  # TC, the first of two columns
    warm = panel[..., 0] - panel[..., 2]
    assert warm[:, : panel.shape[1] // 3].mean() < -0.1
    assert warm[:, -panel.shape[1] // 3 :].mean() > 0.1
    rows, columns = coloured(path, "TC")
    assert rows.size > 50
    assert rows.max() < 0.55
    assert columns.max() < 0.45
    width_of_core = np.ptp(columns)
    rows, columns = coloured(path, "ET")
    assert (rows < 0.55).any()
    assert (rows > 0.55).any()
    assert columns.min() > 0.4
    assert np.ptp(columns) < 0.9 * width_of_core  # 8 voxels wide, the core 10
    assert coloured(path, "WT")[0].size == 0


def test_a_map_says_nothing_where_there_is_no_brain(tmp_path, image, ramp):
    maps = {"Attention": {"ET": ramp + 5}}
    save_maps(tmp_path / "maps.png", image[1], maps=maps, prediction=cube(15, 20, 6))
    pixels = imread(tmp_path / "maps.png")[..., :3]
    left, top = int(0.125 * 160), int(0.45 * 160)
    assert pixels[top, left].max() == 0  # the first corner of the panel
    middle = pixels[pixels.shape[0] // 2, int(1.2 * 160)]
    assert middle[0] - middle[2] > 0.2


def test_maps_share_the_scale_of_their_kind(tmp_path, image, ramp):
    weak, strong = {"TC": 0.1 * ramp}, {"TC": 0.1 * ramp, "ET": ramp}
    for name, maps in (("weak", weak), ("strong", strong)):
        save_maps(tmp_path / f"{name}.png", image[1], maps={"A": maps}, prediction=cube(15, 20, 6))
    spread = [
        np.ptp(imread(tmp_path / f"{name}.png")[100:300, 40:340, :3], axis=-1).mean()
        for name in ("weak", "strong")
    ]
    assert spread[0] > 2 * spread[1]


def test_maps_that_do_not_fit_are_named(tmp_path, image, ramp):
    path, prediction = tmp_path / "maps.png", cube(15, 20, 6)
    for maps, message in (
        ({}, "maps is empty; pass at least one"),
        ({"A": {}}, "maps is empty"),
        ({"A": {"NET": ramp}}, r"maps\['A'\] has 'NET'; choose from \('WT', 'TC', 'ET'\)"),
        ({"A": {"ET": ramp[1:]}}, r"maps\['A'\]\['ET'\] has shape \(29, 38, 12\) but image"),
        ({"A": {"ET": ramp * np.nan}}, r"maps\['A'\]\['ET'\] holds NaN or infinite"),
    ):
        with pytest.raises(ValueError, match=message):
            save_maps(path, image[1], maps=maps, prediction=prediction)
    with pytest.raises(ValueError, match=r"prediction .*\(3, 30, 38, 11\)"):
        save_maps(path, image[1], maps={"A": {"ET": ramp}}, prediction=prediction[..., 1:])
    with pytest.raises(ValueError, match=r"\.jpg"):
        save_maps(tmp_path / "a.jpg", image[1], maps={"A": {"ET": ramp}}, prediction=prediction)
    assert list(tmp_path.iterdir()) == []

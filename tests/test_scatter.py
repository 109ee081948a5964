import numpy as np
import pytest
from scipy.signal import convolve2d

from bokehdepth.errors import InputError
from bokehdepth.rendering.aperture import DISK, MAX_RADIUS_PX, Aperture, span_table
from bokehdepth.rendering.disk import disk_blur, disk_kernel
from bokehdepth.rendering.scatter import from_light, scatter_bokeh, span_scatter, to_light

APERTURES = [DISK, Aperture(5), Aperture(6, rotation_deg=11), Aperture(squeeze=2.0), Aperture(8, 20, 0.5)]


def light_and_radius(size=(70, 90), largest=9.0, channels=4, seed=0):
    rng = np.random.default_rng(seed)
    values = rng.random((*size, channels), dtype=np.float32)
    radius = largest * np.abs(np.sin(np.arange(size[0])[:, None] / 9) * np.cos(np.arange(size[1])[None] / 13))
    return values, radius.astype(np.float32)


def brute(values, radius, aperture):
    """Every pixel's kernel added where it belongs; what leaves the frame is lost."""
    reach = 40
    out = np.zeros((values.shape[0] + 2 * reach, values.shape[1] + 2 * reach, values.shape[2]))
    kernels = {number: aperture.kernel(number / 16) for number in np.unique(np.rint(radius * 16))}
    for y, x in np.ndindex(radius.shape):
        kernel = kernels[np.rint(radius[y, x] * 16)]
        up, aside = kernel.shape[0] // 2, kernel.shape[1] // 2
        rows, columns = slice(y + reach - up, y + reach + up + 1), slice(x + reach - aside, x + reach + aside + 1)
        out[rows, columns] += kernel[..., None] * values[y, x]
    return out[reach:-reach, reach:-reach]


@pytest.mark.parametrize("aperture", APERTURES, ids=str)
def test_kernels_have_the_area_and_the_spread_of_the_shape(aperture):
    for radius in (0.7, 1.3, 3.4, 10.0, 21.7):
        kernel = aperture.kernel(radius)
        assert kernel.sum() == pytest.approx(1, abs=1e-6) and kernel.min() >= 0
        # A pixel that is wholly inside weighs 1 by the area of the shape, which is that of the disk.
        assert kernel.max() * np.pi * radius**2 == pytest.approx(1, abs=0.01 if radius > 2 else 1)
    y, x = np.indices(kernel.shape) - np.array(kernel.shape)[:, None, None] // 2
    ratio = np.sqrt((kernel * y**2).sum() / (kernel * x**2).sum())
    assert ratio == pytest.approx(aperture.squeeze, rel=0.02)


def test_a_disk_is_the_exact_disk_and_a_polygon_of_many_sides_nearly():
    assert np.array_equal(DISK.kernel(6.3), disk_kernel(6.3).astype(np.float64))
    many = Aperture(32).kernel(6.3)
    assert np.abs(many - DISK.kernel(6.3)).sum() < 0.02


def test_an_odd_polygon_stands_upside_down_in_front_of_the_focus():
    behind, front = Aperture(3).kernel(8.0), Aperture(3).mirrored().kernel(8.0)
    assert np.abs(behind - front[::-1]).max() < 1e-9 and np.abs(behind - front).max() > 1e-3
    assert Aperture(6, 10).mirrored() == Aperture(6, 10)


@pytest.mark.parametrize("aperture", APERTURES, ids=str)
def test_spans_add_up_to_brute_force(aperture):
    values, radius = light_and_radius(channels=5)
    exact = brute(values, radius, aperture)
    spread = span_scatter(values, radius, aperture=aperture, border="lost")
    assert spread.shape == values.shape and spread.dtype == np.float32
    assert np.abs(spread - exact).mean() < 1e-3 * exact.mean()
    assert np.abs(spread - exact).max() < 0.02 * exact.max()


def test_radii_below_the_merging_are_exact():
    values, radius = light_and_radius(largest=4.9)
    assert np.abs(span_scatter(values, radius, border="lost") - brute(values, radius, DISK)).max() < 1e-5


def test_threads_do_not_change_a_bit():
    values, radius = light_and_radius(size=(300, 120), largest=20)
    assert np.array_equal(span_scatter(values, radius), span_scatter(values, radius, threads=3))
    assert np.array_equal(span_scatter(values, radius), span_scatter(values, radius, threads=None))


def test_no_blur_is_the_identity():
    values, radius = light_and_radius(largest=0.5)
    assert np.array_equal(span_scatter(values, radius), values)
    image = values[..., :3].copy()
    assert np.array_equal(scatter_bokeh(image, np.zeros_like(radius)), image)


def test_light_is_conserved():
    values, radius = light_and_radius(size=(90, 110), largest=12)
    values[:20], values[-20:], values[:, :20], values[:, -20:] = 0, 0, 0, 0
    spread = span_scatter(values, radius, border="lost")
    assert spread.sum(dtype=np.float64) == pytest.approx(values.sum(dtype=np.float64), rel=1e-6)


@pytest.mark.parametrize("radius_px", [0.8, 1.5, 3.4, 7.7, 20.0])
def test_a_point_becomes_a_disk_of_the_formula_radius(radius_px):
    point = np.zeros((61, 61, 1), dtype=np.float32)
    point[30, 30] = 1
    spread = span_scatter(point, np.full((61, 61), radius_px, dtype=np.float32))[..., 0]
    covered = spread > 0.5 * spread.max()
    assert np.sqrt(covered.sum() / np.pi) == pytest.approx(radius_px, abs=0.5)
    assert np.abs(spread - np.pad(disk_kernel(radius_px), 30 - len(disk_kernel(radius_px)) // 2)).max() < 1e-6


def test_one_radius_is_a_convolution():
    values, _ = light_and_radius(channels=1)
    spread = span_scatter(values, np.full(values.shape[:2], 5.3, dtype=np.float32), border="lost")
    assert np.abs(spread[..., 0] - convolve2d(values[..., 0], disk_kernel(5.3), mode="same")).max() < 1e-5
    continued = span_scatter(values, np.full(values.shape[:2], 5.3, dtype=np.float32))
    assert np.abs(continued[..., 0] - disk_blur(values[..., 0], 5.3)).max() < 1e-5


@pytest.mark.parametrize("value", [0.0, 0.2, 1.0])
def test_constant_pictures_stay_constant(value):
    _, radius = light_and_radius(largest=23)
    picture = np.full((*radius.shape, 3), value, dtype=np.float32)
    assert np.abs(scatter_bokeh(picture, radius) - value).max() < 1e-5


def test_light_is_mixed_in_linear_light():
    picture = np.zeros((21, 21, 3), dtype=np.float32)
    picture[:, 11:] = 1
    mixed = scatter_bokeh(picture, np.full((21, 21), 4.0, dtype=np.float32))[10, 10]
    share = disk_kernel(4.0)[:, 5:].sum()
    assert mixed == pytest.approx(share ** (1 / 2.2), abs=1e-5)
    assert np.allclose(from_light(to_light(picture)), picture)


def test_large_radii_use_a_coarser_grid():
    steps = [span_table(DISK, 0.0, top).steps_per_px for top in (64.0, 65.0, 129.0)]
    assert steps == [16, 8, 4]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values": np.zeros((4, 5, 3))}, "values is float64"),
        ({"values": np.full((4, 5, 3), np.nan, np.float32)}, "not finite"),
        ({"values": np.zeros((4, 5), np.float32)}, r"values is float32 \(4, 5\)"),
        ({"radius_px": np.zeros((5, 4), np.float32)}, r"radius_px is float32 \(5, 4\), wanted .* \(4, 5\)"),
        ({"radius_px": np.full((4, 5), -1, np.float32)}, r"radius_px spans \[-1, -1\]"),
        ({"radius_px": np.full((4, 5), np.nan, np.float32)}, "radius_px spans"),
        ({"radius_px": np.full((4, 5), np.inf, np.float32)}, "radius_px spans"),
        ({"radius_px": np.full((4, 5), MAX_RADIUS_PX + 1, np.float32)}, "wanted pixels from 0 to 512"),
        ({"border": "mirror"}, "border is 'mirror'"),
        ({"threads": 0}, "threads is 0"),
    ],
)
def test_bad_input_is_refused(change, message):
    arguments = {"values": np.zeros((4, 5, 3), np.float32), "radius_px": np.zeros((4, 5), np.float32)} | change
    with pytest.raises(InputError, match=message):
        span_scatter(arguments.pop("values"), arguments.pop("radius_px"), **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"blades": 2}, "blades is 2"),
        ({"blades": True}, "blades is True"),
        ({"blades": 6.0}, "blades is 6.0"),
        ({"rotation_deg": float("nan")}, "rotation_deg is nan"),
        ({"squeeze": 0.0}, "squeeze is 0.0"),
    ],
)
def test_bad_apertures_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        Aperture(**arguments)


@pytest.mark.parametrize(
    ("picture", "message"),
    [(np.zeros((4, 5, 3)), "image is float64"), (np.full((4, 5, 3), 1.5, np.float32), r"image spans \[1.5, 1.5\]")],
)
def test_bad_pictures_are_refused(picture, message):
    with pytest.raises(InputError, match=message):
        scatter_bokeh(picture, np.zeros((4, 5), np.float32))

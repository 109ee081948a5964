import numpy as np
import pytest

from bokehdepth.errors import InputError
from bokehdepth.rendering.disk import disk_blur, disk_kernel
from bokehdepth.rendering.layered import Layer, composite, render_bokeh
from bokehdepth.rendering.scatter import GAMMA

SIZE = (72, 96)


def _flat(disparity: float, alpha: np.ndarray | None = None, value: float | None = None, seed: int = 0) -> Layer:
    rgb = np.random.default_rng(seed).random((*SIZE, 3), dtype=np.float32)
    if value is not None:
        rgb[:] = value
    alpha = np.ones(SIZE, dtype=np.float32) if alpha is None else alpha.astype(np.float32)
    return Layer(rgb, alpha, np.full(SIZE, disparity, dtype=np.float32))


def _disk_mask(row: float, column: float, radius: float) -> np.ndarray:
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    return (np.hypot(y - row, x - column) < radius).astype(np.float32)


def _scene() -> list[Layer]:
    ramp = np.linspace(0.05, 0.9, SIZE[0], dtype=np.float32)[:, None] * np.ones(SIZE, dtype=np.float32)
    ground = Layer(
        np.random.default_rng(3).random((*SIZE, 3), dtype=np.float32), (ramp > 0.3).astype(np.float32), ramp
    )
    return [
        _flat(0.05),
        ground,
        _flat(0.5, _disk_mask(40, 40, 14), seed=1),
        _flat(1.2, _disk_mask(20, 80, 12), seed=2),
    ]


def _strength(radius_px: float, offset_dpt: float) -> float:
    return radius_px / offset_dpt * 512 / SIZE[1]


def _light(image: np.ndarray) -> np.ndarray:
    return image.astype(np.float64) ** GAMMA


def test_zero_strength_is_the_composite_to_the_last_bit():
    layers = _scene()
    image, disparity = composite(layers)
    assert np.array_equal(render_bokeh(layers, 0.0, 2.0), image)
    assert image.dtype == disparity.dtype == np.float32
    assert set(np.unique(disparity[_disk_mask(40, 40, 13) > 0])) == {np.float32(0.5)}


def test_half_transparent_layers_do_not_mix_disparities():
    layers = [_flat(0.1), _flat(0.8, np.full(SIZE, 0.49)), _flat(0.6, _disk_mask(30, 30, 9) * 0.5)]
    disparity = composite(layers)[1]
    assert set(np.unique(disparity)) == {np.float32(0.1), np.float32(0.6)}


@pytest.mark.parametrize("radius_px", [1.2, 3.4, 7.7])
def test_a_point_becomes_a_disk_of_the_formula_radius(radius_px):
    point = np.zeros(SIZE)
    point[36, 48] = 1
    layers = [_flat(0.2, value=0.0), _flat(0.2, point, value=1.0)]
    rendered = _light(render_bokeh(layers, _strength(radius_px, 0.3), 2.0))[..., 0]
    kernel = disk_kernel(radius_px).astype(np.float64)
    half = kernel.shape[0] // 2
    expected = np.zeros(SIZE)
    expected[36 - half : 37 + half, 48 - half : 49 + half] = kernel
    assert np.abs(rendered - expected).max() < 2e-3 * kernel.max()
    # Second moment along one axis: r^2 / 4 of a uniform disk and 1 / 12 of the pixel.
    y = np.arange(SIZE[0]) - 36
    moment = (rendered.sum(1) * y**2).sum() / rendered.sum()
    assert 2 * np.sqrt(moment - 1 / 12) == pytest.approx(radius_px, rel=0.06)


def test_energy_is_kept():
    alpha = _disk_mask(36, 48, 10)
    layers = [_flat(0.1, value=0.0), _flat(0.9, alpha, seed=4)]
    sharp, blurred = (_light(render_bokeh(layers, strength, 5.0)).sum() for strength in (0, _strength(6.0, 0.7)))
    assert blurred == pytest.approx(sharp, rel=1e-3)


def test_layer_in_focus_is_untouched():
    mask = _disk_mask(36, 48, 20)
    layers = [_flat(0.1), _flat(0.5, mask, seed=1)]
    rendered, sharp = render_bokeh(layers, 30.0, 2.0), composite(layers)[0]
    assert np.array_equal(rendered[mask == 1], sharp[mask == 1])
    assert np.abs(rendered - sharp)[mask == 0].mean() > 0.05


def test_whole_plane_equals_disk_blur():
    layer = _flat(0.1)
    rendered = render_bokeh([layer], _strength(4.3, 0.4), 2.0)
    assert np.abs(rendered - disk_blur(layer.rgb, 4.3, gamma=GAMMA)).max() < 1e-4


@pytest.mark.parametrize("blurred_background", [False, True])
def test_against_rays_through_an_aperture(blurred_background):
    """Average sharp pictures seen from points of the aperture: each layer shifts by its own signed radius."""
    mask = _disk_mask(36, 48, 13)
    back, front = _flat(0.1, seed=5), _flat(0.9, mask, seed=6)
    focus = 2.0 if blurred_background else 10.0
    strength = _strength(4.0, 0.9 - 1 / focus)
    rendered = _light(render_bokeh([back, front], strength, focus))
    pixels = np.linspace(-1, 1, 25)
    lens = [(y, x) for y in pixels for x in pixels if y * y + x * x <= 1]

    def seen(layer: Layer, y: float, x: float) -> np.ndarray:
        radius = strength * SIZE[1] / 512 * (float(layer.disparity_dpt[0, 0]) - 1 / focus)
        rows = np.clip(np.arange(SIZE[0]) + round(y * radius), 0, SIZE[0] - 1)
        columns = np.clip(np.arange(SIZE[1]) + round(x * radius), 0, SIZE[1] - 1)
        return layer.light.astype(np.float64)[rows[:, None], columns]

    total = np.zeros((*SIZE, 3))
    for y, x in lens:
        near, far = seen(front, y, x), seen(back, y, x)
        total += near[..., :3] + (1 - near[..., 3:]) * far[..., :3]
    traced = total / len(lens)
    error, change = rendered - traced, _light(composite([back, front])[0]) - traced
    assert np.abs(error).mean() < 0.06 * np.abs(change).mean()


def test_slanted_plane_stays_opaque_and_close_to_per_pixel_kernels():
    ramp = np.linspace(0.05, 0.9, SIZE[1], dtype=np.float32)[None] * np.ones(SIZE, dtype=np.float32)
    white = Layer(np.ones((*SIZE, 3), dtype=np.float32), np.ones(SIZE, dtype=np.float32), ramp)
    assert np.abs(render_bokeh([white], 40.0, 2.0) - 1).max() < 1e-4
    columns = np.cos(np.arange(SIZE[1]) * 0.35).astype(np.float32) * 0.4 + 0.5
    rows = np.cos(np.arange(SIZE[0]) * 0.3).astype(np.float32)[:, None] * 0.08
    rgb = np.repeat((columns[None] + rows)[..., None], 3, axis=2)
    rendered = _light(render_bokeh([Layer(rgb, white.alpha, ramp)], 40.0, 2.0))
    radius = 40.0 * SIZE[1] / 512 * np.abs(0.5 - ramp[0])
    for column in (20, 30, 70):
        wanted = _light(disk_blur(rgb, float(radius[column]), gamma=GAMMA))[36, column, 0]
        assert rendered[36, column, 0] == pytest.approx(wanted, abs=0.03)


def test_partly_opaque_slanted_layer_hides_what_is_behind_it():
    ramp = np.linspace(0.1, 0.9, SIZE[0], dtype=np.float32)[:, None] * np.ones(SIZE, dtype=np.float32)
    alpha = (np.mgrid[: SIZE[0], : SIZE[1]][0] > 30).astype(np.float32)
    front = Layer(np.full((*SIZE, 3), 0.25, dtype=np.float32), alpha, ramp)
    rendered = render_bokeh([_flat(0.05, value=1.0), front], 40.0, 2.0)
    assert np.abs(rendered[50:] - 0.25).max() < 1e-3
    assert np.abs(rendered[:10] - 1).max() < 1e-3


def test_blur_grows_with_the_strength():
    layers = _scene()
    sharp = composite(layers)[0]
    changes = [np.abs(render_bokeh(layers, strength, 2.0) - sharp).mean() for strength in (4, 8, 16, 30)]
    assert changes == sorted(changes) and changes[0] > 0


def test_focus_at_infinity_is_allowed():
    layers = [_flat(1e-6), _flat(0.9, _disk_mask(36, 48, 10), seed=1)]
    rendered = render_bokeh(layers, 20.0, float("inf"))
    assert np.array_equal(rendered[:10, :20], composite(layers)[0][:10, :20])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rgb": np.zeros((4, 4, 3))}, "rgb is float64"),
        ({"rgb": np.full((4, 4, 3), 1.5, np.float32)}, r"rgb spans \[1.5, 1.5\]"),
        ({"alpha": np.zeros((4, 5), np.float32)}, "rgb is float32"),
        ({"alpha": np.full((4, 4), np.nan, np.float32)}, "alpha spans"),
        ({"alpha": [1]}, "alpha is list"),
        ({"disparity_dpt": np.zeros((4, 4), np.float32)}, "disparity_dpt spans"),
        ({"disparity_dpt": np.full((4, 4), np.inf, np.float32)}, "disparity_dpt spans"),
    ],
)
def test_bad_layers_are_refused(change, message):
    good = {
        "rgb": np.zeros((4, 4, 3), np.float32),
        "alpha": np.ones((4, 4), np.float32),
        "disparity_dpt": np.ones((4, 4), np.float32),
    }
    with pytest.raises(InputError, match=message):
        Layer(**(good | change))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], 1.0, 1.0), "layers is empty"),
        (([_flat(0.1)], -1.0, 1.0), "bokeh_strength must be finite and at least 0, got -1.0"),
        (([_flat(0.1)], float("nan"), 1.0), "bokeh_strength must be finite and at least 0, got nan"),
        (([_flat(0.1)], 1.0, 0.0), "focus_distance_m must be greater than 0 m .*, got 0.0"),
        (([_flat(0.1)], 1.0, float("nan")), "focus_distance_m must be greater than 0 m .*, got nan"),
    ],
)
def test_bad_renders_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        render_bokeh(*arguments)


def test_layers_of_two_sizes_are_refused():
    small = Layer(np.zeros((4, 4, 3), np.float32), np.ones((4, 4), np.float32), np.ones((4, 4), np.float32))
    with pytest.raises(InputError, match="layers have the sizes"):
        composite([_flat(0.1), small])

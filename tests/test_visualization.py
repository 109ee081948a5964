import numpy as np
import pytest
from matplotlib import colormaps
from PIL import Image

from bokehdepth.errors import InputError
from bokehdepth.visualization import (
    INFINITE_RGB,
    NO_VALUE_RGB,
    colorize_depth,
    contact_sheet,
    depth_preview,
    legend_ticks,
)


def _ramp(height=120, width=160, near=1.0, far=10.0):
    return np.tile(np.linspace(near, far, width, dtype=np.float32), (height, 1))


def _map_color(colormap, position):
    return np.array(colormaps[colormap](float(position), bytes=True)[:3], dtype=int)


@pytest.mark.parametrize("scale", ["linear", "log", "disparity"])
def test_colours_follow_the_scale(scale):
    depth = np.array([[2.0, 4.0, 8.0]])
    middle = {"linear": 1 / 3, "log": 1 / 2, "disparity": (1 / 2 - 1 / 4) / (1 / 2 - 1 / 8)}[scale]
    colors = colorize_depth(depth, colormap="viridis", scale=scale, near_m=2.0, far_m=8.0)
    assert colors.dtype == np.uint8 and colors.shape == (1, 3, 3)
    for color, position in zip(colors[0].astype(int), (0.0, middle, 1.0), strict=True):
        assert np.abs(color - _map_color("viridis", position)).max() <= 2


def test_missing_infinite_and_outside():
    depth = np.array([[np.nan, np.inf, 0.5, 1.0, 2.0, 50.0]])
    colors = colorize_depth(depth, near_m=1.0, far_m=2.0)[0]
    assert tuple(colors[0]) == NO_VALUE_RGB and tuple(colors[1]) == INFINITE_RGB
    assert np.array_equal(colors[2], colors[3]) and np.array_equal(colors[4], colors[5])
    assert not np.array_equal(colors[3], colors[4])


def test_default_ends_ignore_a_few_outliers():
    depth = _ramp(100, 100)
    with_outlier = depth.copy()
    with_outlier[0, 0] = 1e6
    difference = np.abs(colorize_depth(depth).astype(int) - colorize_depth(with_outlier))
    assert difference[1:].max() <= 3


@pytest.mark.parametrize("depth", [np.full((4, 5), 3.0), np.full((4, 5), np.nan), np.full((4, 5), np.inf)])
def test_flat_and_empty_maps_have_one_colour_and_a_preview(depth):
    assert len(np.unique(colorize_depth(depth).reshape(-1, 3), axis=0)) == 1
    preview = np.asarray(depth_preview(depth))
    assert np.array_equal(preview[:4, :5], colorize_depth(depth))


@pytest.mark.parametrize("ends", [{"near_m": 20.0}, {"far_m": 0.5}])
def test_all_depth_on_one_side_of_a_given_end(ends):
    colors = colorize_depth(_ramp(), colormap="viridis", **ends)
    assert np.abs(colors.astype(int) - _map_color("viridis", "far_m" in ends)).max() <= 2


@pytest.mark.parametrize("scale", ["linear", "log", "disparity"])
@pytest.mark.parametrize(
    "ends", [(0.5, 10), (0.7, 6.2), (1, 1.02), (0.1, 200), (2, 80), (0.73, 0.81), (9.99, 10.01), (1e-3, 1e4)]
)
def test_ticks_are_round_inside_and_spread(ends, scale):
    near, far = ends
    ticks = np.array(legend_ticks(near, far, scale))
    assert 4 <= len(ticks) <= 7 and near <= ticks[0] and ticks[-1] <= far * (1 + 1e-9)
    place = {"linear": ticks, "log": np.log(ticks), "disparity": -1 / ticks}[scale]
    whole = {"linear": far - near, "log": np.log(far / near), "disparity": 1 / near - 1 / far}[scale]
    assert (np.diff(place) / whole > 0.06).all()
    assert (place[-1] - place[0]) / whole > 0.5
    digits = 2 + np.ceil(np.log10(far / (far - near)))  # two, and what is the same in all depths of a narrow range
    assert all(len(f"{tick:.12g}".replace(".", "").strip("0")) <= digits for tick in ticks)


def test_linear_ticks_share_one_step():
    assert legend_ticks(0.7, 6.2, "linear") == [1, 2, 3, 4, 5, 6]
    assert legend_ticks(0.5, 10, "linear") == [2, 4, 6, 8, 10]


def _is_dark_text(panel):
    return (panel.max(axis=2) < 120).sum()


@pytest.mark.parametrize("size", [(24, 32), (384, 512), (370, 1224), (512, 384), (1500, 2000)])
def test_preview_keeps_the_picture_and_the_legend_stays_inside(size):
    depth = _ramp(*size)
    depth[: size[0] // 4] = np.nan
    depth[size[0] // 4 : size[0] // 3] = np.inf
    preview = depth_preview(depth)
    pixels = np.asarray(preview)
    height, width = size
    assert np.array_equal(pixels[:height, :width], colorize_depth(depth))
    panel = pixels[:, width:]
    border = np.concatenate([panel[0], panel[-1], panel[:, 0], panel[:, -1]])
    assert (border == 255).all()  # nothing of the legend is cut by the canvas
    assert _is_dark_text(panel) > 50
    for grey in (NO_VALUE_RGB, INFINITE_RGB):
        assert (panel == grey).all(axis=2).any()
    if height >= 370:
        assert preview.height == height and panel.shape[1] < 0.45 * width


def test_legend_grows_with_the_picture():
    small = depth_preview(_ramp(384, 512)).width - 512
    large = depth_preview(_ramp(1536, 2048)).width - 2048
    assert 3 < large / small < 5


def test_legend_says_when_depth_runs_beyond_the_ends():
    depth = _ramp(384, 512)
    ends = {"inside": (0.9, 11.0), "nearer": (2.0, 11.0), "farther": (0.9, 5.0)}
    panel = {
        name: np.asarray(depth_preview(depth, colormap="viridis", near_m=near, far_m=far))[:, 512:].astype(int)
        for name, (near, far) in ends.items()
    }

    def rows_with(name, position):
        close = np.abs(panel[name] - _map_color("viridis", position)).max(axis=2) <= 6
        return np.flatnonzero(close.sum(axis=1) > 3)

    # The arrow of an end has its colour and stands a text size beyond the bar: below for near, above for far.
    assert rows_with("nearer", 0.0).max() > rows_with("inside", 0.0).max() + 5
    assert rows_with("farther", 0.0).max() == rows_with("inside", 0.0).max()
    assert rows_with("farther", 1.0).min() < rows_with("inside", 1.0).min() - 5
    assert rows_with("nearer", 1.0).min() == rows_with("inside", 1.0).min()


@pytest.mark.parametrize(
    ("kwargs", "sentence"),
    [
        ({"colormap": "nope"}, "colormap is 'nope'"),
        ({"scale": "sqrt"}, "scale is 'sqrt'"),
        ({"near_m": 0.0}, "near_m is 0.0"),
        ({"far_m": float("inf")}, "far_m is inf"),
        ({"near_m": 3.0, "far_m": 2.0}, "near_m is 3 and far_m 2"),
    ],
)
def test_bad_arguments(kwargs, sentence):
    for depth in (_ramp(), np.full((3, 3), np.nan)):
        for function in (colorize_depth, depth_preview):
            with pytest.raises(InputError, match=sentence):
                function(depth, **kwargs)


def test_bad_depth():
    for depth in (np.ones((2, 2), int), np.ones(3), np.array([[0.0]]), np.array([[-1.0]])):
        with pytest.raises(InputError, match="depth_m"):
            colorize_depth(depth)
        with pytest.raises(InputError, match="depth_m"):
            depth_preview(depth)
    with pytest.raises(InputError, match="near_m is 2 and far_m 1"):
        legend_ticks(2, 1)


def test_contact_sheet_holds_every_picture_unscaled():
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)) for _ in range(5)]
    sheet = contact_sheet(
        pictures, ["sharp", "K = 7.5", "K = 10", "K = 20", "a label that is far too long for its cell"]
    )
    pixels = np.asarray(sheet)
    windows = np.lib.stride_tricks.sliding_window_view(pixels[..., 0], (60, 80))
    places = []
    for picture in pictures:
        found = np.argwhere((windows == np.asarray(picture)[..., 0]).all(axis=(2, 3)))
        assert len(found) == 1
        places.append(tuple(found[0]))
    assert places == sorted(places) and len({row for row, _ in places}) > 1
    assert (np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]) == 255).all()


def test_contact_sheet_grid_and_resize():
    pictures = [Image.new("RGB", (80, 60)), Image.new("L", (40, 60))]
    assert contact_sheet(pictures, ["a", "b"]).width > 160
    tall = contact_sheet(pictures, ["a", "b"], columns=1, cell_width_px=20)
    assert tall.width < 30 and tall.height > 15 + 30
    for arguments, sentence in [
        (([], []), "0 entries"),
        ((pictures, ["a"]), "labels 1"),
        (([Image.new("RGBA", (2, 2))], ["a"]), "mode 'RGBA'"),
    ]:
        with pytest.raises(InputError, match=sentence):
            contact_sheet(*arguments)
    with pytest.raises(InputError, match="columns is 0"):
        contact_sheet(pictures, ["a", "b"], columns=0)


def test_real_depth(data_root):
    codes = np.asarray(Image.open(data_root / "rgbd" / "nyuv2_metric3d" / "rgb_00050_depth.png"))
    depth = np.where(codes > 0, codes / 1000.0, np.nan)
    colors = colorize_depth(depth)
    grey = (colors == NO_VALUE_RGB).all(axis=2)
    assert np.array_equal(grey, codes == 0)  # no depth has the colour of a missing value
    assert len(np.unique(colors.reshape(-1, 3), axis=0)) > 200

import numpy as np
import pytest
from matplotlib import colormaps
from PIL import Image

from bokehdepth.errors import InputError
from bokehdepth.files.pictures import (
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


def test_colours_run_evenly_along_the_logarithm():
    depth = np.geomspace(2.0, 8.0, 1001)[None]
    colors = colorize_depth(depth, colormap="viridis")
    assert colors.dtype == np.uint8 and colors.shape == (1, 1001, 3)
    near, far = np.log(np.percentile(depth, (1, 99)))
    for index in (10, 250, 500, 990):
        position = (np.log(depth[0, index]) - near) / (far - near)
        assert np.abs(colors[0, index].astype(int) - _map_color("viridis", position)).max() <= 2
    assert (colors[0, 0] == colors[0, 10]).all() and (colors[0, -1] == colors[0, 990]).all()  # beyond the ends


def test_missing_and_infinite():
    colors = colorize_depth(np.array([[np.nan, np.inf, 1.0, 2.0]]))[0]
    assert tuple(colors[0]) == NO_VALUE_RGB and tuple(colors[1]) == INFINITE_RGB
    assert not np.array_equal(colors[2], colors[3])


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


@pytest.mark.parametrize(
    "ends", [(0.5, 10), (0.7, 6.2), (1, 1.02), (0.1, 200), (2, 80), (0.73, 0.81), (9.99, 10.01), (1e-3, 1e4)]
)
def test_ticks_are_round_inside_and_spread(ends):
    near, far = ends
    ticks = np.array(legend_ticks(near, far))
    assert 4 <= len(ticks) <= 9 and near <= ticks[0] and ticks[-1] <= far
    place = np.log(ticks) / np.log(far / near)
    assert (np.diff(place) > 0.05).all() and place[-1] - place[0] > 0.5
    digits = 2 + np.ceil(np.log10(far / (far - near)))  # two, and what is the same in all depths of a narrow range
    assert all(len(f"{tick:.12g}".replace(".", "").strip("0")) <= digits for tick in ticks)


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
    depth = {"inside": np.clip(_ramp(384, 512), 1.2, 9.7)}
    for name, far_off_m in (("nearer", 0.5), ("farther", 20.0)):
        depth[name] = depth["inside"].copy()
        depth[name][0, :50] = far_off_m
    panel = {name: np.asarray(depth_preview(d, colormap="viridis"))[:, 512:].astype(int) for name, d in depth.items()}

    def end_width_px(name, position):
        close = np.abs(panel[name] - _map_color("viridis", position)).max(axis=2) <= 6
        rows = np.flatnonzero(close.any(axis=1))
        return close[rows[-1] if position == 0 else rows[0]].sum()

    # An end that depth runs beyond is a tip: below for near, above for far.
    for name, position in (("nearer", 0.0), ("farther", 1.0)):
        assert end_width_px(name, position) < 8
        assert end_width_px("inside", position) > 12 and end_width_px(name, 1 - position) > 12


def test_bad_arguments():
    for depth in (_ramp(), np.full((3, 3), np.nan)):
        for function in (colorize_depth, depth_preview):
            with pytest.raises(InputError, match="colormap is 'nope'"):
                function(depth, colormap="nope")
    for depth in (np.ones((2, 2), int), np.ones(3), np.array([[0.0]]), np.array([[-1.0]])):
        for function in (colorize_depth, depth_preview):
            with pytest.raises(InputError, match="depth_m"):
                function(depth)


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


def test_contact_sheet_grid():
    pictures = [Image.new("RGB", (80, 60)), Image.new("L", (40, 60))]
    assert contact_sheet(pictures, ["a", "b"]).width > 160
    assert contact_sheet(pictures, ["a", "b"], columns=1).height > 120
    for images, labels, sentence in (([], [], "0 entries"), (pictures, ["a"], "labels 1")):
        with pytest.raises(InputError, match=sentence):
            contact_sheet(images, labels)


def test_real_depth(data_root):
    codes = np.asarray(Image.open(data_root / "rgbd" / "nyuv2_metric3d" / "rgb_00050_depth.png"))
    depth = np.where(codes > 0, codes / 1000.0, np.nan)
    colors = colorize_depth(depth)
    grey = (colors == NO_VALUE_RGB).all(axis=2)
    assert np.array_equal(grey, codes == 0)  # no depth has the colour of a missing value
    assert len(np.unique(colors.reshape(-1, 3), axis=0)) > 200

import math

import numpy as np
import pytest

from bokehdepth.camera import lens as optics
from bokehdepth.errors import InputError

LENS = {"focal_length_mm": 50.0, "f_number": 2.0, "focus_distance_m": 1.8}


def test_golden_lens_by_hand():
    # 0.05^2 * 1.8 / (2 * 2 * 1.75) = 6.428571e-4 m^2, times 512 / 0.036 m.
    strength = optics.bokeh_strength(**LENS, sensor_width_mm=36)
    assert strength == pytest.approx(9.143, abs=5e-4)
    assert optics.blur_radius_px(strength, 1.8, 5.0, 1920) == pytest.approx(12.19, abs=5e-3)
    assert optics.blur_radius_px(strength, 1.8, math.inf, 512) == pytest.approx(strength / 1.8)
    assert optics.blur_radius_px(strength, 1.8, 1.8, 1920) == 0.0


@pytest.mark.data
def test_parity_with_the_released_lens_table(data_root):
    table_path = data_root.parent / "parity" / "F_lens_table.npz"
    if not table_path.is_file():
        pytest.skip("no parity table beside the data folder")
    table = np.load(table_path)
    assert list(table["columns"]) == ["N", "fmm", "f35mm", "s1_m", "width_px", "height_px"]
    refused = []
    for row, (f_number, f_mm, f35_mm, s1_m, width_px, height_px) in enumerate(table["settings"].tolist()):
        width_mm = optics.sensor_width_mm(f_mm, f35_mm, width_px, height_px)
        assert width_mm == pytest.approx(table["sensor_width_mm"][row], rel=1e-12)
        assert optics.sensor_width_mm(f_mm, 50.0, width_px, height_px) == pytest.approx(
            table["sensor_width_mm_default_f35_50"][row], rel=1e-12
        )
        if s1_m * 1000 <= f_mm:
            refused.append(row)
            with pytest.raises(InputError, match="focus_distance_m must be greater than the focal length"):
                optics.bokeh_strength(f_mm, f_number, s1_m, width_mm)
            continue
        native = optics.bokeh_strength(f_mm, f_number, s1_m, width_mm) * width_px / optics.REFERENCE_WIDTH_PX
        assert native == pytest.approx(table["K"][row], rel=1e-12)
    assert refused == [11]


@pytest.mark.parametrize(
    "lens", [(50, 2.0, 1.8, 36.0), (4.25, 1.8, 0.4, 5.6), (200, 2.8, 25.0, 24.0), (85, 1.4, math.inf, 36)]
)
def test_f_number_inverts_strength(lens):
    focal_mm, f_number, focus_m, width_mm = lens
    strength = optics.bokeh_strength(focal_mm, f_number, focus_m, width_mm)
    assert optics.f_number_for_strength(strength, focal_mm, focus_m, width_mm) == pytest.approx(f_number, rel=1e-12)


def test_a_lens_may_exceed_the_trained_range():
    strength = optics.bokeh_strength(85, 1.4, 1.5, 36)
    assert strength == pytest.approx(38.9, abs=0.05)
    assert optics.blur_radius_px(strength, 1.5, 3.0, 512) == pytest.approx(strength / 3)
    with pytest.raises(InputError, match=r"bokeh_strength must be in \[0, 30\].*38\.9"):
        optics.check_bokeh_strength(strength)


def test_circle_of_confusion_is_eq_14_and_twice_the_radius():
    subject_m = np.array([[0.9, 1.8, 2.5], [4.0, 100.0, np.inf]])
    f_m, n, s1_m = 0.05, 2.0, 1.8
    with np.errstate(invalid="ignore"):
        eq_14_mm = 1000 * f_m**2 / (n * (s1_m - f_m)) * np.abs(subject_m - s1_m) / subject_m
    eq_14_mm[1, 2] = 1000 * f_m**2 / (n * (s1_m - f_m))  # the limit at infinity
    diameter_mm = optics.circle_of_confusion_mm(**LENS, subject_distance_m=subject_m)
    np.testing.assert_allclose(diameter_mm, eq_14_mm, rtol=1e-12, atol=1e-15)

    strength = optics.bokeh_strength(**LENS, sensor_width_mm=23.5)
    radius_px = optics.blur_radius_px(strength, 1.8, subject_m, 1200)
    np.testing.assert_allclose(2 * radius_px, diameter_mm * 1200 / 23.5, rtol=1e-12, atol=1e-12)


def test_strength_does_not_depend_on_the_picture_size():
    strength = optics.bokeh_strength(**LENS, sensor_width_mm=36)
    small, large = (optics.blur_radius_px(strength, 1.8, 5.0, width_px) for width_px in (640, 1920))
    assert large == pytest.approx(3 * small)


def test_scalars_give_floats_and_arrays_keep_shape_and_dtype():
    assert type(optics.blur_radius_px(9.0, 1.8, 5, 512)) is float
    assert type(optics.circle_of_confusion_mm(50, 2, 1.8, np.float32(5))) is float
    depth_m = np.full((3, 4), 5, np.float32)
    radius_px = optics.blur_radius_px(9.0, 1.8, depth_m, 512)
    assert radius_px.shape == (3, 4) and radius_px.dtype == np.float32
    assert optics.blur_radius_px(9.0, 1.8, np.array([2, 5]), 512).dtype == np.float64


def test_depth_of_field_bounds_have_exactly_the_accepted_blur():
    for focus_m in (0.5, 1.8, 12.0):
        near_m, far_m = optics.depth_of_field_m(50, 8, focus_m, 0.03)
        assert near_m < focus_m < far_m
        for bound_m in {near_m, far_m} - {math.inf}:
            assert optics.circle_of_confusion_mm(50, 8, focus_m, bound_m) == pytest.approx(0.03, rel=1e-12)


def test_hyperfocal_distance():
    hyperfocal_m = optics.hyperfocal_distance_m(50, 8, 0.03)
    assert hyperfocal_m == pytest.approx(50**2 / (8 * 0.03) / 1000 + 0.05)
    near_m, far_m = optics.depth_of_field_m(50, 8, hyperfocal_m, 0.03)
    assert far_m == math.inf and near_m == pytest.approx(hyperfocal_m / 2)
    assert optics.depth_of_field_m(50, 8, hyperfocal_m * 0.999, 0.03)[1] < math.inf
    assert optics.depth_of_field_m(50, 8, math.inf, 0.03) == (pytest.approx(hyperfocal_m - 0.05), math.inf)


def test_foreground_clear():
    # A phone at f/1.8 keeps 1 m sharp with the focus at 2 m; a full-frame portrait lens does not.
    assert optics.foreground_clear(4.25, 1.8, 2.0, 5.6, 1.0) is True
    assert optics.foreground_clear(85, 1.8, 2.0, 36, 1.0) is False
    near_m, _ = optics.depth_of_field_m(50, 4, 3.0, 0.06)
    assert optics.foreground_clear(50, 4, 3.0, 36, near_m * 1.001)
    assert not optics.foreground_clear(50, 4, 3.0, 36, near_m * 0.999)
    assert not optics.foreground_clear(50, 4, 3.0, 36, near_m * 1.001, relaxation=1.0)


def test_crop_factor_and_full_frame_strength():
    crop = optics.crop_factor(33.333, 50)
    assert crop == pytest.approx(1.5, rel=1e-4)
    assert optics.sensor_width_mm(50, 50, 3, 2) == pytest.approx(36, abs=5e-3)
    assert optics.sensor_width_mm(50, 50, 2, 3) == pytest.approx(24, abs=5e-3)
    aps_c = optics.bokeh_strength(**LENS, sensor_width_mm=24)
    full_frame = optics.bokeh_strength(**LENS, sensor_width_mm=36)
    assert optics.full_frame_strength(aps_c, 1.5) == pytest.approx(full_frame)


def test_depth_from_a_sweep_recovers_depth():
    rng = np.random.default_rng(0)
    depth_m = rng.uniform(0.5, 8.0, (5, 7))
    focus_m, width_px = 2.0, 800
    strengths = np.array([0.0, 5.0, 12.0, 30.0])
    radii_px = np.stack([optics.blur_radius_px(k, focus_m, depth_m, width_px) for k in strengths])
    offset_dpt = optics.disparity_offset_from_sweep(strengths, radii_px, width_px)
    np.testing.assert_allclose(offset_dpt, np.abs(1 / focus_m - 1 / depth_m), atol=1e-12)
    recovered_m = optics.depth_from_disparity_offset_m(offset_dpt, focus_m, depth_m > focus_m)
    np.testing.assert_allclose(recovered_m, depth_m, rtol=1e-9)
    assert optics.depth_from_disparity_offset_m(0.6, focus_m, True) == math.inf
    assert optics.depth_from_disparity_offset_m(0.5, focus_m, False) == pytest.approx(1.0)


def test_sweep_estimate_is_unbiased_and_of_the_predicted_variance():
    # Eq. 31 and 32: mean is the true slope, variance sigma^2 / sum K^2.
    rng = np.random.default_rng(1)
    strengths = np.array([4.0, 10.0, 20.0])
    radii_px = strengths[:, None] * 0.3 + rng.normal(0, 0.2, (3, 200_000))
    estimate = optics.disparity_offset_from_sweep(strengths, np.abs(radii_px), 512)
    assert estimate.mean() == pytest.approx(0.3, abs=1e-4)
    assert estimate.var() == pytest.approx(0.2**2 / np.sum(strengths**2), rel=0.02)


@pytest.mark.parametrize("name", ["focal_length_mm", "f_number", "focus_distance_m", "sensor_width_mm"])
@pytest.mark.parametrize("value", [0, -1.0, math.nan, -math.inf, True, "50", None, np.array([50.0])])
def test_bad_lens_values_are_named(name, value):
    arguments = {**LENS, "sensor_width_mm": 36, name: value}
    with pytest.raises(InputError, match=f"^{name} must be"):
        optics.bokeh_strength(**arguments)


def test_infinity_is_allowed_for_distances_only():
    assert optics.bokeh_strength(50, 2, math.inf, 36) == pytest.approx(0.05**2 / 4 * 512 / 0.036)
    assert optics.blur_radius_px(9.0, math.inf, math.inf, 512) == 0.0
    for name in ("focal_length_mm", "f_number", "sensor_width_mm"):
        with pytest.raises(InputError, match=f"^{name} must be finite"):
            optics.bokeh_strength(**{**LENS, "sensor_width_mm": 36, name: math.inf})


@pytest.mark.parametrize(
    "subject_m",
    [0, -2.0, math.nan, True, "far", [1.0], np.array([1.0, np.nan]), np.array([0.0]), np.array([True])],
)
def test_bad_subject_distances_are_named(subject_m):
    with pytest.raises(InputError, match="^subject_distance_m must be"):
        optics.blur_radius_px(9.0, 1.8, subject_m, 512)
    with pytest.raises(InputError, match="^subject_distance_m must be"):
        optics.circle_of_confusion_mm(50, 2, 1.8, subject_m)


@pytest.mark.parametrize("value", [-0.1, 30.01, math.nan, math.inf, True, "5"])
def test_check_bokeh_strength_refuses(value):
    with pytest.raises(InputError, match="^my_strength must be"):
        optics.check_bokeh_strength(value, "my_strength")


def test_check_bokeh_strength_accepts_both_ends():
    assert optics.check_bokeh_strength(0) == 0.0
    assert optics.check_bokeh_strength(np.float32(30)) == 30.0


def test_no_f_number_gives_strength_zero():
    with pytest.raises(InputError, match="^bokeh_strength must be"):
        optics.f_number_for_strength(0, 50, 1.8, 36)


@pytest.mark.parametrize(
    ("strengths", "radii", "name"),
    [
        (np.array([0.0, 0.0]), np.ones((2, 3)), "bokeh_strengths"),
        (np.array([1.0, -2.0]), np.ones((2, 3)), "bokeh_strengths"),
        (np.array([1.0, 2.0]), np.ones((3, 2)), "blur_radii_px"),
        (np.array([1.0, 2.0]), np.full((2, 2), np.nan), "blur_radii_px"),
        ([1.0, 2.0], np.ones((2, 3)), "bokeh_strengths"),
    ],
)
def test_bad_sweeps_are_named(strengths, radii, name):
    with pytest.raises(InputError, match=f"^{name} must"):
        optics.disparity_offset_from_sweep(strengths, radii, 512)


def test_the_side_of_the_focus_must_be_boolean():
    with pytest.raises(InputError, match="^behind_focus must be"):
        optics.depth_from_disparity_offset_m(0.1, 2.0, 1)

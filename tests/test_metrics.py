import math

import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio

from bokehdepth import metrics
from bokehdepth.errors import InputError
from bokehdepth.rendering.disk import disk_blur

DEPTH_METRICS = [
    metrics.abs_rel,
    metrics.delta,
    metrics.rmse,
    metrics.log10_error,
    metrics.si_log,
    metrics.median_scaled,
]


def _pair(shape=(11, 13)):
    rng = np.random.default_rng(3)
    target = rng.uniform(0.5, 20, shape)
    prediction = (target * rng.lognormal(0.1, 0.3, shape)).astype(np.float32)
    target[0] = 0.0
    target[1, :4] = np.nan
    target[2, 0] = np.inf
    return prediction, target


def test_depth_metrics_by_hand():
    prediction, target = np.array([[2.0, 4.0, 9.0]]), np.array([[1.0, 5.0, 9.0]])
    assert metrics.abs_rel(prediction, target) == pytest.approx((1 + 0.2 + 0) / 3)
    assert metrics.rmse(prediction, target) == pytest.approx(math.sqrt(2 / 3))
    assert metrics.delta(prediction, target) == pytest.approx(1 / 3)  # 5/4 is not below 1.25
    assert metrics.delta(prediction, target, power=2) == pytest.approx(2 / 3)
    assert metrics.delta(prediction, target, threshold=2.1) == 1.0
    assert metrics.log10_error(prediction, target) == pytest.approx((math.log10(2) + math.log10(1.25)) / 3)
    gaps = [math.log(2), math.log(0.8), 0.0]
    assert metrics.si_log(prediction, target) == pytest.approx(np.std(gaps))
    assert metrics.si_log(prediction, target, mean_weight=0) == pytest.approx(math.sqrt(sum(g * g for g in gaps) / 3))
    assert metrics.median_scaled(prediction, target).tolist() == [[2.5, 5.0, 11.25]]


def test_depth_metrics_against_a_plain_loop():
    prediction, target = _pair()
    pairs = [
        (float(p), float(t)) for p, t in zip(prediction.flat, target.flat, strict=True) if math.isfinite(t) and t > 0
    ]
    assert len(pairs) == 11 * 13 - 13 - 4 - 1
    n = len(pairs)
    gaps = [math.log(p) - math.log(t) for p, t in pairs]
    mean_gap = math.fsum(gaps) / n
    expected = {
        metrics.abs_rel: math.fsum(abs(p - t) / t for p, t in pairs) / n,
        metrics.delta: sum(p < 1.25 * t and t < 1.25 * p for p, t in pairs) / n,
        metrics.rmse: math.sqrt(math.fsum((p - t) ** 2 for p, t in pairs) / n),
        metrics.log10_error: math.fsum(abs(g) for g in gaps) / n / math.log(10),
        metrics.si_log: math.sqrt(math.fsum(g * g for g in gaps) / n - mean_gap**2),
    }
    for metric, value in expected.items():
        assert metric(prediction, target) == pytest.approx(value, rel=1e-9)
    half = metrics.si_log(prediction, target, mean_weight=0.5)
    assert half == pytest.approx(math.sqrt(math.fsum(g * g for g in gaps) / n - 0.5 * mean_gap**2), rel=1e-9)


def test_scale_and_masks():
    prediction, target = _pair()
    valid = np.zeros(target.shape, dtype=bool)
    valid[5:, 2:] = True
    for metric in DEPTH_METRICS[:-1]:
        assert metric(prediction, target, valid=valid) == metric(prediction[5:, 2:], target[5:, 2:])
    assert metrics.si_log(prediction * 7, target) == pytest.approx(metrics.si_log(prediction, target), rel=1e-6)
    assert metrics.si_log(target[3:] * 7, target[3:]) == pytest.approx(0, abs=1e-12)
    scaled = metrics.median_scaled(prediction * 7, target, valid)
    assert scaled.shape == prediction.shape and scaled.dtype == np.float32
    assert np.median(scaled[valid]) == pytest.approx(np.median(target[valid]), rel=1e-6)


@pytest.mark.parametrize("metric", DEPTH_METRICS)
def test_depth_metrics_refuse(metric):
    good = np.ones((2, 3))
    hole = good.copy()
    hole[1, 1] = np.nan
    for prediction, target, valid, sentence in [
        (good, np.ones((3, 2)), None, r"prediction\w* is float64 \(2, 3\), wanted a floating-point array \(3, 2\)"),
        (good.astype(int), good, None, r"prediction\w* is int64"),
        (hole, good, None, r"prediction\w* is nan at 1 pixels"),
        (-good, good, None, r"prediction\w* is -1 at 6 pixels"),
        (good, np.zeros((2, 3)), None, r"target\w* \(2, 3\) has no finite value above 0"),
        (good, hole, np.ones((2, 3), bool), r"target\w* is nan at 1 pixels"),
        (good, good, np.zeros((2, 3), bool), "valid is false everywhere"),
        (good, good, np.ones((2, 3)), "valid is float64"),
    ]:
        with pytest.raises(InputError, match=sentence):
            metric(prediction, target, valid=valid)


def test_ranges_of_options():
    good = np.ones((2, 3))
    with pytest.raises(InputError, match="threshold is 1.0"):
        metrics.delta(good, good, 1.0)
    with pytest.raises(InputError, match="mean_weight is 1.5"):
        metrics.si_log(good, good, mean_weight=1.5)


def test_psnr_is_that_of_skimage():
    rng = np.random.default_rng(0)
    reference, image = rng.random((20, 30, 3)), rng.random((20, 30, 3)).astype(np.float32)
    expected = peak_signal_noise_ratio(reference, image.astype(np.float64), data_range=1.0)
    assert metrics.psnr(image, reference) == pytest.approx(expected, rel=1e-9)
    expected = peak_signal_noise_ratio(reference[..., 0] * 255, image[..., 0] * 255.0, data_range=255)
    assert metrics.psnr(image[..., 0] * 255.0, reference[..., 0] * 255, data_range=255) == pytest.approx(expected)
    mask = np.zeros((20, 30), dtype=bool)
    mask[4:9, 3:20] = True
    inside = peak_signal_noise_ratio(reference[4:9, 3:20], image[4:9, 3:20].astype(np.float64), data_range=1.0)
    assert metrics.psnr(image, reference, mask=mask) == pytest.approx(inside, rel=1e-9)


def test_psnr_by_hand_and_refusals():
    flat = np.zeros((4, 4))
    assert metrics.psnr(flat + 0.1, flat) == pytest.approx(20.0)
    assert metrics.psnr(flat, flat) == math.inf
    for arguments, keywords, sentence in [
        ((np.zeros((4, 4), np.uint8), flat), {}, "image is uint8"),
        ((np.zeros((4, 5)), flat), {}, r"image is float64 \(4, 5\)"),
        ((flat * np.nan, flat), {}, "not finite"),
        ((flat, flat), {"mask": np.zeros((4, 4), bool)}, "mask is false everywhere"),
        ((flat, flat), {"mask": np.ones((4, 5), bool)}, r"mask is bool \(4, 5\)"),
        ((flat, flat), {"data_range": 0}, "data_range is 0"),
    ]:
        with pytest.raises(InputError, match=sentence):
            metrics.psnr(*arguments, **keywords)


def test_to_linear():
    image = np.array([0.0, 0.5, 1.0, 1.5], dtype=np.float32)
    linear = metrics.to_linear(image)
    assert linear.dtype == np.float32 and linear == pytest.approx([0, 0.5**2.2, 1, 1.5**2.2], rel=1e-6)
    for bad in (np.array([-0.1]), np.array([np.nan])):
        with pytest.raises(InputError, match="negative or not finite"):
            metrics.to_linear(bad)
    with pytest.raises(InputError, match="gamma is 0"):
        metrics.to_linear(image, 0)


def _scene():
    """A textured picture: left half in focus with strong texture, right half 3 px out of focus with faint texture."""
    texture = np.random.default_rng(5).random((48, 64, 3))
    sharp = np.where(np.arange(64)[None, :, None] < 32, texture, 0.45 + 0.1 * texture)
    radius = np.where(np.arange(64)[None, :] < 32, 0.0, 3.0) * np.ones((48, 1))
    return sharp, radius


def test_selectivity_tells_depth_aware_from_uniform_blur():
    sharp, radius = _scene()
    for uniform_px in (1.0, 3.0, 6.0):
        uniform = disk_blur(sharp, uniform_px, gamma=2.2)
        assert metrics.selectivity(sharp, uniform, radius).ratio == pytest.approx(1, abs=0.12)
    same = metrics.selectivity(sharp, disk_blur(sharp, 4.0, gamma=2.2), radius)
    assert (same.defocused, same.in_focus, same.ratio) == pytest.approx((1, 1, 1))
    true = np.where(radius[..., None] > 0, disk_blur(sharp, 3.0, gamma=2.2), sharp)
    assert metrics.selectivity(sharp, true, radius).ratio == math.inf
    mixed = 0.25 * disk_blur(sharp, 4.0, gamma=2.2) + 0.75 * sharp
    partial = np.where(radius[..., None] > 0, disk_blur(sharp, 4.0, gamma=2.2), mixed)
    result = metrics.selectivity(sharp, partial, radius)
    assert (result.defocused, result.in_focus, result.ratio) == pytest.approx((1, 0.25, 4))
    nothing = metrics.selectivity(sharp, sharp.copy(), radius)
    assert (nothing.defocused, nothing.in_focus) == (0, 0) and math.isnan(nothing.ratio)


def test_selectivity_takes_float32_and_uses_its_options():
    sharp, radius = _scene()
    blurred = disk_blur(sharp, 4.0)
    plain = metrics.selectivity(sharp.astype(np.float32), blurred.astype(np.float32), radius, gamma=1.0)
    assert plain.defocused == pytest.approx(1, abs=1e-4)
    stronger = metrics.selectivity(sharp, blurred, radius, gamma=1.0, reference_radius_px=1.0)
    assert stronger.defocused > 1.05
    with pytest.raises(InputError, match="blur_radius_px > 3.5 is false everywhere"):
        metrics.selectivity(sharp, blurred, radius, defocused_above_px=3.5)


def test_selectivity_refuses():
    sharp, radius = _scene()
    flat = np.full_like(sharp, 0.5)
    for arguments, keywords, sentence in [
        ((sharp[..., 0], sharp[..., 0], radius), {}, r"sharp has the shape \(48, 64\)"),
        ((sharp, sharp[1:], radius), {}, "bokeh is float64"),
        ((sharp, sharp + 1, radius), {}, r"bokeh has values outside \[0, 1\]"),
        ((sharp, sharp, radius[1:]), {}, "blur_radius_px is float64"),
        ((sharp, sharp, radius - 1), {}, "blur_radius_px has values that are negative"),
        ((sharp, sharp, radius + 1), {}, "blur_radius_px < 0.5 is false everywhere"),
        ((flat, flat, radius), {}, "sharp has no texture where blur_radius_px > 2"),
        ((sharp, sharp, radius), {"reference_radius_px": 0.5}, "reference_radius_px is 0.5"),
        ((sharp, sharp, radius), {"in_focus_below_px": 3.0}, "in_focus_below_px is 3.0"),
    ]:
        with pytest.raises(InputError, match=sentence):
            metrics.selectivity(*arguments, **keywords)


def test_k_response_by_hand():
    sharp = np.full((4, 6, 3), 0.5)
    area = np.zeros((4, 6), dtype=bool)
    area[:, 3:] = True
    frames = np.stack([sharp + change * area[..., None] for change in (0.1, -0.2, 0.15)])
    frames[:, :, :3] = 0.0  # outside the area: of no effect
    result = metrics.k_response(sharp, frames, [5, 10, 20], area)
    assert result.bokeh_strengths == (5, 10, 20)
    assert result.mean_change == pytest.approx((0.1, 0.2, 0.15))
    assert result.rising_share == 0.5
    assert result.slope == pytest.approx((5 * 0.1 + 10 * 0.2 + 20 * 0.15) / (25 + 100 + 400))


def test_k_response_of_a_true_lens_rises():
    sharp, radius = _scene()
    strengths = [4, 8, 16, 30]
    frames = np.stack([disk_blur(sharp, k / 10, gamma=2.2) for k in strengths])
    assert metrics.k_response(sharp, frames, strengths, radius > 2).rising_share == 1.0
    falling = metrics.k_response(sharp, frames[::-1], strengths, radius > 2)
    assert falling.rising_share == 0.0


def test_k_response_refuses():
    sharp, radius = _scene()
    area, frames = radius > 2, np.stack([sharp, sharp])
    for arguments, sentence in [
        ((sharp, frames, [2, 1], area), "bokeh_strengths is"),
        ((sharp, frames, [1, math.inf], area), "bokeh_strengths is"),
        ((sharp, frames[:1], [1], area), "bokeh_strengths is"),
        ((sharp, frames, [1, 2, 3], area), r"frames has the shape \(2, 48, 64, 3\)"),
        ((sharp, frames * 2, [1, 2], area), r"frames\[0\] has values outside"),
        ((sharp, frames, [1, 2], radius > 9), "defocused is false everywhere"),
    ]:
        with pytest.raises(InputError, match=sentence):
            metrics.k_response(*arguments)

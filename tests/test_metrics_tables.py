"""What tables are made of: SSIM, boundary F1, crops and caps, alignment by name, intervals and paired tests."""

import math

import numpy as np
import pytest
import scipy.stats
from scipy.ndimage import gaussian_filter
from skimage.metrics import structural_similarity

from bokehdepth import metrics
from bokehdepth.errors import InputError
from bokehdepth.metrics import PROTOCOLS
from datasets_scripts.scenes.generator import SceneGenerator

RNG = np.random.default_rng(11)


def test_sq_rel_and_rmse_log_by_hand():
    prediction, target = np.array([[2.0, 4.0, 9.0]]), np.array([[1.0, 5.0, 9.0]])
    assert metrics.sq_rel(prediction, target) == pytest.approx((1 + 0.2) / 3)
    assert metrics.rmse_log(prediction, target) == pytest.approx(
        math.sqrt((math.log(2) ** 2 + math.log(0.8) ** 2) / 3)
    )
    # si_log with no weight on the mean is the same number: a second path to it.
    assert metrics.rmse_log(prediction, target) == pytest.approx(metrics.si_log(prediction, target, mean_weight=0))
    for measure in (metrics.sq_rel, metrics.rmse_log):
        assert measure(target, target) == 0
        with pytest.raises(InputError, match="prediction_m is nan at 1 pixels"):
            measure(np.array([[np.nan, 4.0, 9.0]]), target)


@pytest.mark.parametrize("shape", [(24, 31, 3), (40, 17)])
def test_ssim_is_that_of_skimage(shape):
    reference = RNG.random(shape)
    image = np.clip(reference + RNG.normal(0, 0.1, shape), 0, 1)
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}
    expected = structural_similarity(reference, image, channel_axis=2 if len(shape) == 3 else None, **options)
    assert metrics.ssim(image, reference) == pytest.approx(expected, abs=1e-9)
    assert metrics.ssim(image * 255, reference * 255, data_range=255) == pytest.approx(expected, abs=1e-9)
    assert metrics.ssim(reference, reference) == 1.0
    assert metrics.ssim(image.astype(np.float32), reference.astype(np.float32)) == pytest.approx(expected, abs=1e-5)


def test_ssim_refuses():
    flat = np.zeros((12, 12))
    for arguments, options, sentence in [
        ((np.zeros((12, 10)), np.zeros((12, 10))), {}, r"reference has the shape \(12, 10\)"),
        ((flat.astype(np.uint8), flat), {}, "image is uint8"),
        ((flat * np.nan, flat), {}, "not finite"),
        ((flat, flat), {"data_range": -1}, "data_range is -1"),
    ]:
        with pytest.raises(InputError, match=sentence):
            metrics.ssim(*arguments, **options)


def brute_boundary_f1(prediction, target, valid):
    """The published definition, one pixel, neighbour and ratio at a time."""
    total = weight = 0.0
    height, width = target.shape
    for ratio in np.linspace(1.05, 1.25, 10):
        shares = []
        for dy, dx in ((0, 1), (1, 0), (0, -1), (-1, 0)):
            hits = drawn = wanted = 0
            for y in range(height):
                for x in range(width):
                    v, u = y + dy, x + dx
                    if 0 <= v < height and 0 <= u < width and valid[y, x] and valid[v, u]:
                        guess = prediction[v, u] / prediction[y, x] > ratio
                        truth = target[v, u] / target[y, x] > ratio
                        hits, drawn, wanted = hits + (guess and truth), drawn + guess, wanted + truth
            shares.append((hits / max(drawn, 1), hits / max(wanted, 1)))
        precision, recall = (sum(column) / 4 for column in zip(*shares, strict=True))
        total += ratio * (2 * precision * recall / (precision + recall) if precision + recall else 0)
        weight += ratio
    return total / weight


def test_boundary_f1_against_brute_force():
    target = np.exp(RNG.normal(0, 0.08, (9, 12)))
    target[:, 6:] *= 1.6
    prediction = target * np.exp(RNG.normal(0, 0.05, target.shape))
    valid = RNG.random(target.shape) > 0.15
    for where in (valid, np.ones_like(valid)):
        expected = brute_boundary_f1(prediction, target, where)
        assert 0.2 < expected < 0.95
        assert metrics.boundary_f1(prediction, target, where) == pytest.approx(expected, rel=1e-12)
        assert metrics.boundary_f1(prediction * 7, target, where) == pytest.approx(expected, rel=1e-9)
        assert metrics.boundary_f1(target, target, where) == pytest.approx(
            brute_boundary_f1(target, target, where), rel=1e-12
        )


def test_boundary_f1_of_a_rendered_scene():
    depth_m = SceneGenerator((32, 40), seed=1).generate(0, "ground").depth_m.astype(np.float64)
    blurred = gaussian_filter(depth_m, 0.7)
    everywhere = np.ones(depth_m.shape, dtype=bool)
    expected = brute_boundary_f1(blurred, depth_m, everywhere)
    assert 0.1 < expected < 0.9 and metrics.boundary_f1(blurred, depth_m) == pytest.approx(expected, rel=1e-12)


def test_boundary_f1_by_hand():
    step = np.where(np.arange(8) < 4, 1.0, 2.0) * np.ones((5, 1))
    # One of the four directions has a contour, so precision and recall are 1/4 at best.
    assert metrics.boundary_f1(step, step) == pytest.approx(0.25)
    assert metrics.boundary_f1(np.ones_like(step), step) == 0.0
    assert metrics.boundary_f1(1 / step, step) == 0.0  # the wrong side is nearer
    moved = np.roll(step, 1, axis=1)
    moved[:, 0] = 1.0
    assert metrics.boundary_f1(moved, step) == 0.0
    # Steps up and down in both axes: every direction has a contour, and the truth reaches 1.
    box = np.ones((7, 7))
    box[2:5, 2:5] = 2.0
    assert metrics.boundary_f1(box, box) == pytest.approx(1.0)
    # A rise of 10 % and its fall are contours at 1.05, 1.072 and 1.094 alone: there the right precision is 5 of 10 and
    # another direction has only false ones; P = 1/8, R = 1/4, F1 = 1/6.
    both = step.copy()
    both[:, 2:3] *= 1.1
    ratios = np.linspace(1.05, 1.25, 10)
    expected = (ratios[:3].sum() / 6 + ratios[3:].sum() / 4) / ratios.sum()
    assert metrics.boundary_f1(both, step) == pytest.approx(expected)
    # A truth without contours gives 0 to everything, itself too.
    flat = np.ones_like(step)
    assert metrics.boundary_f1(step, flat) == metrics.boundary_f1(flat, flat) == 0.0
    # Sparse truth: pairs of valid neighbours count, and where there are none the score is not defined.
    grid = np.indices(step.shape).sum(axis=0) % 2 == 0
    assert math.isnan(metrics.boundary_f1(step, step, grid))
    rows = np.zeros_like(grid)
    rows[::2] = True
    assert metrics.boundary_f1(step, step, rows) == pytest.approx(0.25)
    with pytest.raises(InputError, match="lowest_ratio is 1.0"):
        metrics.boundary_f1(step, step, lowest_ratio=1.0)
    with pytest.raises(InputError, match=r"target has the shape \(8,\)"):
        metrics.boundary_f1(step[0], step[0])


def test_crops_by_hand():
    # 0.40810811 * 375 = 153.04, 0.99189189 * 375 = 371.96, 0.03594771 * 1242 = 44.6, 0.96405229 * 1242 = 1197.4
    assert PROTOCOLS["kitti_garg"].crop(375, 1242) == (slice(153, 371), slice(44, 1197))
    # 0.3324324 * 375 = 124.7, 0.91351351 * 375 = 342.6
    assert PROTOCOLS["kitti_eigen"].crop(375, 1242) == (slice(124, 342), slice(44, 1197))
    assert PROTOCOLS["nyuv2_eigen"].crop(480, 640) == (slice(45, 471), slice(41, 601))
    assert PROTOCOLS["full"].crop(7, 9) == (slice(0, 7), slice(0, 9))
    with pytest.raises(InputError, match="target_m has 639 x 480 pixels, wanted 640 x 480 for nyuv2_eigen"):
        PROTOCOLS["nyuv2_eigen"].valid(np.ones((480, 639)))


def test_caps_and_holes_by_hand():
    target = np.full((480, 640), 5.0)
    assert PROTOCOLS["nyuv2_eigen"].valid(target).sum() == 426 * 560
    target[100, 100:105] = (0.0, np.nan, np.inf, 10.0, 9.999)
    assert PROTOCOLS["nyuv2_eigen"].valid(target)[100, 100:105].tolist() == [False, False, False, False, True]
    assert PROTOCOLS["full"].valid(target)[100, 100:105].tolist() == [False, False, False, True, True]
    # A prediction beyond the cap is moved to it, outside the crop it does not matter at all.
    prediction = np.full((480, 640), 5.0)
    prediction[:45] = np.nan
    prediction[200, 200] = 5000.0
    scores = metrics.score_depth(prediction, "depth_metric", target, PROTOCOLS["nyuv2_eigen"])
    counted = 426 * 560 - 4
    assert scores["abs_rel"] == pytest.approx(((10 - 5) / 5 + (9.999 - 5) / 9.999) / counted)
    assert metrics.score_depth(target, "depth_metric", np.zeros((4, 4)), PROTOCOLS["full"]) is None
    with pytest.raises(InputError, match="prediction_m is nan"):
        metrics.score_depth(prediction, "depth_metric", target, PROTOCOLS["full"])


def test_truth_against_itself_is_perfect_by_every_protocol_and_key():
    target = np.exp(RNG.normal(0.5, 0.4, (480, 640)))
    target[RNG.random(target.shape) < 0.2] = 0.0
    safe = np.where(target > 0, target, 3.0)
    given = {
        "depth_metric": safe,
        "depth_scale_invariant": safe * 0.3,
        "depth_affine_invariant": safe * 0.3 - 4,
        "disparity_affine_invariant": 7 / safe - 2,
    }
    assert set(given) == set(metrics.DEPTH_KEYS)
    for protocol in PROTOCOLS.values():
        for key, prediction in given.items():
            scores = metrics.score_depth(prediction, key, target, protocol)
            assert list(scores) == list(metrics.DEPTH_MEASURES)
            for name, value in scores.items():
                perfect = 1 if name.startswith(("delta", "boundary")) else 0
                assert value == pytest.approx(perfect, abs=1e-4 if name == "boundary_f1" else 1e-9), (key, name)


def test_alignment_is_least_squares_of_its_own_kind():
    target = RNG.uniform(1, 6, (8, 9))
    valid = RNG.random(target.shape) > 0.3
    prediction = target + RNG.normal(0, 0.3, target.shape)
    line = scipy.stats.linregress(prediction[valid], target[valid])
    aligned = metrics.aligned_depth_m(prediction, "depth_affine_invariant", target, valid)
    np.testing.assert_allclose(aligned, np.clip(line.slope * prediction + line.intercept, 1e-3, 1e3))
    line = scipy.stats.linregress(prediction[valid], 1 / target[valid])
    aligned = metrics.aligned_depth_m(prediction, "disparity_affine_invariant", target, valid, max_depth_m=9.0)
    fitted = np.maximum(line.slope * prediction + line.intercept, 1 / 9)
    np.testing.assert_allclose(aligned, 1 / fitted)
    assert aligned.max() <= 9.0 + 1e-12
    for key, sentence in (("depth", "key is 'depth'"), ("depth_affine_invariant", "not finite at 1 pixels")):
        holed = prediction.copy()
        holed[tuple(np.argwhere(valid)[0])] = np.inf
        with pytest.raises(InputError, match=sentence):
            metrics.aligned_depth_m(holed, key, target, valid)


def errors_of_scenes(kind, scenes, times, seed):
    """Errors (times, scenes), normal or log-normal, and their true mean; sigma 0.6 is AbsRel's over scenes here."""
    rng = np.random.default_rng(seed)
    if kind == "normal":
        return rng.normal(1, 0.3, (times, scenes)), 1.0
    return np.exp(rng.normal(0, kind, (times, scenes))), math.exp(kind**2 / 2)


@pytest.mark.parametrize("kind", ["normal", 0.6])
@pytest.mark.parametrize(("scenes", "times"), [(5, 600), (9, 600), (20, 400), (192, 150)])
def test_intervals_cover_what_they_say(kind, scenes, times):
    draws, truth = errors_of_scenes(kind, scenes, times, seed=3)
    found = [metrics.cluster_interval(values, range(scenes), samples=500) for values in draws]
    covered = np.mean([interval.low <= truth <= interval.high for interval in found])
    # Of 3000 draws .97, .96, .96, .96 of the normal and .95, .94, .95, .96 of the log-normal ones are covered.
    assert 0.93 - 1.5 * math.sqrt(0.05 * 0.95 / times) < covered < 0.99
    if scenes < 10:
        samples = np.random.default_rng(0).integers(scenes, size=(500, scenes))
        low, high = np.quantile(draws[:, samples].mean(axis=-1), [0.025, 0.975], axis=1)
        # The percentiles of a plain bootstrap cover less: .84 to .91.
        assert np.mean((low <= truth) & (truth <= high)) < covered - 0.03


def test_paired_differences_of_few_scenes_are_covered_too():
    first, truth = errors_of_scenes(0.6, 9, 1000, seed=4)
    second = first * np.random.default_rng(5).normal(0.9, 0.2, first.shape)
    found = [metrics.paired_test(a, b, range(9)).difference for a, b in zip(first[:300], second[:300], strict=True)]
    assert np.mean([i.low <= 0.1 * truth <= i.high for i in found]) > 0.93


def test_intervals_are_the_wider_of_students_t_and_a_studentised_bootstrap():
    # Student's t by scipy: no end is inside it; for many scenes of normal errors both are the same.
    values = RNG.normal(2, 1, 400)
    ours = metrics.cluster_interval(values, range(400))
    theirs = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert ours.mean == pytest.approx(values.mean()) and (ours.pictures, ours.scenes) == (400, 400)
    assert ours.low <= theirs.low + 1e-12 and ours.high >= theirs.high - 1e-12
    assert ours.high - ours.low < 1.05 * (theirs.high - theirs.low)

    # Skewed, scenes of different sizes: one draw at a time, leaving out one scene at a time, from the pictures.
    rng = np.random.default_rng(2)
    scenes = [np.exp(rng.normal(level, 0.1, count)) for level, count in zip(
        rng.normal(0, 0.8, 9), (1, 3, 2, 5, 4, 2, 1, 3, 2), strict=True)]  # fmt: skip

    def mean_and_error(drawn):
        means = [np.concatenate([s for j, s in enumerate(drawn) if j != i]).mean() for i in range(len(drawn))]
        mean = np.concatenate(drawn).mean()
        return mean, math.sqrt((len(drawn) - 1) / len(drawn) * sum((m - mean) ** 2 for m in means))

    mean, error = mean_and_error(scenes)
    away = []
    for _ in range(4000):
        drawn_mean, drawn_error = mean_and_error([scenes[i] for i in rng.integers(9, size=9)])
        away.append((drawn_mean - mean) / drawn_error if drawn_error > 1e-9 else 0.0)
    student = scipy.stats.t.ppf(0.975, 8)
    low, high = np.quantile(away, [0.025, 0.975])
    assert low < -student and high < student  # so one end is of each kind
    ours = metrics.cluster_interval(np.concatenate(scenes), np.repeat(range(9), [len(s) for s in scenes]))
    assert ours.mean == pytest.approx(mean)
    assert ours.low == pytest.approx(mean - student * error)
    assert ours.high == pytest.approx(mean - low * error, rel=0.1)


def test_pictures_of_one_scene_add_no_certainty():
    values = RNG.normal(0, 1, 12)
    scenes = [f"s{i}" for i in range(12)]
    once = metrics.cluster_interval(values, scenes)
    often = metrics.cluster_interval(np.repeat(values, 50), np.repeat(scenes, 50))
    assert (often.low, often.high) == pytest.approx((once.low, once.high)) and often.pictures == 600
    naive = metrics.cluster_interval(np.repeat(values, 50), range(600))
    assert naive.high - naive.low < 0.3 * (once.high - once.low)
    one = metrics.cluster_interval([1.0, 2.0], ["a", "a"])
    assert (one.low, one.mean, one.high, one.scenes) == (None, 1.5, None, 1)  # one scene tells nothing of others
    two = metrics.cluster_interval([1.0, 2.0], ["a", "b"])
    assert two.high == pytest.approx(1.5 + scipy.stats.t.ppf(0.975, 1) * 0.5)
    same = metrics.cluster_interval([0.1] * 8, range(8))
    assert (same.low, same.high) == pytest.approx((0.1, 0.1))


def test_paired_test_is_scipys_permutation_test():
    first, second = RNG.normal(0.4, 1, 10), RNG.normal(0, 1, 10)
    scenes = [str(i) for i in range(10)]
    theirs = scipy.stats.permutation_test(
        (first, second), lambda a, b, axis: np.mean(a - b, axis=axis), permutation_type="samples", vectorized=True
    )
    ours = metrics.paired_test(first, second, scenes)
    assert ours.p_value == pytest.approx(theirs.pvalue, abs=1e-12)
    assert ours.difference.mean == pytest.approx(np.mean(first - second))
    assert metrics.paired_test(first, first, scenes).p_value == 1.0
    # Eight scenes, all of one sign: two of 2^8 patterns are as far out. Fifty pictures of each change nothing.
    better = np.full(8, 0.1)
    assert metrics.paired_test(better, 0 * better, range(8)).p_value == pytest.approx(2 / 256)
    many = metrics.paired_test(np.repeat(better, 50), np.zeros(400), np.repeat(np.arange(8), 50))
    assert many.p_value == pytest.approx(2 / 256)
    drawn = metrics.paired_test(np.full(40, 0.1), np.zeros(40), range(40))
    assert drawn.p_value == pytest.approx(1e-4)


def test_statistics_refuse():
    for call, sentence in [
        (lambda: metrics.cluster_interval([], []), r"values has the shape \(0,\)"),
        (lambda: metrics.cluster_interval([1.0], ["a", "b"]), "scenes 2 entries"),
        (lambda: metrics.cluster_interval([1.0, np.nan], ["a", "b"]), "1 entries that are not finite"),
        (lambda: metrics.cluster_interval([1.0], ["a"], level=1.0), "level is 1.0"),
        (lambda: metrics.paired_test([1.0], [1.0, 2.0], ["a"]), "first has 1 entries and second 2"),
    ]:
        with pytest.raises(InputError, match=sentence):
            call()


@pytest.mark.parametrize("name", metrics.PERCEPTUAL)
def test_perceptual_distances_are_refused_where_their_networks_are_absent(name):
    with pytest.raises(InputError, match=f"{name} needs the package torch(metrics|vision), which is not installed"):
        metrics.perceptual_distance(name)
    with pytest.raises(InputError, match="name is 'ssim'"):
        metrics.perceptual_distance("ssim")

"""Crops and caps, alignment by name, intervals, paired tests, cells of a table."""

import math

import numpy as np
import pytest
import scipy.stats

from bokehdepth.errors import InputError
from train.evaluation.protocols import ALIGNMENTS, DEPTH_MEASURES, PROTOCOLS, aligned_depth_m, score_depth
from train.evaluation.statistics import cluster_interval, compare, paired_test
from train.evaluation.tables import cell, markdown

RNG = np.random.default_rng(11)


def test_crops_by_hand():
    # 0.40810811 * 375 = 153.04, 0.99189189 * 375 = 371.96, 0.03594771 * 1242 = 44.6, 0.96405229 * 1242 = 1197.4
    assert PROTOCOLS["kitti_garg"].crop(375, 1242) == (slice(153, 371), slice(44, 1197))
    # 0.3324324 * 375 = 124.7, 0.91351351 * 375 = 342.6
    assert PROTOCOLS["kitti_eigen"].crop(375, 1242) == (slice(124, 342), slice(44, 1197))
    assert PROTOCOLS["nyuv2_eigen"].crop(480, 640) == (slice(45, 471), slice(41, 601))
    assert PROTOCOLS["full"].crop(7, 9) == (slice(0, 7), slice(0, 9))
    with pytest.raises(InputError, match="must have 640 x 480 pixels for nyuv2_eigen, got 639 x 480"):
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
    scores = score_depth(prediction, "depth_metric", target, PROTOCOLS["nyuv2_eigen"])
    counted = 426 * 560 - 4
    assert scores["abs_rel"] == pytest.approx(((10 - 5) / 5 + (9.999 - 5) / 9.999) / counted)
    assert score_depth(target, "depth_metric", np.zeros((4, 4)), PROTOCOLS["full"]) is None
    with pytest.raises(InputError, match="finite and above 0 where the truth counts, got nan at "):
        score_depth(prediction, "depth_metric", target, PROTOCOLS["full"])


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
    assert set(given) == set(ALIGNMENTS)
    for protocol in PROTOCOLS.values():
        for key, prediction in given.items():
            scores = score_depth(prediction, key, target, protocol)
            assert list(scores) == list(DEPTH_MEASURES)
            for name, value in scores.items():
                perfect = 1 if name.startswith(("delta", "boundary")) else 0
                assert value == pytest.approx(perfect, abs=1e-4 if name == "boundary_f1" else 1e-9), (key, name)


def test_alignment_is_least_squares_of_its_own_kind():
    target = RNG.uniform(1, 6, (8, 9))
    valid = RNG.random(target.shape) > 0.3
    prediction = target + RNG.normal(0, 0.3, target.shape)
    line = scipy.stats.linregress(prediction[valid], target[valid])
    aligned = aligned_depth_m(prediction, "depth_affine_invariant", target, valid, 1e-3, 1e3)
    np.testing.assert_allclose(aligned, np.clip(line.slope * prediction + line.intercept, 1e-3, 1e3))
    line = scipy.stats.linregress(prediction[valid], 1 / target[valid])
    aligned = aligned_depth_m(prediction, "disparity_affine_invariant", target, valid, 1e-3, 9.0)
    fitted = np.maximum(line.slope * prediction + line.intercept, 1 / 9)
    np.testing.assert_allclose(aligned, 1 / fitted)
    assert aligned.max() <= 9.0 + 1e-12
    prediction[tuple(np.argwhere(valid)[0])] = np.inf
    with pytest.raises(InputError, match="finite where the truth counts, got inf at 1 pixels"):
        score_depth(prediction, "depth_affine_invariant", target, PROTOCOLS["full"])


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
    found = [cluster_interval(values, range(scenes), samples=500) for values in draws]
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
    found = [paired_test(a, b, range(9))[0] for a, b in zip(first[:300], second[:300], strict=True)]
    assert np.mean([i.low <= 0.1 * truth <= i.high for i in found]) > 0.93


def test_intervals_are_no_narrower_than_students():
    # Student's t by scipy: no end is inside it; for many scenes of normal errors both are the same.
    values = RNG.normal(2, 1, 400)
    ours = cluster_interval(values, range(400))
    theirs = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert ours.mean == pytest.approx(values.mean()) and (ours.pictures, ours.scenes) == (400, 400)
    assert ours.low <= theirs.low + 1e-12 and ours.high >= theirs.high - 1e-12
    assert ours.high - ours.low < 1.05 * (theirs.high - theirs.low)


def test_pictures_of_one_scene_add_no_certainty():
    values = RNG.normal(0, 1, 12)
    scenes = [f"s{i}" for i in range(12)]
    once = cluster_interval(values, scenes)
    often = cluster_interval(np.repeat(values, 50), np.repeat(scenes, 50))
    assert (often.low, often.high) == pytest.approx((once.low, once.high)) and often.pictures == 600
    naive = cluster_interval(np.repeat(values, 50), range(600))
    assert naive.high - naive.low < 0.3 * (once.high - once.low)
    one = cluster_interval([1.0, 2.0], ["a", "a"])
    assert (one.low, one.mean, one.high, one.scenes) == (None, 1.5, None, 1)  # one scene tells nothing of others
    two = cluster_interval([1.0, 2.0], ["a", "b"])
    assert two.high == pytest.approx(1.5 + scipy.stats.t.ppf(0.975, 1) * 0.5)
    same = cluster_interval([0.1] * 8, range(8))
    assert (same.low, same.high) == pytest.approx((0.1, 0.1))


def test_paired_tests_by_hand():
    better = np.full(8, 0.1)
    # Eight scenes, all of one sign: two of 2^8 patterns are as far out. Fifty pictures of each change nothing.
    difference, p_value = paired_test(better + 1, np.ones(8), range(8))
    assert p_value == pytest.approx(2 / 256) and difference.mean == pytest.approx(0.1)
    _, p_value = paired_test(np.repeat(better, 50), np.zeros(400), np.repeat(np.arange(8), 50))
    assert p_value == pytest.approx(2 / 256)
    _, p_value = paired_test(np.full(40, 0.1), np.zeros(40), range(40))
    assert p_value == pytest.approx(1e-4)  # of 9999 drawn patterns and the one seen
    # Totals of 1, 2 and 3 with any signs: 6, 4, 2 and 0 on both sides; those of 4 and 6 are as far out as 4.
    _, p_value = paired_test([-1.0, 2.0, 3.0], [0.0, 0.0, 0.0], "abc")
    assert p_value == pytest.approx(4 / 8)
    assert paired_test(better, better, range(8))[1] == paired_test([1.0, 2.0], [0.0, 0.0], ["a", "a"])[1] == 1.0


def test_methods_are_compared_on_equal_pictures():
    values = {"a": [1.0, 2.0, 3.0], "b": [2.0, 3.0, float("nan")]}
    rows = [
        {"method": m, "scene": scene, "x": x, "y": 1 + scene} for m, v in values.items() for scene, x in enumerate(v)
    ]
    entries = compare(rows, ("x", "y"), ("x", "y"), "b")
    assert list(entries) == ["b", "a"] and entries["b"]["x"]["mean"] == 2.5 and entries["b"]["x"]["scenes"] == 2
    assert entries["a"]["x_minus_against"] is None and entries["a"]["y_minus_against"]["p_value"] == 1
    with pytest.raises(InputError, match="`against` must be one of a, b, got 'c'"):
        compare(rows, ("x",), (), "c")


def test_a_cell_says_what_an_interval_rests_on():
    interval = {"mean": 0.5, "low": 0.25, "high": 1.0, "pictures": 40, "scenes": 9}
    assert cell(interval) == "0.500 (0.250 to 1.000, n 9)"
    assert cell({**interval, "p_value": 0.0312}, ".1f") == "+0.5 (+0.2 to +1.0, n 9), p 0.031"
    assert cell({**interval, "low": None, "high": None, "scenes": 1}) == "0.500 (no interval, n 1)"
    assert cell(None) == "-"
    assert markdown(["a", "b"], [["1", "2"]]) == "| a | b |\n|---|---|\n| 1 | 2 |"

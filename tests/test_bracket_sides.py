"""Which side of the focus (Eq. 33, 34), and frames that no blur explains: what the confidence knows of both."""

import numpy as np
import pytest
import skimage.data
from scipy import ndimage
from test_bracket_depth import INNER, STRENGTHS, blurred, stack_of, taken

from bokehdepth.bracket_depth import LOW_CONFIDENCE, depth_from_sweep

FOCUS_M = 2.0


@pytest.fixture(scope="module")
def texture():
    return (skimage.data.astronaut()[60:188, 160:288] / 255).astype(np.float32)


def plane(texture, depth_m):
    """The frames of a plane, in the sharp frame's company."""
    return taken(texture, 0.005), stack_of(texture, abs(1 / FOCUS_M - 1 / depth_m), noise=0.005)


def rough_depth(depth_m, factor=1.0, error=0.1):
    """What a network might say: right but for a factor and errors of 10 % that change slowly."""
    lumps = ndimage.gaussian_filter(np.random.default_rng(1).standard_normal((128, 128)), 8)
    return (depth_m * factor * np.exp(error * lumps / lumps.std())).astype(np.float32)


@pytest.mark.parametrize("depth_m", [1.05, 1.2, 1.5, 3.0, 6.0])
def test_without_a_rough_depth_nobody_is_sure_of_a_side(texture, depth_m):
    """1.2 m and 6 m blur alike through a lens at 2 m."""
    found = depth_from_sweep(*plane(texture, depth_m), STRENGTHS, FOCUS_M)
    assert found.confidence[INNER].max() < LOW_CONFIDENCE
    offset = np.median(found.disparity_offset_dpt[INNER])
    assert offset == pytest.approx(abs(1 / FOCUS_M - 1 / depth_m), abs=0.01)  # what is known is there
    record = found.summary()
    assert (record["side"], record["side_told_by"]) == ("auto", "range") and record["side_unknown_share"] > 0.99
    said = depth_from_sweep(*plane(texture, depth_m), STRENGTHS, FOCUS_M, side="behind")
    assert np.median(said.confidence) > 0.9 and said.summary()["side_told_by"] == "caller"


def test_in_focus_the_side_does_not_matter(texture):
    found = depth_from_sweep(*plane(texture, FOCUS_M), STRENGTHS, FOCUS_M)
    assert np.median(found.confidence) > 0.9 and np.median(found.depth_m) == pytest.approx(FOCUS_M, rel=0.01)


def test_an_offset_that_fits_on_one_side_only_tells_it(texture):
    # 1/0.7 - 1/2 = 0.93 dpt would lie far beyond infinity; 0.45 dpt in front would be nearer than 1.2 m.
    near = depth_from_sweep(*plane(texture, 0.7), STRENGTHS, FOCUS_M)
    assert not near.behind_focus[INNER].any() and np.median(near.confidence) > 0.9
    assert np.median(near.depth_m[INNER]) == pytest.approx(0.7, rel=0.02)
    far = depth_from_sweep(*plane(texture, 20.0), STRENGTHS, FOCUS_M, min_depth_m=1.2)
    assert far.behind_focus.all() and np.median(far.confidence) > 0.9


def test_infinity_that_is_measured_a_little_beyond_is_no_near_thing(texture):
    """10 % more blur than at infinity, as a false focus distance gives it."""
    frames = stack_of(texture, 1.1 / FOCUS_M, noise=0.005)
    found = depth_from_sweep(taken(texture, 0.005), frames, STRENGTHS, FOCUS_M)
    assert np.median(found.confidence) < LOW_CONFIDENCE and found.behind_focus[INNER].mean() > 0.95


@pytest.mark.parametrize("depth_m", [1.05, 1.2, 6.0])
@pytest.mark.parametrize("factor", [0.8, 1.0, 1.2])
def test_a_rough_depth_tells_the_side(texture, depth_m, factor):
    """Both depths that an offset allows differ by more than a rough depth errs: 1.2 m does not become 6 m."""
    rough = rough_depth(depth_m, factor)
    found = depth_from_sweep(*plane(texture, depth_m), STRENGTHS, FOCUS_M, rough_depth_m=rough)
    assert np.median(np.abs(found.depth_m[INNER] / depth_m - 1)) < 0.03
    assert (found.behind_focus[INNER] == (depth_m > FOCUS_M)).all() and found.side_told_by == "rough depth"
    assert np.mean(found.confidence[INNER] >= LOW_CONFIDENCE) > 0.98


@pytest.mark.parametrize("depth_m", [1.5, 3.0])
@pytest.mark.parametrize("factor", [0.6, 0.8, 1.0, 1.2, 1.5])
def test_a_rough_depth_that_cannot_tell_is_not_believed(texture, depth_m, factor):
    """A plane alone at 1.5 or 3 m, and depth that errs by as much as it takes to go from one to the other."""
    found = depth_from_sweep(*plane(texture, depth_m), STRENGTHS, FOCUS_M, rough_depth_m=rough_depth(depth_m, factor))
    wrong = found.behind_focus != (depth_m > FOCUS_M)
    assert np.mean((wrong & (found.confidence >= LOW_CONFIDENCE))[INNER]) < 0.01


def on_both_halves(texture, left_m, right_m, focus_m):
    frames = []
    for seed, k in enumerate(STRENGTHS, 1):
        frame = texture.copy()
        for part, depth_m in ((np.s_[:, :64], left_m), (np.s_[:, 64:], right_m)):
            frame[part] = blurred(texture, k * 128 / 512 * abs(1 / focus_m - 1 / depth_m))[part]
        frames.append(taken(frame, 0.005, seed))
    return taken(texture, 0.005), frames


def test_a_rough_depth_that_sees_nothing_is_not_believed(texture):
    """2.5 and 4 m, and a network that says about the same everywhere: that is nearer to 1.4 and 1.2 m in front."""
    sharp, frames = on_both_halves(texture, 2.5, 4.0, 1.8)
    for says_m in (1.8, 3.0):
        rough = rough_depth(np.full((128, 128), says_m))
        found = depth_from_sweep(sharp, frames, STRENGTHS, 1.8, rough_depth_m=rough)
        assert np.mean(found.confidence[INNER] >= LOW_CONFIDENCE) < 0.02
    seeing = rough_depth(np.where(np.arange(128) < 64, 2.5, 4.0) * np.ones((128, 1)), 1.2)
    found = depth_from_sweep(sharp, frames, STRENGTHS, 1.8, rough_depth_m=seeing)
    far = np.s_[20:-20, 84:112]
    assert np.median(found.depth_m[far]) == pytest.approx(4.0, rel=0.05) and np.median(found.confidence[far]) > 0.5


def test_a_scene_on_both_sides(texture):
    """In front at 1.2 m on the left, in focus in the middle, behind at 6 m on the right: the same blur twice."""
    depth = np.full((128, 128), FOCUS_M)
    depth[:, :48], depth[:, 80:] = 1.2, 6.0
    frames = []
    for seed, k in enumerate(STRENGTHS, 1):
        frame = texture.copy()
        for part, depth_m in ((np.s_[:, :48], 1.2), (np.s_[:, 80:], 6.0)):
            frame[part] = blurred(texture, k * 128 / 512 * abs(1 / FOCUS_M - 1 / depth_m))[part]
        frames.append(taken(frame, 0.005, seed))
    sharp, parts = taken(texture, 0.005), (np.s_[20:-20, 16:36], np.s_[20:-20, 92:112])
    found = depth_from_sweep(sharp, frames, STRENGTHS, FOCUS_M, rough_depth_m=rough_depth(depth, 1.4))
    for part, depth_m in zip(parts, (1.2, 6.0), strict=True):
        assert np.median(found.depth_m[part]) == pytest.approx(depth_m, rel=0.05)
        assert np.median(found.confidence[part]) > 0.9
    assert found.rough_depth_scale == pytest.approx(1 / 1.4, rel=0.1)
    assert 0.2 < found.summary()["front_share"] < 0.6 and found.summary()["side_unknown_share"] < 0.1
    # The caller's word is taken, and the record says whose it is.
    said = depth_from_sweep(sharp, frames, STRENGTHS, FOCUS_M, side="behind")
    assert np.median(said.depth_m[parts[0]]) == pytest.approx(6.0, rel=0.1) and said.side_told_by == "caller"
    alone = depth_from_sweep(sharp, frames, STRENGTHS, FOCUS_M)
    assert all(alone.confidence[part].max() < LOW_CONFIDENCE for part in parts)
    assert np.median(alone.confidence[20:-20, 60:68]) > 0.9


def test_a_focus_at_infinity_has_one_side(texture):
    frames = stack_of(texture, 0.4, noise=0.005)
    for rough in (None, np.full((128, 128), 7.0)):
        found = depth_from_sweep(taken(texture, 0.005), frames, STRENGTHS, np.inf, rough_depth_m=rough)
        assert not found.behind_focus.any() and np.median(found.confidence) > 0.9
        assert np.median(found.depth_m[INNER]) == pytest.approx(2.5, rel=0.03)


@pytest.mark.parametrize("estimator", ["joint", "per_frame"])
@pytest.mark.parametrize("order", [(2, 1, 0), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1)])
def test_frames_whose_strengths_are_false_are_confident_nowhere(texture, order, estimator):
    """A bracket whose frames bear each other's K: not even what is in focus is sure."""
    sharp, frames = on_both_halves(texture, 1.8, 3.0, 1.8)
    options = {"side": "behind", "estimator": estimator}
    right = depth_from_sweep(sharp, frames, STRENGTHS, 1.8, **options)
    false = depth_from_sweep(sharp, [frames[n] for n in order], STRENGTHS, 1.8, **options)
    assert np.mean(right.confidence[INNER] >= LOW_CONFIDENCE) > 0.9 and right.contradiction < 0.02
    assert false.confidence.max() < LOW_CONFIDENCE and false.summary()["contradiction"] > 0.25


@pytest.mark.parametrize("strengths", [(10, 20, 60), (10, 20, 45), (20, 20.5, 30)])
def test_one_strength_that_is_false_lowers_the_confidence(texture, strengths):
    sharp, frames = on_both_halves(texture, 2.5, 4.0, 1.8)
    right = depth_from_sweep(sharp, frames, STRENGTHS, 1.8, side="behind")
    false = depth_from_sweep(sharp, frames, strengths, 1.8, side="behind")
    assert right.contradiction < 0.02 and 0.1 < false.contradiction
    assert false.confidence[INNER].mean() < 0.6 * right.confidence[INNER].mean()


def test_labels_of_one_frame_and_of_flat_pictures_contradict_nothing(texture):
    sharp, frames = on_both_halves(texture, 2.5, 4.0, 1.8)
    assert depth_from_sweep(sharp, frames[:1], (60,), 1.8, side="behind").contradiction == 0
    flat = np.full((128, 128, 3), 0.5, dtype=np.float32)
    pictures = [taken(flat, 0.01, seed) for seed in range(4)]
    found = depth_from_sweep(pictures[0], pictures[1:], STRENGTHS, 1.8, side="behind")
    assert found.contradiction < 0.05 and np.mean(found.confidence >= LOW_CONFIDENCE) < 0.1


def test_frames_of_another_scene_are_not_confident(texture):
    other = (skimage.data.coffee()[100:228, 200:328] / 255).astype(np.float32)
    found = depth_from_sweep(taken(texture, 0.005), stack_of(other, 0.4), STRENGTHS, 1.5, side="behind")
    assert np.mean(found.confidence[INNER] >= LOW_CONFIDENCE) < 0.05

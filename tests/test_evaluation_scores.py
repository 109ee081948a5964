"""Saved predictions and their scores: truth is perfect, numbers agree with plain sums, rows that must be there."""

import csv
import json
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from bokehdepth.errors import InputError
from train.config import PoolConfig
from train.data import fill_pool
from train.evaluation import scores_bokeh, scores_depth
from train.evaluation.__main__ import main
from train.evaluation.methods import MethodOptions
from train.evaluation.metrics_bokeh import CEILING_DB, selectivity
from train.evaluation.metrics_depth import boundary_f1
from train.evaluation.predictions import MethodCard, folder_name, predict
from train.evaluation.samples import PoolSource, Prepared

pytestmark = pytest.mark.filterwarnings("ignore")
SIZE = 64


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    # No sky: it is farther than the 1000 m at which aligned predictions end (train.evaluation.protocols).
    kinds = {"portrait": 2.0, "room": 1.0, "table": 1.0, "wall": 1.0}
    settings = PoolConfig(str(tmp_path_factory.mktemp("pool")), scenes=4, held_out_scenes=4, size_px=SIZE, shard=4,
                          kinds=kinds, render_missing=True)  # fmt: skip
    fill_pool(settings)
    return settings


@pytest.fixture(scope="module")
def source(pool):
    return PoolSource(pool)


def read_rows(folder):
    with (folder / "per_image.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def assert_every_interval_says_how_many_scenes(text, scenes):
    """Intervals of a table are `(a to b, n scenes)`, in every column whose header says 95 %."""
    intervals = re.findall(r"\(\S+ to [^)]*\)", text)
    assert intervals and all(re.search(rf", n {scenes}\)$", found) for found in intervals)
    header = next(line for line in text.splitlines() if line.startswith("|"))
    assert "95 %" in header and header.count("95 %") == header.count("95 %, n scenes")


def save_method(folder, name, kind, **options):
    """A card as predict writes it, for predictions that a test writes itself."""
    own = folder / folder_name(name)
    own.mkdir(parents=True, exist_ok=True)
    card = MethodCard(name, kind, "none", False, False, 4, "test", options)
    (own / "method.json").write_text(json.dumps(card.__dict__))
    return own


def test_depth_truth_is_perfect_and_constants_are_what_they_are(source, tmp_path):
    predict(["truth", "constant:2.5"], source, tmp_path / "p", MethodOptions())
    inverse = save_method(tmp_path / "p", "inverse", "depth")
    for sample in source:
        np.savez(inverse / f"{sample.sample_id}.npz", disparity_affine_invariant=3 / sample.depth_m - 1)
    text = scores_depth.score(tmp_path / "p", source, "full", "constant:2.5", tmp_path / "out")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert list(report["rows"])[0] == "constant:2.5"
    assert set(report["rows"]) == {"truth", "constant:2.5", "inverse", *scores_depth.ALWAYS}
    assert (report["pictures"], report["scenes"]) == (4, 4)
    for name in ("truth", "inverse"):
        row = report["rows"][name]
        for measure in ("abs_rel", "sq_rel", "rmse_m", "rmse_log", "log10", "si_log"):
            assert row[measure]["mean"] == pytest.approx(0, abs=1e-4), (name, measure)
        assert row["delta1"]["mean"] == 1.0
    # The truth is the ceiling of the boundary score, and a scene without contours in a direction is below 1.
    ceiling = np.mean([boundary_f1(sample.depth_m, sample.depth_m, np.isfinite(sample.depth_m)) for sample in source])
    assert report["rows"]["truth"]["boundary_f1"]["mean"] == pytest.approx(ceiling) and 0.25 < ceiling <= 1
    assert report["rows"]["constant"]["boundary_f1"]["mean"] == 0
    rows = read_rows(tmp_path / "out")
    assert len(rows) == 7 * 4 and {row["method"] for row in rows} == set(report["rows"])
    for row in (row for row in rows if row["method"] == "constant:2.5"):
        depth = source[source.ids.index(row["sample"])].depth_m.astype(np.float64)
        assert float(row["abs_rel"]) == pytest.approx(np.mean(np.abs(2.5 - depth) / depth), rel=1e-9)
        assert float(row["rmse_m"]) == pytest.approx(np.sqrt(np.mean((2.5 - depth) ** 2)), rel=1e-9)
        scaled = np.mean(np.abs(np.median(depth) - depth) / depth)
        assert float(row["abs_rel_median_scaled"]) == pytest.approx(scaled, rel=1e-6)
    assert report["rows"]["inverse"]["abs_rel_median_scaled"] is None and "AbsRel, median-scaled" in text
    own = [float(row["abs_rel"]) for row in rows if row["method"] == "constant:2.5"]
    assert report["rows"]["constant:2.5"]["abs_rel"]["mean"] == pytest.approx(np.mean(own))
    test = report["rows"]["truth"]["abs_rel_minus_against"]
    assert test["mean"] == pytest.approx(-np.mean(own), abs=1e-6) and test["p_value"] == pytest.approx(2 / 16)
    assert (
        "protocol full, cap none, predictions not clipped" in text
        and text in (tmp_path / "out" / "table.md").read_text().strip()
    )
    assert "| truth * | none | no | 0.000 (0.000 to 0.000, n 4) |" in text
    assert "| inverse | scale, shift of 1/depth | no |" in text and "p 0.12 |" in text
    assert_every_interval_says_how_many_scenes(text, 4)


def test_depth_predictions_that_do_not_fit_are_refused(source, tmp_path):
    own = save_method(tmp_path, "mine", "depth")
    for number, sample in enumerate(source):
        depth = sample.depth_m.copy()
        if number == 2:
            depth[3, 4] = np.nan
        np.savez(own / f"{sample.sample_id}.npz", depth_metric=depth)
    arguments = (tmp_path, source, "full", "mine", tmp_path / "out")
    with pytest.raises(
        InputError, match="mine, sample '00002': `prediction` must be finite and above 0 .*, got nan at 1 pixels"
    ):
        scores_depth.score(*arguments)
    (own / "00002.npz").unlink()
    with pytest.raises(InputError, match="got no 00002.npz"):
        scores_depth.score(*arguments)
    part = Prepared(source, numbers=[0, 1])
    assert "2 of 4 held_out" in scores_depth.score(tmp_path, part, "full", "mine", tmp_path / "out")
    for changed, sentence in [
        ({"protocol": "nyu"}, "`protocol` must be one of full.*, got 'nyu'"),
        ({"against": "other"}, "`against` must be one of mine.*, got 'other'"),
        ({"protocol": "nyuv2_eigen"}, "must have 640 x 480 pixels for nyuv2_eigen"),
        ({"predictions": tmp_path / "none"}, "`predictions` must be a folder that predict wrote"),
    ]:
        named = dict(predictions=tmp_path, source=part, protocol="full", against="mine", output=tmp_path / "o")
        with pytest.raises(InputError, match=sentence):
            scores_depth.score(**{**named, **changed})
    assert not (tmp_path / "o").exists()


def test_bokeh_truth_is_perfect_and_measures_are_those_of_skimage(source, tmp_path):
    own = save_method(tmp_path / "p", "copied", "bokeh")
    for sample in source:
        (own / sample.sample_id).mkdir()
        for target in sample.targets:
            picture = Image.fromarray((target.picture * 255).round().astype(np.uint8))
            picture.save(own / sample.sample_id / f"bokeh_k{target.bokeh_strength:g}.png")
    text = scores_bokeh.score(tmp_path / "p", source, "identity", tmp_path / "out")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert list(report["rows"]) == ["identity", "copied", "uniform_blur"]
    row = report["rows"]["copied"]
    assert row["psnr_linear"]["mean"] == row["psnr_srgb"]["mean"] == CEILING_DB
    assert row["ssim_linear"]["mean"] == row["ssim_srgb"]["mean"] == 1.0
    assert row["rising_share"] == 1.0 and report["rows"]["identity"]["rising_share"] == 0.0
    assert report["rows"]["identity"]["selectivity"]["ratio"] is None
    assert row["selectivity"]["ratio"] > 5 > report["rows"]["uniform_blur"]["selectivity"]["ratio"]
    assert [name for name, entry in report["rows"].items() if entry["uses_truth"]] == ["uniform_blur"]
    assert row["monotone_share"] == 1 and report["rows"]["identity"]["monotone_share"] == 0
    in_focus = {name: entry["psnr_in_focus"] for name, entry in report["rows"].items()}
    assert in_focus["copied"] == CEILING_DB > in_focus["identity"] > 50 > in_focus["uniform_blur"]
    assert row["median_slope"] == pytest.approx(1, abs=0.1) and report["rows"]["identity"]["median_slope"] == 0
    assert_every_interval_says_how_many_scenes(text, 4)
    assert re.search(
        r"; 12 pictures of 4 scenes, changes over \d+ pictures of \d scenes, K steps over \d photos, radius", text
    )
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0,
               "channel_axis": 2}  # fmt: skip
    rows = [row for row in read_rows(tmp_path / "out") if row["method"] == "identity"]
    assert len(rows) == 4 * 3
    compared = 0
    for row in rows:
        sample = source[source.ids.index(row["sample"])]
        truth = next(t.picture for t in sample.targets if t.bokeh_strength == float(row["bokeh_strength"]))
        for space, power in (("srgb", 1.0), ("linear", 2.2)):
            a, b = sample.photo.astype(np.float64) ** power, truth.astype(np.float64) ** power
            # scikit-image's SSIM averages the same pixels: those whose window lies inside.
            assert float(row[f"ssim_{space}"]) == pytest.approx(structural_similarity(b, a, **options), abs=1e-5)
            expected = peak_signal_noise_ratio(b, a, data_range=1.0)
            if expected < CEILING_DB:
                compared += 1
                assert float(row[f"psnr_{space}"]) == pytest.approx(expected, abs=1e-3)
    assert compared > 12
    for name in ("lpips", "dists"):
        assert f"{name} is left out: {name} needs the package" in text
    assert "linear is value ** 2.2, sRGB display values" in text and "| uniform_blur * |" in text


def test_bokeh_predictions_that_do_not_fit_are_refused(source, tmp_path):
    own = save_method(tmp_path, "mine", "bokeh")
    with pytest.raises(InputError, match="got no 00000/bokeh_k10.png"):
        scores_bokeh.score(tmp_path, source, "mine", tmp_path / "out")
    (own / "00000").mkdir()
    Image.new("RGB", (SIZE, SIZE + 1)).save(own / "00000" / "bokeh_k10.png")
    with pytest.raises(InputError, match=r"bokeh_k10.png must have the photo's size \(64, 64\), got \(65, 64\)"):
        scores_bokeh.score(tmp_path, source, "mine", tmp_path / "out")
    with pytest.raises(InputError, match="`against` must be one of .*, got 'x'"):
        scores_bokeh.score(own, source, "x", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_hole_in_the_depth_belongs_to_neither_area(source):
    sample, k = source[0], 30.0
    picture, scale = sample.targets[-1].picture, SIZE / 128
    radius = scores_bokeh.radius_map_px(sample, k)
    between = (radius > scale / 2) & (radius < 2 * scale)
    holed = replace(sample, depth_m=np.where(between, np.nan, sample.depth_m).astype(np.float32))
    changes = [selectivity(s.photo, picture, scores_bokeh.radius_map_px(s, k)) for s in (sample, holed)]
    assert between.any() and changes[0] == changes[1]
    assert scores_bokeh.radius_map_px(replace(sample, focus_distance_m=None), k) is None


def call(*words):
    main([str(word) for word in words])


def test_each_command_has_its_own_help(capsys):
    options = {"predict": "--method", "score-depth": "--protocol", "score-bokeh": "--against",
               "score-masks": "--manifest", "score-faces": "--marks", "score-outdoors": "--marks",
               "look": "--colormap"}  # fmt: skip
    for name, option in options.items():
        with pytest.raises(SystemExit) as done:
            call(name, "--help")
        text = capsys.readouterr().out
        assert done.value.code == 0 and f"train.evaluation {name} " in text and option in text


def test_the_two_steps_on_the_command_line(data_root, tmp_path, caplog, capsys):
    """Real pairs: KITTI's, with crop and cap, from photo to table."""
    caplog.set_level("INFO")
    pairs = ("--rgbd", data_root / "rgbd", "--only", "kitti_object", "--limit", 2)
    call("predict", *pairs, "--method", "truth", "--method", "depth_pro", "--output", tmp_path / "p")
    assert "depth_pro is left out" in caplog.text
    call("score-depth", "--predictions", tmp_path / "p", *pairs, "--protocol", "kitti_garg",
         "--output", tmp_path / "out")  # fmt: skip
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["rows"]["truth"]["abs_rel"]["mean"] == 0 and report["rows"]["truth"]["delta1"]["mean"] == 1
    assert report["rows"]["constant"]["abs_rel"]["mean"] > 0.1 and report["protocol"]["max_depth_m"] == 80
    assert "cap 80 m, predictions clipped" in capsys.readouterr().out
    for name, arguments, sentence in [
        ("predict", (*pairs, "--method", "magic", "--output", tmp_path / "q"), "no method could be run"),
        ("predict", ("--rgbd", tmp_path, "--method", "truth", "--output", tmp_path / "q"), "with an index.csv"),
        (
            "predict",
            (*pairs[:4], "--limit", 0, "--method", "truth", "--output", tmp_path / "q"),
            "`limit` must be 1 or more",
        ),
        (
            "score-depth",
            ("--predictions", tmp_path / "none", *pairs, "--output", tmp_path / "q"),
            "`predictions` must be a folder",
        ),
        (
            "score-bokeh",
            ("--predictions", tmp_path / "p", *pairs, "--output", tmp_path / "q"),
            "must have targets",
        ),
    ]:
        with pytest.raises(SystemExit, match=f"error: .*{sentence}"):
            call(name, *arguments)
    assert not (tmp_path / "q").exists()

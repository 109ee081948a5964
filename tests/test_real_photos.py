"""Real photos as manifests: units, steps taken out, what is left out, a build that goes on, bad lines refused."""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bokehdepth.errors import InputError
from bokehdepth.manifest import read_manifest
from datasets_scripts import real_photos
from datasets_scripts.real_photos import build, read_index, without_steps
from train.evaluation.samples import RowSource

WIDTH, HEIGHT = 48, 36
SMOOTH = 80.0 + 0.5 * np.arange(WIDTH)[None] + 0.2 * np.arange(HEIGHT)[:, None]
STEPPED = (2 * np.floor(SMOOTH / 2) + 1).astype(np.uint16)


def line(name: str, source: str, use: str = "train", **values: str) -> dict[str, str]:
    empty = dict.fromkeys(real_photos._COLUMNS, "")
    own = {"id": name, "source": source, "use": use, "scene": name, "rgb": f"{source}/rgb/{name}.jpg"}
    return empty | own | {"w": str(WIDTH), "h": str(HEIGHT)} | values


def raw_folder(root: Path, lines: list[dict[str, str]], depth: np.ndarray = STEPPED) -> Path:
    raw = root / "raw"
    for values in lines:
        for column in ("rgb", "depth", "mask"):
            if values[column]:
                (raw / values[column]).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (WIDTH, HEIGHT), (90, 80, 70)).save(raw / values["rgb"])
        if values["depth"]:
            Image.fromarray(depth).save(raw / values["depth"])
        if values["mask"]:
            mask = np.zeros((HEIGHT, WIDTH), np.uint8)
            mask[5:20, 5:20] = 0 if "empty" in values["id"] else 255
            Image.fromarray(mask).save(raw / values["mask"])
    with (raw / "index.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, real_photos._COLUMNS)
        writer.writeheader()
        writer.writerows(lines)
    return raw


NYU = line("n1", "nyuv2_labeled", depth="nyuv2_labeled/depth/n1.png", depth_kind="metric", units_per_m="50",
           fx="30", fy="31", cx="20", cy="15")  # fmt: skip
METRIC = line("t1", "tum", depth="tum/depth/t1.png", depth_kind="metric", units_per_m="1000")
RELATIVE = line("m1", "mvs_a", depth="mvs_a/depth/m1.png", depth_kind="relative disparity (affine)")
MASKED = line("p1", "people", use="evaluate", mask="people/mask/p1.png")
NO_SUBJECT = line("empty1", "people", mask="people/mask/empty1.png")
BARE = line("b1", "brackets", use="evaluate", fx="30", fy="30", cx="20", cy="15")


def test_steps_become_the_surface_that_was_rounded():
    smooth = without_steps(STEPPED)
    assert np.array_equal(2 * np.floor(smooth / 2).astype(int) + 1, STEPPED)  # nothing left its step
    inner = np.s_[4:-4, 4:-4]
    assert np.abs(smooth - SMOOTH)[inner].mean() < 0.5 * np.abs(STEPPED - SMOOTH)[inner].mean()
    slopes = [np.gradient(depth.astype(float), axis=1)[inner] for depth in (smooth, STEPPED)]
    assert np.abs(slopes[0] - 0.5).mean() < 0.1 < np.abs(slopes[1] - 0.5).mean()  # with steps it is 0 or 1


def test_an_edge_and_a_hole_stay_where_they_are():
    values = np.full((20, 20), 61, np.uint16)
    values[:, 10:] = 181
    values[5, 5] = 0
    smooth = without_steps(values)
    assert smooth[5, 5] == 0
    assert np.abs(np.delete(smooth.ravel(), 5 * 20 + 5) - np.delete(values.ravel(), 5 * 20 + 5)).max() < 1e-3


def test_manifests_say_units_subjects_cameras_and_splits(tmp_path):
    raw = raw_folder(tmp_path, [NYU, METRIC, RELATIVE, MASKED, NO_SUBJECT, BARE])
    build(raw, tmp_path / "out", workers=2)
    nyu, metric, relative = read_manifest(tmp_path / "out/train.jsonl")
    (masked,) = read_manifest(tmp_path / "out/evaluate.jsonl")
    assert (nyu.dataset, nyu.split, masked.split) == ("nyuv2_labeled", "train", "test")
    assert (nyu.intrinsics.fx, nyu.intrinsics.cy, metric.intrinsics) == (30, 15, None)
    source = RowSource([nyu, metric], "")
    assert np.abs(source[0].depth_m - STEPPED / 50).max() < 1 / 50 + 1e-6  # within its step of 2 units
    assert np.unique(source[0].depth_m).size > 4 * np.unique(STEPPED).size
    assert np.allclose(source[1].depth_m, STEPPED / 1000)
    assert (relative.depth_unit, relative.depth_scale) == ("relative_disparity", 1 / 65535)
    assert masked.mask_path.read_bytes() == (raw / "people/mask/p1.png").read_bytes() and masked.depth_path is None


def test_a_cut_off_build_goes_on_and_keeps_what_is_there(tmp_path, monkeypatch):
    raw, output = raw_folder(tmp_path, [NYU, METRIC, MASKED]), tmp_path / "out"
    monkeypatch.setattr(real_photos, "write_manifest", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        build(raw, output)
    monkeypatch.undo()
    (output / "tum/.0123456789abcdef.part").write_bytes(b"half")
    monkeypatch.setattr(real_photos, "without_steps", lambda _: pytest.fail("done twice"))
    build(raw, output)
    assert len(read_manifest(output / "train.jsonl")) == 2 and not list(output.rglob("*.part"))


@pytest.mark.parametrize(
    ("lines", "depth", "sentence"),
    [
        ([METRIC | {"rgb": "../x.jpg"}], STEPPED, "inside the folder"),
        ([METRIC | {"w": "41"}], STEPPED, "must be 41 x 36"),
        ([METRIC | {"units_per_m": "0"}], STEPPED, "t1: float division"),
        ([METRIC], STEPPED.astype(np.uint8), "of mode I;16"),
        ([NYU], STEPPED + 1, "odd numbers"),
        ([METRIC | {"depth_kind": "feet"}], STEPPED, "`depth_kind` must be metric"),
        ([METRIC, MASKED | {"scene": "t1"}], STEPPED, "in one split alone"),
        ([METRIC | {"use": "test"}], STEPPED, "`use` must be one of"),
    ],
)
def test_a_wrong_line_is_refused_by_name(tmp_path, lines, depth, sentence):
    if "../" in lines[0]["rgb"]:
        (tmp_path / "raw").mkdir()
    raw = raw_folder(tmp_path, lines, depth)
    with pytest.raises(InputError, match=sentence):
        build(raw, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.jsonl"))


def test_a_folder_of_something_else_is_left_alone(tmp_path, capsys):
    raw = raw_folder(tmp_path, [METRIC])
    (tmp_path / "other").mkdir()
    (tmp_path / "other/file").write_text("mine")
    assert real_photos.main([str(raw), "-o", str(tmp_path / "other")]) == 2
    assert "new or empty folder" in capsys.readouterr().err
    assert real_photos.main([str(tmp_path), "-o", str(tmp_path / "out")]) == 2
    assert real_photos.main([str(raw), "-o", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out == "train.jsonl: 1 photos; tum 1\nevaluate.jsonl: 0 photos; \n"


@pytest.mark.data
def test_the_real_index_has_the_photos_that_its_readme_counts(data_root):
    lines = read_index(data_root / "real")
    kinds = {"depth": 0, "mask": 0}
    for values in lines:
        if values["use"] == "train":
            kinds["depth" if values["depth"] else "mask"] += 1
    assert kinds == {"depth": 1607, "mask": 531}

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hub_server import HubServer
from PIL import Image

from bokehdepth.camera import lens as optics
from datasets_scripts.systhebokeh300 import __main__ as command
from datasets_scripts.systhebokeh300.drawn import FOREGROUNDS, draw_foreground
from datasets_scripts.systhebokeh300.publish import license_of
from datasets_scripts.systhebokeh300.raytraced import margin_px, render_raytraced
from datasets_scripts.systhebokeh300.scene import Settings, box_share_range, make_scene, scene_files

ROOT = Path(__file__).resolve().parents[1]
SMALL = ["--scenes", "2", "--size", "64", "--rays", "16", "--seed", "6"]


def _bytes(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _start(folder: Path, *arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "datasets_scripts.systhebokeh300", "--output", str(folder), *SMALL, *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("built") / "set"
    assert command.main(["--output", str(folder), *SMALL, "--workers", "1"]) == 0
    return folder


@pytest.fixture
def copy(built, tmp_path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "copy"))


def test_the_tree_is_that_of_the_paper_and_a_card(built):
    wanted = {name for index in range(2) for name in scene_files(index)}
    wanted |= {"README.md", "build.json", "metadata.jsonl", "manifest.jsonl"}
    assert set(_bytes(built)) == wanted
    records = [json.loads((built / f"metadata/{s}_{k}.json").read_text()) for s in ("0000", "0001") for k in range(3)]
    for record in records:
        assert 0 < record["bokeh_strength"] <= 30 and 1.4 <= record["f_number"] <= 22
        assert 0.3 <= record["foreground_box_share"] <= 0.8
        lens = record["lens"]
        assert optics.f_number_for_strength(
            record["bokeh_strength"], lens["focal_length_mm"], lens["focus_distance_m"], lens["sensor_width_mm"]
        ) == pytest.approx(record["f_number"])
    assert len({record["focus_disparity_dpt"] for record in records[:3]}) == 1
    card = (built / "README.md").read_text()
    assert "{{" not in card and "6 bokeh\npictures of 64x64 px" in card


def test_pictures_are_the_renderings_of_the_recorded_scene(built):
    settings = Settings(2, 6, 64, 16)
    for index in range(2):
        scene, record = make_scene(settings, index, (None, None))
        strongest, focus = record["bokeh_strengths"][-1], record["focus_disparity_dpt"]
        planes = (scene.foreground_plane, scene.background_plane)
        assert scene.margin_px[0] >= margin_px(planes, (64, 64), strongest, focus)
        exact = render_raytraced(scene, strongest, focus, rays=1024)
        stored = np.asarray(Image.open(built / f"images/{index:04d}_2.jpg"), dtype=np.float32) / 255
        sharp = np.asarray(Image.open(built / f"aif/{index:04d}.jpg"), dtype=np.float32) / 255
        assert np.abs(stored - exact).mean() < 0.012
        assert np.abs(sharp - scene.all_in_focus()).mean() < 0.012
        assert np.abs(stored - sharp).mean() > 1.5 * np.abs(stored - exact).mean()
        disparity = np.load(built / f"depth/{index:04d}.npy")
        assert disparity.dtype == np.float32 and np.array_equal(disparity, scene.disparity_dpt())


@pytest.mark.parametrize("streaming", [False, True])
def test_it_loads_by_datasets(built, tmp_path, streaming):
    from datasets import load_dataset

    rows = list(load_dataset(str(built), split="test", streaming=streaming, cache_dir=str(tmp_path)))
    assert [row["id"] for row in rows] == [f"{s}_{k}" for s in ("0000", "0001") for k in range(3)]
    for row in rows:
        assert row["image"].size == row["aif"].size == row["depth"].size == (64, 64)
        record = json.loads((built / f"metadata/{row['id']}.json").read_text())
        assert row["bokeh_strength"] == record["bokeh_strength"] and row["f_number"] == record["f_number"]
        assert row["background_plane"] == record["background_plane"]
        assert np.array_equal(np.asarray(row["image"]), np.asarray(Image.open(built / record["image"])))
        depth_m = np.asarray(row["depth"], dtype=np.float64) * row["depth_scale_m"]
        assert np.abs(depth_m - 1 / np.load(built / record["disparity"])).max() < 0.0006


def test_two_workers_and_a_killed_build_give_the_same_bytes(built, tmp_path):
    killed = tmp_path / "killed"
    process = _start(killed, "--workers", "2")
    first = [killed / name for name in scene_files(0)]
    deadline = time.monotonic() + 60
    while not any(path.exists() for path in first) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert set(_bytes(killed)) != set(_bytes(built))  # it was really cut off
    (killed / ".0123456789abcdef.part").mkdir(exist_ok=True)  # as a killed writer may leave
    process = _start(killed, "--workers", "2")
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert _bytes(killed) == _bytes(built)
    assert not list(killed.rglob(".*"))


def test_a_finished_build_is_left_as_it_is_and_other_arguments_are_refused(copy, capsys):
    before = {path: path.stat().st_mtime_ns for path in copy.glob("images/*")}
    assert command.main(["--output", str(copy), *SMALL, "--workers", "1"]) == 0
    assert before == {path: path.stat().st_mtime_ns for path in copy.glob("images/*")}
    capsys.readouterr()
    assert command.main(["--output", str(copy), *SMALL, "--seed", "4"]) == 2
    assert "holds a build with other settings" in capsys.readouterr().err


def test_it_is_published_and_loads_from_the_hub(built, tmp_path):
    with HubServer() as hub:
        environment = os.environ | hub.environment(tmp_path / "home")
        words = ["publish", str(built), "--kind", "dataset", "--repo", "tester/bokeh300", "--private"]
        run = subprocess.run(
            [sys.executable, "-m", "bokehdepth", *words], cwd=ROOT, env=environment, capture_output=True, text=True
        )
        assert run.returncode == 0, run.stderr
        names = set(hub.files("tester/bokeh300", "dataset")) - {".gitattributes"}
        assert names == set(_bytes(built))
        assert hub.read("tester/bokeh300", "aif/0000.jpg", "dataset") == (built / "aif/0000.jpg").read_bytes()
        assert hub.repositories["dataset", "tester/bokeh300"].private


def _edit(path: Path, **values) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def _spoil_disparity(folder: Path, value: float) -> None:
    array = np.load(folder / "depth/0001.npy")
    array[5, 5] = value
    np.save(folder / "depth/0001.npy", array)


def _invert(path: Path) -> None:
    Image.fromarray(255 - np.asarray(Image.open(path))).save(path, quality=95, subsampling=0)


DAMAGES = {
    "a picture is gone": (lambda d: (d / "images/0001_1.jpg").unlink(), "images/0001_1.jpg is missing"),
    "a picture too many": (lambda d: (d / "aif/0007.jpg").write_bytes(b""), "aif/0007.jpg does not belong"),
    "half a picture": (
        lambda d: (d / "images/0000_0.jpg").write_bytes((d / "images/0000_0.jpg").read_bytes()[:300]),
        "images/0000_0.jpg cannot be read",
    ),
    "another size": (
        lambda d: Image.new("RGB", (32, 64)).save(d / "aif/0000.jpg", subsampling=0),
        r"aif/0000.jpg is \(64, 32, 3\)",
    ),
    "reduced colour": (
        lambda d: Image.open(d / "aif/0000.jpg").save(d / "aif/0000.jpg", subsampling=2),
        "reduced colour resolution",
    ),
    "not sharp in focus": (lambda d: _invert(d / "images/0000_2.jpg"), "images/0000_2.jpg differs by"),
    "a hole": (lambda d: _spoil_disparity(d, np.nan), "depth/0001.npy has values that are not finite"),
    "a stray disparity": (lambda d: _spoil_disparity(d, 0.4), "depth/0001.png is|lie on neither plane"),
    "K out of range": (lambda d: _edit(d / "metadata/0000_2.json", bokeh_strength=31.0), "K = 31"),
    "K of another lens": (lambda d: _edit(d / "metadata/0000_0.json", f_number=15.0), "but its lens gives"),
    "f-number out of range": (lambda d: _edit(d / "metadata/0000_0.json", f_number=23.0), "the f-number 23"),
    "a small foreground": (lambda d: _edit(d / "metadata/0000_0.json", foreground_box_share=0.2), "box of 20.0%"),
    "background in front": (
        lambda d: _edit(d / "metadata/0001_0.json", background_plane=[0.0, 0.0, 0.99]),
        "not behind the foreground",
    ),
    "a value is gone": (
        lambda d: (d / "metadata/0001_0.json").write_text('{"id": "0001_0"}'),
        "metadata/0001_0.json lacks a value",
    ),
    "another table": (
        lambda d: (d / "metadata.jsonl").write_text(
            (d / "metadata.jsonl").read_text().replace('"0000_1"', '"0000_9"')
        ),
        "metadata.jsonl is missing or says something else",
    ),
    "another manifest": (
        lambda d: (d / "manifest.jsonl").write_text(
            (d / "manifest.jsonl").read_text().replace('"0000_1"', '"0000_9"')
        ),
        "manifest.jsonl says something else",
    ),
    "no card": (lambda d: (d / "README.md").unlink(), "README.md is missing"),
    "no build": (lambda d: (d / "build.json").unlink(), "has no build.json"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_validation_names_the_damage(copy, capsys, damage):
    harm, message = DAMAGES[damage]
    assert command.main(["--validate", str(copy)]) == 0
    harm(copy)
    capsys.readouterr()
    assert command.main(["--validate", str(copy)]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert re.search(message, error), error


def test_k_out_of_order_is_found(copy, capsys):
    for kind in ("images/0000_{}.jpg", "metadata/0000_{}.json"):
        first, last = (copy / kind.format(k) for k in (0, 2))
        held = first.read_bytes()
        first.write_bytes(last.read_bytes())
        last.write_bytes(held)
    for k in (0, 2):
        _edit(copy / f"metadata/0000_{k}.json", id=f"0000_{k}", image=f"images/0000_{k}.jpg")
    assert command.main(["--validate", str(copy)]) == 2
    assert "wanted K ascending" in capsys.readouterr().err


def test_pictures_of_folders_are_used_and_named(tmp_path):
    for folder in ("front", "back"):
        (tmp_path / folder).mkdir()
    cut = np.zeros((90, 70, 4), np.uint8)
    cut[10:80, 10:60] = (220, 30, 30, 255)
    Image.fromarray(cut).save(tmp_path / "front" / "red.png")
    Image.new("RGB", (130, 90), (20, 40, 200)).save(tmp_path / "back" / "blue.jpg")
    (tmp_path / "license.txt").write_text("cc-by-sa-4.0\n")
    folders = ["--foregrounds", str(tmp_path / "front"), "--backgrounds", str(tmp_path / "back")]
    out = tmp_path / "out"
    assert command.main(["--output", str(out), *SMALL, "--workers", "1", *folders]) == 0
    picture = np.asarray(Image.open(out / "aif/0000.jpg")).reshape(-1, 3).astype(int)
    near = [(np.abs(picture - colour).max(axis=1) < 12).mean() for colour in ((220, 30, 30), (20, 40, 200))]
    record = json.loads((out / "metadata/0000_0.json").read_text())
    assert near[0] == pytest.approx(record["foreground_mask_share"], abs=0.06) and sum(near) > 0.9
    card = (out / "README.md").read_text()
    assert "license: cc-by-sa-4.0" in card and "CC BY-SA 4.0, as the photographs" in card
    digest = hashlib.sha256((tmp_path / "front" / "red.png").read_bytes()).hexdigest()
    assert record["assets"]["foreground"] == {"source": "folder", "name": "red.png", "sha256": digest}


@pytest.mark.parametrize("family", FOREGROUNDS)
def test_drawn_foregrounds_are_cut_outs_that_fit(family):
    rng = np.random.default_rng(8)
    fitting = 0
    for _ in range(4):
        rgba = draw_foreground(rng, family, 0).rgba
        solid = rgba[..., 3] > 127
        low, high = box_share_range(*rgba.shape[1::-1])
        fitting += high > low
        assert 0.04 < solid.mean() < 0.97 and rgba[solid][:, :3].std() > 8
    assert fitting


def test_train_and_evaluation_read_a_built_set(built):
    from bokehdepth.manifest import read_manifest
    from train.evaluation.samples import RowSource

    source = RowSource(read_manifest(built / "manifest.jsonl"), "SYSTHEBOKEH300")
    assert len(source) == 6 and len(set(source.scenes)) == 2
    for sample in source:
        record = json.loads((built / f"metadata/{sample.sample_id}.json").read_text())
        assert sample.targets[0].bokeh_strength == record["bokeh_strength"]
        assert sample.focus_distance_m == pytest.approx(1 / record["focus_disparity_dpt"])
        assert np.abs(1 / sample.depth_m - np.load(built / record["disparity"])).max() < 0.002
        assert sample.photo.shape == sample.targets[0].picture.shape == (64, 64, 3)


def test_the_terms_of_the_pictures_are_those_of_the_set(tmp_path):
    for name, terms in (("by", "cc-by-4.0"), ("sa", "cc-by-sa-4.0"), ("none", None)):
        (tmp_path / name / "cutouts").mkdir(parents=True)
        if terms:
            (tmp_path / name / "license.txt").write_text(terms + "\n")
    by, share_alike, none = (tmp_path / name / "cutouts" for name in ("by", "sa", "none"))
    assert license_of([]) == "apache-2.0" and license_of([by]) == "cc-by-4.0" and license_of([none]) == "unknown"
    assert license_of([by, share_alike]) == license_of([share_alike, none]) == "cc-by-sa-4.0"
    assert license_of([by, none]) == "unknown"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "wanted either --output DIR to build or --validate DIR"),
        (["--output", "a", "--validate", "b"], "wanted either"),
        (["--validate", "{tmp}"], "has no build.json"),
        (["--output", "{tmp}"], "holds other files"),
        (["--output", "{tmp}/file"], "must be a folder, got the file"),
        (["--output", "{tmp}/new", "--foregrounds", "{tmp}/none"], "--foregrounds must be a folder"),
        (["--output", "{tmp}/new", "--backgrounds", "{tmp}"], "--backgrounds must be a folder"),
    ],
)
def test_wrong_arguments_are_one_sentence(tmp_path, capsys, arguments, message):
    (tmp_path / "file").write_text("x")
    assert command.main([word.format(tmp=tmp_path) for word in arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(("option", "value"), [("--scenes", "0"), ("--size", "63"), ("--rays", "x"), ("--seed", "-1")])
def test_numbers_out_of_range_exit_with_2(capsys, option, value):
    with pytest.raises(SystemExit) as left:
        command.main(["--output", "nowhere", f"{option}={value}"])
    assert left.value.code == 2 and "must be a whole number" in capsys.readouterr().err

"""The Space's page: built with the embedded pipeline, served on loopback, called as a visitor's program would."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import tempfile
import zipfile
from pathlib import Path
from urllib.parse import urlsplit

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import httpx
import numpy as np
import piexif
import PIL.Image
import pytest
from gradio.exceptions import Error
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

import app
from bokehdepth import hub, io
from bokehdepth.camera import read_camera
from bokehdepth.imaging import open_photo

ROOT = Path(__file__).resolve().parents[1]
SIZE_PX = (96, 64)


def write_photo(path: Path, size_px: tuple[int, int] = SIZE_PX, *, orientation: int = 1, f_mm: int = 85) -> Path:
    """A JPEG of coloured noise over a gradient, with the EXIF of a full-frame camera focused at 1.5 m."""
    rng = np.random.default_rng(0)
    ramp = np.linspace(0, 160, size_px[0])[None, :, None]
    pixels = (ramp + rng.uniform(0, 90, (size_px[1], size_px[0], 3))).astype(np.uint8)
    exif = {
        "0th": {piexif.ImageIFD.Orientation: orientation},
        "Exif": {
            piexif.ExifIFD.FNumber: (4, 1),
            piexif.ExifIFD.FocalLength: (f_mm, 1),
            piexif.ExifIFD.FocalLengthIn35mmFilm: f_mm,
            piexif.ExifIFD.SubjectDistance: (3, 2),
        },
    }
    PIL.Image.fromarray(pixels).save(path, quality=95, exif=piexif.dump(exif))
    return path


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photo(tmp_path_factory.mktemp("photos") / "photo.jpg")


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory):
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(cache))
        patch.setenv("NO_PROXY", "127.0.0.1")
        pipeline = hub.load_pipeline()
        pipeline.set_progress_bar_config(disable=True)
        page = app.build_demo(pipeline)
        page.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, **app.launch_options())
        yield page
        page.close()


@pytest.fixture(scope="module")
def client(demo, tmp_path_factory: pytest.TempPathFactory) -> Client:
    return Client(demo.local_url, verbose=False, download_files=str(tmp_path_factory.mktemp("downloads")))


def call(client: Client, photo: Path, kind: str, frames: tuple, lens: tuple = (None, None), steps: int = 1) -> tuple:
    return client.predict(handle_file(photo), kind, *frames, *lens, steps, 0, api_name="/bokeh_depth")


@pytest.fixture(scope="module")
def result(client: Client, photo: Path) -> tuple:
    return call(client, photo, app.F_NUMBER, (2.0, 8.0, 4.0))


def test_the_downloads_agree_with_each_other_and_the_photo(result: tuple, photo: Path) -> None:
    gallery, picture, archive, png, npz, run = result
    depth = io.load_depth_npz(npz)
    assert depth.depth_m.shape == SIZE_PX[::-1]
    steps_m = io.load_depth_png(png) - depth.depth_m
    assert np.abs(steps_m).max() <= depth.depth_m.max() / 65534

    camera = read_camera(open_photo(photo))
    expected = [camera.bokeh_strength(n) for n in (8.0, 4.0, 2.0)]
    np.testing.assert_allclose(depth.bokeh_strengths, expected, rtol=1e-3)
    assert depth.focal_length_px == pytest.approx(camera.focal_length_px.value, rel=1e-6)

    with zipfile.ZipFile(archive) as files, tempfile.TemporaryDirectory() as folder:
        files.extractall(folder)
        assert (Path(folder) / "depth.npz").read_bytes() == Path(npz).read_bytes()
        frames = sorted(Path(folder).glob("bokeh_k*.png"), key=lambda path: float(path.stem[7:]))
        images, strengths = io.load_stack(frames)
    assert [image.size for image in images] == [SIZE_PX] * 3
    np.testing.assert_allclose(strengths, expected, rtol=1e-3)

    record = json.loads(Path(run).read_text())
    assert record["seed"] == 0
    assert record["arguments"]["frames"] == [2.0, 8.0, 4.0]
    assert record["weights"]["pipeline"]["id"] == "embedded"
    assert str(tempfile.gettempdir()) not in Path(run).read_text()
    assert [entry["caption"] for entry in gallery] == ["sharp", "f/8", "f/4", "f/2"]
    assert PIL.Image.open(picture).width > SIZE_PX[0]  # the legend stands beside the map


def test_more_blur_differs_more_from_the_photo_than_rounding(result: tuple, photo: Path) -> None:
    frames = [np.asarray(PIL.Image.open(entry["image"]).convert("RGB"), dtype=float) for entry in result[0]]
    change = [np.abs(frame - frames[0]).mean() for frame in frames[1:]]
    assert change[0] < change[1] < change[2]


def test_files_wait_in_gradios_cache_alone(demo, result: tuple) -> None:
    assert demo.delete_cache == (app.DELETE_AFTER_S, app.DELETE_AFTER_S)
    assert not list(Path(tempfile.gettempdir()).glob("bokehdepth-*"))
    tracked = {Path(path).name for files in demo.temp_file_sets for path in files}
    assert {"bokehdepth.zip", "depth.png", "depth.npz", "run.json", "photo.jpg"} <= tracked


def test_the_same_seed_repeats_the_result_and_fields_as_read_change_nothing(
    client: Client, photo: Path, result: tuple
) -> None:
    again = call(client, photo, app.F_NUMBER, (2.0, 8.0, 4.0), lens=(85.0, 1.5))
    np.testing.assert_array_equal(io.load_depth_npz(again[4]).depth_m, io.load_depth_npz(result[4]).depth_m)
    assert json.loads(Path(again[5]).read_text())["camera"]["focus_distance_m"]["source"] == "read"


@pytest.mark.parametrize(
    ("kind", "frames", "sentence"),
    [
        (app.F_NUMBER, (1.4, 2.8, 5.6), r"f/1\.4, which gives K = 38\.9 .* nearest f-number that fits is f/1\.82"),
        (app.F_NUMBER, (2.0, 0.0, 5.6), "greater than 0, got 0"),
        (app.F_NUMBER, (2.0, 2.0, 5.6), "each aperture once"),
        (app.STRENGTH, (10.0, 20.0, 31.0), r"strength of frame 3 must be in \[0, 30\], the trained range, got 31"),
        (app.STRENGTH, (-1.0, 20.0, 30.0), "strength of frame 1 must be .* greater than 0, got -1"),
        (app.STRENGTH, (10.0, None, 30.0), "frame 2 has no strength"),
        (app.STRENGTH, (10.0, 10.0, 30.0), "wanted ascending values, each once"),
    ],
)
def test_frames_out_of_range_are_refused_with_the_librarys_sentence(
    client: Client, photo: Path, kind: str, frames: tuple, sentence: str
) -> None:
    with pytest.raises(AppError, match=sentence):
        call(client, photo, kind, frames)


def test_a_lens_that_cannot_be_is_refused(client: Client, photo: Path) -> None:
    with pytest.raises(AppError, match="focus_distance_m must be greater than the focal length"):
        call(client, photo, app.STRENGTH, (10.0, 20.0, 30.0), lens=(85.0, 0.05))


def test_steps_and_seed_stay_in_bounds(client: Client, photo: Path) -> None:
    with pytest.raises(AppError, match="51"):
        call(client, photo, app.STRENGTH, (10.0, 20.0, 30.0), steps=app.MAX_STEPS + 1)
    with pytest.raises(AppError, match="-1"):
        client.predict(handle_file(photo), app.STRENGTH, 10.0, 20.0, 30.0, None, None, 1, -1, api_name="/bokeh_depth")


def test_files_that_are_no_photo_are_refused(client: Client, tmp_path: Path) -> None:
    text = tmp_path / "text.jpg"
    text.write_text("no picture")
    tiny = tmp_path / "tiny.png"
    PIL.Image.new("RGB", (1, 1)).save(tiny)
    large = tmp_path / "large.png"
    PIL.Image.new("1", (4001, 4001)).save(large)
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(write_photo(tmp_path / "whole.jpg").read_bytes()[:2500])
    for path, sentence in (
        (text, "not a picture in a format that PIL reads"),
        (tiny, "each side must have at least 32"),
        (large, "4001 x 4001 pixels; at most 16,000,000"),
        (cut, "damaged or cut short"),
    ):
        with pytest.raises(AppError, match=f"photo '{path.name}'.*{sentence}") as refusal:
            client.predict(handle_file(path), app.STRENGTH, api_name="/read_camera")
        assert tempfile.gettempdir() not in str(refusal.value)


def test_no_photo_is_refused(client: Client) -> None:
    with pytest.raises(AppError, match="choose one first"):
        client.predict(None, app.STRENGTH, 10.0, 20.0, 30.0, None, None, 1, 0, api_name="/bokeh_depth")


def test_files_outside_the_upload_folder_are_not_read(demo, photo: Path) -> None:
    data = [{"path": str(photo), "meta": {"_type": "gradio.FileData"}}, app.STRENGTH]
    call_url = f"{demo.local_url}gradio_api/call/read_camera"
    event = httpx.post(call_url, json={"data": data}).json()["event_id"]
    answer = httpx.get(f"{call_url}/{event}", timeout=30).text
    assert "event: error" in answer
    assert "85 mm" not in answer


def test_the_camera_is_read_from_exif(client: Client, photo: Path) -> None:
    table, equivalent_mm, focus_m, *frames = client.predict(handle_file(photo), app.F_NUMBER, api_name="/read_camera")
    assert "| Aperture | f/4 | read |" in table
    assert "| Focal length | 85 mm | read |" in table
    assert "| Sensor width | 36 mm | derived |" in table
    assert "assumed" not in table
    assert (equivalent_mm, focus_m) == (85, 1.5)
    assert frames == [2, 4, 8]  # f/1.4 would be K = 38.9


def test_a_rotated_photo_is_turned_and_an_edited_lens_counts(client: Client, tmp_path: Path) -> None:
    turned = write_photo(tmp_path / "turned.jpg", orientation=6)
    table, *_ = client.predict(handle_file(turned), app.STRENGTH, api_name="/read_camera")
    assert "| Sensor width | 24 mm | derived |" in table
    assert "orientation 6 was applied" in table
    result = call(client, turned, app.STRENGTH, (30.0, 10.0, 20.0), lens=(85.0, 3.0))
    depth = io.load_depth_npz(result[4])
    assert depth.depth_m.shape == SIZE_PX
    np.testing.assert_array_equal(depth.bokeh_strengths, [10, 20, 30])
    camera = json.loads(Path(result[5]).read_text())["camera"]
    assert camera["focus_distance_m"] == {"value": 3.0, "source": "given"}
    assert camera["focal_length_35mm"]["source"] == "read"


def test_a_photo_without_exif_has_everything_assumed(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "plain.png"
    PIL.Image.new("RGB", (64, 64), "grey").save(path)
    table, equivalent_mm, focus_m, *frames = client.predict(handle_file(path), app.STRENGTH, api_name="/read_camera")
    assert table.count("| assumed |") == 5
    assert (equivalent_mm, focus_m, frames) == (28, 2, [10, 20, 30])


@pytest.mark.parametrize(
    ("f_mm", "wanted"),
    [(4, [1.4, 2.8, 5.6]), (85, [2, 4, 8]), (200, [9.88, 19.76, 39.52]), (300, [22.7, 45.4, 90.8])],
)
def test_proposed_f_numbers_fit_every_lens(tmp_path: Path, f_mm: int, wanted: list[float]) -> None:
    camera = read_camera(open_photo(write_photo(tmp_path / "photo.jpg", f_mm=f_mm)), focus_distance_m=5)
    frames = app._default_frames(camera, app.F_NUMBER)
    strengths, captions = app._strengths(camera, app.F_NUMBER, frames)
    assert max(strengths) <= 30
    assert len(captions) == 3
    assert frames == pytest.approx(wanted)


def test_the_weak_blur_of_a_small_lens_is_announced(tmp_path: Path) -> None:
    camera = read_camera(open_photo(write_photo(tmp_path / "photo.jpg")), focal_length_mm=4, focal_length_35mm=26)
    assert "choose strengths" in app._describe_strengths(camera, app._strengths(camera, app.F_NUMBER, (2, 4, 8))[0])
    assert "choose strengths" not in app._describe_strengths(camera, (10.0, 20.0, 30.0))


def test_faults_of_the_program_are_not_shown_as_the_visitors() -> None:
    with pytest.raises(Error, match="a sentence"), app._refusals():
        raise ValueError("a sentence")
    with pytest.raises(KeyError), app._refusals():
        raise KeyError("fault")


def test_gpu_time_grows_with_the_work() -> None:
    base = app.gpu_duration_s(3, 10, 512**2, 10**6)
    assert 15 < base < 60
    assert app.gpu_duration_s(3, 20, 512**2, 10**6) > base
    assert app.gpu_duration_s(3, 10, 2 * 512**2, 10**6) > base
    assert app.gpu_duration_s(3, 10, 512**2, 16 * 10**6) > base
    assert isinstance(base, int)


def test_the_page_names_only_its_own_endpoints(client: Client) -> None:
    endpoints = client.view_api(return_format="dict")["named_endpoints"]
    assert set(endpoints) == {"/read_camera", "/bokeh_depth"}
    assert [parameter["parameter_name"] for parameter in endpoints["/bokeh_depth"]["parameters"]] == [
        "photo", "kind", "frame_1", "frame_2", "frame_3", "focal_length_35mm", "focus_distance_m", "steps", "seed",
    ]  # fmt: skip


def test_the_page_asks_no_other_host(demo) -> None:
    options = app.launch_options()
    assert not any("http" in sheet for sheet in options["theme"]._stylesheets)
    assert demo.analytics_enabled is False
    assert options["run_history"] is False
    assert options["max_file_size"] == app.MAX_PHOTO_BYTES


def test_a_browser_draws_the_page_from_this_host_alone(demo, tmp_path: Path) -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed")
    log = tmp_path / "net.json"
    quiet = "--disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update"
    # Chromium also asks some hosts of its maker by itself, whatever the page is.
    command = [chromium, "--headless", "--no-sandbox", *quiet.split(), "--disable-sync", "--timeout=15000"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", f"--log-net-log={log}", "--dump-dom", demo.local_url]
    drawn = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    for text in ("Blur and measure", "This is a small demonstration model", "Before and after", "16 megapixels"):
        assert text in drawn
    hosts = {urlsplit(url).hostname for url in re.findall(r'"url":"(https?://[^"]+)', log.read_text())}
    makers = {host for host in hosts if host.endswith(("google.com", "googleapis.com"))}
    assert "127.0.0.1" in hosts
    assert hosts - makers == {"127.0.0.1"}
    assert "fonts.googleapis.com" not in hosts


def imports(path: Path) -> list[str]:
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.append(node.module)
    return names


def test_gradio_and_spaces_are_imported_by_the_app_alone() -> None:
    roots = [ROOT / name for name in ("bokehdepth", "train", "datasets_scripts")]
    for path in (path for root in roots for path in root.rglob("*.py")):
        assert not {name.split(".")[0] for name in imports(path)} & {"gradio", "spaces", "app"}, path
    assert imports(ROOT / "app.py")[0] == "spaces"


def test_the_app_computes_nothing() -> None:
    tree = ast.parse((ROOT / "app.py").read_text())
    used = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    numeric = {name for name in used if name.split(".")[0].split("(")[0] in ("np", "torch", "math", "scipy")}
    assert numeric <= {"np.ndarray", "torch.Generator", "torch.Generator().manual_seed", "torch.cuda",
                       "torch.cuda.is_available"}  # fmt: skip
    assert not {"math", "scipy", "cv2", "skimage", "matplotlib"} & {
        name.split(".")[0] for name in imports(ROOT / "app.py")
    }
    assert len((ROOT / "app.py").read_text().splitlines()) <= 500

"""The Space's page: built with the embedded pipeline, served on loopback, called as a visitor's program would."""

from __future__ import annotations

import ast
import gzip
import json
import os
import re
import shutil
import struct
import subprocess
import tempfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
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
from bokehdepth import hub, io, serving
from bokehdepth.camera import read_camera
from bokehdepth.errors import InputError
from bokehdepth.imaging import open_photo
from bokehdepth.rendering.aperture import Aperture
from bokehdepth.rendering.refocus import render_from_depth

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
        patch.setattr(tempfile, "tempdir", str(tmp_path_factory.getbasetemp()))
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


@pytest.fixture(scope="module")
def stack(client: Client, photo: Path) -> tuple:
    frames = [2.0, 8.0, 4.0]
    return client.predict(handle_file(photo), None, frames, None, None, 1, 0, api_name="/generate_bokeh_stack")


def depth_of(client: Client, photo: Path, frames: list, **rest) -> tuple:
    given = {"bokeh_strengths": None, "f_numbers": None, "focal_length_35mm": None, "focus_distance_m": None}
    files = [handle_file(path) for path in frames]
    given |= {"method": "Network"} | rest
    return client.predict(photo=handle_file(photo), frames=files, **given, api_name="/estimate_depth")


@pytest.fixture(scope="module")
def result(client: Client, photo: Path, stack: tuple) -> tuple:
    return depth_of(client, photo, stack[0])


def test_the_downloads_agree_with_each_other_and_the_photo(stack: tuple, result: tuple, photo: Path) -> None:
    npz, png, picture, words = result
    depth = io.load_depth_npz(npz)
    assert depth.depth_m.shape == SIZE_PX[::-1]
    assert np.abs(io.load_depth_png(png) - depth.depth_m).max() <= depth.depth_m.max() / 65534
    camera = read_camera(open_photo(photo))
    expected = [camera.bokeh_strength(n) for n in (8.0, 4.0, 2.0)]
    np.testing.assert_allclose(depth.bokeh_strengths, expected, rtol=1e-3)
    assert depth.focal_length_px == pytest.approx(camera.focal_length_px.value, rel=1e-6)
    images, strengths = io.load_stack(stack[0])
    assert [image.size for image in images] == [SIZE_PX] * 3
    np.testing.assert_allclose(strengths, expected, rtol=1e-3)
    assert all(PIL.Image.open(path).text["ai_generated"] == "true" for path in stack[0])
    record = json.loads(Path(stack[1]).read_text())
    assert record["seed"] == 0 and record["arguments"]["frames"] == [2.0, 8.0, 4.0]
    assert record["weights"]["pipeline"]["id"] == "embedded"
    assert tempfile.gettempdir() not in Path(stack[1]).read_text()
    assert PIL.Image.open(picture).width > SIZE_PX[0]  # the legend stands beside the map
    assert words == f"Nearest {depth.depth_m.min():.3g} m, farthest {depth.depth_m.max():.3g} m."


def test_more_blur_differs_more_from_the_photo(stack: tuple, photo: Path) -> None:
    sharp, *frames = (np.asarray(open_photo(path).image, dtype=float) for path in (photo, *stack[0]))
    change = [np.abs(frame - sharp).mean() for frame in frames]
    assert 0 < change[0] < change[1] < change[2]


def test_files_wait_in_gradios_cache_alone(demo, stack: tuple, result: tuple) -> None:
    assert demo.delete_cache == (app.DELETE_AFTER_S, app.DELETE_AFTER_S)
    assert not list(Path(tempfile.gettempdir()).glob("bokehdepth-*/result"))
    tracked = {Path(path).name for files in demo.temp_file_sets for path in files}
    assert {"depth.png", "depth.npz", "run.json", "photo.jpg"} <= tracked


def test_the_same_seed_repeats_the_stack(client: Client, photo: Path, stack: tuple) -> None:
    again = client.predict(
        handle_file(photo), None, [8.0, 4.0, 2.0], 85.0, 1.5, 1, 0, api_name="/generate_bokeh_stack"
    )
    for one, other in zip(stack[0], again[0], strict=True):
        np.testing.assert_array_equal(np.asarray(PIL.Image.open(one)), np.asarray(PIL.Image.open(other)))


def test_refocusing_renders_what_the_library_renders(client: Client, photo: Path, result: tuple) -> None:
    picture, lens = client.predict(
        handle_file(photo), handle_file(result[0]), 20, 30, None, 12, None, 6, 0, 1, api_name="/refocus"
    )
    depth_m = io.load_depth_npz(result[0]).depth_m
    assert lens["focus_distance_m"] == pytest.approx(float(np.median(depth_m[28:33, 18:23])))
    sharp = np.asarray(open_photo(photo).image, dtype=np.float32) / 255
    wanted = render_from_depth(sharp, depth_m, 12, lens["focus_distance_m"], aperture=Aperture(6))
    np.testing.assert_array_equal(np.asarray(PIL.Image.open(picture)), np.round(wanted * 255).astype(np.uint8))


@pytest.mark.parametrize(
    ("strengths", "f_numbers", "sentence"),
    [
        (None, [1.4, 2.8], r"f/1\.4, which gives K = 38\.9 .* nearest f-number that fits is f/1\.82"),
        (None, [2.0, 0.0], "greater than 0, got 0"),
        (None, [2.0, 2.0], "each aperture once"),
        ([10.0, 31.0], None, r"strength must be in \[0, 30\], the trained range, got 31"),
        ([-1.0, 20.0], None, "strength must be .* greater than 0, got -1"),
        ([10.0, 10.0], None, "ascending values, each once"),
        ([1.0, 2, 3, 4, 5, 6, 7], None, "wanted 1 to 6"),
        ([10.0], [2.0], "wanted one of them"),
    ],
)
def test_frames_out_of_range_are_refused_with_the_librarys_sentence(
    client: Client, photo: Path, strengths: list | None, f_numbers: list | None, sentence: str
) -> None:
    with pytest.raises(AppError, match=sentence):
        client.predict(handle_file(photo), strengths, f_numbers, None, None, 1, 0, api_name="/generate_bokeh_stack")


def test_wrong_refocusing_is_refused(client: Client, photo: Path, result: tuple) -> None:
    npz = handle_file(result[0])
    for given, sentence in (
        ((20, None, None, 12, None), "wanted both or neither"),
        ((200, 30, None, 12, None), "inside the picture"),
        ((20, 30, 2, 12, None), "wanted one"),
        ((20, 30, None, None, None), "wanted one of them"),
    ):
        with pytest.raises(AppError, match=sentence):
            client.predict(handle_file(photo), npz, *given, 0, 0, 1, api_name="/refocus")
    with pytest.raises(AppError, match="no readable npz"):
        client.predict(handle_file(photo), handle_file(photo), 20, 30, None, 9, None, 0, 0, 1, api_name="/refocus")


def hostile_files(folder: Path) -> dict[str, bytes]:
    """Uploads that are no photo: by content, by name, by size, or by what they carry."""
    good = write_photo(folder / "seed.jpg").read_bytes()
    png = BytesIO()
    PIL.Image.new("RGB", SIZE_PX).save(png, format="PNG")
    header = png.getvalue()

    def claims(width: int, height: int) -> bytes:
        chunk = b"IHDR" + struct.pack(">II", width, height) + header[24:29]
        return header[:12] + chunk + struct.pack(">I", zlib.crc32(chunk)) + header[33:]

    script = b"<script>alert(1)</script>"
    texts = {
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"/>', "html": b"<html>" + script,
        "xml": b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><a>&b;</a>',
        "php": b"<?php system($_GET[0]); ?>", "sh": b"#!/bin/sh\nrm -rf /", "js": b"alert(1)", "json": b"{}",
        "pickle": b"\x80\x04cos\nsystem\n(S'id'\ntR.", "pdf": b"%PDF-1.7\n", "elf": b"\x7fELF" + bytes(60),
        "zip": b"PK\x03\x04" + bytes(60), "gz": gzip.compress(bytes(10**6)), "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n",
        "mp4": b"\0\0\0\x18ftypmp42" + bytes(40), "npy": b"\x93NUMPY\x01\0", "bmp": b"BM" + bytes(8),
        "gif": b"GIF89a" + b"\xff" * 6, "webp": b"RIFF\x10\0\0\0WEBPVP8 ", "tif": b"II*\0\xff\xff\xff\x7f",
        "heic": b"\0\0\0\x18ftypheic" + bytes(40), "psd": b"8BPS\0\1" + bytes(30), "ico": b"\0\0\1\0\xff\xff",
        "jp2": b"\0\0\0\x0cjP  \r\n\x87\n", "pdfjpg": script + good[20:],
    }  # fmt: skip
    files = {f"{name}.jpg": data for name, data in texts.items()}
    files |= {f"cut{n}.jpg": good[:n] for n in (1, 2, 20, 200, len(good) // 2)}
    files |= {
        "empty.jpg": b"",
        "zeros.jpg": bytes(5000),
        "noise.jpg": bytes(range(256)) * 20,
        "bomb.png": claims(60000, 60000),
    }
    files |= {"wide.png": claims(2**31 - 1, 1), "none.png": claims(0, 0), "large.png": claims(5000, 5000)}
    files |= {"short.png": claims(3000, 3000), "tiny.png": claims(8, 8)}
    files |= {
        "<img src=x onerror=alert(1)>.jpg": b"no",
        "..%2f..%2fetc%2fpasswd.jpg": b"no",
        "; rm -rf ~ #.jpg": b"no",
    }
    return files


def test_hostile_uploads_are_refused_with_one_plain_sentence(client: Client, tmp_path: Path) -> None:
    files = hostile_files(tmp_path)
    assert len(files) >= 40
    for name, data in files.items():
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(AppError, match="photo") as refusal:
            client.predict(handle_file(path), api_name="/read_photo")
        sentence = str(refusal.value)
        assert "Traceback" not in sentence and tempfile.gettempdir() not in sentence, name
        assert "<" not in sentence.split("(")[0], name


def test_scripts_in_exif_reach_no_answer(client: Client, tmp_path: Path) -> None:
    script = b"<script>alert(1)</script>"
    zeroth = {piexif.ImageIFD.Make: script, piexif.ImageIFD.ImageDescription: script, piexif.ImageIFD.Artist: script}
    exif = piexif.dump({"0th": zeroth, "Exif": {piexif.ExifIFD.LensModel: script}})
    path = tmp_path / "photo.jpg"
    PIL.Image.new("RGB", SIZE_PX, "grey").save(path, exif=exif)
    path.write_bytes(path.read_bytes() + b"<html>" + script)  # a polyglot: a photo and a page
    assert "script" not in str(client.predict(handle_file(path), api_name="/read_photo"))
    frames, record = client.predict(handle_file(path), [9], None, None, None, 1, 0, api_name="/generate_bokeh_stack")
    for written in (*frames, record):
        assert b"alert(1)" not in Path(written).read_bytes()


def test_eight_visitors_at_once_get_their_own_results(demo, tmp_path: Path) -> None:
    pipeline = hub.load_pipeline()

    def visit(number: int) -> bool:
        path = tmp_path / f"photo{number}.png"
        pixels = np.random.default_rng(number).integers(0, 256, (64, 96, 3), dtype=np.uint8)
        PIL.Image.fromarray(pixels).save(path)
        client = Client(demo.local_url, verbose=False, download_files=str(tmp_path / str(number)))
        depth = io.load_depth_npz(depth_of(client, path, [])[0]).depth_m
        wanted = pipeline.estimate_depth(PIL.Image.fromarray(pixels)).depth_m
        np.testing.assert_allclose(depth, wanted, rtol=1e-5)
        return True

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(visit, range(8)))


def test_no_photo_is_refused(client: Client) -> None:
    with pytest.raises(AppError, match="choose one first"):
        client.predict(None, [10.0], None, None, None, 1, 0, api_name="/generate_bokeh_stack")


def test_files_outside_the_upload_folder_are_not_read(demo, photo: Path) -> None:
    data = [{"path": str(photo), "meta": {"_type": "gradio.FileData"}}]
    call_url = f"{demo.local_url}gradio_api/call/read_photo"
    event = httpx.post(call_url, json={"data": data}).json()["event_id"]
    answer = httpx.get(f"{call_url}/{event}", timeout=30).text
    assert "event: error" in answer
    assert "85 mm" not in answer


def test_the_camera_is_read_from_exif(client: Client, photo: Path) -> None:
    table, equivalent_mm, focus_m, kind, fitting = client.predict(handle_file(photo), api_name="/read_photo")
    assert "| Aperture | f/4 | read |" in table
    assert "| Focal length | 85 mm | read |" in table
    assert "| Sensor width | 36 mm | derived |" in table
    assert "assumed" not in table
    assert (equivalent_mm, focus_m, kind) == (85, 1.5, app.F_NUMBER)
    assert fitting == [2, 4, 8]  # f/1.4 would be K = 38.9


def test_a_rotated_photo_is_turned_and_an_edited_lens_counts(client: Client, tmp_path: Path) -> None:
    turned = write_photo(tmp_path / "turned.jpg", orientation=6)
    table, *_ = client.predict(handle_file(turned), api_name="/read_photo")
    assert "| Sensor width | 24 mm | derived |" in table
    assert "orientation 6 was applied" in table
    given = (handle_file(turned), [30.0, 10.0], None, 85.0, 3.0, 1, 0)
    frames, record = client.predict(*given, api_name="/generate_bokeh_stack")
    images, strengths = io.load_stack(frames)
    assert images[0].size == SIZE_PX[::-1] and strengths == [10, 30]
    camera = json.loads(Path(record).read_text())["camera"]
    assert camera["focus_distance_m"] == {"value": 3.0, "source": "given"}


def test_a_photo_without_exif_has_everything_assumed(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "plain.png"
    PIL.Image.new("RGB", (64, 64), "grey").save(path)
    table, equivalent_mm, focus_m, kind, _ = client.predict(handle_file(path), api_name="/read_photo")
    assert table.count("| assumed |") == 5
    assert (equivalent_mm, focus_m, kind) == (28, 2, app.STRENGTH)


@pytest.mark.parametrize(("f_mm", "wanted"), [(4, [1.4, 2.8, 5.6]), (85, [2, 4, 8]), (200, [11, 22]), (300, [])])
def test_proposed_f_numbers_fit_every_lens(tmp_path: Path, f_mm: int, wanted: list[float]) -> None:
    camera = read_camera(open_photo(write_photo(tmp_path / "photo.jpg", f_mm=f_mm)), focus_distance_m=5)
    frames = serving.default_f_numbers(camera)
    assert frames == wanted
    if frames:
        strengths, captions = serving.frame_strengths(camera, app.F_NUMBER, frames)
        assert max(strengths) <= 30 and len(captions) == len(wanted)


def test_the_weak_blur_of_a_small_lens_is_announced(tmp_path: Path) -> None:
    camera = read_camera(open_photo(write_photo(tmp_path / "photo.jpg")), focal_length_mm=4, focal_length_35mm=26)
    weak = serving.frame_strengths(camera, app.F_NUMBER, (2, 4, 8))[0]
    assert "set the blur by strength" in serving.describe_strengths(camera, weak)
    assert "set the blur by strength" not in serving.describe_strengths(camera, (10.0, 20.0, 30.0))


def test_examples_are_computed_once(tmp_path: Path, photo: Path) -> None:
    pipeline = hub.load_pipeline()
    do = app._handlers(pipeline, hub.EMBEDDED, [str(photo)], tmp_path)
    first = [value for parts in do.show_example(0, "Magma", True) for value in parts[1:2]]
    assert (tmp_path / "0" / "depth.npz").is_file()
    pipeline.transformer = pipeline.depth_estimator = None  # what is kept needs no model
    again = list(do.show_example(0, "Magma", True))
    assert len(again) == 1
    for (one, name), (other, same) in zip(first[0], again[0][1], strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))
        assert name == same


def test_faults_of_the_program_are_not_shown_as_the_visitors() -> None:
    with pytest.raises(Error, match="a sentence"), app._refusals():
        raise InputError("a sentence")
    with pytest.raises(ValueError, match="fault"), app._refusals():
        raise ValueError("fault")


def test_gpu_time_grows_with_the_work() -> None:
    base = serving.gpu_duration_s(3, 10, 512**2, 10**6)
    assert 15 < base < 60
    assert serving.gpu_duration_s(3, 20, 512**2, 10**6) > base
    assert serving.gpu_duration_s(3, 10, 2 * 512**2, 10**6) > base
    assert serving.gpu_duration_s(3, 10, 512**2, 16 * 10**6) > base
    assert isinstance(base, int)


def test_the_page_names_only_its_own_endpoints(client: Client) -> None:
    endpoints = client.view_api(return_format="dict")["named_endpoints"]
    assert set(endpoints) == {"/read_photo", "/generate_bokeh_stack", "/estimate_depth", "/refocus"}
    assert [parameter["parameter_name"] for parameter in endpoints["/refocus"]["parameters"]] == [
        "photo", "depth", "x_px", "y_px", "focus_distance_m", "bokeh_strength", "f_number", "blades", "rotation_deg",
        "squeeze",
    ]  # fmt: skip


def test_the_page_asks_no_other_host(demo) -> None:
    options = app.launch_options()
    assert not any("http" in sheet for sheet in options["theme"]._stylesheets)
    assert demo.analytics_enabled is False
    assert options["run_history"] is False
    assert options["max_file_size"] == serving.MAX_PHOTO_BYTES


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
    for text in ("Blur and measure", "Small demonstration model", "Compare with the photo", "16 megapixels"):
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
    assert len((ROOT / "app.py").read_text().splitlines()) <= 600

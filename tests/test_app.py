"""The Space's page: built with the embedded pipeline, served on loopback, called as a visitor's program would."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import tempfile
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import numpy as np
import piexif
import PIL.Image
import pytest
from gradio.exceptions import Error
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

import app
import tiny
from bokehdepth import hub
from bokehdepth.camera import read_camera
from bokehdepth.errors import InputError
from bokehdepth.files import depth_maps
from bokehdepth.files.depth_maps import save_depth_npz
from bokehdepth.files.photos import open_photo
from bokehdepth.files.stacks import load_stack
from bokehdepth.rendering.aperture import Aperture
from bokehdepth.rendering.refocus import render_from_depth
from bokehdepth.space import page, serving
from bokehdepth.space.sessions import SessionFiles
from bokehdepth.tasks.limits import PAGE
from bokehdepth.tasks.refocus_job import plan_refocusing
from visits import SIZE_PX, depth_of, serve, write_photo

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photo(tmp_path_factory.mktemp("photos") / "photo.jpg")


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(tmp_path_factory.getbasetemp()))
        with serve(tmp_path_factory.mktemp("cache"), hub.load_pipeline()) as served:
            yield served


@pytest.fixture(scope="module")
def client(demo, tmp_path_factory: pytest.TempPathFactory) -> Client:
    return Client(demo.local_url, verbose=False, download_files=str(tmp_path_factory.mktemp("downloads")))


@pytest.fixture(scope="module")
def stack(client: Client, photo: Path) -> tuple:
    frames = [2.0, 8.0, 4.0]
    return client.predict(handle_file(photo), None, frames, None, None, 1, 0, api_name="/generate_bokeh_stack")


@pytest.fixture(scope="module")
def result(client: Client, photo: Path, stack: tuple) -> tuple:
    return depth_of(client, photo, stack[0])


def test_the_downloads_agree_with_each_other_and_the_photo(stack: tuple, result: tuple, photo: Path) -> None:
    npz, png, picture, words = result
    depth = depth_maps.load_depth_npz(npz)
    assert depth.depth_m.shape == SIZE_PX[::-1]
    assert np.abs(depth_maps.load_depth(png) - depth.depth_m).max() <= depth.depth_m.max() / 65534
    camera = read_camera(open_photo(photo))
    expected = [camera.bokeh_strength(n) for n in (8.0, 4.0, 2.0)]
    np.testing.assert_allclose(depth.bokeh_strengths, expected, rtol=1e-3)
    assert depth.focal_length_px == pytest.approx(camera.focal_length_px.value, rel=1e-6)
    images, strengths = load_stack(stack[0])
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


def test_results_lie_in_the_sessions_folder_alone(demo, stack: tuple, result: tuple) -> None:
    root = demo.session_files.root
    results = [path for path in root.rglob("*") if path.name in ("depth.png", "depth.npz", "run.json", "refocus.png")]
    assert results and all(path.relative_to(root).parts[0].startswith("session-") for path in results)
    outside = [
        path
        for path in root.rglob("*")
        if path.is_file() and not path.relative_to(root).parts[0].startswith("session-")
    ]
    assert {path.suffix for path in outside} <= {".jpg", ".png", ".npz"}  # uploads: photos, frames, depth
    assert not list(Path(tempfile.gettempdir()).glob("bokehdepth-*"))


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
    depth_m = depth_maps.load_depth_npz(result[0]).depth_m
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
        ([1.0, 2, 3, 4, 5, 6, 7], None, "at most 6 values, got 7"),
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
    with pytest.raises(AppError, match="is no depth map, wanted npz"):
        client.predict(handle_file(photo), handle_file(photo), 20, 30, None, 9, None, 0, 0, 1, api_name="/refocus")


def test_the_aperture_slider_is_logarithmic_and_shows_its_strength(photo: Path) -> None:
    stops = serving.F_STOPS
    assert (stops[0], stops[-1]) == (1.4, 22)
    steps = np.diff(np.log2(stops))
    assert np.abs(steps - np.log2(22 / 1.4) / (len(stops) - 1)).max() < 0.1  # engraved numbers are rounded
    assert [page.stop_label(i) for i in (0, 6, 24)] == ["Aperture f/1.4", "Aperture f/2.8", "Aperture f/22"]
    assert serving.f_number_series(3, 3) == [2, 4, 8]
    assert serving.f_number_series(18, 3) == [11, 22]  # none beyond f/22
    for at, frames in ((25, 3), (0, 6), (-1, 1), (1.5, 1)):
        with pytest.raises(InputError, match="must be a whole number"):
            serving.f_number_series(at, frames)
    words, table, values = serving.describe_choice(str(photo), app.F_NUMBER, [], 3, 3, [None] * 4)
    camera = read_camera(open_photo(photo))
    assert words.startswith(f"On this camera, f-number = strength: f/8 = {camera.bokeh_strength(8):.3g}")
    assert "| Focal length | 85 mm | read |" in table and len(values) == 3
    words, table, values = serving.describe_choice(str(photo), app.F_NUMBER, [], 0, 1, [None] * 4)
    assert "nearest f-number that fits is f/1.82" in words and table and not values


def test_gpu_time_is_told_where_it_is_paid_for(photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    do = app._handlers(tiny.pipeline(), hub.EMBEDDED, [], tmp_path)
    asked = (str(photo), app.STRENGTH, [10.0, 20.0], 0, 1, 7, *[None] * 4)
    assert "GPU time" not in do.describe(*asked)[0]
    monkeypatch.setenv("SPACES_ZERO_GPU", "1")
    wanted = serving.gpu_duration_s(2, 7, 64 * 64, SIZE_PX[0] * SIZE_PX[1])
    assert f"This asks for {wanted} s of your GPU time." in do.describe(*asked)[0]


def test_lens_fields_show_exif_and_what_is_changed_counts(photo: Path, tmp_path: Path) -> None:
    *fields, kind, _, _, at = app._fill_fields(str(photo))
    assert fields == [4, 85, 36, 1.5] and kind == app.F_NUMBER and serving.F_STOPS[at] == 2
    opened = open_photo(photo)
    assert serving.changed_lens(opened, fields) == {}
    assert serving.changed_lens(opened, [4, 50, 36, None]) == {"focal_length_mm": 50}
    changed = serving.read_lens(opened, [2.8, 50, 24, 3])
    assert changed == read_camera(opened, f_number=2.8, focal_length_mm=50, sensor_width_mm=24, focus_distance_m=3)
    table = serving.describe_choice(str(photo), app.STRENGTH, [10], 0, 1, [4, 50, 36, 1.5])[1]
    assert "| Focal length | 50 mm | given |" in table and "| Aperture | f/4 | read |" in table
    depth = tmp_path / "depth.npz"
    save_depth_npz(depth, np.full((64, 96), 2, np.float32), focal_length_px=90.0, bokeh_strengths=[])
    plan = serving.plan_refocused(
        str(photo), str(depth), {"focus_distance_m": 2}, app.F_NUMBER, 0, 6, "Round", 0, 1, 4, 50, 36, 1.5
    )
    assert plan.bokeh_strength == read_camera(opened, focal_length_mm=50, focus_distance_m=2).bokeh_strength(2.8)
    assert app._fill_fields(None)[:4] == (None,) * 4


def test_a_bracket_takes_the_place_of_generated_frames(photo: Path, tmp_path: Path) -> None:
    """Frames rendered at f/2.8 and f/2 of a wall behind the focus: the page reads its distance off their blur."""
    depth_m = np.full(SIZE_PX[::-1], 3.0, dtype=np.float32)
    sharp = write_photo(tmp_path / "sharp.jpg")
    paths = []
    for f_number in (2.8, 2.0):
        plan = plan_refocusing(open_photo(sharp), depth_m, focus_distance_m=1.5, f_number=f_number)
        exif = piexif.dump({"Exif": {piexif.ExifIFD.FNumber: (round(10 * f_number), 10)}})
        paths.append(tmp_path / f"f{f_number}.jpg")
        plan.render().save(paths[-1], quality=97, exif=exif)
    do = app._handlers(hub.load_pipeline(), hub.EMBEDDED, [], tmp_path)
    lens = [22, None, None, None]  # the photo was taken at f/22
    for method in app.METHODS:
        asked = (str(sharp), app.STRENGTH, [10], 0, 1, 1, *lens, 0, [str(path) for path in paths], method)
        folder = tmp_path / method
        folder.mkdir()
        first, last = do.bokeh_depth(*asked, "Magma", True, new_folder=lambda made=folder: made)
        assert [name for _, name in first[0]] == ["sharp", "f/2.8", "f/2"]
        npz = Path(last[10])
        assert npz.name == "depth.npz" and npz.is_relative_to(folder)
        depth = depth_maps.load_depth_npz(npz)
        np.testing.assert_allclose(
            depth.bokeh_strengths, [read_camera(open_photo(sharp)).bokeh_strength(n) for n in (2.8, 2)], rtol=1e-3
        )
    assert np.median(depth.depth_m) == pytest.approx(3, rel=0.25)  # measured, without a network
    with pytest.raises(InputError, match="frames must have at most 6 values, got 7"):
        next(do.bokeh_depth(*asked[:11], [str(paths[0])] * 7, "Network", "Magma", True, new_folder=lambda: folder))


def test_assumed_lenses_are_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = tmp_path / "plain.png"
    PIL.Image.new("RGB", SIZE_PX, "grey").save(plain)
    warned: list[str] = []
    monkeypatch.setattr(app.gr, "Warning", warned.append)
    do = app._handlers(tiny.pipeline(), hub.EMBEDDED, [], tmp_path)
    asked = (str(plain), app.F_NUMBER, [], 0, 1, 1, *[None] * 4, 0, None, app.METHODS[0], "Magma", True)
    (tmp_path / "out").mkdir()
    next(do.bokeh_depth(*asked, new_folder=lambda: tmp_path / "out"))
    assert any("focus_distance_m = 2 is assumed" in sentence for sentence in warned)
    assert not any(sentence.startswith("f_number") for sentence in warned)


def test_a_model_that_cannot_be_loaded_is_explained_on_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise InputError("user/model is gated: accept its licence and set HF_TOKEN.")

    shown: list[str] = []

    def launch(demo: app.gr.Blocks) -> None:
        shown.extend(block.value for block in demo.blocks.values() if isinstance(block, app.gr.Markdown))

    monkeypatch.setattr(hub, "load_pipeline", refuse)
    monkeypatch.setattr(app.gr.Blocks, "launch", launch)
    monkeypatch.setenv("BOKEHDEPTH_MODEL", "user/model")
    app.main(tmp_path)
    assert len(shown) == 1 and "user/model is gated: accept its licence and set HF_TOKEN." in shown[0]


def test_no_photo_is_refused(client: Client) -> None:
    with pytest.raises(AppError, match="choose one first"):
        client.predict(None, [10.0], None, None, None, 1, 0, api_name="/generate_bokeh_stack")


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
    images, strengths = load_stack(frames)
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
    do = app._handlers(pipeline, hub.EMBEDDED, [str(photo)], tmp_path / "kept")
    files = SessionFiles(tmp_path / "served")
    first = [parts[1] for parts in do.show_example(0, "Magma", True, new_folder=partial(files.new_folder, "a"))]
    assert (tmp_path / "kept" / "0" / "depth.npz").is_file()
    pipeline.transformer = pipeline.depth_estimator = None  # what is kept needs no model
    again = list(do.show_example(0, "Magma", True, new_folder=partial(files.new_folder, "b")))
    assert len(again) == 1
    for (one, name), (other, same) in zip(first[0], again[0][1], strict=True):
        assert one != other  # each visitor has files of their own
        np.testing.assert_array_equal(np.asarray(PIL.Image.open(one)), np.asarray(PIL.Image.open(other)))
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
        "squeeze", "depth_unit",
    ]  # fmt: skip


def test_the_readmes_example_runs(demo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readme = (ROOT / "README.md").read_text()
    code = readme.split("<!-- client-example -->")[1].split("```python\n")[1].split("```")[0]
    assert "http://127.0.0.1:7860" in code and "x_px=310, y_px=240" in code
    monkeypatch.chdir(tmp_path)
    write_photo(tmp_path / "photo.jpg", (400, 300))
    got: dict = {}
    exec(code.replace("http://127.0.0.1:7860", demo.local_url), got)
    assert [PIL.Image.open(path).size for path in (*got["frames"], got["refocused"])] == [(400, 300)] * 3
    assert depth_maps.load_depth_npz(got["npz"]).depth_m.shape == (300, 400)
    assert got["lens"]["bokeh_strength"] == 20 and got["words"].startswith("Nearest")
    assert "mcp-server" in readme.split("---")[1] and "/gradio_api/mcp/" in readme


def test_the_page_asks_no_other_host(demo) -> None:
    options = app.launch_options(demo)
    assert not any("http" in sheet for sheet in options["theme"]._stylesheets)
    assert demo.analytics_enabled is False
    assert options["run_history"] is False
    assert options["max_file_size"] == PAGE.max_photo_bytes
    assert options["enable_monitoring"] is False


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

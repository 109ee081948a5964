"""Many visitors, and bad ones: each gets their own results, and nothing of anybody stays."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import piexif
import PIL.Image
import pytest
import torch
from gradio_client import Client, handle_file

import tiny
from bokehdepth import hub
from bokehdepth.camera import read_camera
from bokehdepth.files import depth_maps
from bokehdepth.rendering.refocus import render_from_depth
from bokehdepth.space import housekeeping
from visits import SIZE_PX, depth_of, serve, write_photo


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory):
    with serve(tmp_path_factory.mktemp("cache"), hub.load_pipeline()) as served:
        yield served


@pytest.fixture(scope="module")
def client(demo, tmp_path_factory: pytest.TempPathFactory) -> Client:
    return Client(demo.local_url, verbose=False, download_files=str(tmp_path_factory.mktemp("downloads")))


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
    pipeline.set_progress_bar_config(disable=True)

    def visit(number: int) -> tuple:
        """One visitor calls every endpoint with a photo, a lens and numbers of their own."""
        rng = np.random.default_rng(number)
        pixels = PIL.Image.fromarray(rng.integers(0, 256, (64, 96, 3), dtype=np.uint8))
        path = tmp_path / "photo.png" if number % 2 else tmp_path / f"photo{number}.png"
        path = tmp_path / str(number) / path.name  # some of the names are the same
        path.parent.mkdir()
        exif = piexif.dump({"Exif": {piexif.ExifIFD.FocalLengthIn35mmFilm: 30 + number}})
        pixels.save(path, exif=exif)
        client = Client(demo.local_url, verbose=False, download_files=str(path.parent))
        strength = 10.0 + number
        table, equivalent_mm, *_ = client.predict(handle_file(path), api_name="/read_photo")
        given = (handle_file(path), [strength], None, None, None, 1, number)
        frames, record = client.predict(*given, api_name="/generate_bokeh_stack")
        npz = depth_of(client, path, frames)[0]
        focus_m = 1.0 + number
        given = (handle_file(path), handle_file(npz), None, None, focus_m, strength, None, 0, 0, 1)
        picture, lens = client.predict(*given, api_name="/refocus")
        return pixels, equivalent_mm, strength, frames, record, npz, focus_m, picture, lens

    with ThreadPoolExecutor(8) as pool:
        visits = list(pool.map(visit, range(8)))
    for number, (pixels, equivalent_mm, strength, frames, record, npz, focus_m, picture, lens) in enumerate(visits):
        assert equivalent_mm == 30 + number
        noise = torch.Generator().manual_seed(number)
        stack = pipeline.generate_stack(pixels, [strength], 1, generator=noise).images
        difference = np.asarray(PIL.Image.open(frames[0]), dtype=int) - np.asarray(stack[0], dtype=int)
        assert len(frames) == 1 and np.abs(difference).max() <= 1
        assert json.loads(Path(record).read_text())["seed"] == number
        depth_m = depth_maps.load_depth_npz(npz).depth_m
        camera = read_camera(pixels, focal_length_35mm=30 + number)
        wanted = pipeline.estimate_depth(pixels, stack, [strength], intrinsics=camera.intrinsics).depth_m
        np.testing.assert_allclose(depth_m, wanted, rtol=1e-3)
        assert lens == {"focus_distance_m": focus_m, "bokeh_strength": strength}
        sharp = np.asarray(pixels, dtype=np.float32) / 255
        rendered = np.round(render_from_depth(sharp, depth_m, strength, focus_m) * 255).astype(np.uint8)
        np.testing.assert_array_equal(np.asarray(PIL.Image.open(picture)), rendered)


def test_what_is_known_of_a_session_goes_with_its_files(tmp_path: Path) -> None:
    """Of Gradio's own states too; `test_soak` measures what a thousand requests leave."""
    photo, cache = write_photo(tmp_path / "photo.jpg"), tmp_path / "cache"
    with serve(cache, tiny.pipeline(), GRACE_S=0.5, SWEEP_S=1000) as served:
        client = Client(served.local_url, verbose=False, download_files=str(tmp_path / "downloads"))
        client.predict(handle_file(photo), [9], None, None, None, 1, 0, api_name="/generate_bokeh_stack")
        time.sleep(1)
        housekeeping.tidy(served, 0.5)
        assert len(served.state_holder.session_data) == 1  # the visitor is still there
        client.close()
        until = time.monotonic() + 60
        while served.state_holder.session_data or any(path.is_file() for path in cache.rglob("*")):
            assert time.monotonic() < until
            time.sleep(0.5)
            housekeeping.tidy(served, 0.5)
        assert not served.state_holder.time_last_used and not any(served.temp_file_sets)
    assert len(served._queue.event_analytics) == 1


def test_a_visitor_cannot_use_anothers_files(demo, client: Client, tmp_path: Path) -> None:
    """Who knows the path of another's result still may not work with it, and cannot find it by looking."""
    photo = handle_file(write_photo(tmp_path / "photo.jpg"))
    client.predict(photo, [9], None, None, None, 1, 0, api_name="/generate_bokeh_stack")
    root = demo.session_files.root
    theirs = next(root.glob("session-*/*/result/run.json"))
    call_url = f"{demo.local_url}gradio_api/call/read_photo"
    for path, sentence in ((theirs, "of another session"), (root / "0f" / "gone.jpg", "no longer kept")):
        data = [{"path": str(path), "meta": {"_type": "gradio.FileData"}}]
        event = httpx.post(call_url, json={"data": data}).json()["event_id"]
        answer = httpx.get(f"{call_url}/{event}", timeout=30).text
        assert "event: error" in answer and sentence in answer
    files_url = f"{demo.local_url}gradio_api/file="
    assert httpx.get(f"{files_url}{theirs}").status_code == 200  # the unguessable path is the key
    for path in (root, theirs.parent, theirs.parents[2], theirs.parents[2].with_name("session-") / "run.json"):
        assert httpx.get(f"{files_url}{path}").status_code in (403, 404), path

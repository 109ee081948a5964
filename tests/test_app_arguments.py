"""Arguments and depth files as a visitor's program may send them: the right result, or one sentence of ours."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

import tiny
from bokehdepth import hub
from bokehdepth.files.depth_maps import save_depth_npz, save_depth_png
from bokehdepth.files.photos import open_photo
from bokehdepth.rendering.refocus import render_from_depth
from bokehdepth.space import serving
from visits import SIZE_PX, serve, write_photo


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory):
    cache = tmp_path_factory.mktemp("cache")
    with serve(cache, tiny.pipeline(), hub.EMBEDDED, [str(write_photo(cache / "example.jpg"))]) as served:
        yield Client(served.local_url, verbose=False, download_files=str(tmp_path_factory.mktemp("downloads")))


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photo(tmp_path_factory.mktemp("photos") / "photo.jpg")


def wall(height: int = SIZE_PX[1], width: int = SIZE_PX[0]) -> np.ndarray:
    """Metres: two walls and the sky over them."""
    depth_m = np.full((height, width), 2.0, np.float32)
    depth_m[:, width // 2 :] = 4.0
    depth_m[: height // 3] = np.inf
    return depth_m


def refusal(client: Client, *given: object, api_name: str, **named: object) -> str:
    """The sentence that a request is refused with; a fault of the program has other words."""
    with pytest.raises(AppError) as refused:
        client.predict(*given, api_name=api_name, **named)
    sentence = str(refused.value)
    assert "\n" not in sentence and len(sentence) < 300, sentence
    assert "Traceback" not in sentence and tempfile.gettempdir() not in sentence and "pickle" not in sentence
    assert "upstream Gradio app has raised an exception" not in sentence
    return sentence


def test_whole_numbers_that_arrive_as_floats_are_taken(client: Client, photo: Path) -> None:
    given = (handle_file(photo), [9], None, None, None)
    frames = []
    for steps, seed in ((1, 2**40 + 1), (1.0, float(2**40 + 1)), (1, 2**63 - 1)):
        paths, record = client.predict(*given, steps, seed, api_name="/generate_bokeh_stack")
        frames.append(np.asarray(PIL.Image.open(paths[0])))
        assert json.loads(Path(record).read_text())["seed"] == int(seed)
    np.testing.assert_array_equal(frames[0], frames[1])


def depth_file(folder: Path, name: str) -> Path:
    """The depth of `wall` in one of the forms that are read."""
    path = folder / name
    if name == "depth.npz":
        return save_depth_npz(path, wall(), focal_length_px=90.0, bokeh_strengths=[])
    if name == "depth.png":
        return save_depth_png(path, wall())
    if name == "depth.npy":
        np.save(path, wall()[None])
    elif name == "depth.tif":
        PIL.Image.fromarray(wall()).save(path)
    return path


@pytest.mark.parametrize("name", ["depth.npz", "depth.png", "depth.npy", "depth.tif"])
def test_depth_of_any_program_is_refocused_by(client: Client, photo: Path, tmp_path: Path, name: str) -> None:
    path = depth_file(tmp_path, name)
    unit = None if name in ("depth.npz", "depth.png") else "m"
    given = {"photo": handle_file(photo), "depth": handle_file(path), "bokeh_strength": 12}
    picture, lens = client.predict(**given, focus_distance_m=2, depth_unit=unit, api_name="/refocus")
    sharp = np.asarray(open_photo(photo).image, dtype=np.float32) / 255
    wanted = np.round(render_from_depth(sharp, wall(), 12, 2) * 255)
    assert np.abs(np.asarray(PIL.Image.open(picture)) - wanted).max() <= 1
    assert lens == {"focus_distance_m": 2, "bokeh_strength": 12}
    picture, lens = client.predict(**given, x_px=10, y_px=5, depth_unit=unit, api_name="/refocus")
    assert lens == {"focus_distance_m": None, "bokeh_strength": 12}  # the sky
    wanted = np.round(render_from_depth(sharp, wall(), 12, np.inf) * 255)
    assert np.abs(np.asarray(PIL.Image.open(picture)) - wanted).max() <= 1
    if unit is not None:
        sentence = refusal(client, **given, focus_distance_m=2, api_name="/refocus")
        assert f"file '{name}' does not say its unit, wanted depth_unit" in sentence
    assert "depth_unit is 'feet'" in refusal(client, **given, depth_unit="feet", api_name="/refocus")


def test_wrong_depth_is_one_sentence(client: Client, photo: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "objects.npy", np.full(SIZE_PX[::-1], None))
    np.savez_compressed(tmp_path / "bomb.npz", depth_m=np.zeros((8192, 8192), np.float32))
    np.savez(tmp_path / "holes.npz", depth_m=np.where(wall() == 4, np.nan, wall()))
    np.save(tmp_path / "small.npy", wall(30, 40))
    (tmp_path / "text.npz").write_text("no archive")
    PIL.Image.new("RGB", SIZE_PX).save(tmp_path / "depth_preview.png")
    for name, words in (
        ("objects.npy", "array of 'object', wanted plain numbers"),
        ("bomb.npz", "has 8192 x 8192 pixels, wanted the photo's 96 x 64"),
        ("holes.npz", "pixels that are not above 0"),
        ("small.npy", "has 40 x 30 pixels, wanted the photo's 96 x 64"),
        ("text.npz", "is no depth map, wanted npz"),
        ("depth_preview.png", "mode RGB, wanted a grey picture of 16 or 32 bits"),
    ):
        given = {"photo": handle_file(photo), "depth": handle_file(tmp_path / name), "bokeh_strength": 9}
        assert words in refusal(client, **given, focus_distance_m=2, depth_unit="m", api_name="/refocus")
    assert "no depth yet" in refusal(client, photo=handle_file(photo), depth=None, api_name="/refocus")


def test_the_pages_own_numbers_are_checked_as_well() -> None:
    for wrong in (None, 1.5, -1, 99, "x", True):
        with pytest.raises(ValueError, match="must be a whole number"):
            serving.f_number_series(wrong, 1)
        with pytest.raises(ValueError, match="must be a whole number"):
            serving.f_number_series(0, wrong)
    assert serving.f_number_series(3.0, 3.0) == [2, 4, 8]  # as a browser may send them

"""What one request may cost: refused from its arguments and headers, with the reason, before any work."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from bokehdepth.cli import main
from bokehdepth.errors import InputError
from bokehdepth.files.depth_maps import save_depth_npz
from bokehdepth.files.photos import open_photo
from bokehdepth.rendering import aperture as apertures
from bokehdepth.rendering.aperture import Aperture
from bokehdepth.space import serving
from bokehdepth.space.endpoints import refocus
from bokehdepth.tasks.limits import COMMAND_LINE, PAGE, render_work
from bokehdepth.tasks.photo_job import plan_job
from bokehdepth.tasks.refocus_job import plan_refocusing

SIDE_PX = 1024


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A photo and its depth: most of it far, as blur is that costs most."""
    folder = tmp_path_factory.mktemp("files")
    photo, depth = folder / "photo.png", folder / "depth.npz"
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE_PX, SIDE_PX, 3), dtype=np.uint8)
    PIL.Image.fromarray(pixels).save(photo)
    depth_m = np.full((SIDE_PX, SIDE_PX), 10, np.float32)
    depth_m[:32, :32] = 0.5
    save_depth_npz(depth, depth_m, focal_length_px=400.0, bokeh_strengths=[])
    return str(photo), str(depth)


def no_folder() -> Path:
    raise AssertionError("a folder was made before the request was refused")


@pytest.mark.parametrize(
    ("lens", "sentence"),
    [
        ({"bokeh_strength": 200.0, "blades": 5, "squeeze": 4}, "bokeh_strength must be at most 120 for a rendering"),
        ({"f_number": 0.01}, "bokeh_strength must be at most 120 for a rendering"),
        ({"bokeh_strength": 119.0, "blades": 5, "squeeze": 4}, "bokeh_strength must be smaller: 1024 x 1024 pixels"),
    ],
)
def test_a_rendering_beyond_the_page_is_refused_at_once(
    files: tuple[str, str], lens: dict, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    monkeypatch.setattr(apertures.Aperture, "kernel", lambda *given: made.append(given))
    started = time.perf_counter()
    with pytest.raises(InputError, match=sentence):
        refocus(*files, focus_distance_m=0.5, new_folder=no_folder, **lens)
    taken_s = time.perf_counter() - started
    assert not made
    assert taken_s < 5, taken_s  # 0.05 s on a quiet core


def test_the_command_line_renders_what_the_page_refuses(files: tuple[str, str]) -> None:
    depth_m = serving.open_depth(files[1]).depth_m
    lens = {"focus_distance_m": 8.0, "bokeh_strength": 130.0}
    plan = plan_refocusing(open_photo(files[0]), depth_m, **lens)
    assert plan.limits is COMMAND_LINE and plan.bokeh_strength == 130
    with pytest.raises(InputError, match="at most 120"):
        plan_refocusing(open_photo(files[0]), depth_m, **lens, limits=PAGE)


def test_what_the_page_offers_is_within_its_limits() -> None:
    """The strongest round blur at preview size, and a 16 megapixel photo blurred as by a fast lens."""
    for width_px, radius_px, shape in ((1024, 240, Aperture()), (1024, 240, Aperture(6)), (4900, 128, Aperture(5))):
        signed_px = np.tile(np.linspace(-radius_px, 0, width_px, dtype=np.float32), (width_px * 2 // 3, 1))
        PAGE.check_rendering(signed_px, shape)


def test_work_grows_with_all_that_costs() -> None:
    def work(width: int = 256, radius: float = 20, shape: Aperture = Aperture()) -> float:  # noqa: B008
        return render_work(np.full((width, width), radius, np.float32), shape)

    assert work() < work(width=512) < work(width=512, radius=40)
    assert work() < work(shape=Aperture(6)) < work(shape=Aperture(5))  # an odd one is not its own mirror image
    assert work(shape=Aperture(6)) < work(shape=Aperture(6, 0, 4))
    assert work(shape=Aperture(6, 0, 4)) == pytest.approx(work(shape=Aperture(6, 0, 0.25)))


def test_frames_are_counted_before_any_is_opened(tmp_path: Path, files: tuple[str, str]) -> None:
    missing = [tmp_path / f"{number}.jpg" for number in range(129)]
    with pytest.raises(InputError, match="frame_paths must have at most 128 values, got 129"):
        plan_job(tmp_path / "none.jpg", tmp_path / "out", makes_stack=False, frame_paths=missing)
    with pytest.raises(InputError, match="bokeh_strengths must have at most 128 values, got 1000"):
        plan_job(tmp_path / "none.jpg", tmp_path / "out", bokeh_strengths=list(range(1000)))
    with pytest.raises(InputError, match="frames must have at most 6 values, got 7"):
        serving.plan_bracket(str(tmp_path / "none.jpg"), tmp_path / "out", ["none.jpg"] * 7, "Network", None)
    with pytest.raises(InputError, match="f_numbers must be a list, got '1.4'"):
        serving.plan_bracket(files[0], tmp_path / "out", [], "Network", "1.4")


def test_a_frame_of_the_page_has_the_photos_limits(tmp_path: Path, files: tuple[str, str]) -> None:
    large = tmp_path / "large.png"
    PIL.Image.new("1", (4100, 4100)).save(large)
    with pytest.raises(InputError, match=r"large.png.*16,000,000"):
        serving.plan_bracket(files[0], tmp_path / "out", [str(large)], "Network", None, [10.0])


def test_steps_of_the_command_line(tmp_path: Path, files: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", files[0], "-o", str(tmp_path / "out"), "--steps", "1001"]) == 2
    assert "steps must be a whole number from 1 to 1000, got 1001." in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("steps", [0, 51, 1e9, float("nan")])
def test_steps_of_the_page(steps: float) -> None:
    with pytest.raises(InputError, match="steps must be a whole number from 1 to 50"):
        PAGE.check_steps(steps)

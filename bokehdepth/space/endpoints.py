"""The endpoints for programs, which are the MCP tools too: a photo and numbers in, files out. No torch, no gradio.

What programs are told is their docstrings and arguments, less `new_folder`, which is the page's part.
"""

from __future__ import annotations

import reprlib
import time
from collections.abc import Callable
from pathlib import Path

from ..camera import read_camera
from ..camera.lens import check_whole_number
from ..errors import InputError
from ..files.depth_maps import load_depth_npz
from ..files.stacks import bokeh_file_name
from ..rendering.aperture import MAX_BLADES, Aperture
from ..tasks.limits import PAGE
from ..tasks.refocus_job import plan_refocusing
from ..tasks.result_files import DEPTH_NAMES
from . import viewing
from .serving import (
    DEFAULT_STRENGTHS,
    F_NUMBER,
    NETWORK,
    STRENGTH,
    default_f_numbers,
    default_kind,
    describe_camera,
    field_value,
    frame_strengths,
    open_any_depth,
    open_upload,
    plan_bracket,
)


def read_photo(photo: str | None) -> tuple:
    """Reads the camera settings that a photo carries.

    Args:
        photo: the photo, with its EXIF.

    Returns:
        A table of the settings, each read, derived or assumed; 35 mm equivalent focal length in mm; focus distance in
        metres (empty for infinity); what the blur is best set by; f-numbers that fit this lens.
    """
    opened = open_upload(photo)
    camera = read_camera(opened)
    table = describe_camera(opened, camera)
    fields = field_value(camera.focal_length_35mm), field_value(camera.focus_distance_m)
    return table, *fields, default_kind(camera), default_f_numbers(camera)


def refocus(
    photo: str | None,
    depth: str | None,
    x_px: float | None = None,
    y_px: float | None = None,
    focus_distance_m: float | None = None,
    bokeh_strength: float | None = None,
    f_number: float | None = None,
    blades: int = 0,
    rotation_deg: float = 0,
    squeeze: float = 1,
    depth_unit: str | None = None,
    *,
    new_folder: Callable[[], Path],
) -> tuple:
    """Renders a photo by its depth, focused elsewhere and through another aperture. Runs on the CPU, without a model.

    Args:
        photo: the sharp photo.
        depth: depth of the photo: depth.npz or depth.png of estimate_depth, or a map of another program as NPY, NPZ,
            16-bit PNG, TIFF, PFM or EXR, with depth_unit.
        x_px: focus on what is at this column of the upright photo, with y_px; or give focus_distance_m.
        y_px: row of the upright photo.
        focus_distance_m: focus distance in metres, in place of x_px and y_px.
        bokeh_strength: blur radius in pixels per dioptre at 512 px width, 0 to 120; or give f_number.
        f_number: f-number on the photo's own lens, in place of bokeh_strength.
        blades: 0 for a round aperture, or 3 to 32 straight blades.
        rotation_deg: turns the aperture, degrees.
        squeeze: height over width of the blur; 2 is anamorphic.
        depth_unit: unit of a depth file that does not state it: m, cm, mm, or one step such as 1/256m.
        new_folder: makes an empty folder for the files of one result.

    Returns:
        The picture as PNG at the photo's size; focus distance in metres (null for infinity) and bokeh strength.
    """
    if (x_px is None) != (y_px is None):
        raise InputError(f"x_px is {reprlib.repr(x_px)} and y_px {reprlib.repr(y_px)}, wanted both or neither.")
    aperture = Aperture(check_whole_number(blades, "blades", 0, MAX_BLADES), rotation_deg, squeeze)
    if bokeh_strength is not None:
        PAGE.check_render_strength(bokeh_strength)
    opened = open_upload(photo)
    plan = plan_refocusing(
        opened,
        open_any_depth(depth, depth_unit, opened),
        focus_distance_m=focus_distance_m,
        focus_at_px=None if x_px is None else (x_px, y_px),
        bokeh_strength=bokeh_strength,
        f_number=f_number,
        aperture=aperture,
        limits=PAGE,
    )
    focus_m = None if plan.focus_distance_m == float("inf") else plan.focus_distance_m  # JSON has no infinity
    lens = {"focus_distance_m": focus_m, "bokeh_strength": plan.bokeh_strength}
    picture = plan.render()
    return str(plan.save(new_folder(), picture)), lens


def model_endpoints(
    make_stack: Callable, run_bracket: Callable, check: Callable, write: Callable, usual_steps: int
) -> tuple[Callable, Callable]:
    """The two endpoints that need models.

    Args:
        make_stack: (photo, strengths, steps, seed) to a stack with its `images`.
        run_bracket: runs a `photo_job.Job` with the arguments for its record.
        check: refuses (photo, strengths, steps, seed) that the models do not take; steps and seed as whole numbers.
        write: writes the results of (folder, photo, camera, strengths).
        usual_steps: of denoising, that suit the model.

    Returns:
        `generate_bokeh_stack` and `estimate_depth`.
    """

    def generate_bokeh_stack(
        photo: str | None,
        bokeh_strengths: list[float] | None = None,
        f_numbers: list[float] | None = None,
        focal_length_35mm: float | None = None,
        focus_distance_m: float | None = None,
        steps: int | None = None,
        seed: int = 0,
        *,
        new_folder: Callable[[], Path],
    ) -> tuple:
        """Makes blurred versions of a photo, as lenses with wider apertures would have taken it.

        Args:
            photo: the sharp photo; its EXIF tells the lens.
            bokeh_strengths: up to six, each above 0 and at most 30; or give f_numbers. Neither: 10, 20, 30.
            f_numbers: f-numbers on the photo's own lens, in place of bokeh_strengths.
            focal_length_35mm: 35 mm equivalent focal length in mm; empty takes the photo's.
            focus_distance_m: in metres; empty takes the photo's.
            steps: of denoising; empty takes what suits the model.
            seed: of the noise; the same seed repeats the result.
            new_folder: makes an empty folder for the files of one result.

        Returns:
            The frames as PNG at the photo's size, least blur first; the run record as JSON.
        """
        steps = usual_steps if steps is None else steps
        for name, values in (("bokeh_strengths", bokeh_strengths), ("f_numbers", f_numbers)):
            PAGE.check_frames(values, name)
        if bokeh_strengths and f_numbers:
            raise InputError("bokeh_strengths and f_numbers were both given, wanted one of them.")
        opened = open_upload(photo)
        lens = {"focal_length_35mm": focal_length_35mm, "focus_distance_m": focus_distance_m}
        camera = read_camera(opened, **lens)
        kind, frames = (F_NUMBER, f_numbers) if f_numbers else (STRENGTH, bokeh_strengths or DEFAULT_STRENGTHS)
        values, _ = frame_strengths(camera, kind, frames)
        steps, seed = check(opened, values, steps, seed)
        start_s = time.perf_counter()
        images = make_stack(opened.image, values, steps, seed).images
        timings_s = {"stack": time.perf_counter() - start_s}
        folder = new_folder() / "result"
        arguments = {"kind": kind, "frames": frames, "num_inference_steps": steps}
        rest = {"images": images, "arguments": arguments, "seed": seed, "timings_s": timings_s}
        write(folder, opened, camera, values, **rest)
        return [str(folder / bokeh_file_name(k)) for k in values], str(folder / "run.json")

    def estimate_depth(
        photo: str | None,
        frames: list[str] | None = None,
        bokeh_strengths: list[float] | None = None,
        f_numbers: list[float] | None = None,
        focal_length_35mm: float | None = None,
        focus_distance_m: float | None = None,
        method: str = NETWORK,
        *,
        new_folder: Callable[[], Path],
    ) -> tuple:
        """Reads depth in metres from a photo and from blurred frames of it, generated or taken with wider apertures.

        Args:
            photo: the sharp photo; its EXIF tells the lens.
            frames: up to six frames of the photo's size; empty reads depth from the photo alone.
            bokeh_strengths: strength of each frame, in their order; or give f_numbers. Neither: the frames tell it.
            f_numbers: f-number of each frame, in their order.
            focal_length_35mm: 35 mm equivalent focal length in mm; empty takes the photo's.
            focus_distance_m: in metres; empty takes the photo's.
            method: "Network", or "Measured blur" for a real bracket in which everything lies behind the focus.
            new_folder: makes an empty folder for the files of one result.

        Returns:
            Depth as NPZ (depth_m, focal_length_px, bokeh_strengths); as 16-bit PNG with its scale; as a picture with a
            legend in metres; a sentence on its ends.
        """
        lens = {"focal_length_35mm": focal_length_35mm, "focus_distance_m": focus_distance_m}
        folder = new_folder() / "result"
        opened, job = plan_bracket(photo, folder, frames or (), method, f_numbers, bokeh_strengths, **lens)
        run_bracket(job, {"photo": opened.path.name, "method": method})
        npz, png, legend = (folder / name for name in DEPTH_NAMES)
        depth = load_depth_npz(npz)
        return str(npz), str(png), str(legend), viewing.describe_depth(depth.depth_m, depth.focal_length_px)

    return generate_bokeh_stack, estimate_depth

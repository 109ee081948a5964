"""What the Space's page and its endpoints ask of the library: checked uploads, choices, words and files. No torch.

Every function works on what it is given and keeps nothing, so visitors cannot meet in it.
"""

from __future__ import annotations

import html
import reprlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..camera import Camera, Value, read_camera
from ..camera import lens as optics
from ..camera.f_numbers import STANDARD_F_NUMBERS, THIRD_STOPS, smallest_f_number, strengths_from_f_numbers
from ..errors import InputError
from ..files import exr, point_clouds
from ..files.depth_maps import DepthFile, load_depth, load_depth_npz
from ..files.photos import Photo
from ..rendering.aperture import Aperture
from ..tasks.limits import PAGE
from ..tasks.photo_job import Job, plan_job
from ..tasks.refocus_job import Refocusing, plan_refocusing
from ..tasks.result_files import write_results

if TYPE_CHECKING:
    from ..pipeline_bokehdepth import BokehDepthPipeline

LENS_FIELDS = ("f_number", "focal_length_mm", "sensor_width_mm", "focus_distance_m")
"""What of a camera the page lets its visitor change."""

MAX_SEED = 2**63 - 1

STRENGTH, F_NUMBER = "Strength", "f-number"
METHODS = NETWORK, BLUR_BEHIND = "Network", "Measured blur"
DEFAULT_STRENGTHS = optics.DEFAULT_BOKEH_STRENGTHS
STRENGTHS = (5.0, 10.0, 15.0, 20.0, 25.0, 30.0)
F_STOPS = [*THIRD_STOPS]
"""What the page's aperture slider runs over."""

_STOPS_APART = 2
MAX_STOP_FRAMES = 1 + (len(F_STOPS) - 1) // (3 * _STOPS_APART)

BLADES = {"Round": 0, "5 blades": 5, "6 blades": 6, "7 blades": 7, "8 blades": 8, "9 blades": 9}

WEAK_STRENGTH = 2.0
"""Below it the widest frame differs from the photo by a pixel or so."""


def open_upload(path: str | None) -> Photo:
    """Opens an uploaded file; InputError where there is none or it is no photo within the limits."""
    if path is None:
        raise InputError("There is no photo yet; choose one first.")
    return PAGE.open_photo(path)


def open_depth(path: str | None) -> DepthFile:
    """Opens the depth of an earlier run; InputError where there is none or the file is something else."""
    if path is None:
        raise InputError("There is no depth yet; press the button below the photo first.")
    return load_depth_npz(path, max_pixels=PAGE.max_photo_px)


def open_any_depth(path: str | None, unit: str | None, photo: Photo) -> np.ndarray:
    """Opens depth of a photo in metres, of any program; InputError where there is none, or its unit is not known."""
    if path is None:
        raise InputError("There is no depth yet; choose its file first.")
    return load_depth(path, unit=unit or None, size_px=photo.image.size, max_pixels=PAGE.max_photo_px)


def field_value(value: Value) -> float | None:
    """A camera value as its field on the page shows it; None, an empty field, for infinity."""
    return None if value.value == float("inf") else round(value.value, 2)


def lens_fields(camera: Camera) -> list[float | None]:
    """What the page's lens fields show of a camera, in the order of `LENS_FIELDS`."""
    return [field_value(getattr(camera, name)) for name in LENS_FIELDS]


def read_lens(photo: Photo, entered: Sequence[float | None] | None = None) -> Camera:
    """The photo's camera, with the lens fields of the page where the visitor changed them."""
    return read_camera(photo, **({} if entered is None else changed_lens(photo, entered)))


def changed_lens(photo: Photo, entered: Sequence[float | None]) -> dict[str, float]:
    """The lens fields of the page that the visitor changed, as arguments of `camera.read_camera`."""
    shown = lens_fields(read_camera(photo))
    pairs = zip(LENS_FIELDS, entered, shown, strict=True)
    return {name: value for name, value, was in pairs if value is not None and value != was}


def default_f_numbers(camera: Camera) -> list[float]:
    """Three engraved f-numbers that fit, wide open first; fewer, or none, where the lens is too long."""
    widest = smallest_f_number(camera)
    engraved = [f_number for f_number in STANDARD_F_NUMBERS if F_STOPS[0] <= f_number <= F_STOPS[-1]]
    return [f_number for f_number in engraved if f_number >= widest][: 3 * _STOPS_APART : _STOPS_APART]


def f_number_series(at: int, frames: int) -> list[float]:
    """f-numbers from a place of the aperture slider on, each two stops narrower; fewer where they would pass f/22."""
    at = optics.check_whole_number(at, "aperture", 0, len(F_STOPS) - 1)
    frames = optics.check_whole_number(frames, "frames", 0, MAX_STOP_FRAMES)
    return F_STOPS[at :: 3 * _STOPS_APART][:frames]


def default_kind(camera: Camera) -> str:
    """What the page sets the blur by: the f-number where the photo tells its lens and the blur will show."""
    fits = default_f_numbers(camera)
    known = camera.focal_length_mm.source != "assumed" and camera.focus_distance_m.source != "assumed"
    return F_NUMBER if known and fits and camera.bokeh_strength(fits[0]) >= WEAK_STRENGTH else STRENGTH


def frame_strengths(camera: Camera, kind: str, values: Sequence[float] | None) -> tuple[tuple[float, ...], list[str]]:
    """Ascending K of the frames and what the page calls them; InputError for none, too many or one out of range."""
    if not isinstance(values, Sequence) or isinstance(values, str) or not 1 <= len(values) <= PAGE.max_frames:
        raise InputError(
            f"the stack has the frames {reprlib.repr(values)}, wanted 1 to {PAGE.max_frames} of a {kind.lower()} each."
        )
    if kind == F_NUMBER:
        strengths, f_numbers = strengths_from_f_numbers(camera, values, "the stack")
        return strengths, [f"f/{n:g}" for n in f_numbers]
    for value in values:
        optics.check_number(value, "strength")  # 0 is the photo, which the page shows anyway
        optics.check_bokeh_strength(value, "strength")
    return tuple(sorted(map(float, values))), [f"strength {k:.3g}" for k in sorted(values)]


def chosen_frames(kind: str, strengths: Sequence[float], at: int, frames: int) -> Sequence[float]:
    """What the page's controls choose as frames: the ticked strengths, or f-numbers from the slider on."""
    return strengths if kind == STRENGTH else f_number_series(at, frames)


def describe_choice(
    photo: str | None, kind: str, strengths: Sequence[float], at: int, frames: int, entered: Sequence[float | None]
) -> tuple[str, str, Sequence[float]]:
    """What a run will do, in words, the camera's table, and K of the frames.

    While a visitor still chooses, a line says what is wrong, in place of a refusal; table or frames are then empty.
    """
    if photo is None:
        return "", "", ()
    table = ""
    try:
        opened = open_upload(photo)
        camera = read_lens(opened, entered)
        table = describe_camera(opened, camera)
        values, _ = frame_strengths(camera, kind, chosen_frames(kind, strengths, at, frames))
    except ValueError as error:
        return f"⚠️ {html.escape(str(error), quote=False)}", table, ()
    return describe_strengths(camera, values), table, values


def describe_strengths(camera: Camera, strengths: Sequence[float]) -> str:
    """Each K beside its f-number on this camera, and a hint where the blur will hardly show."""
    pairs = " · ".join(f"f/{camera.f_number_for(k):.2g} = {k:.3g}" for k in strengths)
    weak = " So small a lens keeps nearly everything sharp; set the blur by strength to see it."
    return f"On this camera, f-number = strength: {pairs}.{weak if max(strengths) < WEAK_STRENGTH else ''}"


def describe_camera(photo: Photo, camera: Camera) -> str:
    """A Markdown table of the lens settings and their origin, and sentences on what was assumed or changed."""
    rows = (
        ("Aperture", camera.f_number, "f/{:.2g}"),
        ("Focal length", camera.focal_length_mm, "{:.3g} mm"),
        ("35 mm equivalent", camera.focal_length_35mm, "{:.3g} mm"),
        ("Sensor width", camera.sensor_width_mm, "{:.3g} mm"),
        ("Focus distance", camera.focus_distance_m, "{:.3g} m"),
    )
    table = [f"| {name} | {form.format(value.value)} | {value.source} |" for name, value, form in rows]
    notes = [f"{note[0].upper()}{note[1:].rstrip('.')}." for note in (*photo.notes, *camera.notes)]
    if any(value.source == "assumed" for _, value, _ in rows):
        notes.insert(0, "What is *assumed* is not in the photo: correct it below if you know better.")
    notes_line = html.escape(" ".join(notes), quote=False)
    return "\n".join(["| Setting | Value | Origin |", "|---|---|---|", *table, "", notes_line])


def check_run(
    pipeline: BokehDepthPipeline, opened: Photo, strengths: Sequence[float], steps: float, seed: float
) -> tuple[int, int]:
    """Checks what the models get, before a GPU is asked for, and returns steps and seed as whole numbers."""
    steps = PAGE.check_steps(steps)
    seed = optics.check_whole_number(seed, "seed", 0, MAX_SEED)
    try:
        pipeline.check_inputs(opened.image, strengths, num_inference_steps=steps)
    except ValueError as error:
        raise InputError(str(error)) from error
    return steps, seed


def write_run(
    weights: dict[str, Any], folder: Path, opened: Photo, camera: Camera, strengths: Sequence[float], **rest: Any
) -> None:
    """Writes the results of a run of the models, as `result_files.write_results` does; its record names the photo."""
    arguments = {"photo": opened.path.name, **rest.pop("arguments")}
    given = {"photo": opened, "camera": camera, "bokeh_strengths": strengths, "weights": weights}
    write_results(folder, arguments=arguments, **given, **rest)


def plan_bracket(
    photo: str | None,
    folder: Path,
    frames: Sequence[str],
    method: str,
    f_numbers: Sequence[float] | None,
    bokeh_strengths: Sequence[float] | None = None,
    **lens: float | None,
) -> tuple[Photo, Job]:
    """Checks a photo and the frames that the visitor brings for depth; both as they will be used."""
    for name, values in (("f_numbers", f_numbers), ("bokeh_strengths", bokeh_strengths), ("frames", frames)):
        PAGE.check_frames(values, name)
    if method not in (NETWORK, BLUR_BEHIND):
        raise InputError(f"method is {reprlib.repr(method)}, wanted {NETWORK!r} or {BLUR_BEHIND!r}.")
    opened = open_upload(photo)
    side = "behind" if method == BLUR_BEHIND else None
    own = lens.pop("f_number", None)
    job = plan_job(
        opened,
        folder,
        makes_stack=False,
        frame_paths=frames,
        f_numbers=f_numbers or None,
        bokeh_strengths=bokeh_strengths or None,
        sweep_side=side,
        photo_f_number=own if side else None,
        fill_low_confidence=side is not None,
        limits=PAGE,
        **lens,
    )
    return opened, job


def chosen_focus(point: Sequence[float] | None, focus_m: float | None) -> dict[str, Any]:
    """The focus that was clicked last, or entered, as an argument of `plan_refocusing`; InputError for neither."""
    if point is None and focus_m is None:
        raise InputError("There is no focus yet; click the picture or enter a distance first.")
    return {"focus_distance_m": focus_m} if point is None else {"focus_at_px": tuple(point)}


def plan_refocused(
    photo: str | None,
    depth: str | None,
    focus: dict[str, Any],
    kind: str,
    strength: float,
    at: int,
    blades: str,
    turn_deg: float,
    squeeze: float,
    *entered: float | None,
) -> Refocusing:
    """What the page's controls choose to render: focus as `plan_refocusing` takes it, blur, aperture, lens fields."""
    opened, values = open_upload(photo), open_depth(depth).depth_m
    blur = {"bokeh_strength": strength} if kind == STRENGTH else {"f_number": f_number_series(at, 1)[0]}
    # The focus is chosen anew, and so is the f-number.
    changed = changed_lens(opened, entered)
    lens = {name: changed[name] for name in ("focal_length_mm", "sensor_width_mm") if name in changed}
    aperture = Aperture(BLADES[blades], turn_deg, squeeze)
    return plan_refocusing(opened, values, aperture=aperture, limits=PAGE, **focus, **blur, **lens)


def describe_refocusing(plan: Refocusing) -> str:
    """One sentence on what a refocused picture was rendered with."""
    f_number = f"f/{plan.camera.f_number_for(plan.bokeh_strength):.2g}" if plan.bokeh_strength else "a pinhole"
    place = "infinity" if plan.focus_distance_m == float("inf") else f"{plan.focus_distance_m:.3g} m"
    return f"Sharp at {place}; strength {plan.bokeh_strength:.3g}, {f_number} on this camera."


def write_exports(folder: Path | str, photo: Photo, depth: DepthFile) -> tuple[Path, Path, Path]:
    """Writes depth.exr, points.ply and relief.glb; InputError where the depth is not the photo's or has no surface."""
    given = {"focal_length_px": depth.focal_length_px}
    return (
        exr.save_depth_exr(Path(folder) / "depth.exr", depth.depth_m, **given),
        point_clouds.save_ply(Path(folder) / "points.ply", photo.image, depth.depth_m, **given),
        point_clouds.save_glb(Path(folder) / "relief.glb", photo.image, depth.depth_m, **given),
    )


def gpu_duration_s(frames: int, steps: int, working_px: int, photo_px: int) -> int:
    """Seconds to reserve on a shared GPU: 0.3 s per frame and step at 512 x 512 px, restoring the photo, and a start.

    Args:
        frames: of the stack.
        steps: of denoising.
        working_px: pixels that the network works on, per frame.
        photo_px: pixels of the photo.
    """
    return 15 + round(frames * (0.3 * steps * working_px / 512**2 + photo_px / 4e6))

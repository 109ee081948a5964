"""One photo's job: checked before any model is loaded, then run, then written. No torch import before it runs.

The command line makes a ``Job`` of each photo with ``plan_job`` and hands it to ``run_job``.
"""

from __future__ import annotations

import dataclasses
import math
import os
import time
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from ..camera import Camera, read_camera
from ..camera.f_numbers import lens_assumptions, strengths_from_f_numbers
from ..camera.lens import DEFAULT_BOKEH_STRENGTHS, check_bokeh_strength, check_number
from ..errors import InputError
from ..files.formats import PICTURE_SUFFIXES
from ..files.photos import Photo, open_photo
from ..files.stacks import frame_strengths
from .limits import COMMAND_LINE, Limits
from .result_files import check_folder, result_names, write_results

if TYPE_CHECKING:
    import PIL.Image

    from ..bracket_depth.checks import Exposure
    from ..pipeline_bokehdepth import BokehDepthPipeline
    from ..processing_bokehdepth import BokehDepthOutput


SweepSide = Literal["auto", "behind", "front"]

_SIDE_ASSUMPTIONS = {
    "auto": "Blur is the same on both sides of the focus; the side that is nearer to the model's depth was taken, and "
    "where that does not tell it the confidence is low.",
    "behind": "Blur is the same on both sides of the focus; everything was taken to lie behind it, as asked for. What "
    "lies in front comes out as far too far, and the confidence does not show it.",
    "front": "Blur is the same on both sides of the focus; everything was taken to lie in front of it, as asked for. "
    "What lies behind comes out as far too near, and the confidence does not show it.",
}

_STACK_COMPONENTS = ("transformer", "vae", "scheduler", "bokeh_adapter")
_DEPTH_COMPONENTS = ("depth_estimator",)


@dataclasses.dataclass(frozen=True)
class Sweep:
    """How depth is read off the blur of the caller's own bracket (``bracket_depth.depth_from_sweep``).

    Attributes:
        side: ``"auto"``: the depth that a model sees in the photo tells the side of the focus for each pixel; or the
            caller's word that everything lies ``"behind"`` the focus or in ``"front"`` of it.
        photo_bokeh_strength: K of the photo itself, the sharpest frame of the bracket.
        photo_source: where that K comes from: an f-number ``"given"`` or ``"read"`` from EXIF; ``"assumed"`` 0.
        fills: whether pixels of low confidence take their depth from confident neighbours.
    """

    side: SweepSide = "auto"
    photo_bokeh_strength: float = 0.0
    photo_source: str = "assumed"
    fills: bool = False


@dataclasses.dataclass(frozen=True)
class Job:
    """One photo, checked, and what is to be done with it.

    Attributes:
        photo_path: the photo.
        folder: where its files go.
        camera: its lens settings.
        makes_stack: whether frames are generated.
        makes_depth: whether depth is estimated.
        bokeh_strengths: (F,) ascending K of the frames; empty for depth from the photo alone.
        f_numbers: (F,) f-number of each frame where K came from them, else None.
        frame_paths: (F,) frames that the caller brings; empty where they are generated.
        record_name: name of the run record.
        overwrite: whether files of the same name are replaced.
        sweep: how depth is read off the frames' blur; None where a model estimates it.
        photo: the photo as it was opened to be checked; None where its pixels were given up, to be read again.
        decode_s: seconds that took.
        warnings: half sentences on what is odd about the caller's frames; each names the frame.
    """

    photo_path: Path
    folder: Path
    camera: Camera
    makes_stack: bool = True
    makes_depth: bool = True
    bokeh_strengths: tuple[float, ...] = ()
    f_numbers: tuple[float, ...] | None = None
    frame_paths: tuple[Path, ...] = ()
    record_name: str = "run.json"
    overwrite: bool = False
    sweep: Sweep | None = None
    photo: Photo | None = dataclasses.field(default=None, compare=False, repr=False)
    decode_s: float = dataclasses.field(default=0.0, compare=False, repr=False)
    warnings: tuple[str, ...] = ()

    @property
    def components(self) -> tuple[str, ...]:
        """Parts of the pipeline that the job needs; none of them where no model takes part."""
        if self.sweep is not None:
            return _DEPTH_COMPONENTS if self.sweep.side == "auto" else ()
        return (_STACK_COMPONENTS if self.makes_stack else ()) + (_DEPTH_COMPONENTS if self.makes_depth else ())

    @property
    def assumptions(self) -> list[str]:
        """Sentences on what was assumed, without the f-number of the exposure, on which no result depends."""
        return lens_assumptions(self.camera)


@dataclasses.dataclass(frozen=True)
class JobResult:
    """What a job wrote.

    Attributes:
        job: the job.
        files: paths written: frames, depth, record.
        timings_s: step to seconds.
        depth_range_m: least and greatest depth in metres; None without depth.
        depth_details: what the record says under ``depth``: of a sweep, and warnings; None where it says nothing.
    """

    job: Job
    files: tuple[Path, ...]
    timings_s: dict[str, float]
    depth_range_m: tuple[float, float] | None
    depth_details: dict[str, Any] | None = None


def photo_paths(given: Iterable[Path | str]) -> list[Path]:
    """Expand folders into their pictures.

    Args:
        given: files, and folders whose pictures are taken by name in order; sub-folders and hidden files are not.

    Returns:
        The files in the order given, each once. Whether they are readable pictures is not checked here, and a folder
        without pictures stays among them.
    """
    paths: list[Path] = []
    for path in map(Path, given):
        if not path.is_dir():
            paths.append(path)
            continue
        inside = sorted(
            entry
            for entry in path.iterdir()
            if entry.suffix.lower() in PICTURE_SUFFIXES and not entry.name.startswith(".") and entry.is_file()
        )
        paths += inside or [path]
    once: dict[str, Path] = {}
    for path in paths:
        once.setdefault(os.path.abspath(path), path)
    return list(once.values())


NAMES_RULE = (
    "the folder of a photo has its name without ending; photos that would share one get the ending too (IMG_1_jpg, "
    "IMG_1_png), and where that is not enough the folders above (trip_IMG_1_jpg)"
)
"""How `folder_names` names folders, for help."""


def folder_names(paths: Sequence[Path]) -> list[str]:
    """Name the result folder of each photo of a batch, by `NAMES_RULE`.

    The names depend on the paths alone, not on their order. Letter case does not tell names apart, since on some file
    systems it does not.

    Args:
        paths: as `photo_paths` returns them.

    Returns:
        A name for each; two are equal only where no folder tells the photos apart.
    """
    parts = []
    for path in map(Path, paths):
        *above, _ = Path(os.path.abspath(path)).parts[1:]
        parts.append((above, path.stem, path.suffix[1:]))
    lengths = [0] * len(parts)
    while True:
        names = []
        for (above, stem, ending), length in zip(parts, lengths, strict=True):
            more = above[len(above) - length + 1 :] if length > 1 else []
            names.append("_".join([*more, stem, *([ending] if length and ending else [])]))
        shared = Counter(unicodedata.normalize("NFC", name).casefold() for name in names)
        longer = [
            index
            for index, name in enumerate(names)
            if shared[unicodedata.normalize("NFC", name).casefold()] > 1 and lengths[index] <= len(parts[index][0])
        ]
        if not longer:
            return names
        for index in longer:
            lengths[index] += 1


def plan_job(
    photo: Photo | Path | str,
    folder: Path | str,
    *,
    makes_stack: bool = True,
    makes_depth: bool = True,
    bokeh_strengths: Sequence[float] | None = None,
    f_numbers: Sequence[float] | None = None,
    frame_paths: Sequence[Path | str] = (),
    focal_length_mm: float | None = None,
    focal_length_35mm: float | None = None,
    sensor_width_mm: float | None = None,
    focus_distance_m: float | None = None,
    record_name: str = "run.json",
    overwrite: bool = False,
    sweep_side: SweepSide | None = None,
    photo_f_number: float | None = None,
    fill_low_confidence: bool = False,
    limits: Limits = COMMAND_LINE,
) -> Job:
    """Check all of one photo's job that needs no model.

    Args:
        photo: path of the photo, which is decoded here, once; or what ``open_photo`` made of one.
        folder: where its files go.
        makes_stack: whether frames are generated.
        makes_depth: whether depth is estimated.
        bokeh_strengths: K of each frame in [0, 30], in any order (that of ``frame_paths`` where they are given).
        f_numbers: f-numbers in place of K. With neither, generated frames have K = 10, 20, 30, and the caller's frames
            say it themselves: by text chunk or name (``stacks.load_stack``), else by their EXIF f-number.
        frame_paths: frames that the caller brings, for depth without a generated stack.
        focal_length_mm: true focal length in mm, in place of EXIF's.
        focal_length_35mm: 35 mm equivalent in mm, in place of EXIF's.
        sensor_width_mm: sensor width in mm along the upright photo, in place of EXIF's.
        focus_distance_m: focus distance in metres, in place of EXIF's.
        record_name: name of the run record.
        overwrite: whether files of the same name are replaced.
        sweep_side: reads depth off the blur of the frames and says on which side of the focus (``Sweep``); None lets
            a model estimate depth. K of the frames is then not limited to 30.
        photo_f_number: with ``sweep_side``: f-number of the photo. When absent, EXIF's counts where K of the frames
            comes from f-numbers; else, or unknown, the photo counts as free of blur.
        fill_low_confidence: with ``sweep_side``: as in ``bracket_depth.depth_from_sweep``.
        limits: what one photo's job may ask for.

    Returns:
        The job, with K ascending.

    Raises:
        InputError: the photo or a frame cannot be read, sizes or numbers do not fit, frames contradict each other or
            their labels (``bracket_checks``), or ``folder`` cannot be used.
    """
    if bokeh_strengths is not None and f_numbers is not None:
        raise InputError("bokeh_strengths and f_numbers were both given, wanted one of them.")
    if frame_paths and makes_stack:
        raise InputError(f"frame_paths has {len(frame_paths)} frames, wanted none where frames are generated.")
    if not makes_stack and not frame_paths and (bokeh_strengths or f_numbers):
        raise InputError("bokeh_strengths and f_numbers describe the frames of a stack, wanted a stack with them.")
    if sweep_side is None and (photo_f_number is not None or fill_low_confidence):
        raise InputError(
            "photo_f_number and fill_low_confidence belong to depth from a sweep, wanted a side with them."
        )
    if sweep_side is not None:
        if sweep_side not in get_args(SweepSide):
            raise InputError(f"sweep_side is {sweep_side!r}, wanted one of {', '.join(get_args(SweepSide))}.")
        if not frame_paths or not makes_depth:
            raise InputError("frame_paths is empty, wanted the wider frames of a bracket for depth from a sweep.")
    for name, values in (("bokeh_strengths", bokeh_strengths), ("f_numbers", f_numbers), ("frame_paths", frame_paths)):
        limits.check_frames(values, name)
    is_bounded = sweep_side is None
    if bokeh_strengths is not None:
        _check_strengths(bokeh_strengths, is_bounded)
    started = time.perf_counter()
    if not isinstance(photo, Photo):
        photo = limits.open_photo(photo)
    decode_s = time.perf_counter() - started
    camera = read_camera(
        photo,
        focal_length_mm=focal_length_mm,
        focal_length_35mm=focal_length_35mm,
        sensor_width_mm=sensor_width_mm,
        focus_distance_m=focus_distance_m,
    )
    paths = tuple(map(Path, frame_paths))
    exposures: tuple[Exposure, ...] = ()
    if paths:
        given = bokeh_strengths, f_numbers, is_bounded, limits
        strengths, f_numbers, paths, exposures = _plan_frames(photo, camera, paths, *given)
    elif f_numbers is not None:
        name = f"f_numbers for photo {photo.path.name!r}"
        strengths, f_numbers = strengths_from_f_numbers(camera, f_numbers, name)
    else:
        default = DEFAULT_BOKEH_STRENGTHS if makes_stack else ()
        strengths = tuple(sorted(_check_strengths(default if bokeh_strengths is None else bokeh_strengths)))
    sweep = None
    if sweep_side is not None:
        sweep = _plan_sweep(camera, strengths, sweep_side, photo_f_number, f_numbers is not None, fill_low_confidence)
    warnings = ()
    if paths:
        is_saved = bokeh_strengths is None and f_numbers is None  # the files tell their K
        warnings = _check_bracket(photo, camera, exposures, strengths, f_numbers, photo_f_number, sweep, is_saved)
    names = result_names(
        strengths if makes_stack else (), depth=makes_depth, confidence=sweep is not None, record_name=record_name
    )
    check_folder(folder, names, overwrite=overwrite)
    return Job(
        photo_path=photo.path,
        folder=Path(folder),
        camera=camera,
        makes_stack=makes_stack,
        makes_depth=makes_depth,
        bokeh_strengths=strengths,
        f_numbers=f_numbers,
        frame_paths=paths,
        record_name=record_name,
        overwrite=overwrite,
        sweep=sweep,
        photo=photo,
        decode_s=decode_s,
        warnings=warnings,
    )


def _plan_sweep(
    camera: Camera,
    strengths: tuple[float, ...],
    side: SweepSide,
    photo_f_number: float | None,
    uses_f_numbers: bool,
    fills: bool,
) -> Sweep:
    """Find the blur of the photo itself and check that the frames have more."""
    if photo_f_number is not None:
        photo_f_number, source = check_number(photo_f_number, "photo_f_number"), "given"
    elif uses_f_numbers and camera.f_number.source != "assumed":
        photo_f_number, source = camera.f_number.value, camera.f_number.source
    own = 0.0 if photo_f_number is None else camera.bokeh_strength(photo_f_number)
    if strengths[0] <= own:
        raise InputError(
            f"stack has a frame of K = {strengths[0]:.4g}, wanted more than the photo's own {own:.4g} (f/"
            f"{photo_f_number:g}): the photo must be the sharpest frame of the bracket."
        )
    return Sweep(side, own, "assumed" if photo_f_number is None else source, fills)


def _check_strengths(bokeh_strengths: Sequence[float], is_bounded: bool = True) -> list[float]:
    """Check K of each frame: within the trained range, or above 0 for a lens."""
    check = check_bokeh_strength if is_bounded else check_number
    values = [check(strength, "bokeh_strengths") for strength in bokeh_strengths]
    for value in values:
        if values.count(value) > 1:
            raise InputError(f"bokeh_strengths has {value:g} twice, wanted each value once.")
    return values


def _plan_frames(
    photo: Photo,
    camera: Camera,
    paths: tuple[Path, ...],
    bokeh_strengths: Sequence[float] | None,
    f_numbers: Sequence[float] | None,
    is_bounded: bool,
    limits: Limits,
) -> tuple[tuple[float, ...], tuple[float, ...] | None, tuple[Path, ...], tuple[Exposure, ...]]:
    """Read the caller's frames; K ascending, f-numbers if K came from them, paths and facts, all in one order."""
    for name, values in (("bokeh_strengths", bokeh_strengths), ("f_numbers", f_numbers)):
        if values is not None and len(values) != len(paths):
            raise InputError(f"{name} has {len(values)} values for {len(paths)} frames, wanted one for each.")
    exposures = [_read_frame(limits.open_photo(path), photo) for path in paths]
    if bokeh_strengths is None and f_numbers is None:
        bokeh_strengths = frame_strengths(paths)
        f_numbers = [frame.f_number for frame in exposures] if bokeh_strengths is None else None
    if f_numbers is not None:
        if None in f_numbers:
            raise InputError(
                f"stack has the frame {paths[f_numbers.index(None)].name!r}, which says neither its bokeh strength "
                "nor its f-number, wanted bokeh_strengths or f_numbers."
            )
        name = "f_numbers of the stack"
        if is_bounded:
            strengths, ordered = strengths_from_f_numbers(camera, f_numbers, name)
        else:
            ordered = tuple(sorted((check_number(f_number, name) for f_number in f_numbers), reverse=True))
            strengths = tuple(map(camera.bokeh_strength, ordered))
            _check_strengths(strengths, is_bounded)
        places = [f_numbers.index(f_number) for f_number in ordered]
    else:
        values, ordered = _check_strengths(bokeh_strengths, is_bounded), None
        places = sorted(range(len(values)), key=values.__getitem__)
        strengths = tuple(values[place] for place in places)
    return strengths, ordered, tuple(paths[place] for place in places), tuple(exposures[place] for place in places)


def _read_frame(frame: Photo, photo: Photo) -> Exposure:
    """What one frame of the caller's tells, read as any photo."""
    from ..bracket_depth.checks import read_exposure

    if frame.image.size != photo.image.size:
        raise InputError(
            f"stack has the frame {frame.path.name!r} of {frame.image.width} x {frame.image.height} pixels, wanted "
            f"the photo's {photo.image.width} x {photo.image.height}."
        )
    return read_exposure(frame, frame.path.name)


def _check_bracket(
    photo: Photo,
    camera: Camera,
    frames: Sequence[Exposure],
    strengths: Sequence[float],
    f_numbers: Sequence[float] | None,
    photo_f_number: float | None,
    sweep: Sweep | None,
    is_saved: bool,
) -> tuple[str, ...]:
    """Hold the caller's frames against their labels, the photo and each other; half sentences on what is odd."""
    from ..bracket_depth.checks import check_labels, check_pictures, check_settings, check_strengths, read_exposure

    own = read_exposure(photo, photo.path.name)
    if f_numbers is not None:
        check_labels(frames, f_numbers)
    notes = []
    if photo_f_number is not None:
        # A correction of the photo's EXIF, as of its lens, is the caller's to make.
        if own.f_number is not None and not math.isclose(own.f_number, photo_f_number, rel_tol=0.06):
            notes.append(f"photo {own.name!r} counts as f/{photo_f_number:g}, but its EXIF says f/{own.f_number:.3g}")
        own = dataclasses.replace(own, f_number=photo_f_number)
    notes += check_settings(own, frames, depends_on_blur=sweep is not None)
    if f_numbers is None:
        is_known = "assumed" not in {
            value.source for value in (camera.focal_length_mm, camera.sensor_width_mm, camera.focus_distance_m)
        }
        by_lens = [camera.bokeh_strength(frame.f_number) if is_known and frame.f_number else None for frame in frames]
        notes += check_strengths(frames, strengths, by_lens)
    own_strength = 0.0
    if sweep is not None:
        own_strength = sweep.photo_bokeh_strength
    elif f_numbers is not None and own.f_number is not None and own.f_number > max(f_numbers):
        own_strength = camera.bokeh_strength(own.f_number)
    labels = (
        [f"K = {strength:.3g}" for strength in strengths] if f_numbers is None else [f"f/{n:g}" for n in f_numbers]
    )
    if is_saved and sweep is None:  # how well a network blurred is not for this to say
        return tuple(notes)
    notes += check_pictures(own, frames, strengths, own_strength, labels=labels, depends_on_blur=sweep is not None)
    return tuple(notes)


def run_job(
    pipeline: BokehDepthPipeline | None,
    job: Job,
    *,
    seed: int = 0,
    num_inference_steps: int | None = None,
    arguments: Mapping[str, Any],
    weights: Mapping[str, Mapping[str, str | None]],
    timings_s: Mapping[str, float] | None = None,
) -> JobResult:
    """Run one job and write its files, all or none.

    The noise is drawn on the CPU from the seed alone, so a photo's result does not depend on the others beside it.

    Args:
        pipeline: a loaded pipeline; None for a job without ``components``.
        job: as ``plan_job`` returned it.
        seed: seed of the noise.
        num_inference_steps: None takes what suits the weights.
        arguments: arguments of the command, for the record.
        weights: as ``hub.weights_record`` returns it, for the record.
        timings_s: steps done before, for the record; the seconds of each step here are added to them, and ``rest``,
            what no step names.

    Returns:
        What was written.

    Raises:
        ValueError: an argument, the photo or the folder cannot be used (any more).
    """
    timings = {**(timings_s or {}), "decode": job.decode_s}
    started = time.perf_counter() - sum(timings.values())
    images, depth_m, confidence, details, focal_px, made = None, None, None, None, None, None
    with _timed(timings, "decode"):
        photo = job.photo or open_photo(job.photo_path)
        frames = [open_photo(path).image for path in job.frame_paths]
    if job.makes_stack:
        import torch

        began = time.perf_counter()
        made = pipeline.generate_stack(
            photo.image,
            bokeh_strengths=job.bokeh_strengths,
            num_inference_steps=num_inference_steps,
            generator=torch.Generator("cpu").manual_seed(seed),
            for_depth=job.makes_depth,
        )
        images = made.images
        _add(timings, made.timings_s or {"stack": time.perf_counter() - began})
    if job.sweep is not None:
        with _timed(timings, "depth"):
            depth_m, confidence, details = _depth_from_sweep(pipeline, job, photo.image, frames)
    elif job.makes_depth:
        output = pipeline.estimate_depth(
            photo.image,
            stack=made or frames or None,
            bokeh_strengths=job.bokeh_strengths or None,
            intrinsics=job.camera.known_intrinsics,
        )
        depth_m = output.depth_m
        focal_px = predicted_focal_px(output, job.camera.known_intrinsics)
        _add(timings, output.timings_s)
    if job.warnings:
        details = (details or {}) | {"warnings": list(job.warnings)}
    files = write_results(
        job.folder,
        photo=photo,
        camera=job.camera,
        bokeh_strengths=job.bokeh_strengths,
        images=images,
        depth_m=depth_m,
        confidence=confidence,
        depth_details=details,
        focal_length_px=focal_px,
        arguments=arguments,
        seed=seed if job.makes_stack else None,
        weights=weights,
        timings_s=timings,
        started_s=started,
        record_name=job.record_name,
        overwrite=job.overwrite,
    )
    depth_range_m = None if depth_m is None else (float(np.nanmin(depth_m)), float(np.nanmax(depth_m)))
    rounded = {part: round(seconds, 3) for part, seconds in timings.items()}
    return JobResult(dataclasses.replace(job, photo=None), tuple(files), rounded, depth_range_m, details)


@contextmanager
def _timed(timings_s: dict[str, float], part: str) -> Iterator[None]:
    """Add the seconds of the body to those of a part."""
    started = time.perf_counter()
    yield
    _add(timings_s, {part: time.perf_counter() - started})


def _add(timings_s: dict[str, float], parts: Mapping[str, float]) -> None:
    for part, seconds in parts.items():
        timings_s[part] = timings_s.get(part, 0.0) + seconds


def predicted_focal_px(output: BokehDepthOutput, intrinsics: np.ndarray | None) -> float | None:
    """Focal length in pixels that the depth model predicted; None where it was told one or predicts none.

    Args:
        output: of `BokehDepthPipeline.estimate_depth`.
        intrinsics: what that was given.
    """
    return None if output.intrinsics is None or intrinsics is not None else float(output.intrinsics[0, 0])


def _depth_from_sweep(
    pipeline: BokehDepthPipeline | None, job: Job, photo: PIL.Image.Image, frames: Sequence[PIL.Image.Image]
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Depth, confidence and what the record says of them."""
    from ..bracket_depth import depth_from_sweep

    rough_m = None
    if job.sweep.side == "auto":
        rough_m = pipeline.estimate_depth(photo, intrinsics=job.camera.known_intrinsics).depth_m
    sharp, *others = (np.asarray(image, dtype=np.float32) / 255 for image in (photo, *frames))
    measured = depth_from_sweep(
        sharp,
        others,
        job.bokeh_strengths,
        job.camera.focus_distance_m.value,
        side=job.sweep.side,
        rough_depth_m=rough_m,
        sharp_bokeh_strength=job.sweep.photo_bokeh_strength,
        fill_low_confidence=job.sweep.fills,
    )
    if not measured.valid.any():
        raise InputError("stack gives no pixel a depth, wanted frames whose blur is that of the focus and side given.")
    details = measured.summary() | {
        "side_assumption": _SIDE_ASSUMPTIONS[job.sweep.side],
        "photo_bokeh_strength": job.sweep.photo_bokeh_strength,
        "photo_bokeh_strength_source": job.sweep.photo_source,
    }
    return measured.depth_m, measured.confidence, details

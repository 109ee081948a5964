"""``bokehdepth run``, ``stack`` and ``depth``: models on photos."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from .options import add_lens_options, add_talk_options, available_device, device_name, whole_number
from .talk import (
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_WRONG_INPUT,
    garbage_kept,
    logger,
    quiet_libraries,
    say,
    sentence,
    write_json,
)

if TYPE_CHECKING:
    from ..pipeline_bokehdepth import BokehDepthPipeline
    from ..tasks.photo_job import Job, JobResult


_LARGE_SHARE = 0.1  # of the pixels: a sentence is due
_SWEEP_DEFAULTS = {"method": "model", "side": None, "photo_f_number": None, "fill": False}


def add_photo_commands(commands: Any) -> None:
    """Add ``run``, ``stack`` and ``depth`` to the commands of a parser."""
    _add_command(
        commands,
        "run",
        _work,
        "bokeh stack and depth map of each photo",
        "bokehdepth run cat.jpg coffee.png -o out --f-numbers 1.4 2.8 5.6",
        ("bokeh_k10.png ...", "depth.npz", "depth.png (16 bit, its scale in a text chunk)", "depth_preview.png"),
    )
    _add_command(
        commands,
        "stack",
        _work,
        "bokeh stack of each photo, without depth",
        "bokehdepth stack photos/ -o out --bokeh-strengths 5 15 25 --seed 3",
        ("bokeh_k5.png ...",),
    )
    depth = _add_command(
        commands,
        "depth",
        _work,
        "depth map of each photo alone, or from your own aperture bracket",
        "bokehdepth depth f16.jpg -o out --stack f8.jpg f4.jpg f2.8.jpg --f-numbers 8 4 2.8 --focus-distance 1.8",
        ("depth.npz", "depth.png (16 bit, its scale in a text chunk)", "depth_preview.png"),
    )
    depth.add_argument(
        "--method",
        choices=("model", "sweep"),
        default="model",
        help="model: a network looks at the photo and the frames; sweep: depth follows from how the blur of the "
        "frames of --stack grows with K, and confidence.png says where it can (default: %(default)s)",
    )
    depth.add_argument(
        "--side",
        choices=("auto", "behind", "front"),
        help="with --method sweep: where things are, since blur is the same on both sides of the focus. auto: the "
        "side that --model's depth of PHOTO says, with low confidence where it does not tell; behind, front: all of "
        "it, by your word, without a model (default: auto)",
    )
    depth.add_argument(
        "--photo-f-number",
        metavar="N",
        type=float,
        help="with --method sweep: f-number of PHOTO, whose own blur is taken into account (default: EXIF where the "
        "frames' K comes from f-numbers, else PHOTO counts as free of blur)",
    )
    depth.add_argument(
        "--fill",
        action="store_true",
        help="with --method sweep: give pixels of low confidence the depth of confident ones of their colour nearby",
    )
    depth.add_argument(
        "--stack",
        metavar="FRAME",
        nargs="+",
        type=Path,
        help="frames of one PHOTO with wider apertures, of its size; their K is taken from --bokeh-strengths or "
        "--f-numbers (one for each frame, in order), else from each file's text chunk or name (bokeh_k10.png), else "
        "from its EXIF f-number",
    )


def _add_command(
    commands: Any, name: str, handler: Callable[..., int], summary: str, example: str, files: Sequence[str]
) -> argparse.ArgumentParser:
    """Add one of the commands that run a model on photos."""
    from ..camera.lens import DEFAULT_BOKEH_STRENGTHS
    from ..tasks.photo_job import NAMES_RULE

    written = ", ".join((*files, f"{name}.json (the run record)"))
    parser = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}. For each photo a folder OUT/<name of the photo> with "
        f"{written}; all of them appear together or none does. A photo that cannot be done never stops the others. "
        f"Names: {NAMES_RULE}.",
        epilog=f"Example: {example}",
    )
    parser.set_defaults(handler=handler, stack=None, steps=None, seed=0, **_SWEEP_DEFAULTS)
    parser.add_argument(
        "photos",
        metavar="PHOTO",
        nargs="+",
        type=Path,
        help="photos (JPEG, PNG, WebP, TIFF, AVIF, HEIC, GIF, BMP), or folders whose photos are taken (not those in "
        "sub-folders); all are checked before any work, and those that cannot be done are left out",
    )
    parser.add_argument("-o", "--output", metavar="OUT", type=Path, required=True, help="folder of the results")
    parser.add_argument(
        "--model",
        metavar="ID_OR_FOLDER",
        default="embedded",
        help="'embedded' (the small model inside the package), 'released' (the authors' weights), a folder, or a Hub "
        "repository (default: %(default)s)",
    )
    parser.add_argument(
        "--revision",
        help="commit, tag or branch of the Hub repository; of 'released' REPOSITORY@COMMIT, several with commas",
    )
    blur = parser.add_mutually_exclusive_group()
    default = "" if name == "depth" else f" (default: {' '.join(f'{k:g}' for k in DEFAULT_BOKEH_STRENGTHS)})"
    blur.add_argument(
        "--bokeh-strengths",
        metavar="K",
        nargs="+",
        type=float,
        help=f"blur radius in px per dioptre (1/m) off the focus, at 512 px width, from 0 to 30{default}",
    )
    blur.add_argument(
        "--f-numbers",
        metavar="N",
        nargs="+",
        type=float,
        help="f-numbers in place of K, which follows from the photo's focal length, sensor and focus",
    )
    add_lens_options(parser)
    if name != "depth":
        parser.add_argument(
            "--steps", type=whole_number(1), help="denoising steps (default: what suits the model)", metavar="N"
        )
        parser.add_argument(
            "--seed", type=whole_number(0), default=0, help="of the noise, the same for each photo (default: 0)"
        )
    parser.add_argument(
        "--device",
        type=device_name,
        default="auto",
        help="auto, cpu, cuda, cuda:N or mps; auto takes cuda, else mps, else cpu (default: %(default)s)",
    )
    parser.add_argument("--threads", metavar="N", type=whole_number(1), help="CPU threads (default: torch's own)")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace an earlier result as a whole, whatever its K"
    )
    add_talk_options(parser)
    return parser


def _plan(arguments: argparse.Namespace) -> tuple[list[Job], dict[Path, str]]:
    """Check everything that needs no model: what is to be done, and why not for some of the photos."""
    from ..files.photos import MAX_PIXELS
    from ..hub import resolve_model
    from ..tasks.photo_job import folder_names, photo_paths

    source = resolve_model(arguments.model)
    if arguments.revision is not None and Path(source).is_dir():
        raise InputError(f"--revision is {arguments.revision!r}, wanted none, since the model is no Hub repository.")
    paths = photo_paths(arguments.photos)
    is_sweep = arguments.method == "sweep"
    if is_sweep and not arguments.stack:
        raise InputError("--method is 'sweep', wanted the frames of a bracket in --stack.")
    if not is_sweep and (arguments.side or arguments.photo_f_number is not None or arguments.fill):
        raise InputError("--side, --photo-f-number and --fill belong to --method sweep, wanted it with them.")
    if arguments.stack and len(paths) != 1:
        raise InputError(f"--stack belongs to one photo, got {len(paths)} photos.")
    jobs, refused, taken, kept_px = [], {}, {}, 0
    for path, name in zip(paths, folder_names(paths), strict=True):
        try:
            if taken.setdefault(name.casefold(), path) is not path:
                raise InputError(f"photo {str(path)!r} would share the result folder {name!r} with another one.")
            job = _plan_photo(arguments, path, name)
            kept_px += job.photo.image.width * job.photo.image.height
            # A photo is decoded once; of a long list, all pixels together would not fit into memory.
            jobs.append(job if kept_px <= MAX_PIXELS else dataclasses.replace(job, photo=None))
        except Exception as error:  # noqa: BLE001 - whatever one photo meets, the others still run
            text = sentence(error)
            if not isinstance(error, InputError):
                text = f"photo {path.name!r} failed: {text}"
            if text not in refused.values():  # of an option that suits none of the photos it is enough to hear once
                logger.error("%s", text, exc_info=arguments.verbose)
            refused[path] = text
    return jobs, refused


def _plan_photo(arguments: argparse.Namespace, path: Path, folder_name: str) -> Job:
    """Check one photo."""
    from ..tasks.photo_job import plan_job

    if path.is_dir():
        raise InputError(f"photo {str(path)!r} is a folder without pictures.")
    if folder_name in ("", ".", ".."):
        raise InputError(f"photo {path.name!r} has a name that no folder can have.")
    is_sweep = arguments.method == "sweep"
    return plan_job(
        path,
        arguments.output / folder_name,
        makes_stack=arguments.command != "depth",
        makes_depth=arguments.command != "stack",
        bokeh_strengths=arguments.bokeh_strengths,
        f_numbers=arguments.f_numbers,
        frame_paths=arguments.stack or (),
        focal_length_mm=arguments.focal_length,
        focal_length_35mm=arguments.focal_length_35mm,
        focus_distance_m=arguments.focus_distance,
        # One record for each command: depth can join a stack in its folder without replacing its record.
        record_name=f"{arguments.command}.json",
        overwrite=arguments.overwrite,
        sweep_side=(arguments.side or "auto") if is_sweep else None,
        photo_f_number=arguments.photo_f_number,
        fill_low_confidence=arguments.fill,
    )


def _work(arguments: argparse.Namespace) -> int:
    """Run ``run``, ``stack`` or ``depth`` on all photos; one that fails does not stop the others."""
    from ..hub import weights_record
    from ..tasks.limits import COMMAND_LINE
    from ..tasks.photo_job import run_job

    if arguments.steps is not None:
        COMMAND_LINE.check_steps(arguments.steps)
    jobs, refused = _plan(arguments)
    if not jobs:
        return EXIT_WRONG_INPUT
    for job in jobs:
        if job.assumptions:
            logger.warning("photo %r: %s", job.photo_path.name, " ".join(job.assumptions))
        for warning in job.warnings:
            logger.warning("photo %r: %s.", job.photo_path.name, warning)
    show_progress = arguments.verbose or (not arguments.quiet and sys.stderr.isatty())
    results: list[dict[str, Any]] = [{"photo": path, "error": error} for path, error in refused.items()]
    is_heard = True
    needs_model = any(job.components for job in jobs)
    with ExitStack() as surroundings:
        pipeline, timings_s, weights = None, {}, {}
        if needs_model:
            started = time.perf_counter()
            with garbage_kept(surroundings):
                surroundings.enter_context(quiet_libraries(arguments.verbose, show_progress))
                pipeline = _load(arguments, jobs)
            timings_s = {"load_model": time.perf_counter() - started}
            pipeline.set_progress_bar_config(disable=not show_progress, desc="denoising", leave=False)
            weights = weights_record(arguments.model, arguments.revision, jobs[0].makes_stack)
        for index, job in enumerate(jobs, 1):
            jobs[index - 1] = dataclasses.replace(job, photo=None)  # its pixels go when its turn is over
            if show_progress:
                logger.info("photo %d of %d: %s", index, len(jobs), job.photo_path)
            try:
                done = run_job(
                    pipeline,
                    job,
                    seed=arguments.seed,
                    num_inference_steps=arguments.steps,
                    arguments=_recorded(arguments, job, pipeline),
                    weights=weights,
                    timings_s=timings_s,
                )
            except Exception as error:  # noqa: BLE001 - whatever one photo meets, the others still run
                logger.error("photo %r failed: %s", job.photo_path.name, sentence(error), exc_info=arguments.verbose)
                results.append({"photo": job.photo_path, "error": sentence(error)})
                continue
            results.append(_entry(done))
            if job.sweep is not None:
                low, none = (done.depth_details[name] for name in ("low_confidence_share", "invalid_share"))
                logger.info(
                    "photo %r: %.0f %% of the pixels have low confidence, %.0f %% no depth.",
                    job.photo_path.name,
                    100 * low,
                    100 * none,
                )
                unknown = done.depth_details["side_unknown_share"]
                if unknown > _LARGE_SHARE:
                    logger.warning(
                        "photo %r: for %.0f %% of the pixels the model's depth does not tell the side of the focus; "
                        "--side behind or --side front does.",
                        job.photo_path.name,
                        100 * unknown,
                    )
            if not arguments.json and is_heard:
                try:
                    say(str(job.folder))
                except OSError as error:
                    logger.error("%s", sentence(error))
                    is_heard = False
    failed = sum("error" in result for result in results)
    if arguments.json:
        write_json({"command": arguments.command, "done": len(results) - failed, "failed": failed, "photos": results})
    return EXIT_FAILED if failed or not is_heard else EXIT_DONE


def _entry(done: JobResult) -> dict[str, Any]:
    """What the JSON document says of one photo."""
    job = done.job
    return {
        "photo": job.photo_path,
        "folder": job.folder,
        "files": done.files,
        "bokeh_strengths": job.bokeh_strengths,
        "f_numbers": job.f_numbers,
        "depth_range_m": done.depth_range_m,
        "assumptions": job.assumptions,
        "timings_s": done.timings_s,
        **({"depth": done.depth_details} if done.depth_details else {}),
    }


def _load(arguments: argparse.Namespace, jobs: Sequence[Job]) -> BokehDepthPipeline:
    """Load the model and let it check what only it knows."""
    import PIL.Image
    import torch

    from ..hub import load_pipeline

    device = available_device(arguments.device)
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    try:
        pipeline = load_pipeline(
            arguments.model, device=device, revision=arguments.revision, with_base=jobs[0].makes_stack
        )
        any_photo = PIL.Image.new("RGB", (512, 512))  # what is wrong with one of them stops that one alone
        pipeline.check_inputs(any_photo, num_inference_steps=arguments.steps, needs=jobs[0].components)
        refusals = [error for job in jobs if (error := _refusal(pipeline, job)) is not None]
        if len(refusals) == len(jobs):
            raise refusals[0]
    except ValueError as error:
        raise InputError(str(error)) from error
    for note in getattr(pipeline, "notes", ()):  # of 'released'
        logger.warning("model %r: %s", arguments.model, note)
    return pipeline


def _refusal(pipeline: BokehDepthPipeline, job: Job) -> ValueError | None:
    """What the model has against the strengths of a job."""
    if job.bokeh_strengths and job.sweep is None:
        try:
            pipeline.check_bokeh_strengths(job.bokeh_strengths)
        except ValueError as error:
            return error
    return None


def _recorded(arguments: argparse.Namespace, job: Job, pipeline: BokehDepthPipeline | None) -> dict[str, Any]:
    """The arguments as they held for one photo, defaults and the automatic device spelt out."""
    left_out = ("handler", "photos", "json", "verbose", "quiet")
    held = {
        "photo": job.photo_path,
        "stack": job.frame_paths or None,
        "bokeh_strengths": job.bokeh_strengths,
        "f_numbers": job.f_numbers,
        "device": None if pipeline is None else str(pipeline.device),
    }
    if arguments.command != "depth":
        left_out += tuple(_SWEEP_DEFAULTS)
    if job.sweep is not None:
        held["side"] = job.sweep.side
    if job.makes_stack and arguments.steps is None:
        held["steps"] = pipeline.bokeh_adapter.config.num_inference_steps
    return {name: value for name, value in vars(arguments).items() if name not in left_out} | held

"""The command line: ``bokehdepth run``, ``stack``, ``depth`` and ``optics``.

Exit codes: 0 all done; 1 something failed while running; 2 wrong input or usage, found before any model is loaded
wherever the model is not needed to find it; 130 interrupted. Results go to stdout, everything else to stderr. Modules
that need torch are imported inside the functions that use them, so help and ``optics`` answer at once.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from . import __version__
from .errors import InputError

if TYPE_CHECKING:
    from .apertures import ApertureRow
    from .jobs import Job, JobResult
    from .pipeline_bokehdepth import BokehDepthPipeline

logger = logging.getLogger("bokehdepth")

EXIT_DONE, EXIT_FAILED, EXIT_WRONG_INPUT, EXIT_INTERRUPTED = 0, 1, 2, 130

_DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d+)?")


class _UsageError(Exception):
    """A command line that argparse cannot read."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        command = self.prog.partition(" ")[2]
        raise _UsageError(f"{command}: {message} (see '{self.prog} --help')" if command else message)


# ---------------------------------------------------------------------------------------------------- arguments


def _whole_number(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isascii() or not text.isdigit() or not least <= int(text) < 2**63:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {least}")
        return int(text)

    return parse


def _device_name(text: str) -> str:
    if not _DEVICE.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} is none of auto, cpu, cuda, cuda:N, mps")
    return text


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of all commands; it imports nothing heavy.

    Returns:
        A parser whose result has a ``handler``: the function that runs the command and returns its exit code.
    """
    parser = _Parser(
        prog="bokehdepth",
        description="One photo in; a calibrated stack of bokeh pictures and a metric depth map out.",
        epilog="Exit codes: 0 done, 1 a photo failed while running, 2 wrong input (nothing was run), 130 interrupted.",
    )
    parser.add_argument("--version", action="version", version=f"bokehdepth {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
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
        "--stack",
        metavar="FRAME",
        nargs="+",
        type=Path,
        help="frames of one PHOTO with wider apertures, of its size; their K is taken from --bokeh-strengths or "
        "--f-numbers (one for each frame, in order), else from each file's text chunk or name (bokeh_k10.png), else "
        "from its EXIF f-number",
    )
    optics = commands.add_parser(
        "optics",
        help="table of f-number, bokeh strength K, background blur and depth of field of a photo",
        description="What each aperture does to a photo at its focus, from its EXIF. Loads no model.",
        epilog="Example: bokehdepth optics portrait.jpg --focus-distance 1.8",
    )
    optics.add_argument("photo", metavar="PHOTO", type=Path, help="the photo")
    optics.set_defaults(handler=_optics)
    _add_lens_options(optics)
    _add_talk_options(optics)
    return parser


def _add_command(
    commands: Any, name: str, handler: Callable[..., int], summary: str, example: str, files: Sequence[str]
) -> argparse.ArgumentParser:
    """Add one of the commands that run a model on photos."""
    from .jobs import DEFAULT_BOKEH_STRENGTHS

    written = ", ".join((*files, f"{name}.json (the run record)"))
    parser = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}. For each photo a folder OUT/<name of the photo> with "
        f"{written}; all of them appear together or none does.",
        epilog=f"Example: {example}",
    )
    parser.set_defaults(handler=handler, stack=None, steps=None, seed=0)
    parser.add_argument(
        "photos",
        metavar="PHOTO",
        nargs="+",
        type=Path,
        help="photos, or folders whose pictures are taken (not those in sub-folders); all are checked before any work",
    )
    parser.add_argument("-o", "--output", metavar="OUT", type=Path, required=True, help="folder of the results")
    parser.add_argument(
        "--model",
        metavar="ID_OR_FOLDER",
        default="embedded",
        help="'embedded' (the small model inside the package), a folder, or a Hub repository (default: %(default)s)",
    )
    parser.add_argument("--revision", help="commit, tag or branch of the Hub repository")
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
    _add_lens_options(parser)
    if name != "depth":
        parser.add_argument(
            "--steps", type=_whole_number(1), help="denoising steps (default: what suits the model)", metavar="N"
        )
        parser.add_argument(
            "--seed", type=_whole_number(0), default=0, help="of the noise, the same for each photo (default: 0)"
        )
    parser.add_argument(
        "--device",
        type=_device_name,
        default="auto",
        help="auto, cpu, cuda, cuda:N or mps; auto takes cuda, else mps, else cpu (default: %(default)s)",
    )
    parser.add_argument("--threads", metavar="N", type=_whole_number(1), help="CPU threads (default: torch's own)")
    parser.add_argument("--overwrite", action="store_true", help="replace results that exist")
    _add_talk_options(parser)
    return parser


def _add_lens_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--focus-distance",
        metavar="M",
        type=float,
        help="focus distance in metres (default: EXIF, else assumed)",
    )
    parser.add_argument(
        "--focal-length", metavar="MM", type=float, help="true focal length in mm (default: EXIF, else assumed)"
    )
    parser.add_argument(
        "--focal-length-35mm", metavar="MM", type=float, help="35 mm equivalent in mm (default: EXIF, else assumed)"
    )


def _add_talk_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout in place of text")
    volume = parser.add_mutually_exclusive_group()
    volume.add_argument("-v", "--verbose", action="store_true", help="also what libraries say, progress, tracebacks")
    volume.add_argument("-q", "--quiet", action="store_true", help="only errors on stderr")


# ---------------------------------------------------------------------------------------------------- running


def _plan(arguments: argparse.Namespace) -> list[Job]:
    """Check everything that needs no model, for all photos, and say what is to be done."""
    from .hub import resolve_model
    from .jobs import photo_paths, plan_job

    source = resolve_model(arguments.model)
    if arguments.revision is not None and Path(source).is_dir():
        raise InputError(f"--revision is {arguments.revision!r}, wanted none, since the model is no Hub repository.")
    paths = photo_paths(arguments.photos)
    if arguments.stack and len(paths) != 1:
        raise InputError(f"--stack belongs to one photo, got {len(paths)} photos.")
    return [
        plan_job(
            path,
            arguments.output / path.stem,
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
        )
        for path in paths
    ]


def _work(arguments: argparse.Namespace) -> int:
    """Run ``run``, ``stack`` or ``depth`` on all photos; one that fails does not stop the others."""
    from .hub import weights_record
    from .jobs import run_job

    jobs = _plan(arguments)
    for job in jobs:
        if job.assumptions:
            logger.warning("photo %r: %s", job.photo_path.name, " ".join(job.assumptions))
    show_progress = arguments.verbose or (not arguments.quiet and sys.stderr.isatty())
    results: list[dict[str, Any]] = []
    with _quiet_libraries(arguments.verbose, show_progress):
        started = time.perf_counter()
        pipeline = _load(arguments, jobs)
        timings_s = {"load_model": round(time.perf_counter() - started, 3)}
        pipeline.set_progress_bar_config(disable=not show_progress, desc="denoising", leave=False)
        weights = weights_record(arguments.model, arguments.revision)
        for index, job in enumerate(jobs, 1):
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
                logger.error("photo %r failed: %s", job.photo_path.name, _sentence(error), exc_info=arguments.verbose)
                results.append({"photo": job.photo_path, "error": _sentence(error)})
                continue
            results.append(_entry(done))
            if not arguments.json:
                sys.stdout.write(f"{job.folder}\n")
                sys.stdout.flush()
    failed = sum("error" in result for result in results)
    if arguments.json:
        _write_json({"command": arguments.command, "done": len(jobs) - failed, "failed": failed, "photos": results})
    return EXIT_FAILED if failed else EXIT_DONE


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
    }


def _device(name: str) -> str:
    """Turn ``auto`` into a device of this machine; InputError for one that it does not have."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        logger.info("device: %s", name)
    kind, _, index = name.partition(":")
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}[kind]
    if not there or int(index or 0) >= (torch.cuda.device_count() if kind == "cuda" else 1):
        raise InputError(f"--device is {name!r}, which this machine or this build of torch does not have.")
    return name


def _load(arguments: argparse.Namespace, jobs: Sequence[Job]) -> BokehDepthPipeline:
    """Load the model and let it check what only it knows."""
    import torch

    from .hub import load_pipeline
    from .imaging import open_photo

    device = _device(arguments.device)
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    try:
        pipeline = load_pipeline(
            arguments.model, device=device, revision=arguments.revision, with_base=jobs[0].makes_stack
        )
        for job in jobs:
            if job.bokeh_strengths:
                pipeline.check_bokeh_strengths(job.bokeh_strengths)
        first = open_photo(jobs[0].photo_path).image
        pipeline.check_inputs(first, num_inference_steps=arguments.steps, needs=jobs[0].components)
    except ValueError as error:
        raise InputError(str(error)) from error
    return pipeline


def _recorded(arguments: argparse.Namespace, job: Job, pipeline: BokehDepthPipeline) -> dict[str, Any]:
    """The arguments as they held for one photo, defaults and the automatic device spelt out."""
    left_out = ("handler", "photos", "json", "verbose", "quiet")
    kept = {name: value for name, value in vars(arguments).items() if name not in left_out}
    held = {
        "photo": job.photo_path,
        "stack": job.frame_paths or None,
        "bokeh_strengths": job.bokeh_strengths,
        "f_numbers": job.f_numbers,
        "device": str(pipeline.device),
    }
    if job.makes_stack and arguments.steps is None:
        held["steps"] = pipeline.config.default_num_inference_steps
    return kept | held


# ---------------------------------------------------------------------------------------------------- optics


def _optics(arguments: argparse.Namespace) -> int:
    """Print what each aperture does to a photo."""
    from .apertures import STANDARD_F_NUMBERS, acceptable_coc_mm, aperture_table, smallest_f_number
    from .camera import read_camera
    from .imaging import open_photo

    photo = open_photo(arguments.photo)
    camera = read_camera(
        photo,
        focal_length_mm=arguments.focal_length,
        focal_length_35mm=arguments.focal_length_35mm,
        focus_distance_m=arguments.focus_distance,
    )
    own = None if camera.f_number.source == "assumed" else camera.f_number.value
    rows = aperture_table(camera, sorted({*STANDARD_F_NUMBERS, *(() if own is None else (own,))}))
    widest, coc_mm = smallest_f_number(camera), acceptable_coc_mm(camera)
    if arguments.json:
        _write_json(
            {
                "photo": arguments.photo,
                "photo_notes": photo.notes,
                "camera": camera.to_dict(),
                "acceptable_coc_mm": coc_mm,
                "smallest_f_number": widest,
                "apertures": rows,
            }
        )
        return EXIT_DONE
    lines = [f"{arguments.photo}: {camera.image_width_px} x {camera.image_height_px} px"]
    for name, value in camera.to_dict().items():
        if isinstance(value, dict):
            number = value["value"] if isinstance(value["value"], str) else f"{value['value']:.4g}"
            lines.append(f"  {name:<18} {number:>9}  {value['source']:<8}  {value['note']}")
    lines += [f"  note: {note}" for note in (*photo.notes, *camera.notes)]
    lines += ["", *_table_lines(rows, own), ""]
    lines.append(f"Blur is that of a point at infinity. Sharp means a blur disk under {coc_mm:.3g} mm on the sensor.")
    if not all(row.fits for row in rows):
        lines.append(f"* K is above 30, the trained range; the nearest f-number that fits is f/{widest:g}.")
    sys.stdout.write("\n".join(lines) + "\n")
    return EXIT_DONE


def _table_lines(rows: Sequence[ApertureRow], own_f_number: float | None) -> list[str]:
    head = ("f-number", "K", "radius px", "diameter px", "diameter mm", "sharp from m", "to m")
    lines = ["".join(f"{title:>13}" for title in head)]
    for row in rows:
        cells = (
            f"f/{row.f_number:.4g}",
            f"{row.bokeh_strength:.3f}{' ' if row.fits else '*'}",
            f"{row.background_radius_px:.2f}",
            f"{row.background_coc_px:.2f}",
            f"{row.background_coc_mm:.4f}",
            f"{row.near_m:.3g}",
            f"{row.far_m:.3g}",
        )
        mark = "  this photo" if row.f_number == own_f_number else ""
        lines.append("".join(f"{cell:>13}" for cell in cells) + mark)
    return lines


# ---------------------------------------------------------------------------------------------------- talking


def _write_json(document: dict[str, Any]) -> None:
    from .io import to_json_value

    sys.stdout.write(json.dumps(to_json_value(document), indent=2, allow_nan=False) + "\n")


def _sentence(error: BaseException) -> str:
    """What an exception says, on one line with a full stop."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if text.endswith((".", "!", "?")) else f"{text}."


class _Format(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        kind = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        record = logging.makeLogRecord({**record.__dict__, "msg": f"bokehdepth: {kind}{record.msg}"})
        return super().format(record)


@contextmanager
def _log_to_stderr(level: int) -> Iterator[None]:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Format("%(message)s"))
    before, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(level)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
        logger.propagate = propagate


@contextmanager
def _quiet_libraries(verbose: bool, show_progress: bool) -> Iterator[None]:
    """Keep what libraries say about themselves away from the user; downloads still show where progress is shown."""
    if verbose:
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
        from transformers.utils import logging as transformers_logging

        # Before diffusers is imported, which makes transformers say what is not installed.
        before = transformers_logging.get_verbosity()
        transformers_logging.set_verbosity_error()
        from diffusers.utils import logging as diffusers_logging

        libraries = ((transformers_logging, before), (diffusers_logging, diffusers_logging.get_verbosity()))
        bars = not are_progress_bars_disabled()
        for library, _ in libraries:
            library.set_verbosity_error()
            library.disable_progress_bar()
        if not show_progress:
            disable_progress_bars()
        try:
            yield
        finally:
            for library, verbosity in libraries:
                library.set_verbosity(verbosity)
                library.enable_progress_bar()
            if bars:
                enable_progress_bars()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: arguments without the program's name; None takes those of the process.

    Returns:
        The exit code: 0 done, 1 failed while running, 2 wrong input or usage, 130 interrupted.

    Raises:
        SystemExit: ``--help`` and ``--version``, with code 0.
    """
    try:
        arguments = build_parser().parse_args(argv)
    except _UsageError as error:
        sys.stderr.write(f"bokehdepth: error: {_sentence(error)}\n")
        return EXIT_WRONG_INPUT
    level = logging.ERROR if arguments.quiet else logging.DEBUG if arguments.verbose else logging.INFO
    with _log_to_stderr(level):
        try:
            return arguments.handler(arguments)
        except InputError as error:
            logger.error("%s", _sentence(error), exc_info=arguments.verbose)
            return EXIT_WRONG_INPUT
        except KeyboardInterrupt:
            logger.error("interrupted; nothing of the photo at work was kept.")
            return EXIT_INTERRUPTED
        except Exception as error:  # noqa: BLE001 - the boundary of the program: a sentence in place of a traceback
            logger.error("%s: %s", type(error).__name__, _sentence(error), exc_info=arguments.verbose)
            return EXIT_FAILED

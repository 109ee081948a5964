"""Builds SYSTHEBOKEH300: 100 scenes, three bokeh strengths each, ray-traced (paper, section 11).

`python -m datasets_scripts.systhebokeh300 --output DIR` draws its foregrounds and backgrounds itself; --foregrounds
and --backgrounds take RGBA cut-outs and photographs from folders. A build that was cut off goes on where it stopped,
and the same arguments give the same bytes whatever the number of workers. Every build ends with the checks of
--validate.
"""

import argparse
import multiprocessing
import os
import sys
import threading
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from bokehdepth.errors import InputError
from bokehdepth.files.atomic import remove_stale, staged, write_file
from datasets_scripts.published300 import check_tables, push_to_hub, write_card, write_tables
from datasets_scripts.scenes300 import Settings, list_files, scene_files, write_scene
from datasets_scripts.validation300 import validate

_FOREGROUND_ENDINGS = (".png", ".webp", ".tif", ".tiff")
_BACKGROUND_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff")
DEFAULT_RAYS = 96


def _stop_with_parent() -> None:
    """End this worker when the process that started it is gone: a killed build leaves nothing running."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _build_scene(job: tuple[Settings, int, tuple[Path | None, Path | None], Path]) -> int:
    settings, index, folders, output = job
    # Many processes put scenes into the one folder; a scene with all its files is a finished one.
    with staged(output, overwrite=True, at_once=False) as part:
        write_scene(settings, index, folders, part)
    return index


def _is_finished(output: Path, index: int) -> bool:
    return all((output / name).is_file() for name in scene_files(index))


def _open_build(output: Path, settings: Settings) -> None:
    """Make the folder or go on with it; what a killed process left half-written is removed."""
    if output.exists() and not output.is_dir():
        raise InputError(f"--output is {str(output)!r}, which is a file, wanted a folder")
    remove_stale(output, recursive=True)
    record = output / "build.json"
    if record.is_file():
        if record.read_text() != settings.to_json():
            raise InputError(
                f"--output is {str(output)!r}, which holds a build with other settings (build.json), wanted a new "
                "folder or the same arguments and files"
            )
    elif output.exists() and any(output.iterdir()):
        raise InputError(f"--output is {str(output)!r}, which holds other files, wanted a new or empty folder")
    write_file(record, lambda file: file.write(settings.to_json().encode()), overwrite=True)


def build(
    output: Path, settings: Settings, *, folders: tuple[Path | None, Path | None] = (None, None), workers: int = 1
) -> None:
    """Build the data set, or what is missing of it.

    Args:
        output: its folder.
        settings: what it depends on.
        folders: of foregrounds and backgrounds, where ``settings`` names files.
        workers: processes.

    Raises:
        InputError: If the folder holds something else, a file cannot be used, or the result breaks a rule.
    """
    from tqdm import tqdm

    _open_build(output, settings)
    missing = [index for index in range(settings.scenes) if not _is_finished(output, index)]
    jobs = [(settings, index, folders, output) for index in missing]
    bar = {"total": settings.scenes, "initial": settings.scenes - len(jobs), "unit": "scene", "desc": "scenes"}
    if workers == 1:
        for _ in tqdm(map(_build_scene, jobs), **bar):
            pass
    else:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, mp_context=context, initializer=_stop_with_parent) as executor:
            try:
                for _ in tqdm(executor.map(_build_scene, jobs), **bar):
                    pass
            except BaseException:
                executor.shutdown(wait=False, cancel_futures=True)
                raise
    write_tables(output, settings)
    write_card(output, settings)
    check(output, workers=workers)


def check(output: Path, *, workers: int = 1) -> None:
    """Check everything that was written against the rules of the data set.

    Args:
        output: folder of a build.
        workers: processes.

    Raises:
        InputError: In one sentence what is wrong.
    """
    settings = validate(output, workers=workers)
    check_tables(output, settings)


def _whole(low: int, high: int | None = None):  # noqa: ANN202 - a converter for argparse
    wanted = f"a whole number, {low} or more" if high is None else f"a whole number from {low} to {high}"

    def convert(text: str) -> int:
        if not (text.isascii() and text.isdigit()) or int(text) < low or (high is not None and int(text) > high):
            raise argparse.ArgumentTypeError(f"is {text!r}, wanted {wanted}")
        return int(text)

    return convert


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m datasets_scripts.systhebokeh300", description=__doc__)
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder of the data set, new or of a cut-off build")
    parser.add_argument("--scenes", type=_whole(1, 100000), default=100, help="number of scenes (100)")
    parser.add_argument("--seed", type=_whole(0), default=0, help="of everything random (0)")
    parser.add_argument("--size", type=_whole(64, 4096), default=1024, help="side of the square pictures in px (1024)")
    parser.add_argument(
        "--rays", type=_whole(1, 65536), default=DEFAULT_RAYS, help=f"rays of a pixel ({DEFAULT_RAYS})"
    )
    parser.add_argument("--foregrounds", type=Path, metavar="DIR", help="folder of RGBA cut-outs; without: drawn ones")
    parser.add_argument("--backgrounds", type=Path, metavar="DIR", help="folder of photographs; without: drawn ones")
    parser.add_argument("--workers", type=_whole(1, 256), default=os.cpu_count() or 1, help="processes (all cores)")
    parser.add_argument("--validate", type=Path, metavar="DIR", help="only check the data set in DIR")
    parser.add_argument("--push-to-hub", metavar="REPO", help="upload the data set to user/name after the checks")
    parser.add_argument("--private", action="store_true", help="make that repository a private one")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: of the command line; None takes those of the process.

    Returns:
        0, or 2 after one sentence on what is wrong.
    """
    parser = _parser()
    given = parser.parse_args(arguments)
    try:
        if (given.output is None) == (given.validate is None):
            raise InputError("wanted either --output DIR to build or --validate DIR to check")
        if given.private and given.push_to_hub is None:
            raise InputError("--private is given without --push-to-hub, wanted a repository to make private")
        folder = given.output or given.validate
        if given.validate is not None:
            check(folder, workers=given.workers)
        else:
            named = [
                () if path is None else list_files(path, name, endings)
                for path, name, endings in (
                    (given.foregrounds, "--foregrounds", _FOREGROUND_ENDINGS),
                    (given.backgrounds, "--backgrounds", _BACKGROUND_ENDINGS),
                )
            ]
            settings = Settings(given.scenes, given.seed, given.size, given.rays, *named)
            build(folder, settings, folders=(given.foregrounds, given.backgrounds), workers=given.workers)
        if given.push_to_hub is not None:
            push_to_hub(folder, given.push_to_hub, private=given.private)
    except InputError as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)  # noqa: T201 - the command's own voice
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Builds SYSTHEBOKEH300: 100 scenes, three bokeh strengths each, ray-traced (paper, section 11).

`python -m datasets_scripts.systhebokeh300 --output DIR` draws its foregrounds and backgrounds itself; --foregrounds
and --backgrounds take RGBA cut-outs and photographs from folders. A build that was cut off goes on where it stopped,
and the same arguments give the same bytes whatever the number of workers. Every build ends with the checks of
--validate.
"""

import argparse
import hashlib
import os
import sys
from collections.abc import Callable
from pathlib import Path

from bokehdepth.errors import InputError
from datasets_scripts.systhebokeh300.build import build, check
from datasets_scripts.systhebokeh300.publish import license_of
from datasets_scripts.systhebokeh300.scene import Settings

_FOREGROUND_ENDINGS = (".png", ".webp", ".tif", ".tiff")
_BACKGROUND_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff")
DEFAULT_RAYS = 96


def _listed(folder: Path | None, name: str, endings: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """Names and SHA-256 of the pictures of a folder, sorted."""
    if folder is None:
        return ()
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    paths = [path for path in paths if path.suffix.lower() in endings and path.is_file()]
    if not paths:
        raise InputError(f"{name} must be a folder with files of {', '.join(endings)}, got {str(folder)!r}.")
    return tuple((path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in paths)


def _whole(low: int, high: int | None = None) -> Callable[[str], int]:
    """A converter for argparse."""

    def convert(text: str) -> int:
        if not (text.isascii() and text.isdigit()) or int(text) < low or (high is not None and int(text) > high):
            limit = f"{low} or more" if high is None else f"from {low} to {high}"
            raise argparse.ArgumentTypeError(f"must be a whole number, {limit}, got {text!r}")
        return int(text)

    return convert


def main(arguments: list[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: of the command line; None takes those of the process.

    Returns:
        0, or 2 after one sentence on what is wrong.
    """
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
    given = parser.parse_args(arguments)
    try:
        if (given.output is None) == (given.validate is None):
            raise InputError("wanted either --output DIR to build or --validate DIR to check")
        if given.validate is not None:
            check(given.validate, workers=given.workers)
            return 0
        folders = given.foregrounds, given.backgrounds
        files = (
            _listed(given.foregrounds, "--foregrounds", _FOREGROUND_ENDINGS),
            _listed(given.backgrounds, "--backgrounds", _BACKGROUND_ENDINGS),
        )
        terms = license_of([folder for folder in folders if folder is not None])
        settings = Settings(given.scenes, given.seed, given.size, given.rays, *files, terms)
        build(given.output, settings, folders=folders, workers=given.workers)
    except InputError as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)  # noqa: T201 - the command's own voice
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The parser of all commands."""

from __future__ import annotations

import argparse

from .. import __version__
from .convert import add_convert
from .optics import add_optics
from .options import Parser
from .photos import add_photo_commands
from .publish import add_publish
from .render import add_render


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of all commands; it imports nothing heavy.

    Returns:
        A parser whose result has a ``handler``: the function that runs the command and returns its exit code.
    """
    parser = Parser(
        prog="bokehdepth",
        description="One photo in; a calibrated stack of bokeh pictures and a metric depth map out.",
        epilog="Exit codes: 0 done, 1 a photo failed or was left out, 2 wrong input, nothing done, 130 interrupted.",
    )
    parser.add_argument("--version", action="version", version=f"bokehdepth {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    add_photo_commands(commands)
    add_render(commands)
    add_optics(commands)
    add_publish(commands)
    add_convert(commands)
    return parser

"""Options that several commands share, and the types of their values."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from typing import NoReturn

from ..errors import InputError
from .talk import logger

_DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d+)?")


class UsageError(Exception):
    """A command line that argparse cannot read."""


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are one sentence that names the command."""

    def error(self, message: str) -> NoReturn:  # noqa: D102 - as argparse documents it
        command = self.prog.partition(" ")[2]
        raise UsageError(f"{command}: {message} (see '{self.prog} --help')" if command else message)


def whole_number(least: int) -> Callable[[str], int]:
    """Make the type of an option that takes a whole number from ``least`` on."""

    def parse(text: str) -> int:
        if not text.isascii() or not text.isdigit() or not least <= int(text) < 2**63:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {least}")
        return int(text)

    return parse


def device_name(text: str) -> str:
    """Check the name of a device, whether or not this machine has it."""
    if not _DEVICE.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} is none of auto, cpu, cuda, cuda:N, mps")
    return text


def available_device(name: str) -> str:
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


def add_lens_options(parser: argparse.ArgumentParser, focus: argparse._ActionsContainer | None = None) -> None:
    """Add what a caller knows of the lens, in place of EXIF; the focus goes to the group ``focus`` if one is given."""
    (focus or parser).add_argument(
        "--focus-distance",
        "--focus-m",
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


def add_talk_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--json``, ``--verbose`` and ``--quiet``."""
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout in place of text")
    volume = parser.add_mutually_exclusive_group()
    volume.add_argument("-v", "--verbose", action="store_true", help="also what libraries say, progress, tracebacks")
    volume.add_argument("-q", "--quiet", action="store_true", help="only errors on stderr")

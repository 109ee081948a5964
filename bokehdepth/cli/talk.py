"""How commands talk: exit codes, JSON on stdout, sentences on stderr, quiet libraries."""

from __future__ import annotations

import gc
import json
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TextIO

logger = logging.getLogger("bokehdepth")

EXIT_DONE, EXIT_FAILED, EXIT_WRONG_INPUT, EXIT_INTERRUPTED = 0, 1, 2, 130


def write_json(document: dict[str, Any]) -> None:
    """Write one JSON document to stdout."""
    from ..files.run_record import to_json_value

    say(json.dumps(to_json_value(document), indent=2, allow_nan=False))


def say(text: str) -> None:
    """Write lines to stdout at once; a reader who has left, as ``head`` does, has simply read enough.

    Raises:
        OSError: stdout goes to a file that cannot be written, on a full disk say; nothing more goes there.
    """
    try:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()
    except OSError as error:
        _send_nowhere(sys.stdout)
        if not isinstance(error, BrokenPipeError):
            raise OSError(error.errno, os.strerror(error.errno), "stdout") from error


def _send_nowhere(stream: TextIO) -> None:
    """Let what a stream still holds and gets go nowhere, so that Python's end is quiet too."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def open_closed_streams() -> None:
    """Open what the process was started without, ``>&-`` in a shell, to nowhere.

    Else the next file that is opened would get the stream's number, and whatever a library prints.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))


def flush_streams() -> None:
    """Flush what is left for stdout and stderr; to a reader who has left it goes nowhere."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            _send_nowhere(stream)


def sentence(error: BaseException) -> str:
    """What an exception says, on one line with a full stop."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{os.fsdecode(error.filename)!r} cannot be used: {error.strerror}."
    text = " ".join(str(error).split()) or type(error).__name__
    return text if text.endswith((".", "!", "?")) else f"{text}."


class _Format(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        kind = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        record = logging.makeLogRecord({**record.__dict__, "msg": f"bokehdepth: {kind}{record.msg}"})
        return super().format(record)


class _Handler(logging.StreamHandler):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: D102, N802 - as logging documents it
        if isinstance(sys.exception(), OSError):  # nobody reads stderr any more
            _send_nowhere(self.stream)
        else:
            super().handleError(record)


@contextmanager
def log_to_stderr(level: int) -> Iterator[None]:
    """Let the program's own sentences go to stderr, and nothing of it stay afterwards."""
    handler = _Handler(sys.stderr)
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
def garbage_kept(surroundings: ExitStack) -> Iterator[None]:
    """Look for no garbage among what the body loads, until the surroundings end.

    Libraries and weights are a million objects that stay: to look through them over and over costs a fifth of a start.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
        gc.freeze()
        surroundings.callback(gc.unfreeze)
    finally:
        if was_on:
            gc.enable()


@contextmanager
def quiet_libraries(verbose: bool, show_progress: bool) -> Iterator[None]:
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

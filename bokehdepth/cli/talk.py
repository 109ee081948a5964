"""How commands talk: exit codes, JSON on stdout, sentences on stderr, quiet libraries."""

from __future__ import annotations

import gc
import json
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

logger = logging.getLogger("bokehdepth")

EXIT_DONE, EXIT_FAILED, EXIT_WRONG_INPUT, EXIT_INTERRUPTED = 0, 1, 2, 130


def write_json(document: dict[str, Any]) -> None:
    """Write one JSON document to stdout."""
    from ..io import to_json_value

    sys.stdout.write(json.dumps(to_json_value(document), indent=2, allow_nan=False) + "\n")


def sentence(error: BaseException) -> str:
    """What an exception says, on one line with a full stop."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if text.endswith((".", "!", "?")) else f"{text}."


class _Format(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        kind = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        record = logging.makeLogRecord({**record.__dict__, "msg": f"bokehdepth: {kind}{record.msg}"})
        return super().format(record)


@contextmanager
def log_to_stderr(level: int) -> Iterator[None]:
    """Let the program's own sentences go to stderr, and nothing of it stay afterwards."""
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

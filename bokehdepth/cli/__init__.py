"""The command line: one module for each group of commands, ``parser.py`` puts them together.

Exit codes: 0 all done; 1 something failed while running, or some of the photos were left out; 2 wrong input or usage,
found before any model is loaded wherever the model is not needed to find it; 130 interrupted. Results go to stdout,
everything else to stderr; either may be closed or have lost its reader. Modules that need torch are imported inside
the functions that use them, so help and ``optics`` answer at once.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from ..errors import InputError
from .options import UsageError
from .parser import build_parser
from .talk import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_WRONG_INPUT,
    flush_streams,
    log_to_stderr,
    logger,
    open_closed_streams,
    sentence,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: arguments without the program's name; None takes those of the process.

    Returns:
        The exit code: 0 done, 1 failed while running, 2 wrong input or usage, 130 interrupted.

    Raises:
        SystemExit: ``--help`` and ``--version``, with code 0.
    """
    open_closed_streams()
    try:
        return _run(argv)
    finally:
        flush_streams()


def _run(argv: Sequence[str] | None) -> int:
    try:
        arguments = build_parser().parse_args(argv)
    except UsageError as error:
        with log_to_stderr(logging.ERROR):
            logger.error("%s", sentence(error))
        return EXIT_WRONG_INPUT
    level = logging.ERROR if arguments.quiet else logging.DEBUG if arguments.verbose else logging.INFO
    with log_to_stderr(level):
        try:
            return arguments.handler(arguments)
        except InputError as error:
            logger.error("%s", sentence(error), exc_info=arguments.verbose)
            return EXIT_WRONG_INPUT
        except KeyboardInterrupt:
            logger.error("interrupted; nothing of the photo at work was kept.")
            return EXIT_INTERRUPTED
        except OSError as error:
            logger.error("%s", sentence(error), exc_info=arguments.verbose)
            return EXIT_FAILED
        except Exception as error:  # noqa: BLE001 - the boundary of the program: a sentence in place of a traceback
            logger.error("%s: %s", type(error).__name__, sentence(error), exc_info=arguments.verbose)
            return EXIT_FAILED

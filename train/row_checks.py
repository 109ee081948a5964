"""Which rows of a manifest a run can learn from: every file is read once, before the first step.

A row that nothing can be learned from is left out and named with its reason, so that it neither ends a run nor
passes unseen. Rows are read in threads, and by each process its share of them.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import torch

from bokehdepth.errors import InputError
from bokehdepth.manifest import ManifestRow

T = TypeVar("T")
logger = logging.getLogger("train.rows")
_THREADS = 8  # each holds a photo and its depth
_NAMED = 20
_DRAWS = 10


class UnusableError(InputError):
    """A row that is left out.

    Args:
        reason: words that such rows share.
        detail: of this row.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(detail or reason)
        self.reason = reason

    def __reduce__(self) -> tuple:
        """Keeps both parts on the way between processes."""
        return type(self), (self.reason, str(self))


@contextmanager
def unusable(reason: str) -> Iterator[None]:
    """Turns an InputError into a row that is left out for a reason."""
    try:
        yield
    except UnusableError:
        raise
    except InputError as error:
        raise UnusableError(reason, str(error)) from error


def outcome(check: Callable[..., T], *arguments: Any) -> T | UnusableError:
    """What a check returns, or why it fails."""
    try:
        return check(*arguments)
    except UnusableError as error:
        return error


def checked(rows: list[ManifestRow], check: Callable[[ManifestRow], T]) -> list[T | UnusableError]:
    """What a check finds in each row, or why the row cannot be used; the same list on every process."""
    process, processes = 0, 1
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        process, processes = torch.distributed.get_rank(), torch.distributed.get_world_size()
    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as executor:
        shares = [list(executor.map(partial(outcome, check), rows[process::processes]))]
    if processes > 1:
        mine, shares = shares[0], [None] * processes
        torch.distributed.all_gather_object(shares, mine)
    results: list[T | UnusableError] = [None] * len(rows)
    for number, share in enumerate(shares):
        results[number::processes] = share
    return results


def sorted_out(
    rows: list[ManifestRow], results: list[T | UnusableError], use: str
) -> tuple[list[tuple[ManifestRow, T]], str]:
    """Rows that can be used with their results, and what `told` says of the others."""
    both = list(zip(rows, results, strict=True))
    bad = [(row, result) for row, result in both if isinstance(result, UnusableError)]
    return [(row, result) for row, result in both if not isinstance(result, UnusableError)], told(bad, use)


def told(left_out: list[tuple[ManifestRow, UnusableError]], use: str) -> str:
    """Logs what is left out, one line for each reason with the rows' names, and returns the lines as one sentence."""
    by_reason: dict[str, list[tuple[ManifestRow, UnusableError]]] = {}
    for row, error in left_out:
        by_reason.setdefault(error.reason, []).append((row, error))
    lines = []
    for reason, rows in by_reason.items():
        names = ", ".join(row.row_id for row, _ in rows[:_NAMED])
        more = f" and {len(rows) - _NAMED} more" if len(rows) > _NAMED else ""
        example = f" (the first: {str(rows[0][1]).rstrip('.')})" if str(rows[0][1]) != reason else ""
        lines.append(f"{len(rows)} left out {use}, {reason}: {names}{more}{example}")
        logger.warning("%s", lines[-1])
    return "; ".join(lines)


def redrawn(draw: Callable[[int], T]) -> T:
    """The first of several draws, numbered from 0, whose files can be read: one may go bad while a run goes on.

    Raises:
        InputError: of the last draw, where none can.
    """
    for attempt in range(_DRAWS - 1):
        try:
            return draw(attempt)
        except InputError as error:
            logger.warning("another row is drawn, since a file went bad after it was checked: %s", error)
    return draw(_DRAWS - 1)

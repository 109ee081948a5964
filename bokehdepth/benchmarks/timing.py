"""Fair timing of several contenders: one process, one thread, turn by turn."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any


def interleaved(
    contenders: Mapping[str, Callable[[], object]], repeats: int, clock: Callable[[], float] = time.process_time
) -> dict[str, float]:
    """Time contenders in turn, there and back (A B C, C B A, ...), so that a change of the machine's pace hits all.

    Each runs once before, which compiles and fills caches.

    Args:
        contenders: Name to what is timed.
        repeats: Rounds, 1 or more.
        clock: Seconds; by default the CPU time of this process, which other processes disturb least.

    Returns:
        Name to the median of its seconds.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for run in contenders.values():
        run()
    for turn in range(repeats):
        for name in list(contenders)[:: 1 if turn % 2 == 0 else -1]:
            started = clock()
            contenders[name]()
            seconds[name].append(clock() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def machine() -> dict[str, Any]:
    """What the figures were measured on: processor, cores, Python."""
    model = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as file:
            model = next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        pass  # no Linux: the platform's own word stays
    return {"processor": model, "cores": os.cpu_count(), "python": platform.python_version()}


def table(rows: list[dict[str, Any]], columns: Mapping[str, str]) -> str:
    """Lay rows out as text.

    Args:
        rows: One mapping each.
        columns: Key to its heading; numbers get three digits, a missing value a dash.

    Returns:
        Lines, the headings first, columns aligned.
    """

    def cell(value: Any) -> str:
        if value is None:
            return "-"
        return f"{value:.3g}" if isinstance(value, float) else str(value)

    cells = [list(columns.values()), *([cell(row.get(key)) for key in columns] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(f"{text:>{w}}" for text, w in zip(line, widths, strict=True)) for line in cells)

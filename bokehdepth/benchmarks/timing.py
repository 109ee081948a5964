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
    return {name: values["s"] for name, values in measured(contenders, repeats, {"s": clock}).items()}


def measured(
    contenders: Mapping[str, Callable[[], object]],
    repeats: int,
    clocks: Mapping[str, Callable[[], float]],
    prepare: Callable[[str], object] = lambda name: None,
) -> dict[str, dict[str, float]]:
    """As `interleaved`, by several clocks at once.

    Args:
        contenders: Name to what is timed.
        repeats: Rounds, 1 or more.
        clocks: Name to a clock in seconds.
        prepare: Called with a contender's name before its run, outside of what is timed.

    Returns:
        Contender to clock to the median of its seconds.
    """
    seconds: dict[str, list[list[float]]] = {name: [] for name in contenders}
    for name, run in contenders.items():
        prepare(name)
        run()
    for turn in range(repeats):
        for name in list(contenders)[:: 1 if turn % 2 == 0 else -1]:
            prepare(name)
            started = [clock() for clock in clocks.values()]
            contenders[name]()
            seconds[name].append([clock() - start for clock, start in zip(clocks.values(), started, strict=True)])
    return {
        name: {clock: statistics.median(times) for clock, times in zip(clocks, zip(*rows, strict=True), strict=True)}
        for name, rows in seconds.items()
    }


def machine(device: str = "cpu") -> dict[str, Any]:
    """What the figures were measured on: processor, cores, other work (load of the last minute), Python, accelerator.

    Args:
        device: where contenders run; one of CUDA is named by its maker's name, others have none.
    """
    model = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as file:
            model = next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        pass  # no Linux: the platform's own word stays
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    accelerator = None
    if device.startswith("cuda"):
        import torch  # benches of arrays run without it

        accelerator = torch.cuda.get_device_name(device)
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "load": load,
        "python": platform.python_version(),
        "accelerator": accelerator,
    }


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

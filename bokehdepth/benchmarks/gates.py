"""What stage benches share: counted work, the measured rate of matrix products, correctness gates, rows."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from bokehdepth.benchmarks import timing
from bokehdepth.benchmarks.memory import peak_bytes
from bokehdepth.errors import InputError


def _attention_flop(query: torch.Size, key: torch.Size, value: torch.Size, *rest: Any, **named: Any) -> int:
    return sdpa_flop_count(query, key, value)


# torch counts the attention kernels of GPUs alone.
_ATTENTION = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flop}


@dataclass(frozen=True)
class Contender:
    """One row of a bench.

    Args:
        run: what is timed; returns the frames or the depth.
        exact_like: name of the contender whose result it has to give; None where there is nothing to compare with.
        tolerance: largest relative difference (root mean square) from it; None of an approximation, which is shown.
        prepare: called before each run, outside of what is timed.
    """

    run: Callable[[], torch.Tensor]
    exact_like: str | None = None
    tolerance: float | None = None
    prepare: Callable[[], None] = lambda: None


def relative_difference(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Root mean square of the difference over that of what was wanted, about its mean."""
    found, wanted = found.double(), wanted.double()
    return float((found - wanted).square().mean().sqrt() / (wanted - wanted.mean()).square().mean().sqrt())


def counted_flop(run: Callable[[], Any]) -> tuple[Any, int]:
    """A call's result, and its floating-point operations in matrix products, convolutions and attention."""
    with FlopCounterMode(display=False, custom_mapping=_ATTENTION) as counter:
        result = run()
    return result, counter.get_total_flops()


def matmul_rate(device: torch.device, dtype: torch.dtype, clock: Callable[[], float]) -> float:
    """Operations a second of a large matrix product: the best of five, by the clock that the bench counts in."""
    side, products = (8192, 4) if device.type == "cuda" else (768, 8)
    matrix, rates = torch.randn(side, side, device=device, dtype=dtype), []
    for _ in range(6):
        started = clock()
        for _ in range(products):
            matrix @ matrix
        rates.append(2 * side**3 * products / (clock() - started))
    return max(rates[1:])


def compare(
    contenders: dict[str, Contender],
    rival: str,
    repeats: int,
    device: torch.device,
    dtype: torch.dtype,
) -> list[dict[str, Any]]:
    """Checks every contender, counts its work and memory, and times all in turn.

    Args:
        contenders: name to contender.
        rival: name of the one that the others are compared with.
        repeats: rounds; the median counts.
        device: where they run.
        dtype: that they calculate in.

    Returns:
        Rows with `contender`, `seconds` (CPU time of the process on the CPU, else wall time), `wall_s`,
        `time_over_rival`, `gflop`, `time_over_floor` (the floor is its work at the rate of a large matrix product in
        the same run), `peak_mb`, `difference`, `tolerance`, `passed` (None without a tolerance).

    Raises:
        InputError: repeats is below 1.
    """
    if repeats < 1:
        raise InputError(f"repeats is {repeats!r}, wanted 1 or more")

    def wall() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    clock = time.process_time if device.type == "cpu" else wall
    rows, results, work = {}, {}, {}

    for name, contender in contenders.items():
        contender.prepare()
        results[name], work[name] = counted_flop(contender.run)
        contender.prepare()
        peak = peak_bytes(contender.run, device)  # a run of its own: the counter of work keeps tensors alive
        if not bool(torch.isfinite(results[name]).all()):
            raise ArithmeticError(f"{name} gave values that are not finite.")
        difference = None
        if contender.exact_like is not None:
            difference = relative_difference(results[name], results[contender.exact_like])
        rows[name] = {
            "contender": name,
            "gflop": work[name] / 1e9,
            "peak_mb": peak / 1e6,
            "exact_like": contender.exact_like,
            "difference": difference,
            "tolerance": contender.tolerance,
            "passed": None if contender.tolerance is None else difference <= contender.tolerance,
        }
    rate = matmul_rate(device, dtype, clock)
    timed = timing.measured(
        {name: contender.run for name, contender in contenders.items()},
        repeats,
        {"seconds": clock, "wall_s": wall},
        lambda name: contenders[name].prepare(),
    )
    for name, row in rows.items():
        row |= timed[name]
        row["time_over_rival"] = row["seconds"] / timed[rival]["seconds"]
        row["time_over_floor"] = row["seconds"] / (row["gflop"] * 1e9 / rate) if row["gflop"] else None
    return list(rows.values())


COLUMNS = {
    "contender": "contender",
    "seconds": "s",
    "time_over_rival": "/ rival",
    "gflop": "GFLOP",
    "time_over_floor": "/ floor",
    "peak_mb": "peak MB",
    "verdict": "gate",
}


def verdict(row: dict[str, Any]) -> str | None:
    """A row's gate in words."""
    if row["difference"] is None:
        return None
    if row["tolerance"] is None:
        return f"approximate: {row['difference']:.1e}"
    return f"{'passed' if row['passed'] else 'FAILED'}: {row['difference']:.1e} <= {row['tolerance']:.0e}"


def passed(result: dict[str, Any]) -> bool:
    """Whether all gates of a bench's result held."""
    return all(row["passed"] is not False for group in result["groups"].values() for row in group["rows"])


def as_text(result: dict[str, Any], described: str) -> str:
    """Lay the groups of a bench's result out as tables.

    Args:
        result: as a bench's `run` returned it.
        described: what was measured, for the first line.
    """
    machine = result["machine"]
    where = machine["accelerator"] or machine["processor"]
    lines = [f"{where}, load {machine['load']:.1f}; {described}; * an approximation"]
    for name, group in result["groups"].items():
        rows = [row | {"verdict": verdict(row)} for row in group["rows"]]
        lines += ["", f"{name}, against {group['rival']}", "", timing.table(rows, COLUMNS)]
        lines += [f"{key}: {value:.3g}" for key, value in group.items() if isinstance(value, float)]
    return "\n".join(lines)


@contextmanager
def one_thread(device: torch.device) -> Iterator[None]:
    """Calculates with one thread on the CPU, so that contenders do not wait for the machine's other work."""
    threads = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)

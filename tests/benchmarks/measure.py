"""What the benchmark scripts share: time, counted work and peak memory of contenders, in turn, results compared."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2}


def _attention_flop(query, key, value, *rest, **named) -> int:
    return sdpa_flop_count(query, key, value)


# torch counts the attention kernels of GPUs alone.
_CPU_ATTENTION = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flop}


@dataclass(frozen=True)
class Contender:
    """What is timed, what puts the weights into the state for it, and whose result it has to give."""

    run: Callable[[], torch.Tensor]
    prepare: Callable[[], None] = lambda: None
    like: str | None = None
    is_exact: bool = True


def seconds(contenders: Mapping[str, Contender], repeats: int, device: torch.device) -> dict[str, float]:
    """Median seconds of each, taken in turn there and back: of the process on the CPU, of the wall elsewhere."""
    clock = {"timer": time.process_time} if device.type == "cpu" else {}
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(repeats):
        for name in list(contenders)[:: 1 if turn % 2 == 0 else -1]:
            contenders[name].prepare()
            times[name].append(Timer("run()", globals={"run": contenders[name].run}, **clock).timeit(1).median)
    return {name: statistics.median(values) for name, values in times.items()}


def counted_flop(run: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, int]:
    """A call's result and its operations in matrix products, convolutions and attention."""
    with FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION) as counter:
        result = run()
    return result, counter.get_total_flops()


def peak_bytes(run: Callable[[], object], device: torch.device) -> int:
    """Most bytes that a call holds on a device beside those that were there before it, as torch's allocator says."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(accumulate((event.nbytes() for event in sorted(events, key=lambda e: e.start_ns())), initial=0))


def relative_difference(result: torch.Tensor, reference: torch.Tensor) -> float:
    """Root mean square of the difference over that of the reference about its mean."""
    result, reference = result.double(), reference.double()
    return float((result - reference).square().mean().sqrt() / (reference - reference.mean()).square().mean().sqrt())


def compare(title: str, contenders: Mapping[str, Contender], repeats: int, tolerance: float, place: dict) -> bool:
    """Print a table, ratios to the first contender; False where an exact one differs by more than the tolerance."""
    device, results, work, peaks = place["device"], {}, {}, {}
    for name, contender in contenders.items():
        contender.prepare()
        results[name], work[name] = counted_flop(contender.run)
        peaks[name] = peak_bytes(contender.run, device)
    taken = seconds(contenders, repeats, device)
    rival, passed = next(iter(contenders)), True
    print(f"\n{title}\n{'':44}{'s':>9}{'ratio':>8}{'GFLOP':>10}{'ratio':>8}{'peak MB':>10}  difference")
    for name, contender in contenders.items():
        ratios = [f"{values[name] / values[rival]:.3g}" for values in (taken, work)]
        verdict = "" if bool(results[name].isfinite().all()) else "FAILED: not finite"
        if contender.like is not None:
            difference = relative_difference(results[name], results[contender.like])
            verdict = f"approximate, {difference:.1e}"
            if contender.is_exact:
                verdict = f"{difference:.1e} {'<=' if difference <= tolerance else 'FAILED, not <='} {tolerance:.0e}"
        passed &= "FAILED" not in verdict
        print(
            f"{name:44}{taken[name]:9.3g}{ratios[0]:>8}{work[name] / 1e9:10.4g}{ratios[1]:>8}{peaks[name] / 1e6:10.4g}"
            f"  {verdict}"
        )
    return passed

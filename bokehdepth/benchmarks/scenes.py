"""`bokehdepth bench scenes`: how many procedural scenes and renders a second feed a training."""

import time
from collections.abc import Sequence
from typing import Any

import torch

from bokehdepth.benchmarks import timing
from bokehdepth.camera.lens import DEFAULT_BOKEH_STRENGTHS as BOKEH_STRENGTHS
from bokehdepth.errors import InputError
from bokehdepth.rendering.layered_torch import SceneBatch, render_batch
from bokehdepth.rendering.scenes import SceneGenerator


def run(sizes_px: Sequence[int] = (128, 256), scenes: int = 24, device: str = "cpu") -> dict[str, Any]:
    """Measure the making of scenes and their renders at three K, on one core, and a batch of renders on a device.

    Args:
        sizes_px: Sides of the square scenes, each from 32 to 2048.
        scenes: How many are made, 1 or more.
        device: Where the batch is rendered.

    Returns:
        ``machine``, ``device`` and ``rows`` with the size, scenes made, scenes rendered, both, and scenes rendered in
        batches, each in scenes a second.

    Raises:
        InputError: A number is out of range.
    """
    if scenes < 1:
        raise InputError(f"scenes is {scenes!r}, wanted 1 or more")
    rows = []
    for size in sizes_px:
        generator = SceneGenerator((size, size), seed=0)
        for index in range(scenes):  # textures and things are drawn once and kept
            generator.generate(index)
        started = time.process_time()
        made = [generator.generate(index) for index in range(scenes)]
        making_s = (time.process_time() - started) / scenes
        made[0].render(1.0)
        started = time.process_time()
        for scene in made:
            for strength in BOKEH_STRENGTHS:
                scene.render(strength)
        rendering_s = (time.process_time() - started) / scenes
        row = {"size_px": size, "made_per_s": 1 / making_s, "rendered_per_s": 1 / rendering_s}
        batch_s = _in_batches(made, device) / scenes
        rows.append(row | {"both_per_s": 1 / (making_s + rendering_s), "batched_per_s": 1 / batch_s})
    return {"machine": timing.machine(device), "device": device, "rows": rows}


def _in_batches(scenes: list, device: str, size: int = 8) -> float:
    place = torch.device(device)
    batches = [SceneBatch.of(scenes[start : start + size]).to(place) for start in range(0, len(scenes), size)]

    def run() -> None:
        for batch in batches:
            strengths = torch.tensor([BOKEH_STRENGTHS], device=place).expand(len(batch.light), -1)
            render_batch(batch, strengths)
        if place.type == "cuda":
            torch.cuda.synchronize(place)

    with torch.no_grad():
        return timing.interleaved({"batch": run}, 1, time.perf_counter)["batch"]


def as_text(result: dict[str, Any]) -> str:
    """Lay a result of `run` out as a table."""
    columns = {
        "size_px": "px",
        "made_per_s": "made/s",
        "rendered_per_s": "3 K rendered/s",
        "both_per_s": "both/s",
        "batched_per_s": f"3 K in batches/s ({result['device']})",
    }
    return f"{result['machine']['processor']}, one core\n\n{timing.table(result['rows'], columns)}"

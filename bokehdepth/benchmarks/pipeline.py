"""`bokehdepth bench pipeline`: a photo to bokeh stack and depth, whole, and the memory that each plan wants.

Groups. *random*: both stages with random weights, beside Kontext and Depth Anything called the documented way.
*embedded*: the embedded model on its own, and its parts. *plans*: peak on the device under each memory plan, counted
on the meta device at FLUX's and ViT-L's size, in bfloat16, with and without baked modulation.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from bokehdepth.benchmarks import gates, models, timing
from bokehdepth.benchmarks.gates import Contender, compare
from bokehdepth.errors import InputError
from bokehdepth.hub import load_pipeline
from bokehdepth.memory_plan import baked_bytes, module_bytes, needed_bytes, working_bytes

RIVAL, OURS, KNOWN = "Kontext, then Depth Anything", "both stages", "both stages, photo known"
EMBEDDED, EMBEDDED_STACK, EMBEDDED_DEPTH = "embedded: both stages", "embedded: stack", "embedded: depth"
EMBEDDED_PHOTO = "embedded: depth of the photo alone"


def run(
    size_px: int = 128, frames: int = 3, steps: int = 4, device: str = "cpu", repeats: int = 3, photo_px: int = 512
) -> dict[str, Any]:
    """Measure all contenders.

    Args:
        size_px: side at work of the random pipeline, a multiple of 16 from 64.
        frames: K of a stack, 2 or more.
        steps: denoising steps of the random pipeline.
        device: where they run.
        repeats: rounds; the median counts.
        photo_px: side of the photo that the embedded model gets.

    Returns:
        `machine`, the arguments, `groups` with rows as `gates.compare` gives them, and `plans`: rows with `plan`,
        `gb` and `baked_gb`.

    Raises:
        InputError: a number is out of range.
    """
    if size_px < 64 or size_px % 16:
        raise InputError(f"size_px is {size_px}, wanted a multiple of 16 from 64")
    if frames < 2:
        raise InputError(f"frames is {frames}, wanted 2 or more")
    place = torch.device(device)
    dtype = torch.float32 if place.type == "cpu" else torch.bfloat16
    strengths = tuple(float(k) for k in np.linspace(30 / frames, 30, frames))
    with gates.one_thread(place):
        groups = {
            "random": _random(size_px, strengths, steps, place, dtype, repeats),
            "embedded": _embedded(photo_px, strengths, place, repeats),
        }
    arguments = {"size_px": size_px, "frames": frames, "steps": steps, "device": device, "photo_px": photo_px}
    plans = plan_rows(size_px**2 if size_px >= 512 else 512 * 512, frames)
    return {"machine": timing.machine(device), **arguments, "groups": groups, "plans": plans}


def _photo(side_px: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (side_px, side_px, 3), dtype=np.uint8)


def _random(
    size_px: int, strengths: tuple[float, ...], steps: int, device: torch.device, dtype: torch.dtype, repeats: int
) -> dict[str, Any]:
    tokens = (size_px // 16) ** 2
    pipe = models.pipeline(
        False, device, dtype, size_px, tokens // 2, reference_attention="causal", reference_timestep=0.0
    )  # fmt: skip
    base = models.depth_anything(False, device, dtype)
    pipe.register_modules(depth_estimator=models.with_dsfa(base, (0, 1)))
    side = 14 * max(2, round(size_px / 14))
    pipe.register_to_config(depth_processing_px=side)
    photo = _photo(size_px)
    pipe.bokeh_adapter.attach(pipe.transformer)
    pipe.bokeh_adapter.fold()
    noise = lambda: torch.Generator(device).manual_seed(0)  # noqa: E731
    memory = pipe.remember_photo(photo, steps, generator=noise())
    kontext = models.kontext(pipe, photo, len(strengths), steps)

    def rival() -> torch.Tensor:
        frames = kontext()
        alone = pipe.estimate_depth(photo, output_type="pt").depth_m
        return torch.cat([frames.flatten(), alone.flatten()])

    def ours(image: Any, **options: Any) -> Callable[[], torch.Tensor]:
        def run() -> torch.Tensor:
            own = options if image is memory else {**options, "generator": noise()}
            out = pipe(image, strengths, **own, output_type="pt")
            return torch.cat([out.images.flatten(), out.depth_m.flatten()])

        return run

    contenders = {
        RIVAL: Contender(rival),
        OURS: Contender(ours(photo, num_inference_steps=steps)),
        KNOWN: Contender(ours(memory), OURS, 1e-4 if dtype == torch.float32 else 3e-2),
    }
    return {"rival": RIVAL, "rows": compare(contenders, RIVAL, repeats, device, dtype)}


def _embedded(photo_px: int, strengths: tuple[float, ...], device: torch.device, repeats: int) -> dict[str, Any]:
    pipe = load_pipeline("embedded", device=device)
    pipe.set_progress_bar_config(disable=True)
    photo = _photo(photo_px)
    noise = lambda: torch.Generator(device).manual_seed(0)  # noqa: E731
    stack = pipe.generate_stack(photo, strengths, generator=noise(), output_type="pt").images

    def depth(**stack_arguments: Any) -> Callable[[], torch.Tensor]:
        return lambda: pipe.estimate_depth(photo, output_type="pt", **stack_arguments).depth_m

    contenders = {
        EMBEDDED: Contender(lambda: pipe(photo, strengths, generator=noise(), output_type="pt").depth_m),
        EMBEDDED_STACK: Contender(
            lambda: pipe.generate_stack(photo, strengths, generator=noise(), output_type="pt").images
        ),  # fmt: skip
        EMBEDDED_DEPTH: Contender(depth(stack=stack, bokeh_strengths=strengths), EMBEDDED, 1e-4),
        EMBEDDED_PHOTO: Contender(depth()),
    }
    rows = compare(contenders, EMBEDDED, repeats, device, pipe.depth_estimator.dtype)
    return {"rival": EMBEDDED, "rows": rows}


def plan_rows(area_px: int, frames: int) -> list[dict[str, Any]]:
    """Peak in GB of each memory plan at true size in bfloat16, without text encoders, counted on the meta device."""
    meta = torch.device("meta")
    transformer = models.transformer(True, meta, torch.bfloat16)
    depth = models.depth_anything(True, meta, torch.bfloat16)
    sizes = {
        "transformer": module_bytes(transformer),
        "vae": module_bytes(models.autoencoder(True, meta, torch.bfloat16)),
        "depth_estimator": module_bytes(models.with_dsfa(depth, (2, 3))),
        "bokeh_adapter": module_bytes(models.adapter(transformer, 512)),
    }
    baked = {**sizes, "transformer": baked_bytes(transformer)}
    working = working_bytes(area_px, frames)
    plain, smaller = needed_bytes(sizes, working), needed_bytes(baked, working)
    return [{"plan": plan, "gb": plain[plan] / 1e9, "baked_gb": smaller[plan] / 1e9} for plan in plain]


def as_text(result: dict[str, Any]) -> str:
    """Lay a result of `run` out as tables."""
    described = f"{result['device']}, {result['size_px']} px, {result['frames']} K, {result['steps']} steps"
    columns = {"plan": "plan at true size", "gb": "GB", "baked_gb": "GB, baked"}
    return "\n".join([gates.as_text(result, described), "", timing.table(result["plans"], columns)])

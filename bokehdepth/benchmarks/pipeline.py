"""`bokehdepth bench pipeline`: a photo to bokeh stack and depth, whole.

Groups. *random*: both stages with random weights, beside Kontext and Depth Anything called the documented way.
*embedded*: the embedded model on its own, and its parts. *load*: the random weights, saved to a folder and loaded as a
user loads them, beside the bytes that counting gives.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bokehdepth.benchmarks import gates, models, timing
from bokehdepth.benchmarks.gates import Contender, compare
from bokehdepth.errors import InputError
from bokehdepth.hub import load_pipeline
from bokehdepth.pipeline_bokehdepth import BokehDepthPipeline

RIVAL, OURS, KNOWN = "Kontext, then Depth Anything", "both stages", "both stages, photo known"
EMBEDDED, EMBEDDED_STACK, EMBEDDED_DEPTH = "embedded: both stages", "embedded: stack", "embedded: depth"
EMBEDDED_PHOTO = "embedded: depth of the photo alone"
EMBEDDED_FIRST, EMBEDDED_FURTHER = "embedded: one K, new photo", "embedded: one K, photo known"
READ, MOVED = "read from a folder", "moved to the device"


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
        `machine`, the arguments, `groups` with rows as `gates.compare` gives them, of "load" as `_load` does.

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
            "load": _load(place, dtype, repeats),
        }
    arguments = {"size_px": size_px, "frames": frames, "steps": steps, "device": device, "photo_px": photo_px}
    return {"machine": timing.machine(device), **arguments, "groups": groups}


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
    pipe.depth_estimator.config.processing_resolution = side
    photo = _photo(size_px)
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

    memory = pipe.remember_photo(photo, generator=noise())
    pipe.generate_stack(memory, strengths[:1])  # leaves what a further K needs

    def depth(**stack_arguments: Any) -> Callable[[], torch.Tensor]:
        return lambda: pipe.estimate_depth(photo, output_type="pt", **stack_arguments).depth_m

    contenders = {
        EMBEDDED: Contender(lambda: pipe(photo, strengths, generator=noise(), output_type="pt").depth_m),
        EMBEDDED_STACK: Contender(
            lambda: pipe.generate_stack(photo, strengths, generator=noise(), output_type="pt").images
        ),  # fmt: skip
        EMBEDDED_DEPTH: Contender(depth(stack=stack, bokeh_strengths=strengths), EMBEDDED, 1e-4),
        EMBEDDED_PHOTO: Contender(depth()),
        EMBEDDED_FIRST: Contender(
            lambda: pipe.generate_stack(photo, strengths[-1:], generator=noise(), output_type="pt").images
        ),
        EMBEDDED_FURTHER: Contender(
            lambda: pipe.generate_stack(memory, strengths[-1:], output_type="pt").images, EMBEDDED_FIRST, 1e-4
        ),
    }
    rows = compare(contenders, EMBEDDED, repeats, device, pipe.depth_estimator.dtype)
    seconds = {row["contender"]: row["seconds"] for row in rows}
    return {"rival": EMBEDDED, "rows": rows, "further_k": seconds[EMBEDDED_FURTHER] / seconds[EMBEDDED_FIRST]}


def _counted_parts(true_size: bool, dtype: torch.dtype, prompt_tokens: int) -> dict[str, torch.nn.Module]:
    """Parts of a pipeline without text encoders on the meta device, by their names."""
    meta = torch.device("meta")
    transformer = models.transformer(true_size, meta, dtype)
    depth = models.depth_anything(true_size, meta, dtype)
    return {
        "transformer": transformer,
        "vae": models.autoencoder(true_size, meta, dtype),
        "depth_estimator": models.with_dsfa(depth, (2, 3)),
        "bokeh_adapter": models.adapter(transformer, prompt_tokens),
    }


def _load(device: torch.device, dtype: torch.dtype, repeats: int) -> dict[str, Any]:
    """A real load of a small pipeline from a folder, by `load_pipeline`, and the bytes that counting gives.

    The folder has just been written, so it lies in the system's cache: what is timed is the loader, without a cold
    disk. Much of that goes to making modules, whatever their size, so at true size the rate is higher.

    Args:
        device: where the pipeline goes.
        dtype: of the files and in memory.
        repeats: rounds; the median counts.

    Returns:
        `rival`; `rows` with `contender`, `seconds` of wall time, `time_over_rival`, and the gate that the tensors in
        the files are the bytes counted on the meta device, all of them; `files_mb` with headers, `read_mb` counted
        and `read_mb_per_s`; elsewhere than on the CPU also `moved_mb` counted and `moved_mb_per_s`.
    """
    parts, cpu = _counted_parts(False, dtype, 8), torch.device("cpu")
    tensors_once = {id(t): t for part in parts.values() for t in part.state_dict(keep_vars=True).values()}
    counted = sum(tensor.nbytes for tensor in tensors_once.values())
    loaded: list[BokehDepthPipeline] = []

    def read() -> None:
        loaded[:] = [load_pipeline(folder, dtype=dtype)]
        # Weights in the files' own precision are mapped, and read only where something touches them.
        for part in loaded[0].components.values():
            if isinstance(part, torch.nn.Module):
                sum(tensor.sum() for tensor in part.parameters())

    def move() -> None:
        loaded[0].to(device)
        torch.cuda.synchronize(device) if device.type == "cuda" else None

    contenders = {READ: read} | ({} if device.type == "cpu" else {MOVED: move})
    with tempfile.TemporaryDirectory() as folder:
        pipe = models.pipeline(False, cpu, dtype, 64, 8)
        pipe.register_modules(depth_estimator=models.with_dsfa(models.depth_anything(False, cpu, dtype), (2, 3)))
        pipe.save_pretrained(folder)
        paths = list(Path(folder).rglob("*.safetensors"))
        files, tensors = sum(path.stat().st_size for path in paths), sum(tensor_bytes(path) for path in paths)
        timed = timing.measured(
            contenders,
            repeats,
            {"seconds": time.perf_counter},
            lambda name: read() if name == MOVED else loaded.clear(),
        )
        loaded.clear()  # before the files that it maps
    seconds = {name: found["seconds"] for name, found in timed.items()}
    rows = [
        {"contender": name, "seconds": taken, "time_over_rival": taken / seconds[READ]}
        | dict.fromkeys(("difference", "tolerance", "passed"))
        for name, taken in seconds.items()
    ]
    difference = abs(tensors - counted) / counted
    rows[0] |= {"difference": difference, "tolerance": 0.0, "passed": difference == 0}
    megabytes = {"files_mb": files / 1e6, "read_mb": counted / 1e6}
    rates = {"read_mb_per_s": megabytes["read_mb"] / seconds[READ]}
    if MOVED in seconds:
        megabytes["moved_mb"] = counted / 1e6
        rates["moved_mb_per_s"] = megabytes["moved_mb"] / seconds[MOVED]
    return {"rival": READ, "rows": rows, **megabytes, **rates}


def tensor_bytes(path: Path) -> int:
    """Bytes of the tensors in a safetensors file: all but its header and the length of that in 8 bytes."""
    with path.open("rb") as file:
        return path.stat().st_size - 8 - int.from_bytes(file.read(8), "little")


def as_text(result: dict[str, Any]) -> str:
    """Lay a result of `run` out as tables."""
    described = f"{result['device']}, {result['size_px']} px, {result['frames']} K, {result['steps']} steps"
    return gates.as_text(result, described)

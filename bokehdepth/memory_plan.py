"""Where the parts of a full-size pipeline stay, so that it fits the device, and what loading them costs.

Plans, from the fastest on; the first that fits is taken:

=========== ===========================================================================================
resident    every part stays on the device
offload     one part is on the device at a time, the others wait in main memory
float8      as offload, the transformer's weights stored as 8-bit floats and widened layer by layer
stream      a few layers are on the device at a time
=========== ===========================================================================================

Sizes of FLUX.1-Kontext in bfloat16: transformer 23.8 GB, T5 9.5 GB. Working memory is an estimate, not a measurement.
Weights are counted: on the meta device too, where nothing is allocated and nothing read.
No plan bakes the modulation, which would leave 17.3 GB (`baked_bytes`): the released weights read another prompt for
every K, and `acceleration.bake_modulation` holds for one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from .acceleration import modulation_layers
from .errors import InputError

if TYPE_CHECKING:
    from .pipeline_bokehdepth import BokehDepthPipeline

PLANS = ("resident", "offload", "float8", "stream")
_ALWAYS_RESIDENT = ("bokeh_adapter",)
_REFERENCE_AREA_PX = 512 * 512
_WORKING_BASE_BYTES = 1_400_000_000
_WORKING_FRAME_BYTES = 450_000_000
_FLOAT8_SHARE = 0.64  # of the transformer: diffusers leaves its AdaLN layers, 27 % of the weights, as they are
_STREAM_SHARE = 1 / 20  # of the largest part: a double block and the one that is loaded ahead, of 57 blocks


@dataclass(frozen=True)
class MemoryPlan:
    """A choice.

    Attributes:
        name: One of `PLANS`.
        needed_bytes: Expected peak on the device, work included.
        available_bytes: Memory of the device; None where it is main memory.
    """

    name: str
    needed_bytes: int
    available_bytes: int | None


@dataclass(frozen=True)
class LoadBytes:
    """What loading a pipeline costs under a plan; time is bytes over the rates of disk and bus.

    Attributes:
        read: From disk to main memory, which every plan does with every part, once; a file of the precision that is
            wanted is mapped, and read when its weights are first used or moved.
        moved: From main memory to the device until the pipeline stands ready. What offloading and streaming move
            later, in each call, is no part of loading.
    """

    read: int
    moved: int


def module_bytes(module: nn.Module) -> int:
    """Bytes of a module's parameters and buffers, each tensor once; the meta device has sizes too."""
    return _bytes_of((*module.parameters(), *module.buffers()))


def stored_bytes(module: nn.Module) -> int:
    """Bytes of the tensors in a module's safetensors files, each tensor once, as `save_pretrained` writes them.

    Buffers that are made anew at every start are in memory and not in files. The files' headers, some 100 bytes for
    each tensor, and configurations are not counted. Files of another precision, like the released adapter and depth
    models in float32, are larger or smaller by its width.

    Args:
        module: In the precision of the files; one on the meta device has sizes too.
    """
    return _bytes_of(module.state_dict(keep_vars=True).values())


def _bytes_of(tensors: Iterable[torch.Tensor]) -> int:
    each = {id(tensor): tensor for tensor in tensors}
    return sum(tensor.numel() * tensor.element_size() for tensor in each.values())


def baked_bytes(transformer: nn.Module) -> int:
    """Bytes that `acceleration.bake_modulation` leaves of a FLUX transformer, but for its tables of a few MB.

    Args:
        transformer: Not baked; one on the meta device has sizes too.
    """
    removed = [transformer.time_text_embed, *(layer.linear for layer in modulation_layers(transformer).values())]
    return module_bytes(transformer) - sum(module_bytes(module) for module in removed)


def working_bytes(area_px: int, frames: int) -> int:
    """Memory beside the weights, estimated: 1.4 GB, and 0.45 GB for each frame of 512 x 512 px.

    Args:
        area_px: Pixels of a frame at work.
        frames: Frames that are denoised together.

    Raises:
        InputError: A value is not positive.
    """
    for name, value in (("area_px", area_px), ("frames", frames)):
        if not value > 0:
            raise InputError(f"{name} is {value}; wanted a positive number.")
    return round(_WORKING_BASE_BYTES + _WORKING_FRAME_BYTES * frames * area_px / _REFERENCE_AREA_PX)


def device_memory_bytes(device: str | torch.device) -> int | None:
    """Memory of a device in bytes; None for the CPU, whose weights are where they are anyway.

    Raises:
        InputError: The device is of another kind, or this machine does not have it.
    """
    device = torch.device(device)
    if device.type == "cpu":
        return None
    if device.type == "cuda" and torch.cuda.is_available():
        return torch.cuda.get_device_properties(device).total_memory
    if device.type == "mps" and torch.backends.mps.is_available():
        return torch.mps.recommended_max_memory()
    raise InputError(f"device is {str(device)!r}, which this machine does not have; wanted cpu, cuda or mps.")


def needed_bytes(sizes: Mapping[str, int], working: int) -> dict[str, int]:
    """Expected peak on the device under each plan.

    Args:
        sizes: Bytes of each part by its name in the pipeline.
        working: Bytes beside the weights.

    Returns:
        Bytes by plan, in the order of `PLANS`.
    """
    resident = sum(sizes.get(name, 0) for name in _ALWAYS_RESIDENT)
    moved = {name: size for name, size in sizes.items() if name not in _ALWAYS_RESIDENT}
    narrowed = {name: round(_FLOAT8_SHARE * size) if name == "transformer" else size for name, size in moved.items()}
    largest = max(moved.values(), default=0)
    return {
        "resident": resident + sum(moved.values()) + working,
        "offload": resident + largest + working,
        "float8": resident + max(narrowed.values(), default=0) + working,
        "stream": resident + round(_STREAM_SHARE * largest) + working,
    }


def load_bytes(sizes: Mapping[str, int], stored: Mapping[str, int]) -> dict[str, LoadBytes]:
    """What is read from disk, and moved to the device by `apply_plan`, under each plan.

    Args:
        sizes: Bytes of each part in memory by its name in the pipeline, as `module_bytes` counts them.
        stored: Bytes of each part in its files by the same names, as `stored_bytes` counts them.

    Returns:
        Costs by plan, in the order of `PLANS`.
    """
    read = sum(stored.values())
    kept = sum(sizes.get(name, 0) for name in _ALWAYS_RESIDENT)
    return {plan: LoadBytes(read, sum(sizes.values()) if plan == "resident" else kept) for plan in PLANS}


def plan_memory(
    sizes: Mapping[str, int], available_bytes: int | None, working: int, name: str | None = None
) -> MemoryPlan:
    """Choose the fastest plan that fits.

    Args:
        sizes: Bytes of each part by its name in the pipeline.
        available_bytes: Memory of the device; None is main memory, where every part is resident.
        working: Bytes beside the weights.
        name: A plan to take whether or not it seems to fit; None chooses.

    Returns:
        The plan.

    Raises:
        InputError: ``name`` is no plan, or none fits.
    """
    needed = needed_bytes(sizes, working)
    if name is not None:
        if name not in needed:
            raise InputError(f"plan is {name!r}; wanted one of {', '.join(PLANS)}.")
        if available_bytes is None and name != "resident":
            raise InputError(f"plan is {name!r}; wanted 'resident' on the CPU, which moves nothing.")
        return MemoryPlan(name, needed[name], available_bytes)
    for plan, size in needed.items():
        if available_bytes is None or size <= available_bytes:
            return MemoryPlan(plan, size, available_bytes)
    raise InputError(
        f"device has {available_bytes / 1e9:.1f} GB; wanted {min(needed.values()) / 1e9:.1f} GB or more, which even "
        "streaming needs."
    )


def apply_plan(pipe: BokehDepthPipeline, plan: MemoryPlan, device: str | torch.device) -> None:
    """Place a pipeline by a plan.

    Args:
        pipe: With all its parts, on the CPU.
        plan: As `plan_memory` returns it.
        device: Where it runs.
    """
    device = torch.device(device)
    if plan.name == "resident":
        pipe.to(device)
        return
    if plan.name == "float8" and pipe.transformer is not None:
        store_transformer_float8(pipe)
    if plan.name == "stream":
        pipe.enable_group_offload(
            device,
            offload_type="leaf_level",
            use_stream=device.type == "cuda",
            exclude_modules=list(_ALWAYS_RESIDENT),
        )
    else:
        pipe.enable_model_cpu_offload(device=device)


def store_transformer_float8(pipe: BokehDepthPipeline) -> None:
    """Fold the adapter's change of queries and keys in, then store the transformer's weights as float8 (e4m3).

    The fold comes first, since it cannot be computed on rounded weights. Calculation stays in the precision before,
    and so do the adapter's own weights, which the transformer holds too: they are few, and K acts through them.

    Args:
        pipe: With its transformer; an adapter is attached and folded.
    """
    processors: tuple[type, ...] = ()
    if pipe.bokeh_adapter is not None:
        pipe.bokeh_adapter.attach(pipe.transformer)
        pipe.bokeh_adapter.fold()
        processors = tuple({type(block) for block in pipe.bokeh_adapter.blocks.values()})
    pipe.transformer.enable_layerwise_casting(
        torch.float8_e4m3fn, compute_dtype=pipe.transformer.dtype, skip_modules_classes=processors
    )

"""`bokehdepth bench training`: a step of adapter training, time and peak memory, with and without each saving."""

from collections.abc import Callable
from typing import Any

import torch

from bokehdepth.benchmarks import gates, models, timing
from bokehdepth.benchmarks.gates import Contender, compare
from bokehdepth.benchmarks.memory import fused_attention, peak_bytes, saved_bytes
from bokehdepth.errors import InputError
from bokehdepth.sampling_bokehdepth import encode_reference

PLAIN, CHECKPOINTED = "plain step", "gradient checkpointing"
FIXED, FIXED_CHECKPOINTED = "photo's keys apart", "photo's keys apart, checkpointing"
SHORT = "short prompt"


def run(
    size_px: int = 160,
    batch: int = 2,
    device: str = "cpu",
    repeats: int = 3,
    true_size: bool = False,
    count: bool = False,
) -> dict[str, Any]:
    """Measure all contenders: forward, backward and AdamW's step of the adapter, the base frozen.

    Args:
        size_px: side of the square photos, a multiple of 16 from 64.
        batch: photos in a step.
        device: where it runs: base and adapter in float32 on the CPU, in bfloat16 elsewhere.
        repeats: rounds; the median counts.
        true_size: FLUX.1-Kontext's own size.
        count: count memory as on a GPU, in bfloat16, and run nothing.

    Returns:
        `machine`, the arguments, `groups` with "step": `rival` and `rows` as `gates.compare` gives them, and `memory`
        as `counted_memory` gives it.

    Raises:
        InputError: a number is out of range.
    """
    if size_px < 64 or size_px % 16:
        raise InputError(f"size_px is {size_px}, wanted a multiple of 16 from 64")
    if batch < 1:
        raise InputError(f"batch is {batch}, wanted 1 or more")
    place = torch.device(device)
    dtype = torch.float32 if place.type == "cpu" and not count else torch.bfloat16
    memory = counted_memory(size_px, batch, true_size, dtype)
    groups = {}
    if not count:
        with gates.one_thread(place):
            base, parts = _parts(size_px, batch, true_size, place, dtype)
            tolerance = 1e-4 if dtype == torch.float32 else 3e-2
            exact = {CHECKPOINTED: PLAIN, FIXED_CHECKPOINTED: FIXED}
            contenders = {
                name: Contender(step, exact.get(name), tolerance if name in exact else None, prepare)
                for name, (prepare, step) in parts.items()
            }
            groups["step"] = {"rival": PLAIN, "rows": compare(contenders, PLAIN, repeats, place, dtype)}
    arguments = {"size_px": size_px, "batch": batch, "device": device, "true_size": true_size}
    return {"machine": timing.machine(device), **arguments, "groups": groups, "memory": memory}


def counted_memory(size_px: int, batch: int, true_size: bool, dtype: torch.dtype) -> list[dict[str, Any]]:
    """Memory of each contender's step, counted on the meta device: nothing is allocated and nothing computed.

    Args:
        size_px: side of the square photos.
        batch: photos in a step.
        true_size: FLUX.1-Kontext's own size.
        dtype: of base, adapter and pictures.

    Returns:
        Rows with `contender`; `weights_gb` of the base and one adapter; `saved_gb`, what the forward pass keeps for
        the backward pass; `peak_gb`, the largest sum of all that a step holds beside weights (activations, gradients,
        AdamW's state); and `total_gb`, weights and peak. Kernels' own work space is not counted.
    """
    meta, rows = torch.device("meta"), []
    base, parts = _parts(size_px, batch, true_size, meta, dtype)
    with fused_attention():
        for name, (prepare, step) in parts.items():
            prepare()
            weights = [*base.parameters(), *base.buffers(), *step.adapter.parameters(), *step.adapter.buffers()]
            there = sum(tensor.nbytes for tensor in weights)
            saved, peak = saved_bytes(step.forward, weights), peak_bytes(step, meta)
            sizes = {"weights_gb": there, "saved_gb": saved, "peak_gb": peak, "total_gb": there + peak}
            rows.append({"contender": name} | {key: size / 1e9 for key, size in sizes.items()})
    return rows


def _parts(
    size_px: int, batch: int, true_size: bool, place: torch.device, dtype: torch.dtype
) -> tuple[torch.nn.Module, dict[str, tuple[Callable[[], None], "_Step"]]]:
    """The base, and what prepares and what runs each contender."""
    tokens = (size_px // 16) ** 2
    long, short = (512, 64) if true_size else (tokens // 2, tokens // 16)
    base = models.transformer(true_size, place, dtype).requires_grad_(False).train()
    full = models.adapter(base, long)
    fixed = models.adapter(base, long, reference_attention="causal", reference_timestep=0.0)
    bench = _Steps(base, size_px, batch)
    named = {
        PLAIN: (full, False, long),
        CHECKPOINTED: (full, True, long),
        SHORT: (full, False, short),
        FIXED: (fixed, False, long),
        FIXED_CHECKPOINTED: (fixed, True, long),
    }
    return base, {
        name: (bench.ready(adapter, checkpointing), _Step(bench, adapter, prompt_tokens))
        for name, (adapter, checkpointing, prompt_tokens) in named.items()
    }


class _Steps:
    def __init__(self, base: torch.nn.Module, size_px: int, batch: int) -> None:
        self.base, self.carried = base, None
        self.start: dict[str, torch.Tensor] = {}
        place = {"device": base.device, "dtype": base.dtype}
        side, channels = size_px // 16, base.config.in_channels
        meta = base.device.type == "meta"  # which has no chance
        generator = None if meta else torch.Generator(base.device).manual_seed(0)
        drawn = [torch.randn(batch, side**2, channels, generator=generator, **place) for _ in range(3)]
        self.noisy, self.photo, self.wanted = drawn
        rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
        grids = [torch.stack([torch.full_like(rows, stream), rows, columns], -1).flatten(0, 1) for stream in (0, 1)]
        self.ids = torch.cat(grids).to(**place)
        self.strengths = [30.0 * (i + 1) / batch for i in range(batch)]
        self.sigma = torch.full((batch,), 0.5, **place)
        self.guidance = torch.full((batch,), 3.5, **place)

    def ready(self, adapter: torch.nn.Module, checkpointing: bool) -> Callable[[], None]:
        """Something that attaches an adapter with the weights that it had at first."""

        def enter() -> None:
            if self.carried is not None:
                self.carried.detach()
            adapter.attach(self.base)
            self.carried = adapter
            if not self.start.get(id(adapter)):
                self.start[id(adapter)] = {k: v.clone() for k, v in adapter.state_dict().items()}
            adapter.load_state_dict(self.start[id(adapter)])
            adapter.requires_grad_(True).train()
            self.base.enable_gradient_checkpointing() if checkpointing else self.base.disable_gradient_checkpointing()

        return enter


class _Step:
    """One step; called it returns the gradients as one vector."""

    def __init__(self, bench: _Steps, adapter: torch.nn.Module, prompt_tokens: int) -> None:
        self.bench, self.adapter, self.prompt_tokens = bench, adapter, prompt_tokens

    def forward(self) -> torch.Tensor:
        """The loss, with its graph."""
        bench, adapter = self.bench, self.adapter
        batch, count = bench.noisy.shape[:2]
        pooled = adapter.pooled_prompt_embeds.expand(batch, -1)
        condition = adapter.attention_kwargs(bench.strengths)
        sequence, ids = torch.cat([bench.noisy, bench.photo], dim=1), bench.ids
        if adapter.config.reference_timestep is not None:
            condition |= encode_reference(bench.base, adapter, bench.photo, ids[count:], pooled, bench.guidance)
            sequence, ids = bench.noisy, ids[:count]
        velocity = bench.base(
            hidden_states=sequence,
            encoder_hidden_states=adapter.prompt_embeds[: self.prompt_tokens].expand(batch, -1, -1),
            pooled_projections=pooled,
            timestep=bench.sigma,
            guidance=bench.guidance,
            img_ids=ids,
            txt_ids=ids.new_zeros(self.prompt_tokens, 3),
            joint_attention_kwargs=condition,
            return_dict=False,
        )[0][:, :count]
        return (velocity - bench.wanted).float().square().mean()

    def __call__(self) -> torch.Tensor:
        optimizer = torch.optim.AdamW(self.adapter.parameters(), lr=1e-4)
        self.forward().backward()
        gradients = torch.cat([p.grad.flatten() for p in self.adapter.parameters() if p.grad is not None])
        optimizer.step()
        optimizer.zero_grad()
        return gradients


_MEMORY_COLUMNS = {
    "contender": "contender",
    "weights_gb": "weights GB",
    "saved_gb": "kept for backward GB",
    "peak_gb": "peak beside weights GB",
    "total_gb": "together GB",
}


def as_text(result: dict[str, Any]) -> str:
    """Lay a result of `run` out as a table."""
    size = "FLUX's size" if result["true_size"] else "small size"
    memory = f"memory, counted\n\n{timing.table(result['memory'], _MEMORY_COLUMNS)}"
    described = f"{result['device']}, {size}, {result['size_px']} px, batch {result['batch']}"
    return f"{gates.as_text(result, described)}\n\n{memory}"

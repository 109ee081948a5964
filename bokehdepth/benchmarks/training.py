"""`bokehdepth bench training`: a step of adapter training, time and peak memory, with and without each saving."""

from collections.abc import Callable
from typing import Any

import torch

from bokehdepth.benchmarks import gates, models, timing
from bokehdepth.benchmarks.gates import Contender, compare
from bokehdepth.errors import InputError
from bokehdepth.sampling_bokehdepth import encode_reference

PLAIN, CHECKPOINTED = "plain step", "gradient checkpointing"
FIXED, FIXED_CHECKPOINTED = "photo's keys apart", "photo's keys apart, checkpointing"
SHORT = "short prompt"


def run(
    size_px: int = 160, batch: int = 2, device: str = "cpu", repeats: int = 3, true_size: bool = False
) -> dict[str, Any]:
    """Measure all contenders: forward, backward and AdamW's step of the adapter, the base frozen.

    Args:
        size_px: side of the square photos, a multiple of 16 from 64.
        batch: photos in a step.
        device: where it runs: the base in float32 on the CPU, in bfloat16 elsewhere, the adapter in float32.
        repeats: rounds; the median counts.
        true_size: FLUX.1-Kontext's own size.

    Returns:
        `machine`, the arguments, and `groups` with "step": `rival` and `rows` as `gates.compare` gives them.

    Raises:
        InputError: a number is out of range.
    """
    if size_px < 64 or size_px % 16:
        raise InputError(f"size_px is {size_px}, wanted a multiple of 16 from 64")
    if batch < 1:
        raise InputError(f"batch is {batch}, wanted 1 or more")
    place = torch.device(device)
    dtype = torch.float32 if place.type == "cpu" else torch.bfloat16
    tokens = (size_px // 16) ** 2
    long, short = (512, 64) if true_size else (tokens // 2, tokens // 16)
    with gates.one_thread(place):
        base = models.transformer(true_size, place, dtype).requires_grad_(False).train()
        adapters = {
            "full": models.adapter(base, long),
            "fixed": models.adapter(base, long, reference_attention="causal", reference_timestep=0.0),
        }
        bench = _Steps(base, size_px, batch)
        tolerance = 1e-4 if dtype == torch.float32 else 3e-2
        contenders = {
            PLAIN: Contender(bench.step(adapters["full"], long), prepare=bench.ready(adapters["full"], False)),
            CHECKPOINTED: Contender(
                bench.step(adapters["full"], long), PLAIN, tolerance, bench.ready(adapters["full"], True)
            ),
            SHORT: Contender(bench.step(adapters["full"], short), prepare=bench.ready(adapters["full"], False)),
            FIXED: Contender(bench.step(adapters["fixed"], long), prepare=bench.ready(adapters["fixed"], False)),
            FIXED_CHECKPOINTED: Contender(
                bench.step(adapters["fixed"], long), FIXED, tolerance, bench.ready(adapters["fixed"], True)
            ),
        }
        rows = compare(contenders, PLAIN, repeats, place, dtype)
    arguments = {"size_px": size_px, "batch": batch, "device": device, "true_size": true_size}
    return {"machine": timing.machine(device), **arguments, "groups": {"step": {"rival": PLAIN, "rows": rows}}}


class _Steps:
    def __init__(self, base: torch.nn.Module, size_px: int, batch: int) -> None:
        self.base, self.carried = base, None
        self.start: dict[str, torch.Tensor] = {}
        place = {"device": base.device, "dtype": base.dtype}
        side, channels = size_px // 16, base.config.in_channels
        generator = torch.Generator(base.device).manual_seed(0)
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

    def step(self, adapter: torch.nn.Module, prompt_tokens: int) -> Callable[[], torch.Tensor]:
        """One step, which returns the gradients as one vector."""

        def run() -> torch.Tensor:
            optimizer = torch.optim.AdamW(adapter.parameters(), lr=1e-4)
            batch, count = self.noisy.shape[:2]
            pooled = adapter.pooled_prompt_embeds.expand(batch, -1)
            condition = adapter.attention_kwargs(self.strengths)
            sequence, ids = torch.cat([self.noisy, self.photo], dim=1), self.ids
            if adapter.config.reference_timestep is not None:
                condition |= encode_reference(self.base, adapter, self.photo, ids[count:], pooled, self.guidance)
                sequence, ids = self.noisy, ids[:count]
            velocity = self.base(
                hidden_states=sequence,
                encoder_hidden_states=adapter.prompt_embeds[:prompt_tokens].expand(batch, -1, -1),
                pooled_projections=pooled,
                timestep=self.sigma,
                guidance=self.guidance,
                img_ids=ids,
                txt_ids=ids.new_zeros(prompt_tokens, 3),
                joint_attention_kwargs=condition,
                return_dict=False,
            )[0][:, :count]
            (velocity - self.wanted).float().square().mean().backward()
            gradients = torch.cat([p.grad.flatten() for p in adapter.parameters() if p.grad is not None])
            optimizer.step()
            optimizer.zero_grad()
            return gradients

        return run


def as_text(result: dict[str, Any]) -> str:
    """Lay a result of `run` out as a table."""
    size = "FLUX's size" if result["true_size"] else "small size"
    return gates.as_text(result, f"{result['device']}, {size}, {result['size_px']} px, batch {result['batch']}")

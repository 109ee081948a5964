"""Ways to make a full-size Stage-1 smaller, each of them a call that can be left out.

`bake_modulation` is exact and saves 27 % of the transformer's weights: its AdaLN layers become tables. `quantize` is
approximate and leaves half or a quarter of the linear layers' weights. Load LoRAs first, then bake, then quantise
(which folds the adapter in for good), then place on the device.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from .errors import InputError, load_extra

if TYPE_CHECKING:
    from .pipeline_bokehdepth import BokehDepthPipeline

QUANTIZATIONS = ("float8", "int8", "int4")
_MODULATION = ("norm1", "norm1_context", "norm")  # of a double block, and of a single block
_BLOCKS = ("transformer_blocks", "single_transformer_blocks")


class BakedEmbedding(nn.Module):
    """Stands for a transformer's `time_text_embed`: finds the row of a call's noise level, guidance and prompt.

    Args:
        timesteps: (R,) of each row, as the transformer passes them on.
        guidance: (R,) likewise, or None of a transformer without.
        pooled: (R, P) pooled projections.
    """

    def __init__(self, timesteps: torch.Tensor, guidance: torch.Tensor | None, pooled: torch.Tensor) -> None:
        super().__init__()
        self.is_baked = True
        # The layers that were taken out would be missing from what is saved.
        self.register_state_dict_pre_hook(_refuse_saving)
        self.register_buffer("timesteps", timesteps)
        self.register_buffer("guidance", guidance)
        self.register_buffer("pooled", pooled)

    def forward(self, timestep: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        """Row numbers (B, 1) in the dtype of the pooled projection, which later layers look up.

        Raises:
            InputError: a noise level, guidance, prompt or K was not baked.
        """
        *guidance, pooled = rest
        distance = (timestep[:, None] - self.timesteps).abs().float()  # 1 is a thousandth of the noise
        if guidance:
            distance = distance + (guidance[0][:, None] - self.guidance).abs().float()
        # A K nearby changes many numbers a little, rounding in another batch size a few by one step.
        apart = (pooled[:, None] - self.pooled).float().abs().mean(-1)
        scale = self.pooled.float().abs().mean().clamp(min=1e-6)
        distance = distance + apart / (scale * (1e-5 if pooled.dtype.itemsize > 2 else 1e-4))
        least, row = distance.min(1)
        if bool((least > 1).any()):
            raise InputError(
                "modulation was baked for other numbers of steps, sizes at work, guidance, prompts or K; wanted those "
                "that it was baked for, or restore_modulation() first."
            )
        # Row numbers of a table are small: every floating-point type holds them up to 256 exactly.
        return row[:, None].to(pooled.dtype)


def _refuse_saving(embedding: BakedEmbedding, prefix: str, keep_vars: bool) -> None:
    raise InputError("transformer has its modulation baked; wanted restore_modulation() before its weights are saved.")


class BakedLinear(nn.Module):
    """Stands for an AdaLN layer's linear map: a table of its outputs (R, D_out)."""

    def __init__(self, table: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("table", table)

    def forward(self, row: torch.Tensor) -> torch.Tensor:
        """Row numbers (B, 1) to rows (B, D_out)."""
        return self.table[row[:, 0].long()]


def modulation_layers(transformer: nn.Module) -> dict[str, nn.Module]:
    """The AdaLN layers of a Flux transformer by their name; each has `silu` and `linear`."""
    names = [
        f"{group}.{index}.{name}"
        for group in _BLOCKS
        for index, block in enumerate(getattr(transformer, group))
        for name in _MODULATION
        if hasattr(block, name)
    ]
    return {name: transformer.get_submodule(name) for name in [*names, "norm_out"]}


@torch.no_grad()
def bake_modulation(
    pipe: BokehDepthPipeline,
    bokeh_strengths: Sequence[float] | float | None = None,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    token_counts: Iterable[int] | None = None,
    prompt_embeds: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> dict[str, nn.Module]:
    """Replaces AdaLN's layers by tables of what they give for a fixed schedule, guidance and prompt.

    In FLUX.1-Kontext they hold 3.2 of 11.9 billion weights, and for one prompt and ten steps give 21 MB of numbers.
    Frames are the same to rounding. Calls that need another row are refused. K matters only to adapters that condition
    the modulation.

    Args:
        pipe: with transformer, scheduler and adapter.
        bokeh_strengths: K that will be asked for; None is what `generate_stack` takes then.
        num_inference_steps: None takes what suits the weights.
        guidance_scale: None takes what suits the weights.
        token_counts: tokens of a noisy picture, (h / 16) (w / 16), for each size at work, since some schedules depend
            on it; None takes the square of the area that suits the weights.
        prompt_embeds: as `encode_prompt` gives them, in place of the adapter's prompt.

    Returns:
        The layers that were taken out, for `restore_modulation`; without a reference to them their memory is freed.

    Raises:
        InputError: the modulation is baked already, LoRAs are on its layers, or too many rows are asked for.
    """
    transformer, adapter = pipe.transformer, pipe.bokeh_adapter
    if isinstance(transformer.time_text_embed, BakedEmbedding):
        raise InputError("modulation is baked already; wanted restore_modulation() first.")
    strengths = pipe.check_bokeh_strengths(bokeh_strengths, ("bokeh_adapter",))
    for name, layer in modulation_layers(transformer).items():
        if type(layer.linear) is not nn.Linear:
            kind = f"{type(layer.linear).__name__} (unload LoRAs)"
            raise InputError(f"`{name}.linear` must be a plain torch.nn.Linear to be baked, got {kind}.")
    given = (None, None) if prompt_embeds is None else prompt_embeds
    device, dtype = transformer.device, transformer.dtype
    _, pooled = pipe._prompt(None, *given, device, dtype)
    if token_counts is None:
        area = adapter.config.max_area
        token_counts = (round(area**0.5 / (2 * pipe.vae_scale_factor)) ** 2,)
    steps = int(num_inference_steps or adapter.config.num_inference_steps)
    scale = adapter.config.guidance_scale if guidance_scale is None else guidance_scale
    # As the sampler passes them on, to the last bit.
    levels = sorted({float(t / 1000) for count in token_counts for t in pipe.schedule(steps, count)[1]}, reverse=True)
    modulated = adapter.modulate(pooled.expand(len(strengths), -1), strengths)
    prompts = modulated if adapter.k_modulation is not None else pooled
    pairs = [(level, row) for level in levels for row in prompts]
    if adapter.config.reference_timestep is not None:
        pairs.append((adapter.config.reference_timestep, pooled[0]))
    if len(pairs) > 256:
        raise InputError(f"{len(pairs)} combinations of noise level and K are asked for; wanted at most 256.")
    # The same roundings as in the transformer's own forward.
    timesteps = torch.tensor([level for level, _ in pairs], device=device, dtype=torch.float64).to(dtype) * 1000
    rows = torch.stack([row for _, row in pairs])
    guidance = None
    if transformer.config.guidance_embeds:
        guidance = torch.full_like(timesteps, scale) * 1000
    conditions = (timesteps, rows) if guidance is None else (timesteps, guidance, rows)
    embedding = transformer.time_text_embed(*conditions)  # (R, D)

    removed: dict[str, nn.Module] = {"time_text_embed": transformer.time_text_embed}
    transformer.time_text_embed = BakedEmbedding(timesteps, guidance, rows)
    for name, layer in modulation_layers(transformer).items():
        removed[f"{name}.silu"], removed[f"{name}.linear"] = layer.silu, layer.linear
        layer.linear = BakedLinear(layer.linear(layer.silu(embedding)))
        layer.silu = nn.Identity()
    return removed


def restore_modulation(transformer: nn.Module, removed: dict[str, nn.Module]) -> None:
    """Puts back what `bake_modulation` took out of a transformer."""
    for name, module in removed.items():
        parent, _, child = name.rpartition(".")
        setattr(transformer.get_submodule(parent), child, module.to(transformer.device))


def quantize(pipe: BokehDepthPipeline, kind: str) -> None:
    """Stores the linear layers of the transformer's blocks in fewer bits; the adapter is folded in first.

    Args:
        pipe: with its transformer in the dtype that it calculates in.
        kind: "float8" (weights and activations, for compute capability 8.9 and higher), "int8" (weights) or "int4"
            (weights, in groups of 128).

    Raises:
        InputError: the kind is unknown, or torchao is not installed.
    """
    if kind not in QUANTIZATIONS:
        raise InputError(f"kind is {kind!r}; wanted one of {', '.join(QUANTIZATIONS)}.")
    torchao = load_extra("torchao.quantization", "quant", f"kind {kind!r}")
    pipe.bokeh_adapter.attach(pipe.transformer)
    pipe.bokeh_adapter.fold()
    if kind == "float8":
        settings = torchao.Float8DynamicActivationFloat8WeightConfig(granularity=torchao.PerRow())
    elif kind == "int8":
        settings = torchao.Int8WeightOnlyConfig()
    else:
        settings = torchao.Int4WeightOnlyConfig(group_size=128)

    def chosen(module: nn.Module, name: str) -> bool:
        return isinstance(module, nn.Linear) and name.split(".")[0] in _BLOCKS and ".processor." not in name

    torchao.quantize_(pipe.transformer, settings, filter_fn=chosen)
    pipe.bokeh_adapter.seal(kind)

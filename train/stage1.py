"""Trains the embedded Stage-1 model: `python -m train.stage1 --config train/configs/mini_stage1.yaml`.

Flow matching in Kontext form (Eq. 10-12): noisy tokens of the bokeh picture, tokens of the sharp photo, and K. The
network predicts the clean picture, so the loss is taken there. The run goes on from its last checkpoint; the folder
`<output>/model` always holds the averaged weights of that checkpoint, in the layout that `BokehDepthPipeline` loads.
"""

from __future__ import annotations

import json
import logging
import math
import time
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from bokehdepth.modeling_bokeh_adapter import BokehAdapter
from bokehdepth.modeling_mini_flux import MiniFluxTransformer2DModel, PatchAutoencoder
from train import checkpointing, config, losses
from train.config import Stage1Config
from train.data import ScenePool

logger = logging.getLogger("train.stage1")


class Stage1Network(nn.Module):
    """Transformer and adapter as one trainable module.

    Args:
        transformer: arguments of `MiniFluxTransformer2DModel`.
        adapter: arguments of `BokehAdapter`.
    """

    def __init__(self, transformer: dict, adapter: dict) -> None:
        super().__init__()
        self.transformer = MiniFluxTransformer2DModel(**transformer)
        sizes = ("num_attention_heads", "attention_head_dim", "joint_attention_dim", "pooled_projection_dim")
        self.adapter = BokehAdapter(
            num_double_blocks=self.transformer.config.num_layers,
            num_single_blocks=self.transformer.config.num_single_layers,
            prompt_length=1,
            **{name: self.transformer.config[name] for name in sizes},
            **adapter,
        )
        self.autoencoder = PatchAutoencoder()

    def forward(
        self, image: torch.Tensor, noisy: torch.Tensor, sigma: torch.Tensor, strength: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One prediction.

        Args:
            image: (B, 3, H, W) sharp photo in [-1, 1], H and W multiples of 16.
            noisy: (B, 3, H, W), `(1 - sigma) x0 + sigma noise`.
            sigma: (B,) in (0, 1].
            strength: (B,) K.

        Returns:
            x0 (B, 3, H, W) in [-1, 1], and the blend logits (B, J, H/2, W/2).
        """
        batch, _, height, width = image.shape
        grid = torch.meshgrid(torch.arange(height // 16), torch.arange(width // 16), indexing="ij")
        ids = torch.stack([torch.zeros_like(grid[0]), *grid], dim=-1).flatten(0, 1).float()
        reference_ids = ids.clone()
        reference_ids[:, 0] = 1
        pack = self.transformer._pack
        tokens = pack(noisy)
        prompt = self.adapter.prompt_embeds.expand(batch, -1, -1)
        pooled = self.adapter.modulate(self.adapter.pooled_prompt_embeds.expand(batch, -1), strength)
        velocity, logits = self.transformer(
            torch.cat([tokens, pack(image)], dim=1),
            encoder_hidden_states=prompt,
            pooled_projections=pooled,
            timestep=sigma,
            img_ids=torch.cat([ids, reference_ids]),
            txt_ids=torch.zeros(prompt.shape[1], 3),
            joint_attention_kwargs={**self.adapter.attention_kwargs(strength), "bokeh_strengths": strength},
            return_weights=True,
        )
        x0 = tokens - sigma[:, None, None] * velocity[:, : tokens.shape[1]].float()
        return self.transformer._unpack(x0, height // 16, width // 16), logits


def draw_sigma(batch: int, generator: torch.Generator) -> torch.Tensor:
    """Noise levels (B,): 1 for half of the samples (a one-step sampler sees no other), else a logit-normal draw."""
    spread = torch.sigmoid(torch.randn(batch, generator=generator) + 0.8)
    return torch.where(torch.rand(batch, generator=generator) < 0.5, torch.ones(batch), spread.clamp(min=0.05))


def locate(phases: list[dict], step: int) -> tuple[dict, int]:
    """The phase that a step belongs to, and the step's number within it."""
    for phase in phases:
        if step < phase["steps"]:
            return phase, step
        step -= phase["steps"]
    raise ValueError(f"step is {step} beyond the last phase.")


def learning_rate(cfg: Stage1Config, step: int) -> float:
    """Linear warm-up of the whole run, cosine within each phase."""
    phase, inner = locate(cfg.phases, step)
    cosine = (1 + math.cos(math.pi * inner / phase["steps"])) / 2
    share = cfg.final_rate + (1 - cfg.final_rate) * cosine
    return phase["learning_rate"] * share * min(1.0, (step + 1) / cfg.warmup)


def export(network: Stage1Network, weights: dict[str, torch.Tensor], folder: Path) -> None:
    """Writes transformer, adapter, autoencoder and scheduler as a pipeline's component folders."""
    trained = {k: v.clone() for k, v in network.state_dict().items()}
    network.load_state_dict(weights)
    with network.adapter.detached():
        network.transformer.save_pretrained(folder / "transformer")
    network.adapter.save_pretrained(folder / "bokeh_adapter")
    network.autoencoder.save_pretrained(folder / "vae")
    FlowMatchEulerDiscreteScheduler().save_pretrained(folder / "scheduler")
    network.load_state_dict(trained)


def main() -> None:
    """Trains the embedded Stage-1 model."""
    arguments = config.parser(main.__doc__).parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    cfg = config.load(Stage1Config, arguments.config, arguments.set)
    torch.set_num_threads(cfg.threads)
    torch.manual_seed(cfg.seed)

    pool = ScenePool(cfg.pool, "train")
    network = Stage1Network(cfg.transformer, cfg.adapter).to(memory_format=torch.channels_last)
    # The adapter's modules are trained as its own, not a second time as the transformer's.
    parameters = list(network.parameters())
    network.adapter.attach(network.transformer)
    levels = torch.tensor(network.transformer.config.offsets_dpt)
    optimizer = torch.optim.AdamW(parameters, lr=0.0, betas=(0.9, 0.95), weight_decay=cfg.weight_decay)
    ema = checkpointing.Ema(network, cfg.ema_decay)
    output = Path(cfg.output)
    start = checkpointing.resume(output / "state.pt", model=network, ema=ema, optimizer=optimizer)
    total = sum(phase["steps"] for phase in cfg.phases)
    logger.info("%.2f M parameters, steps %d to %d", sum(p.numel() for p in parameters) / 1e6, start, total)

    began, sums = time.process_time(), {}
    for step in range(start, total):
        phase, _ = locate(cfg.phases, step)
        rng = checkpointing.step_rng(cfg.seed, step)
        noise_source = torch.Generator().manual_seed(int(rng.integers(2**62)))
        rows = rng.integers(len(pool), size=phase["batch"])
        batch = pool.batch(rows, phase["size_px"], rng)
        frame = torch.from_numpy(rng.integers(batch["strength"].shape[1], size=len(rows)))
        strength = batch["strength"][torch.arange(len(rows)), frame]
        target = batch["bokeh"][torch.arange(len(rows)), frame]
        clean, image = target * 2 - 1, batch["image"] * 2 - 1
        sigma = draw_sigma(len(rows), noise_source)
        spread = sigma[:, None, None, None]
        noisy = (1 - spread) * clean + spread * torch.randn(clean.shape, generator=noise_source)  # Eq. 10

        # On a CPU the fused attention's backward pass takes several times as long as plain products.
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            x0, logits = network(image, noisy, sigma, strength)
        radius = strength[:, None, None, None] * (phase["size_px"] / 512) * batch["offset_dpt"]
        terms = {
            "pixel": losses.balanced_pixel_loss(x0 / 2 + 0.5, target, radius),
            "level": losses.level_loss(logits, batch["offset_dpt"], levels),
        }
        loss = terms["pixel"] + cfg.level_weight * terms["level"]
        if not torch.isfinite(loss):
            raise RuntimeError(f"The loss is {loss.item()} at step {step}; the last checkpoint is in {output}.")
        loss.backward()
        norm = nn.utils.clip_grad_norm_(parameters, cfg.grad_clip)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(cfg, step)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        ema.update(network)

        for name, value in {**terms, "norm": norm}.items():
            sums[name] = sums.get(name, 0.0) + value.item()
        if (step + 1) % cfg.log_every == 0:
            values = "  ".join(f"{k} {v / cfg.log_every:.4f}" for k, v in sums.items())
            logger.info("step %d  %s  %.0f CPU s", step + 1, values, time.process_time() - began)
            sums = {}
            pool.refresh()
        if (step + 1) % cfg.save_every == 0 or step + 1 == total:
            checkpointing.save(
                output / "state.pt", config=cfg, step=step + 1, model=network, ema=ema, optimizer=optimizer
            )
            export(network, ema.average, output / "model")
            record = {"step": step + 1, "of": total, "cpu_s": time.process_time() - began, "scenes": len(pool)}
            (output / "model" / "training.json").write_text(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()

"""Trains the embedded Stage-2 model: `python -m train.stage2 --config train/configs/mini_stage2.yaml`.

Depth Anything with DSFA, from random weights, on the stacks of procedural scenes. Its controls are the same run with
`--set stack=none` (no stack, no DSFA) and `--set stack=sharp` (the sharp frame repeated). The run goes on from its
last checkpoint; `<output>/model` always holds the averaged weights.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import Dinov2Config

from bokehdepth.modeling_bokehdepth import BokehDepthAnythingConfig, BokehDepthAnythingForDepthEstimation
from bokehdepth.processing_bokehdepth import IMAGENET_MEAN, IMAGENET_STD
from train import checkpointing, config, losses
from train.config import Stage2Config
from train.data import ScenePool

logger = logging.getLogger("train.stage2")


def build_model(cfg: Stage2Config) -> BokehDepthAnythingForDepthEstimation:
    """The network with random weights, or the one that the configuration starts from."""
    if cfg.start_from:
        return BokehDepthAnythingForDepthEstimation.from_pretrained(cfg.start_from, dtype=torch.float32)
    backbone = Dinov2Config(reshape_hidden_states=False, apply_layernorm=True, **cfg.backbone)
    model = BokehDepthAnythingForDepthEstimation(
        BokehDepthAnythingConfig(backbone_config=backbone, depth_estimation_type="metric", **cfg.model)
    )
    # A start at a few metres: a sigmoid's own start, half of max_depth, is far from every scene.
    share = 3.0 / model.config.max_depth
    nn.init.constant_(model.head.conv3.bias, math.log(share / (1 - share)))
    return model


def predict(model: BokehDepthAnythingForDepthEstimation, batch: dict[str, torch.Tensor], stack: str) -> torch.Tensor:
    """Depth (B, H, W) in metres from a pool's batch, with the kind of stack that a run is about.

    Args:
        model: the network.
        batch: from `ScenePool.batch`.
        stack: frames, sharp or none.
    """
    mean, std = (torch.tensor(v)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    image = (batch["image"] - mean) / std
    if stack == "none":
        return model(pixel_values=image).predicted_depth
    frames = (batch["bokeh"] - mean) / std if stack == "frames" else image[:, None].expand_as(batch["bokeh"])
    strengths = torch.cat([torch.zeros(len(image), 1), batch["strength"]], dim=1)
    return model(pixel_values=torch.cat([image[:, None], frames], dim=1), bokeh_strengths=strengths).predicted_depth


def main() -> None:
    """Trains the embedded Stage-2 model."""
    arguments = config.parser(main.__doc__).parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    cfg = config.load(Stage2Config, arguments.config, arguments.set)
    torch.set_num_threads(cfg.threads)
    torch.manual_seed(cfg.seed)

    pools = [ScenePool(cfg.pool, "train")]
    if cfg.generated:
        pools.append(ScenePool(dataclasses.replace(cfg.pool, folder=cfg.generated), "train"))
    model = build_model(cfg).train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=0.0, betas=(0.9, 0.95), weight_decay=cfg.weight_decay)
    ema = checkpointing.Ema(model, cfg.ema_decay)
    output = Path(cfg.output)
    start = checkpointing.resume(output / "state.pt", model=model, ema=ema, optimizer=optimizer)
    logger.info("%.2f M parameters, steps %d to %d", sum(p.numel() for p in parameters) / 1e6, start, cfg.steps)

    began, sums = time.process_time(), {}
    for step in range(start, cfg.steps):
        rng = checkpointing.step_rng(cfg.seed, step)
        pool = pools[int(len(pools) > 1 and rng.random() < cfg.generated_share)]
        batch = pool.batch(rng.integers(len(pool), size=cfg.batch), cfg.size_px, rng)
        target = batch["depth_m"][:, 0]
        # On a CPU the fused attention's backward pass takes several times as long as plain products.
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            depth = predict(model, batch, cfg.stack).float().clamp(min=1e-3)
        terms = {
            "silog": losses.scale_invariant_log_loss(depth, target),
            "gradient": losses.log_gradient_loss(depth, target),
        }
        loss = terms["silog"] + cfg.gradient_weight * terms["gradient"]
        if not torch.isfinite(loss):
            raise RuntimeError(f"The loss is {loss.item()} at step {step}; the last checkpoint is in {output}.")
        loss.backward()
        norm = nn.utils.clip_grad_norm_(parameters, cfg.grad_clip)
        rate = cfg.learning_rate * min(1.0, (step + 1) / cfg.warmup) * (1 + math.cos(math.pi * step / cfg.steps)) / 2
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        ema.update(model)

        error = ((depth - target).abs() / target).mean()
        for name, value in {**terms, "abs_rel": error, "norm": norm}.items():
            sums[name] = sums.get(name, 0.0) + value.item()
        if (step + 1) % cfg.log_every == 0:
            values = "  ".join(f"{k} {v / cfg.log_every:.4f}" for k, v in sums.items())
            logger.info("step %d  %s  %.0f CPU s", step + 1, values, time.process_time() - began)
            sums = {}
        if (step + 1) % cfg.save_every == 0 or step + 1 == cfg.steps:
            checkpointing.save(
                output / "state.pt", config=cfg, step=step + 1, model=model, ema=ema, optimizer=optimizer
            )
            trained = {k: v.clone() for k, v in model.state_dict().items()}
            model.load_state_dict(ema.average)
            model.save_pretrained(output / "model")
            model.load_state_dict(trained)
            record = {"step": step + 1, "of": cfg.steps, "stack": cfg.stack, "cpu_s": time.process_time() - began}
            (output / "model" / "training.json").write_text(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()

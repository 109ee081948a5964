"""Trains Stage-1: `python -m train.stage1 --config FILE`, or `accelerate launch -m train.stage1 --config FILE`.

Flow matching in Kontext form (Eq. 10-12): noisy tokens of the bokeh picture, tokens of the sharp photo, and K.
Text-to-image steps leave the photo out. Of a Flux Kontext the adapter alone is trained; the embedded model, whose head
predicts the clean picture, is trained whole with the same loop. `<output>/model` is a pipeline folder.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as fn
from accelerate import Accelerator
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxKontextPipeline, FluxTransformer2DModel
from PIL import Image
from torch import nn

from bokehdepth.camera.lens import DEFAULT_BOKEH_STRENGTHS
from bokehdepth.errors import InputError
from bokehdepth.files.pictures import contact_sheet
from bokehdepth.modeling_bokeh_adapter import BokehAdapter
from bokehdepth.modeling_mini_flux import MiniFluxTransformer2DModel, PatchAutoencoder, level_weights
from bokehdepth.pipeline_bokehdepth import BokehDepthPipeline
from bokehdepth.sampling_bokehdepth import encode_reference
from train import config, loop, losses
from train.bokeh_photos import BokehPhotos
from train.config import PhaseConfig, Stage1Config
from train.data import PoolPairs, ScenePool, fill_pool
from train.encoders import load_depth_model, start_encoder
from train.evaluation.metrics_bokeh import k_response
from train.prompts import Prompts
from train.rows import RowPairs, load_rows

logger = logging.getLogger("train.stage1")
SAMPLE_STRENGTHS = DEFAULT_BOKEH_STRENGTHS
_SAMPLE_STEPS = 4
_DEFOCUSED_PX = 2.0  # at K = 30 in a picture 128 px wide


class _Stage1Network(losses.SummedNetwork):
    """Transformer, adapter and autoencoder as one module; the adapter first, so that its tensors carry its names."""

    def __init__(self, adapter: BokehAdapter, transformer: nn.Module, autoencoder: nn.Module) -> None:
        super().__init__()
        self.adapter, self.transformer, self.autoencoder = adapter, transformer, autoencoder
        adapter.attach(transformer)

    @staticmethod
    def ids(rows: int, columns: int, stream: int, device: torch.device) -> torch.Tensor:
        """Positions (rows * columns, 3) of packed tokens: stream, row, column."""
        grid = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        return torch.stack([torch.full_like(grid[0], stream), *grid], -1).flatten(0, 1).float().to(device)

    def prompt(self, batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """Prompt embeddings (B, N_text, C) and (B, C): the samples' captions, or the adapter's own prompt."""
        if "prompt_embeds" in batch:
            return batch["prompt_embeds"].float(), batch["pooled_prompt_embeds"].float()
        return self.own_prompt(len(batch["target"]))

    def own_prompt(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The adapter's own prompt embeddings, (count, N_text, C) and (count, C)."""
        embeds, pooled = self.adapter.prompt_embeds, self.adapter.pooled_prompt_embeds
        return embeds.expand(count, -1, -1), pooled.expand(count, -1)

    def masked_tokens(self, reference_tokens: int) -> int:
        """How many reference tokens the adapter's mask is told of; none where the photo is encoded apart."""
        return reference_tokens if self.adapter.config.reference_timestep is None else 0

    def sequence(
        self,
        tokens: torch.Tensor,
        reference: torch.Tensor,
        grid: tuple[int, int],
        condition: dict[str, Any],
        pooled: torch.Tensor,
        guidance: torch.Tensor | None = None,
    ) -> dict[str, Any]:
        """The transformer's arguments for noisy tokens and a photo's, in one sequence or the photo encoded apart.

        Args:
            tokens: (B, N, C).
            reference: (B, N, C).
            grid: rows and columns of tokens.
            condition: from the adapter.
            pooled: (B, P), not shifted by K.
            guidance: (B,) where the base has guidance embeddings.
        """
        own, photo = (self.ids(*grid, stream, tokens.device) for stream in (0, 1))
        if self.adapter.config.reference_timestep is None:
            joint, ids = torch.cat([tokens, reference], dim=1), torch.cat([own, photo])
        else:
            apart = encode_reference(self.transformer, self.adapter, reference, photo, pooled, guidance)
            joint, ids, condition = tokens, own, condition | apart
        return {"hidden_states": joint, "img_ids": ids, "joint_attention_kwargs": condition}


class MiniNetwork(_Stage1Network):
    """The embedded model on batches of `BokehPhotos`: every weight is trained, every picture counts alike.

    Blend levels are supervised in every sample; samples with a render become pictures that are compared with it.

    Args:
        transformer: the embedded base.
        adapter: of its sizes.
        autoencoder: without weights.
        level_weight: weight of the supervision of the blend levels by the true disparity offset.
    """

    def __init__(
        self,
        transformer: MiniFluxTransformer2DModel,
        adapter: BokehAdapter,
        autoencoder: PatchAutoencoder,
        level_weight: float = 0.0,
    ) -> None:
        super().__init__(adapter, transformer, autoencoder)
        self.level_weight = level_weight

    def predict(
        self,
        image: torch.Tensor,
        noisy: torch.Tensor,
        sigma: torch.Tensor,
        strength: torch.Tensor,
        blended: int | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The clean picture that is seen in noisy ones.

        Args:
            image: (B, 3, H, W) sharp photos in [-1, 1].
            noisy: (B, 3, H, W), as `add_noise` makes them.
            sigma: (B,) their noise levels.
            strength: (B,) K.
            blended: how many samples, the first ones, become pictures; None is all.

        Returns:
            (B or blended, 3, H, W) in [-1, 1], and the logits of the blend levels (B, J, H/2, W/2) or None.
        """
        rows, columns = (side // self.transformer.token_px for side in image.shape[-2:])
        tokens, reference = self.transformer._pack(noisy), self.transformer._pack(image)
        prompt, pooled = self.own_prompt(len(image))
        condition = self.adapter.attention_kwargs(strength, reference_tokens=self.masked_tokens(reference.shape[1]))
        condition["bokeh_strengths"] = strength
        velocity, logits = self.transformer(
            **self.sequence(tokens, reference, (rows, columns), condition, pooled),
            encoder_hidden_states=prompt,
            pooled_projections=self.adapter.modulate(pooled, strength),
            timestep=sigma,
            txt_ids=torch.zeros(prompt.shape[1], 3, device=image.device),
            return_weights=True,
            blended=blended,
        )
        clean = tokens[:blended] - sigma[:blended, None, None] * velocity[:, : tokens.shape[1]].float()
        return self.transformer._unpack(clean, rows, columns), logits

    def counts(self, batch: dict[str, Any]) -> losses.Sums:
        """Pictures, and those of them with a render."""
        return {"pictures": torch.tensor(float(len(batch["image"]))), "renders": batch["rendered"].sum().float()}

    def sums(self, batch: dict[str, Any]) -> losses.Sums:
        """Sums of both terms over a batch."""
        order = (~batch["rendered"]).long().argsort(stable=True)  # those with a render first
        count = int(batch["rendered"].sum())
        names = ("image", "target", "strength", "offset_dpt", "known", "rendered", "seed")
        part = {name: batch[name][order] for name in names}
        clean, strength, offset, known = (part["target"] * 2 - 1, *(part[name] for name in names[2:5]))
        drawn = (draw_mini_noise(seed, clean.shape[1:]) for seed in part["seed"].tolist())
        sigma, noise = (torch.stack(x).to(clean) for x in zip(*drawn, strict=True))
        sigma = torch.where(part["rendered"], sigma, 1.0)  # without a render there is only noise
        noisy = add_noise(clean, noise, sigma)
        x0, logits = self.predict(part["image"] * 2 - 1, noisy, sigma, strength, max(count, 1))
        levels = torch.tensor(self.transformer.config.offsets_dpt, device=clean.device)
        target = fn.adaptive_avg_pool2d(level_weights(offset, levels), logits.shape[-2:])
        entropy = -(target * logits.float().log_softmax(1)).sum(1)
        seen = (fn.adaptive_avg_pool2d(known.float(), logits.shape[-2:]) > 0.99).float()[:, 0]
        level = losses.balanced_means(entropy, seen * target[:, 0], seen * (1 - target[:, 0])).sum()
        error = losses.pixel_error(x0[:count] / 2 + 0.5, part["target"][:count])
        radius = strength[:count, None, None, None] * (clean.shape[-1] / 512) * offset[:count]
        known = known[:count].float()
        pixel = losses.balanced_means(error, known * (radius > 1), known * (radius <= 1)).sum()
        return {**self.counts(batch), "pixel": pixel, "level": level}

    def terms(self, sums: losses.Sums) -> dict[str, torch.Tensor]:
        """The loss and its parts."""
        pixel, level = sums["pixel"] / sums["renders"].clamp(min=1), sums["level"] / sums["pictures"]
        return {"loss": pixel + self.level_weight * level, "pixel": pixel, "level": level}


class FluxNetwork(_Stage1Network):
    """A frozen Flux Kontext with the adapter that is trained.

    Args:
        adapter: in float32.
        transformer: of the base; frozen here.
        autoencoder: of the base; frozen here.
        guidance_scale: distilled guidance that the base is told.
        offset_noise: standard deviation of noise that is constant over each latent channel.
    """

    def __init__(
        self,
        adapter: BokehAdapter,
        transformer: FluxTransformer2DModel,
        autoencoder: AutoencoderKL,
        guidance_scale: float,
        offset_noise: float,
    ) -> None:
        transformer.requires_grad_(False)
        autoencoder.requires_grad_(False)
        super().__init__(adapter.requires_grad_(True), transformer, autoencoder)
        self.guidance_scale, self.offset_noise = guidance_scale, offset_noise

    @torch.no_grad()
    def encode(self, picture: torch.Tensor) -> torch.Tensor:
        """Pictures (B, 3, H, W) in [0, 1] to latents (B, C, H / 8, W / 8): the mode, as at inference."""
        settings = self.autoencoder.config
        latents = self.autoencoder.encode((picture * 2 - 1).to(self.autoencoder.dtype)).latent_dist.mode()
        return ((latents - settings.shift_factor) * settings.scaling_factor).float()

    def counts(self, batch: dict[str, Any]) -> losses.Sums:
        """Pictures."""
        return {"pictures": torch.tensor(float(len(batch["target"])))}

    def sums(self, batch: dict[str, Any]) -> losses.Sums:
        """The flow-matching loss, summed over the pictures of `PoolPairs` or `RowPairs`; noisy tokens alone count."""
        clean, strength = self.encode(batch["target"]), batch["strength"]
        drawn = [draw_flux_noise(int(seed), clean.shape[1:], self.offset_noise) for seed in batch["seed"]]
        sigma, noise = (torch.stack(x).to(clean) for x in zip(*drawn, strict=True))
        pack = FluxKontextPipeline._pack_latents
        tokens = pack(add_noise(clean, noise, sigma), *clean.shape)
        rows, columns = clean.shape[-2] // 2, clean.shape[-1] // 2
        prompt, pooled = self.prompt(batch)
        guidance = None
        if self.transformer.config.guidance_embeds:
            guidance = torch.full_like(sigma, self.guidance_scale)
        text_to_image = batch["text_to_image"]
        masked = 0 if text_to_image else self.masked_tokens(tokens.shape[1])
        condition, shifted = self._condition(batch, pooled, strength, masked)
        if text_to_image:
            ids = self.ids(rows, columns, 0, clean.device)
            inputs = {"hidden_states": tokens, "img_ids": ids, "joint_attention_kwargs": condition}
        else:
            reference = pack(self.encode(batch["image"]), *clean.shape)
            inputs = self.sequence(tokens, reference, (rows, columns), condition, pooled, guidance)
        velocity = self.transformer(
            **inputs,
            encoder_hidden_states=prompt,
            pooled_projections=shifted,
            timestep=sigma,
            guidance=guidance,
            txt_ids=torch.zeros(prompt.shape[1], 3, device=clean.device),
            return_dict=False,
        )[0][:, : tokens.shape[1]]
        loss = losses.velocity_loss(velocity, pack(clean, *clean.shape), pack(noise, *clean.shape))
        kind = "text_to_image" if text_to_image else "image_to_image"
        return {kind: loss * len(clean), "pictures": loss.new_tensor(len(clean))}

    def terms(self, sums: losses.Sums) -> dict[str, torch.Tensor]:
        """The loss, under the name of the step's kind too."""
        ((kind, loss),) = ((name, value / sums["pictures"]) for name, value in sums.items() if name != "pictures")
        return {"loss": loss, kind: loss}

    def _condition(
        self, batch: dict[str, Any], pooled: torch.Tensor, strength: torch.Tensor, reference_tokens: int
    ) -> tuple[dict[str, Any], torch.Tensor]:
        """Attention arguments and pooled projection; a dropped K leaves zeros of one and the other as it was."""
        condition = self.adapter.attention_kwargs(strength, reference_tokens=reference_tokens)
        kept = ~batch["drop_strength"]
        condition["bokeh_embeds"] = condition["bokeh_embeds"] * kept[:, None, None]
        pivots = batch["pivot_rows"]
        if bool((pivots != torch.arange(len(pivots), device=pivots.device)).any()):
            condition["pivot_rows"] = pivots
        return condition, torch.where(kept[:, None], self.adapter.modulate(pooled, strength), pooled)


# ---------------------------------------------------------------------- noise


def add_noise(clean: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Eq. 10: `(1 - sigma) clean + sigma noise`, with sigma (B,) over pictures or latents (B, C, H, W)."""
    sigma = sigma[:, None, None, None]
    return (1 - sigma) * clean + sigma * noise


def draw_mini_noise(seed: int, shape: torch.Size) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise level () and noise of `shape` of one sample.

    The level is 1 for half of them, since a one-step sampler sees no other, else a logit-normal draw.
    """
    source = torch.Generator().manual_seed(seed)
    spread = torch.sigmoid(torch.randn((), generator=source) + 0.8).clamp(min=0.05)
    sigma = torch.where(torch.rand((), generator=source) < 0.5, torch.ones(()), spread)
    return sigma, torch.randn(shape, generator=source)


def draw_flux_noise(seed: int, shape: torch.Size, offset: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise level, uniform over the 1000 steps of the base's schedule before its shift, and noise of one sample."""
    source = torch.Generator().manual_seed(seed)
    sigma = torch.randint(1, 1001, (), generator=source) / 1000
    noise = torch.randn(shape, generator=source)
    return sigma, noise + offset * torch.randn((shape[0], 1, 1), generator=source)


# ---------------------------------------------------------------------- building


def build_adapter(transformer: nn.Module, settings: dict[str, Any]) -> BokehAdapter:
    """An adapter of a transformer's sizes, with the arguments that a configuration gives."""
    sizes = ("num_attention_heads", "attention_head_dim", "joint_attention_dim", "pooled_projection_dim")
    fitting = {name: transformer.config[name] for name in sizes}
    blocks = {"num_double_blocks": transformer.config.num_layers,
              "num_single_blocks": transformer.config.num_single_layers}  # fmt: skip
    return BokehAdapter(**blocks, **fitting, **settings)


def build_network(cfg: Stage1Config, accelerator: Accelerator | None) -> tuple[_Stage1Network, Prompts | None]:
    """The network of a configuration, and its captions where it has any, which alone need the accelerator."""
    if cfg.base.kind == "mini":
        base = MiniFluxTransformer2DModel(**cfg.base.transformer)
        start_encoder(base.stem.encoder, cfg.base.encoder)
        adapter = build_adapter(base, {"prompt_length": 1, **cfg.adapter})
        patch_px = base.token_px // 2
        autoencoder = PatchAutoencoder(patch_px, 3 * patch_px**2, (1,) * patch_px.bit_length())
        network = MiniNetwork(base, adapter, autoencoder, cfg.level_weight)
        return network.to(memory_format=torch.channels_last), None  # faster convolutions on a CPU
    dtype = torch.bfloat16 if cfg.loop.precision == "bf16" else torch.float32
    if cfg.base.path:
        source = {"pretrained_model_name_or_path": cfg.base.path, "revision": cfg.base.revision, "torch_dtype": dtype}
        transformer = FluxTransformer2DModel.from_pretrained(subfolder="transformer", **source)
        autoencoder = AutoencoderKL.from_pretrained(subfolder="vae", **source)
    else:
        transformer = FluxTransformer2DModel(**cfg.base.transformer)
        autoencoder = AutoencoderKL(**cfg.base.autoencoder)
        if dtype == torch.bfloat16:
            transformer, autoencoder = transformer.to(dtype), autoencoder.to(dtype)
    prompts = prepare_prompts(cfg, accelerator)
    length = 1 if prompts is None else len(prompts.look_up(None)["prompt_embeds"])
    adapter = build_adapter(transformer, {"prompt_length": length, **cfg.adapter})
    if prompts is not None:  # inference then needs no text encoder
        for name, value in prompts.look_up(None).items():
            getattr(adapter, name).copy_(value)
    if cfg.loop.gradient_checkpointing:
        transformer.enable_gradient_checkpointing()
    return FluxNetwork(adapter, transformer, autoencoder, cfg.guidance_scale, cfg.offset_noise), prompts


def prepare_prompts(cfg: Stage1Config, accelerator: Accelerator) -> Prompts | None:
    """Encodes the captions that are not in the cache yet, each process a share; None for a run without captions."""
    if not cfg.prompts.cache:
        return None
    prompts = Prompts(cfg.prompts.cache, f"{cfg.base.path}@{cfg.base.revision}", cfg.prompts.tokens)
    rows = [] if cfg.manifests is None else load_rows(cfg.manifests)
    captions = [caption for row in rows for caption in row.captions]
    missing = prompts.missing(captions)
    if missing and not cfg.base.path:
        raise InputError(f"prompts.cache is {cfg.prompts.cache!r} without base.path; wanted a base that encodes.")
    accelerator.wait_for_everyone()  # before anyone writes what another still looks for
    if mine := missing[accelerator.process_index :: accelerator.num_processes]:
        parts = {"transformer": None, "vae": None}
        base = FluxKontextPipeline.from_pretrained(cfg.base.path, revision=cfg.base.revision, **parts)
        base.to(accelerator.device)

        def encode(text: str) -> tuple[torch.Tensor, torch.Tensor]:
            with torch.no_grad():
                embeds, pooled, _ = base.encode_prompt(text, None, max_sequence_length=cfg.prompts.tokens)
            return embeds[0], pooled[0]

        logger.info("encoding %d captions", len(mine))
        prompts.fill(mine, encode)
    accelerator.wait_for_everyone()
    return prompts


def pipeline_of(cfg: Stage1Config, network: _Stage1Network, whole: bool = True) -> BokehDepthPipeline:
    """A pipeline around a network; not whole, one that names its base instead of holding it."""
    if cfg.base.path and whole:
        scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(
            cfg.base.path, subfolder="scheduler", revision=cfg.base.revision
        )
    else:
        scheduler = FlowMatchEulerDiscreteScheduler()
    others = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "depth_estimator"))
    largest: PhaseConfig = max(cfg.phases, key=lambda phase: phase.size_px)
    named = bool(cfg.base.path) and not whole
    pipeline = BokehDepthPipeline(
        scheduler=None if named else scheduler,
        vae=None if named else network.autoencoder,
        transformer=None if named else network.transformer,
        bokeh_adapter=network.adapter,
        **others,
        base_model_id=cfg.base.path or None,
    )
    network.adapter.register_to_config(
        num_inference_steps=1 if cfg.base.kind == "mini" else 10,
        guidance_scale=cfg.guidance_scale,
        max_area=largest.size_px**2,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def look(cfg: Stage1Config, network: _Stage1Network, source: PoolPairs | RowPairs) -> loop.Samples:
    """Stacks of the first photos, side by side, and how the change grows with K where the photo is out of focus."""
    size = max(phase.size_px for phase in cfg.phases)
    photos, offsets = source.looks(cfg.loop.samples, size)
    pipeline, device = pipeline_of(cfg, network), next(network.parameters()).device
    images, labels, curves = [], [], []
    network.eval()
    for number, photo in enumerate(photos):
        with torch.autocast(device.type, torch.bfloat16, enabled=cfg.loop.precision == "bf16"):
            frames = pipeline.generate_stack(
                photo,
                SAMPLE_STRENGTHS,
                num_inference_steps=_SAMPLE_STEPS,
                generator=torch.Generator().manual_seed(number),
                max_area=size**2,
                restore=False,
                output_type="np",
            ).images
        sharp = photo.permute(1, 2, 0).contiguous().numpy()
        area = torch.ones(size, size, dtype=torch.bool)
        if offsets is not None:
            blurred = offsets[number, 0] * SAMPLE_STRENGTHS[-1] * size / 512 > _DEFOCUSED_PX * size / 128
            area = blurred if bool(blurred.any()) else area
        curves.append(k_response(sharp, frames, area.numpy()))
        images += [Image.fromarray((picture * 255).round().astype("uint8")) for picture in (sharp, *frames)]
        labels += ["photo", *(f"K = {k:g}" for k in SAMPLE_STRENGTHS)]
    network.train()
    numbers = {
        f"response_k{k:g}": sum(curve.mean_change[i] for curve in curves) / len(curves)
        for i, k in enumerate(SAMPLE_STRENGTHS)
    }
    numbers["response_rising"] = sum(curve.rising_share for curve in curves) / len(curves)
    return loop.Samples(contact_sheet(images, labels, columns=1 + len(SAMPLE_STRENGTHS)), numbers)


def run(config: Stage1Config, resume: str | Path | None = None) -> Path:
    """Trains Stage-1.

    Args:
        config: what to train, on what, and how.
        resume: "latest", the folder of a checkpoint, or None for a run that begins.

    Returns:
        Folder of the saved pipeline, `<output>/model`; of a base with a repository it holds the adapter alone.

    Raises:
        InputError: the configuration does not fit its data, base or checkpoint.
        RuntimeError: the loss is not finite.
    """
    accelerator = loop.start(config)
    if config.pool is not None:
        fill_pool(config.pool, accelerator.process_index, accelerator.num_processes, accelerator.wait_for_everyone)
    network, prompts = build_network(config, accelerator)
    if config.photos is not None:
        scenes = None if config.pool is None else ScenePool(config.pool, "train")
        source = BokehPhotos(config, scenes, load_depth_model(config.depth_model))
    elif config.manifests is None:
        source = PoolPairs(config)
    else:
        source = RowPairs(config, prompts)
    stage = loop.Stage(
        network=network,
        draw=source,
        plan=config.phases,
        export=lambda folder: pipeline_of(config, network, whole=False).save_pretrained(folder),
        sample=lambda: look(config, network, source),
    )
    return loop.fit(config, accelerator, stage, resume)


def main() -> None:
    """Trains Stage-1."""
    loop.main(Stage1Config, run, "train.stage1")


if __name__ == "__main__":
    with config.one_line_errors():
        main()

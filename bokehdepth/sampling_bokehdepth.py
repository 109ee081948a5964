"""How `BokehDepthPipeline` samples a bokeh stack, and what it remembers of a photo for the next one.

A Hub repository carries the file joined in front of `pipeline_bokehdepth.py`.
Method: arXiv 2512.12425, Sec. 4.1.

Shape letters: `B` photos of one size, `F` frames of a stack, `N` tokens, `C` channels, `L` adapted blocks, `h w`
pixels at work.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as fn
from diffusers.pipelines.flux.pipeline_flux_kontext import calculate_shift, retrieve_timesteps
from diffusers.utils.torch_utils import randn_tensor

from .processing_bokehdepth import (
    DetailRestorer,
    PhotoInput,
    PhotoRows,
    list_photos,
    photo_size,
    timed,
    working_size,
)

DEFAULT_PROMPT = (
    "Photograph the same scene with a wider aperture: keep the subject in focus and sharp, blur what lies nearer or "
    "farther, and keep composition, light and colours."
)


@dataclass
class PhotoMemory:
    """What all stacks of one photo have in common, made by `BokehDepthPipeline.remember_photo`.

    Every stack that is generated from it starts from the same noise. It belongs to the weights that made it, and
    stays on their device: with others it is refused.

    Args:
        image: the photo as it was given.
        rows: the photo's rows, H x W.
        working: (1, 3, h, w), the photo at the size at work.
        padded_height: h, padded to the network's grid.
        tokens: (1, N, C) packed latents of the photo.
        ids: (2N, 3) positions of noisy tokens, then of the photo's.
        noise: (1, N, C) packed.
        prompt_embeds: (1, N_text, C_text), or one for each frame.
        pooled_prompt_embeds: (1, P), likewise.
        steps: denoising steps.
        sigmas: noise levels of the steps, or None for the usual ones.
        guidance_scale: distilled guidance.
        weights: what the pipeline's `_weights` said when it was made; empty within one call.
        reference: weight of LoRAs -> what `encode_reference` gives; empty unless the adapter makes it a constant of
            the photo, and until the first stack.
    """

    image: Any
    rows: PhotoRows
    working: torch.Tensor
    padded_height: int
    tokens: torch.Tensor
    ids: torch.Tensor
    noise: torch.Tensor
    prompt_embeds: torch.Tensor
    pooled_prompt_embeds: torch.Tensor
    steps: int
    sigmas: tuple[float, ...] | None
    guidance_scale: float
    weights: tuple[Any, ...] = ()
    reference: dict[float, dict[str, Any]] = field(default_factory=dict)

    @cached_property
    def restorer(self) -> DetailRestorer:
        """Brings frames to the photo's size, on the weights' device; made for the first stack that wants it."""
        return DetailRestorer(self.rows, self.working, self.tokens.device)


class Record:
    """Collects what a pass leaves behind. Offloading hooks hand lists on as copies, and this as it is.

    Attributes:
        pairs: rotated keys and values of each block.
        features: of the embedded base, its stem's levels for each view.
    """

    def __init__(self) -> None:
        self.pairs: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.features: list[list[torch.Tensor]] = []

    def append(self, pair: tuple[torch.Tensor, torch.Tensor]) -> None:
        """Takes keys and values (B, N, heads, head_dim) of the next block."""
        self.pairs.append(pair)


def photo_of(image: Any) -> PhotoInput:
    """The photo itself, of a photo or a `PhotoMemory`."""
    return image.image if isinstance(image, PhotoMemory) else image


def encode_reference(
    transformer: torch.nn.Module,
    adapter: torch.nn.Module,
    tokens: torch.Tensor,
    ids: torch.Tensor,
    pooled_projections: torch.Tensor,
    guidance: torch.Tensor | None = None,
    joint_attention_kwargs: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Keys and values of a photo's tokens where no step and no K changes them: a pass of these tokens by themselves.

    The pass of the other tokens takes the result in `joint_attention_kwargs`. Gradients flow through both.

    Args:
        transformer: with the adapter attached.
        adapter: with causal reference attention and a `reference_timestep`.
        tokens: (B, N, C) packed latents of photos.
        ids: (N, 3) their positions.
        pooled_projections: (B, P) of the prompt, not shifted by K.
        guidance: (B,) where the base has guidance embeddings.
        joint_attention_kwargs: further ones, such as the `scale` of LoRAs.

    Returns:
        `reference_keys` and `reference_values`, each (L, B, N, heads, head_dim), with 2L where the embedded base looks
        at the mirror image too; for that base also what its head wants: `reference_photo`, the tokens, and
        `reference_features`, lists of its stem's levels.

    Raises:
        ValueError: the adapter has no `reference_timestep`, so its photos have no fixed keys.
    """
    if adapter.config.reference_timestep is None:
        raise ValueError("reference_timestep is None; wanted an adapter that was trained with a fixed one.")
    record = Record()
    with ExitStack() as stack:
        stack.enter_context(transformer.cache_context("reference"))
        if any(module._compiled_call_impl is not None for module in transformer.modules()):
            # Each block finds more recorded than the one before, so each would be compiled by itself.
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        transformer(
            hidden_states=tokens,
            encoder_hidden_states=tokens.new_zeros(len(tokens), 0, transformer.config.joint_attention_dim),
            pooled_projections=pooled_projections,
            timestep=tokens.new_full((len(tokens),), adapter.config.reference_timestep),
            guidance=guidance,
            img_ids=ids,
            txt_ids=ids.new_zeros(0, 3),
            joint_attention_kwargs={
                **(joint_attention_kwargs or {}),
                "record": record,
                "record_tokens": tokens.shape[1],
            },
            return_dict=False,
        )
    keys, values = (torch.stack(part) for part in zip(*record.pairs, strict=True))
    found = {"reference_keys": keys, "reference_values": values}
    if "offsets_dpt" in transformer.config:
        found |= {"reference_photo": tokens, "reference_features": record.features}
    return found


def for_each_k(values: torch.Tensor, frames: int) -> torch.Tensor:
    """Something of each photo (B, ...) for each of its frames (B x F, ...), those of the first photo first."""
    return values[:, None].expand(-1, frames, *values.shape[1:]).flatten(0, 1)


class StackSampling:
    """The sampling half of `BokehDepthPipeline`."""

    # FluxKontextPipeline's properties of these names read them, also between calls.
    _interrupt = False
    _num_timesteps = 0
    _guidance_scale = _joint_attention_kwargs = _current_timestep = None

    @torch.no_grad()
    def remember_photo(
        self,
        image: PhotoInput,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        generator: torch.Generator | None = None,
        prompt: str | None = None,
        prompt_embeds: torch.Tensor | None = None,
        pooled_prompt_embeds: torch.Tensor | None = None,
        max_area: int | None = None,
        max_sequence_length: int = 512,
        sigmas: Sequence[float] | None = None,
        latents: torch.Tensor | None = None,
    ) -> PhotoMemory:
        """Does once what all stacks of one photo have in common; `generate_stack` takes the result in its place.

        The photo is encoded and the noise drawn. With an adapter that has a `reference_timestep` the first stack also
        leaves the keys and values of the photo's tokens, and a further K costs the noisy tokens' pass alone. Frames
        are those that the photo itself gives.

        Args:
            image: an RGB photo: PIL image, (H, W, 3) array or (3, H, W) tensor.
            num_inference_steps: as in `generate_stack`, like all others.
            guidance_scale: likewise.
            generator: likewise.
            prompt: likewise.
            prompt_embeds: likewise.
            pooled_prompt_embeds: likewise.
            max_area: likewise.
            max_sequence_length: likewise.
            sigmas: likewise.
            latents: likewise.

        Raises:
            ValueError: an argument or component cannot be used; nothing has run then.

        Example:
            >>> memory = pipe.remember_photo(photo)
            >>> weak, strong = (pipe.generate_stack(memory, k).images[0] for k in (5, 30))
        """
        self.check_inputs(
            image,
            num_inference_steps=num_inference_steps,
            sigmas=sigmas,
            max_area=max_area,
            latents=latents,
            needs=("transformer", "vae", "scheduler", "bokeh_adapter"),
        )
        photos, is_list = list_photos(image)
        if is_list:
            raise ValueError(f"`image` must be one photo, got a list of {len(photos)}.")
        self.bokeh_adapter.prepare(self.transformer)
        noise = self._noise(photos, [generator], latents, max_area)
        prompted = self._prompt(prompt, prompt_embeds, pooled_prompt_embeds, *self._place(), max_sequence_length)
        settings = self._settings(num_inference_steps, sigmas, guidance_scale)
        (memory,) = self._remember(photos, noise, *prompted, max_area, *settings)
        memory.weights = self._weights()
        self.maybe_free_model_hooks()
        return memory

    def _settings(
        self, num_inference_steps: int | None, sigmas: Sequence[float] | None, guidance_scale: float | None
    ) -> tuple[int, tuple[float, ...] | None, float]:
        """Steps, their noise levels and the guidance, of the caller or as suits the weights."""
        suited = self.bokeh_adapter.config
        steps = int(num_inference_steps or suited.num_inference_steps) if sigmas is None else len(sigmas)
        levels = None if sigmas is None else tuple(float(level) for level in sigmas)
        return steps, levels, suited.guidance_scale if guidance_scale is None else guidance_scale

    def _sizes(self, height: int, width: int, max_area: int | None) -> tuple[int, int, int]:
        """Size at work of a photo: h, w, and h padded to the network's grid."""
        return working_size(height, width, max_area or self.bokeh_adapter.config.max_area, 2 * self.vae_scale_factor)

    def _noise(
        self,
        photos: Sequence[PhotoInput],
        sources: Sequence[torch.Generator | None],
        latents: torch.Tensor | None,
        max_area: int | None,
    ) -> list[torch.Tensor]:
        """Packed noise (1, N, C) of each photo in turn, or the caller's."""
        device, dtype = self._place()
        if latents is not None:
            return list(latents.to(device, dtype).expand(len(photos), -1, -1).split(1))
        found, multiple = [], 2 * self.vae_scale_factor
        for photo, source in zip(photos, sources, strict=True):
            _, w, padded = self._sizes(*photo_size(photo, "image"), max_area)
            shape = (1, self.transformer.config.in_channels // 4, 2 * padded // multiple, 2 * w // multiple)
            noise = randn_tensor(shape, generator=source, device=device, dtype=dtype)
            found.append(self._pack_latents(noise, *shape))
        return found

    def _remember(
        self,
        photos: Sequence[PhotoInput],
        noise: Sequence[torch.Tensor],
        prompt_embeds: torch.Tensor,
        pooled_prompt_embeds: torch.Tensor,
        max_area: int | None,
        steps: int,
        sigmas: tuple[float, ...] | None,
        guidance_scale: float,
        timings_s: dict[str, float] | None = None,
    ) -> list[PhotoMemory]:
        """A memory of each photo, all of one size, which are encoded together."""
        timings_s = {} if timings_s is None else timings_s
        device, dtype = self._place()
        rows = [PhotoRows(photo) for photo in photos]
        h, w, padded = self._sizes(rows[0].height, rows[0].width, max_area)
        with timed(timings_s, "to_network_size"):
            working = [own.resized(h, w, device) for own in rows]  # (1, 3, h, w)
        image = fn.pad(torch.cat(working), (0, 0, 0, padded - h), mode="replicate")
        with timed(timings_s, "stack"):
            tokens, ids = self._encode(image, device, dtype)
        return [
            PhotoMemory(
                image=photo,
                rows=own,
                working=small,
                padded_height=padded,
                tokens=own_tokens,
                ids=ids,
                noise=own_noise,
                prompt_embeds=prompt_embeds,
                pooled_prompt_embeds=pooled_prompt_embeds,
                steps=steps,
                sigmas=sigmas,
                guidance_scale=guidance_scale,
            )
            for photo, own, small, own_tokens, own_noise in zip(
                photos, rows, working, tokens.split(1), noise, strict=True
            )
        ]

    def _place(self) -> tuple[torch.device, torch.dtype]:
        return self._execution_device, self.transformer.dtype

    def _weights(self) -> tuple[Any, ...]:
        """What a memory of a photo depends on: device, precision, LoRAs, and a sample of the weights."""
        loras = [
            f"{name} {sorted(module.scaling.items())} {module.active_adapters} {module.disable_adapters}"
            for name, module in self.transformer.named_modules()
            if hasattr(module, "scaling") and hasattr(module, "active_adapters")
        ]
        sample = self.bokeh_adapter.fingerprint(self.vae, self.transformer, self.bokeh_adapter)
        return (*map(str, self._place()), *loras, sample)

    def _check_memories(self, memories: Sequence[PhotoMemory]) -> None:
        """ValueError where weights changed since a photo was remembered."""
        now = self._weights() if memories else ()
        for memory in memories:
            if memory.weights[:-1] != now[:-1] or not torch.equal(memory.weights[-1], now[-1]):
                raise ValueError(
                    "`image` must be a PhotoMemory of these weights on this device, got one from before they changed; "
                    "call remember_photo again."
                )

    def schedule(
        self,
        steps: int,
        tokens: int,
        device: torch.device | str = "cpu",
        sigmas: Sequence[float] | None = None,
    ) -> tuple[Any, torch.Tensor]:
        """A scheduler of its own for one call, and its timesteps (steps,) in [0, 1000].

        Args:
            steps: denoising steps.
            tokens: N of the noisy picture, which shifts the schedule of schedulers that ask for it.
            device: of the timesteps.
            sigmas: noise levels in place of evenly spaced ones, before the shift.
        """
        scheduler = copy.deepcopy(self.scheduler)  # its step counter belongs to one call
        settings = scheduler.config
        mu = calculate_shift(
            tokens,
            settings.get("base_image_seq_len", 256),
            settings.get("max_image_seq_len", 4096),
            settings.get("base_shift", 0.5),
            settings.get("max_shift", 1.15),
        )
        levels = np.linspace(1.0, 1 / steps, steps) if sigmas is None else list(sigmas)
        timesteps, _ = retrieve_timesteps(scheduler, steps, device, sigmas=levels, mu=mu)
        return scheduler, timesteps

    def _prompt(
        self,
        prompt: str | None,
        prompt_embeds: torch.Tensor | None,
        pooled_prompt_embeds: torch.Tensor | None,
        device: torch.device,
        dtype: torch.dtype,
        max_sequence_length: int = 512,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Prompt embeddings (1, N_text, C) and (1, C): the caller's, the adapter's, or freshly encoded."""
        if (prompt_embeds is None) != (pooled_prompt_embeds is None):
            raise ValueError("prompt_embeds and pooled_prompt_embeds go together; wanted both or neither.")
        if prompt_embeds is None and prompt is None and self.bokeh_adapter.prompt_embeds is not None:
            prompt_embeds = self.bokeh_adapter.prompt_embeds[None]
            pooled_prompt_embeds = self.bokeh_adapter.pooled_prompt_embeds[None]
        if prompt_embeds is None:
            if self.text_encoder is None or self.text_encoder_2 is None:
                raise ValueError("The text encoders are None; wanted prompt_embeds, or an adapter that ships them.")
            prompt_embeds, pooled_prompt_embeds, _ = self.encode_prompt(
                prompt or DEFAULT_PROMPT, None, device=device, max_sequence_length=max_sequence_length
            )
        return prompt_embeds.to(device, dtype), pooled_prompt_embeds.to(device, dtype)

    def _encode(
        self, image: torch.Tensor, device: torch.device, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, 3, h, w) in [0, 1] to reference tokens (B, N, C), and ids (2N, 3): noisy tokens, then the reference."""
        latents = self._encode_vae_image((image * 2 - 1).to(device, self.vae.dtype), None).to(dtype)
        rows, columns = latents.shape[-2] // 2, latents.shape[-1] // 2
        tokens = self._pack_latents(latents, *latents.shape)
        ids = self._prepare_latent_image_ids(1, rows, columns, device, dtype)
        reference_ids = ids.clone()
        reference_ids[:, 0] = 1
        return tokens, torch.cat([ids, reference_ids])

    def _sample(
        self,
        memories: Sequence[PhotoMemory],
        bokeh_strengths: Sequence[float],
        bokeh_scale: float | None,
        joint_attention_kwargs: dict[str, Any] | None,
        callback: Callable[..., dict[str, Any]] | None,
        callback_inputs: Sequence[str],
    ) -> torch.Tensor:
        """Latents (B, F, N, C) of remembered photos of one size at each K, all denoised together."""
        frames, first = len(bokeh_strengths), memories[0]
        tokens = for_each_k(torch.cat([memory.tokens for memory in memories]), frames)
        noise = for_each_k(torch.cat([memory.noise for memory in memories]), frames)
        prompt = torch.cat([memory.prompt_embeds.expand(frames, -1, -1) for memory in memories])
        pooled = torch.cat([memory.pooled_prompt_embeds.expand(frames, -1) for memory in memories])
        latents = self._denoise(
            noise,
            tokens,
            first.ids,
            tuple(bokeh_strengths) * len(memories),
            prompt,
            pooled,
            first.steps,
            first.guidance_scale,
            bokeh_scale,
            sigmas=first.sigmas,
            fixed=self._fixed(memories, frames, joint_attention_kwargs),
            callback=callback,
            callback_inputs=callback_inputs,
            **(joint_attention_kwargs or {}),
        )
        return latents.unflatten(0, (len(memories), frames))

    def _fixed(
        self, memories: Sequence[PhotoMemory], frames: int, joint_attention_kwargs: dict[str, Any] | None
    ) -> dict[str, Any]:
        """What no K changes in the photos' tokens, for each of their frames; empty where K reaches them."""
        if self.bokeh_adapter.config.reference_timestep is None:
            return {}
        scale, first = float((joint_attention_kwargs or {}).get("scale", 1.0)), memories[0]
        kept = first.reference.get(scale) if len(memories) == 1 else None
        if kept is None:
            tokens = torch.cat([memory.tokens for memory in memories])
            kept = encode_reference(
                self.transformer,
                self.bokeh_adapter,
                tokens,
                first.ids[tokens.shape[1] :],
                torch.cat([memory.pooled_prompt_embeds[:1] for memory in memories]),
                self._guidance(first.guidance_scale, tokens),
                joint_attention_kwargs,
            )
        if len(memories) == 1:
            first.reference = {scale: kept}
            return kept  # of one photo, for any number of frames
        kept = dict(kept)
        for name in ("reference_keys", "reference_values"):
            kept[name] = kept[name].repeat_interleave(frames, 1)
        if "reference_features" in kept:
            kept["reference_photo"] = for_each_k(kept["reference_photo"], frames)
            views = kept["reference_features"]
            kept["reference_features"] = [[for_each_k(level, frames) for level in levels] for levels in views]
        return kept

    def _guidance(self, scale: float, latents: torch.Tensor) -> torch.Tensor | None:
        if not self.transformer.config.guidance_embeds:
            return None
        return torch.full((len(latents),), scale, device=latents.device, dtype=torch.float32)

    def _condition(
        self,
        bokeh_strengths: torch.Tensor,
        bokeh_scale: float | None,
        reference_tokens: int,
        pooled: torch.Tensor,
        dtype: torch.dtype,
    ) -> tuple[dict[str, Any], torch.Tensor]:
        """Attention arguments and pooled projection (F, P) of frames at each K (F,)."""
        condition = self.bokeh_adapter.attention_kwargs(bokeh_strengths, bokeh_scale, reference_tokens)
        place = {"device": pooled.device, "dtype": dtype}
        condition = {k: v.to(**place) if torch.is_tensor(v) else v for k, v in condition.items()}
        condition = self.bokeh_adapter.constant_branch(condition)
        if "offsets_dpt" in self.transformer.config:
            condition["bokeh_strengths"] = bokeh_strengths  # the embedded base scales its disks by K itself
        return condition, self.bokeh_adapter.modulate(pooled, bokeh_strengths)

    def _denoise(
        self,
        latents: torch.Tensor,
        reference: torch.Tensor,
        ids: torch.Tensor,
        bokeh_strengths: Sequence[float],
        prompt_embeds: torch.Tensor,
        pooled: torch.Tensor,
        steps: int,
        guidance_scale: float,
        bokeh_scale: float | None = None,
        sigmas: Sequence[float] | None = None,
        fixed: dict[str, Any] | None = None,
        callback: Callable[..., dict[str, Any]] | None = None,
        callback_inputs: Sequence[str] = ("latents",),
        **attention_arguments: Any,
    ) -> torch.Tensor:
        """Integrates the flow (Eq. 11) from noise (F, N, C) to latents of the same shape."""
        device, dtype, own = latents.device, latents.dtype, latents.shape[1]
        scheduler, timesteps = self.schedule(steps, own, device, sigmas)
        self._num_timesteps = len(timesteps)
        strengths = torch.tensor(bokeh_strengths, dtype=torch.float32, device=device)
        text_ids = torch.zeros(prompt_embeds.shape[1], 3, device=device, dtype=dtype)
        condition, projection = self._condition(
            strengths, bokeh_scale, 0 if fixed else reference.shape[1], pooled, dtype
        )
        arguments = {**condition, **attention_arguments, **(fixed or {})}
        if fixed:
            arguments.pop("reference_tokens", None)
        with self.progress_bar(total=steps) as progress:
            for index, timestep in enumerate(timesteps):
                if self.interrupt:
                    continue
                self._current_timestep = timestep
                with self.transformer.cache_context("cond"):
                    velocity = self.transformer(
                        hidden_states=latents if fixed else torch.cat([latents, reference], dim=1),  # (F, 2N, C)
                        timestep=(timestep / 1000).expand(len(latents)).to(dtype),
                        guidance=self._guidance(guidance_scale, latents),
                        pooled_projections=projection,
                        encoder_hidden_states=prompt_embeds,
                        txt_ids=text_ids,
                        img_ids=ids[:own] if fixed else ids,
                        joint_attention_kwargs=arguments,
                        return_dict=False,
                    )[0]
                latents = scheduler.step(velocity[:, :own], timestep, latents, return_dict=False)[0].to(dtype)
                if callback is not None:
                    tensors = {"latents": latents, "prompt_embeds": prompt_embeds}
                    changed = callback(self, index, timestep, {name: tensors[name] for name in callback_inputs})
                    latents = changed.pop("latents", latents)
                    prompt_embeds = changed.pop("prompt_embeds", prompt_embeds)
                progress.update()
        self._current_timestep = None
        return latents

    def _decode(self, latents: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """Packed latents (1, N, C) to a picture (1, 3, height, width) in [0, 1], float32 on the CPU."""
        latents = self._unpack_latents(latents, height, width, self.vae_scale_factor)
        latents = latents / self.vae.config.scaling_factor + self.vae.config.shift_factor
        decoded = self.vae.decode(latents.to(self.vae.dtype), return_dict=False)[0]
        return (decoded.float().cpu() / 2 + 0.5).clamp(0, 1)

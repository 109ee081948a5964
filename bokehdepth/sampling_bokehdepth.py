"""How `BokehDepthPipeline` samples a bokeh stack, and what it remembers of a photo for the next one.

A Hub repository carries the file verbatim, with `processing_bokehdepth.py` beside it.
Method: arXiv 2512.12425, Sec. 4.1.

Shape letters: `F` frames of a stack, `N` tokens, `C` channels, `L` adapted blocks, `h w` pixels at work.
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

from .processing_bokehdepth import DetailRestorer, PhotoInput, PhotoRows, timed, working_size

DEFAULT_PROMPT = (
    "Photograph the same scene with a wider aperture: keep the subject in focus and sharp, blur what lies nearer or "
    "farther, and keep composition, light and colours."
)


@dataclass
class PhotoMemory:
    """What all stacks of one photo have in common, made by `BokehDepthPipeline.remember_photo`.

    Every stack that is generated from it starts from the same noise. It belongs to the weights that made it, and
    stays on their device.

    Args:
        image: the photo as it was given.
        rows: the photo's rows, H x W.
        working: (1, 3, h, w), the photo at the size at work.
        padded_height: h, padded to the network's grid.
        tokens: (1, N, C) packed latents of the photo.
        ids: (2N, 3) positions of noisy tokens, then of the photo's.
        noise: (1, N, C) packed.
        prompt_embeds: (1, N_text, C_text).
        pooled_prompt_embeds: (1, P).
        steps: denoising steps.
        guidance_scale: distilled guidance.
        reference: what `encode_reference` gives; empty unless the adapter makes it a constant of the photo, and until
            the first stack.
        shared_latents: number of shared steps, weight of the branch and `reference_refresh` -> latents (1, N, C) after
            these steps.
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
    guidance_scale: float
    reference: dict[str, Any] = field(default_factory=dict)
    shared_latents: dict[tuple[int, float | None, int], torch.Tensor] = field(default_factory=dict)

    @cached_property
    def restorer(self) -> DetailRestorer:
        """Brings frames to the photo's size, on the weights' device; made for the first stack that wants it."""
        return DetailRestorer(self.rows, self.working, self.tokens.device)


def photo_of(image: Any) -> PhotoInput:
    """The photo itself, of a photo or a `PhotoMemory`."""
    return image.image if isinstance(image, PhotoMemory) else image


def approximations(shared_steps: int, reference_refresh: int) -> tuple[str, ...]:
    """Names of the approximations that these options of `generate_stack` ask for."""
    named = {"shared_steps": (shared_steps, 0), "reference_refresh": (reference_refresh, 1)}
    return tuple(f"{name}={value}" for name, (value, exact) in named.items() if value != exact)


def encode_reference(
    transformer: torch.nn.Module,
    adapter: torch.nn.Module,
    tokens: torch.Tensor,
    ids: torch.Tensor,
    pooled_projections: torch.Tensor,
    guidance: torch.Tensor | None = None,
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

    Returns:
        `reference_keys` and `reference_values`, each (L, B, N, heads, head_dim), with 2L where the embedded base looks
        at the mirror image too; for that base also what its head wants: `reference_photo`, the tokens, and
        `reference_features`, lists of its stem's levels.

    Raises:
        ValueError: the adapter has no `reference_timestep`, so its photos have no fixed keys.
    """
    if adapter.config.reference_timestep is None:
        raise ValueError("reference_timestep is None; wanted an adapter that was trained with a fixed one.")
    record: list[tuple[torch.Tensor, torch.Tensor]] = []
    extra: dict[str, Any] = {"reference_features": []} if "offsets_dpt" in transformer.config else {}
    with _recording(transformer, "reference"):
        transformer(
            hidden_states=tokens,
            encoder_hidden_states=tokens.new_zeros(len(tokens), 0, transformer.config.joint_attention_dim),
            pooled_projections=pooled_projections,
            timestep=tokens.new_full((len(tokens),), adapter.config.reference_timestep),
            guidance=guidance,
            img_ids=ids,
            txt_ids=ids.new_zeros(0, 3),
            joint_attention_kwargs={"record": record, "record_tokens": tokens.shape[1], **extra},
            return_dict=False,
        )
    return _stacked(record) | ({"reference_photo": tokens, **extra} if extra else {})


def _recording(transformer: torch.nn.Module, name: str) -> ExitStack:
    """The context of a pass that may record; compiled blocks run uncompiled, since each finds a longer list."""
    stack = ExitStack()
    stack.enter_context(transformer.cache_context(name))
    if any(module._compiled_call_impl is not None for module in transformer.modules()):
        stack.enter_context(torch.compiler.set_stance("force_eager"))
    return stack


def _stacked(record: list[tuple[torch.Tensor, torch.Tensor]]) -> dict[str, torch.Tensor]:
    keys, values = (torch.stack(part) for part in zip(*record, strict=True))
    return {"reference_keys": keys, "reference_values": values}


class StackSampling:
    """The sampling half of `BokehDepthPipeline`."""

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
        processing_area_px: int | None = None,
        max_sequence_length: int = 512,
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
            processing_area_px: likewise.
            max_sequence_length: likewise.

        Raises:
            ValueError: an argument or component cannot be used; nothing has run then.
        """
        self.check_inputs(
            image,
            num_inference_steps=num_inference_steps,
            processing_area_px=processing_area_px,
            needs=("transformer", "vae", "scheduler", "bokeh_adapter"),
        )
        steps = int(num_inference_steps or self.config.default_num_inference_steps)
        prompted = self._prompt(prompt, prompt_embeds, pooled_prompt_embeds, *self._place(), max_sequence_length)
        return self._remember(image, steps, guidance_scale, generator, *prompted, processing_area_px)

    def _remember(
        self,
        photo: PhotoInput,
        steps: int,
        guidance_scale: float | None,
        generator: torch.Generator | None,
        prompt_embeds: torch.Tensor,
        pooled_prompt_embeds: torch.Tensor,
        area_px: int | None,
        timings_s: dict[str, float] | None = None,
    ) -> PhotoMemory:
        self.bokeh_adapter.attach(self.transformer)
        device, dtype = self._place()
        rows, multiple = PhotoRows(photo), 2 * self.vae_scale_factor
        h, w, padded = working_size(
            rows.height, rows.width, area_px or self.config.default_processing_area_px, multiple
        )
        timings_s = {} if timings_s is None else timings_s
        with timed(timings_s, "to_network_size"):
            working = rows.resized(h, w, device)  # (1, 3, h, w)
        with timed(timings_s, "stack"):
            tokens, ids = self._encode(fn.pad(working, (0, 0, 0, padded - h), mode="replicate"), device, dtype)
        shape = (1, self.transformer.config.in_channels // 4, 2 * padded // multiple, 2 * w // multiple)
        noise = randn_tensor(shape, generator=generator, device=device, dtype=dtype)
        return PhotoMemory(
            image=photo,
            rows=rows,
            working=working,
            padded_height=padded,
            tokens=tokens,
            ids=ids,
            noise=self._pack_latents(noise, *shape),
            prompt_embeds=prompt_embeds,
            pooled_prompt_embeds=pooled_prompt_embeds,
            steps=steps,
            guidance_scale=self.config.default_guidance_scale if guidance_scale is None else guidance_scale,
        )

    def _place(self) -> tuple[torch.device, torch.dtype]:
        return self._execution_device, self.transformer.dtype

    def _check_approximations(self, steps: int, shared_steps: int, reference_refresh: int) -> None:
        for name, value, low, high in (
            ("shared_steps", shared_steps, 0, steps - 1),
            ("reference_refresh", reference_refresh, 1, steps),
        ):
            if isinstance(value, bool) or int(value) != value or not low <= value <= high:
                raise ValueError(f"{name} is {value}; wanted a whole number from {low} to {high}, at {steps} steps.")
        if reference_refresh > 1:
            sizes = self.transformer.config
            if len(self.bokeh_adapter.blocks) != sizes["num_layers"] + sizes["num_single_layers"]:
                raise ValueError(f"reference_refresh is {reference_refresh}; wanted 1, as not all blocks are adapted.")
            if self.bokeh_adapter.config.reference_timestep is not None or "offsets_dpt" in sizes:
                raise ValueError(f"reference_refresh is {reference_refresh}; wanted 1, since these weights keep the "
                                 "photo's keys anyway, or have a head that wants its tokens.")  # fmt: skip

    def schedule(self, steps: int, tokens: int, device: torch.device | str = "cpu") -> tuple[Any, torch.Tensor]:
        """A scheduler of its own for one call, and its timesteps (steps,) in [0, 1000].

        Args:
            steps: denoising steps.
            tokens: N of the noisy picture, which shifts the schedule of schedulers that ask for it.
            device: of the timesteps.
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
        timesteps, _ = retrieve_timesteps(scheduler, steps, device, sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
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
        """(1, 3, h, w) in [0, 1] to reference tokens (1, N, C), and ids (2N, 3): noisy tokens, then the reference."""
        latents = self._encode_vae_image((image * 2 - 1).to(device, self.vae.dtype), None).to(dtype)
        rows, columns = latents.shape[-2] // 2, latents.shape[-1] // 2
        tokens = self._pack_latents(latents, *latents.shape)
        ids = self._prepare_latent_image_ids(1, rows, columns, device, dtype)
        reference_ids = ids.clone()
        reference_ids[:, 0] = 1
        return tokens, torch.cat([ids, reference_ids])

    def _sample(
        self,
        memory: PhotoMemory,
        bokeh_strengths: Sequence[float],
        bokeh_scale: float | None,
        callback: Callable[..., dict[str, Any]] | None,
        shared_steps: int,
        reference_refresh: int,
    ) -> torch.Tensor:
        """Latents (F, N, C) of a remembered photo at each K, all denoised together."""
        frames = len(bokeh_strengths)
        if not memory.reference and self.bokeh_adapter.config.reference_timestep is not None:
            count = memory.tokens.shape[1]
            memory.reference = encode_reference(
                self.transformer,
                self.bokeh_adapter,
                memory.tokens,
                memory.ids[count:],
                memory.pooled_prompt_embeds,
                self._guidance(memory.guidance_scale, memory.tokens),
            )
        return self._denoise(
            memory.noise.expand(frames, -1, -1),
            memory.tokens.expand(frames, -1, -1),
            memory.ids,
            bokeh_strengths,
            memory.prompt_embeds.expand(frames, -1, -1),
            memory.pooled_prompt_embeds.expand(frames, -1),
            memory.steps,
            memory.guidance_scale,
            bokeh_scale,
            callback,
            memory=memory,
            shared_steps=shared_steps,
            reference_refresh=reference_refresh,
        )

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
        condition = self.bokeh_adapter.constant_branch(condition)
        condition = {k: v.to(dtype) if torch.is_tensor(v) else v for k, v in condition.items()}
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
        bokeh_scale: float | None,
        callback: Callable[..., dict[str, Any]] | None,
        memory: PhotoMemory | None = None,
        shared_steps: int = 0,
        reference_refresh: int = 1,
        **attention_arguments: Any,
    ) -> torch.Tensor:
        """Integrates the flow (Eq. 11) from noise (F, N, C) to latents of the same shape.

        With `shared_steps` the first steps are one frame's, at half the largest K; with `reference_refresh` above 1
        the reference's keys and values come from the last step that computed them, which are counted anew from the
        end of the shared steps on, since keys of one frame at another K are not those of the frames.
        """
        device, dtype, frames = latents.device, latents.dtype, len(latents)
        own, photo = latents.shape[1], reference.shape[1]
        scheduler, timesteps = self.schedule(steps, own, device)
        strengths = torch.tensor(bokeh_strengths, dtype=torch.float32, device=device)
        text_ids = torch.zeros(prompt_embeds.shape[1], 3, device=device, dtype=dtype)
        fixed = {} if memory is None else memory.reference
        photo_here = 0 if fixed else photo
        first, untouched, name = 0, True, (shared_steps, bokeh_scale, reference_refresh)
        if shared_steps:
            middle = torch.full((1,), self.bokeh_adapter.config.max_bokeh_strength / 2, device=device)
            shared = self._condition(middle, bokeh_scale, photo_here, pooled[:1], dtype)
            latents = latents[:1]
            if memory is not None and name in memory.shared_latents:
                latents, first = memory.shared_latents[name], shared_steps
                scheduler.set_begin_index(shared_steps)
        every = self._condition(strengths, bokeh_scale, photo_here, pooled, dtype)

        kept = fixed
        with self.progress_bar(total=steps) as progress:
            progress.update(first)
            for index, timestep in enumerate(timesteps[first:], first):
                if index == shared_steps and shared_steps:
                    if memory is not None and untouched:
                        memory.shared_latents[name] = latents
                    latents, kept = latents.expand(frames, -1, -1), fixed
                is_shared = index < shared_steps
                condition, projection = shared if is_shared else every
                batch, record = len(latents), []
                arguments = {**condition, **attention_arguments, **kept}
                if kept:
                    arguments.pop("reference_tokens", None)
                    sequence, positions = latents, ids[:own]
                else:
                    sequence, positions = torch.cat([latents, reference[:batch]], dim=1), ids  # (F, 2N, C)
                    if reference_refresh > 1:
                        arguments |= {"record": record, "record_tokens": photo}
                plain = self.transformer.cache_context("cond")
                with _recording(self.transformer, "cond") if "record" in arguments else plain:
                    velocity = self.transformer(
                        hidden_states=sequence,
                        timestep=(timestep / 1000).expand(batch).to(dtype),
                        guidance=self._guidance(guidance_scale, latents),
                        pooled_projections=projection,
                        encoder_hidden_states=prompt_embeds[:batch],
                        txt_ids=text_ids,
                        img_ids=positions,
                        joint_attention_kwargs=arguments,
                        return_dict=False,
                    )[0]
                if record:
                    kept = _stacked(record)
                if (index + 1 - (0 if is_shared else shared_steps)) % reference_refresh == 0:
                    kept = fixed
                latents = scheduler.step(velocity[:, :own], timestep, latents, return_dict=False)[0].to(dtype)
                if callback is not None:
                    before = latents
                    latents = callback(self, index, timestep, {"latents": latents}).pop("latents", latents)
                    untouched = untouched and latents is before
                progress.update()
        return latents

    def _decode(self, latents: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """Packed latents (1, N, C) to a picture (1, 3, height, width) in [0, 1], float32 on the CPU."""
        latents = self._unpack_latents(latents, height, width, self.vae_scale_factor)
        latents = latents / self.vae.config.scaling_factor + self.vae.config.shift_factor
        decoded = self.vae.decode(latents.to(self.vae.dtype), return_dict=False)[0]
        return (decoded.float().cpu() / 2 + 0.5).clamp(0, 1)

"""`BokehDepthPipeline`: one photo to a calibrated bokeh stack (Stage-1) and a metric depth map (Stage-2).

A Hub repository carries it with those of our files that it imports in front (`hub.folder.joined_source`).
It treats the adapter and the depth model by what they can do, not by their class.
Method: arXiv 2512.12425.

Shape letters: `F` frames of a stack, `N` tokens, `C` channels, `H W` pixels of the photo, `h w` pixels at work.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as fn
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    FluxKontextPipeline,
    FluxTransformer2DModel,
    ModelMixin,
)
from transformers import CLIPTextModel, CLIPTokenizer, PreTrainedModel, T5EncoderModel, T5TokenizerFast

from .inputs_bokehdepth import InputChecks
from .loading_bokehdepth import HubLoading
from .processing_bokehdepth import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    BokehDepthOutput,
    BokehStackOutput,
    Frames,
    PhotoInput,
    PhotoRows,
    list_intrinsics,
    list_photos,
    list_stacks,
    list_strengths,
    photo_size,
    restored_stack,
    timed,
    to_output,
    to_pixels,
)
from .sampling_bokehdepth import DEFAULT_PROMPT as DEFAULT_PROMPT
from .sampling_bokehdepth import PhotoMemory, StackSampling, photo_of
from .weights_bokehdepth import CheckedPipeline


class BokehDepthPipeline(CheckedPipeline, HubLoading, InputChecks, StackSampling, FluxKontextPipeline):
    """Bokeh stacks (Stage-1) and metric depth (Stage-2) on FLUX.1-Kontext and a depth model with DSFA.

    Any component may be None: without the Flux base and the adapter the pipeline still reads depth from stacks that
    the caller brings, without the depth model it still makes stacks. LoRAs, offloading, quantisation and compilation
    work as they do for `FluxKontextPipeline`.

    Args:
        scheduler: flow-matching scheduler of the base.
        vae: autoencoder of the base.
        text_encoder: CLIP; not needed while the adapter ships prompt embeddings.
        tokenizer: for CLIP.
        text_encoder_2: T5; likewise.
        tokenizer_2: for T5.
        transformer: the base's transformer, which carries the adapter's processors from the first stack on.
        bokeh_adapter: `BokehAdapter`.
        depth_estimator: `BokehDepthAnythingForDepthEstimation`, or a model with the same call.
        base_model_id: Hub repository that `load_base_model` takes missing base components from.

    Steps, guidance and sizes at work that suit the weights stand in the configurations of `bokeh_adapter` and
    `depth_estimator`, so `BokehDepthPipeline(**pipe.components)` is the same pipeline.
    """

    model_cpu_offload_seq = "text_encoder->text_encoder_2->transformer->vae->depth_estimator"
    _exclude_from_cpu_offload = ["bokeh_adapter"]
    _optional_components = [
        "scheduler",
        "vae",
        "text_encoder",
        "tokenizer",
        "text_encoder_2",
        "tokenizer_2",
        "transformer",
        "bokeh_adapter",
        "depth_estimator",
    ]
    _base_components = _optional_components[:-2]
    _callback_tensor_inputs = ["latents", "prompt_embeds"]

    def __init__(
        self,
        scheduler: FlowMatchEulerDiscreteScheduler,
        vae: AutoencoderKL | ModelMixin,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        text_encoder_2: T5EncoderModel,
        tokenizer_2: T5TokenizerFast,
        transformer: FluxTransformer2DModel,
        bokeh_adapter: ModelMixin,
        depth_estimator: PreTrainedModel,
        base_model_id: str | None = None,
    ) -> None:
        DiffusionPipeline.__init__(self)
        self.register_modules(
            scheduler=scheduler,
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            text_encoder_2=text_encoder_2,
            tokenizer_2=tokenizer_2,
            transformer=transformer,
            bokeh_adapter=bokeh_adapter,
            depth_estimator=depth_estimator,
        )
        self.register_to_config(base_model_id=base_model_id)
        # FluxKontextPipeline's methods read these.
        self.image_encoder = self.feature_extractor = None
        self.default_sample_size = 128

    @classmethod
    def from_released(cls, **options: Any) -> BokehDepthPipeline:
        """Loads the released BokehDepth from the Hub; needs the package `bokehdepth`, which reads its files.

        Args:
            **options: of `bokehdepth.released.pipeline.load_released`, such as `device`, `preset` ("paper",
                "released", "fast"), `depth` ("unidepth", "depth_anything"), `revisions` and `token`.

        Returns:
            `bokehdepth.released.pipeline.ReleasedPipeline`.

        Raises:
            ValueError: the Hub does not give a file (the sentence says why), or an option is wrong.

        Example:
            >>> pipe = BokehDepthPipeline.from_released(device="cuda", preset="paper")
        """
        from importlib import import_module  # a Hub repository carries this file without the module of the name

        return import_module("bokehdepth.released.pipeline").load_released(**options)

    @property
    def vae_scale_factor(self) -> int:
        """Pixels of one latent position on a side."""
        return 8 if self.vae is None else 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def latent_channels(self) -> int:
        """Channels of one latent position."""
        return 16 if self.vae is None else self.vae.config.latent_channels

    @property
    def tokenizer_max_length(self) -> int:
        """Tokens that the CLIP tokenizer takes."""
        return 77 if self.tokenizer is None else self.tokenizer.model_max_length

    # ------------------------------------------------------------------ Stage-1

    @torch.no_grad()
    def generate_stack(
        self,
        image: PhotoInput | PhotoMemory | Sequence[PhotoInput | PhotoMemory],
        bokeh_strengths: Sequence[float] | float | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        bokeh_scale: float | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        prompt: str | None = None,
        prompt_embeds: torch.Tensor | None = None,
        pooled_prompt_embeds: torch.Tensor | None = None,
        max_area: int | None = None,
        restore: bool = True,
        output_type: str = "pil",
        callback_on_step_end: Callable[..., dict[str, Any]] | None = None,
        return_dict: bool = True,
        max_sequence_length: int = 512,
        sigmas: Sequence[float] | None = None,
        latents: torch.Tensor | None = None,
        joint_attention_kwargs: dict[str, Any] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        for_depth: bool = False,
        processing_resolution: int | None = None,
    ) -> BokehStackOutput | tuple:
        """Generates defocused versions of a photo, one for each bokeh strength, all in one denoising run.

        Every K starts from the same noise, so frames differ by their blur alone. K = 0 is the photo itself. Photos of
        one size go through the networks together.

        Args:
            image: an RGB photo, a list, or a batch: PIL image, (H, W, 3) array or (3, H, W) tensor, uint8, uint16 or
                display values in [0, 1], (B, H, W, 3) or (B, 3, H, W); or what `remember_photo` made of a photo,
                whose noise, prompt, steps, guidance and size at work hold.
            bokeh_strengths: ascending K at the 512 px reference width (Eq. 1, 17), in the trained range, or one K;
                None is a third, two thirds and all of that range.
            num_inference_steps: None takes what suits the weights.
            guidance_scale: distilled guidance; None takes what suits the weights.
            bokeh_scale: lambda, the weight of the bokeh branch; None takes the adapter's.
            generator: source of the noise, or one for each photo.
            prompt: text in place of the constant prompt; needs the text encoders.
            prompt_embeds: (1, N_text, C) in place of the adapter's; (F, N_text, C) for one in each frame with K > 0.
            pooled_prompt_embeds: (1, C) or (F, C), with `prompt_embeds`.
            max_area: pixels at work; None takes what suits the weights.
            restore: return frames at the photo's size with its own pixels where nothing is blurred; otherwise at the
                size at work.
            output_type: "pil", "np" or "pt".
            callback_on_step_end: called as `f(pipeline, step, timestep, tensors)`, of each size of photo in turn; what
                it returns takes the tensors' place. Setting `pipeline._interrupt = True` ends the denoising.
            return_dict: return the dataclass instead of its `to_tuple()`.
            max_sequence_length: text tokens of a prompt that is encoded here. Fewer are faster, and are what the
                weights may not have been trained with.
            sigmas: noise levels of the steps in place of evenly spaced ones.
            latents: packed noise (B or 1, N, C) in place of a generator's, shared by a photo's frames.
            joint_attention_kwargs: `{"scale": weight of loaded LoRAs}`.
            callback_on_step_end_tensor_inputs: of "latents" (B x F, N, C) and "prompt_embeds", what the callback gets.
            for_depth: also return `depth_frames`, which `estimate_depth` takes in place of the frames: it then reads
                what no output type has rounded, and full-size frames are gone through once.
            processing_resolution: shorter side of `depth_frames`, as in `estimate_depth`.

        Returns:
            `BokehStackOutput`; lists in it where a list or a batch was given.

        Raises:
            ValueError: an argument or component cannot be used; nothing has run then.

        Example:
            >>> generator = torch.Generator().manual_seed(0)
            >>> frames = pipe.generate_stack(photo, (10, 20, 30), generator=generator).images
        """
        # 1. Check inputs
        photos, is_list = list_photos(image)
        memories = [photo for photo in photos if isinstance(photo, PhotoMemory)]
        own = {
            "num_inference_steps": num_inference_steps,
            "sigmas": sigmas,
            "guidance_scale": guidance_scale,
            "generator": generator,
            "latents": latents,
            "prompt": prompt,
            "prompt_embeds": prompt_embeds,
            "max_area": max_area,
        }
        given = [name for name, value in own.items() if value is not None]
        if memories and given:
            raise ValueError(f"{given[0]} is given with a PhotoMemory; wanted None, since the memory has its own.")
        self.check_inputs(
            image,
            bokeh_strengths=bokeh_strengths,
            num_inference_steps=num_inference_steps,
            sigmas=sigmas,
            max_area=max_area,
            latents=latents,
            processing_resolution=processing_resolution,
            output_type=output_type,
            joint_attention_kwargs=joint_attention_kwargs,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
            needs=("transformer", "vae", "scheduler", "bokeh_adapter", *(("depth_estimator",) if for_depth else ())),
        )
        if for_depth and not restore:
            raise ValueError("restore is False; wanted frames at the photo's size, which depth is read from.")
        strengths = self.check_bokeh_strengths(bokeh_strengths, ("bokeh_adapter",))
        generators = list(generator) if isinstance(generator, list | tuple) else [generator] * len(photos)
        if len(generators) != len(photos):
            raise ValueError(f"generator has {len(generators)} entries; wanted one for each of {len(photos)} photos.")
        self.bokeh_adapter.prepare(self.transformer)
        self._check_memories(memories)

        # 2. Condition: the prompt, noise, and K of every frame that is not the photo itself
        blurred = [k for k in strengths if k > 0]
        new = [i for i, p in enumerate(photos) if not isinstance(p, PhotoMemory)]
        if new:
            prompted = self._prompt(prompt, prompt_embeds, pooled_prompt_embeds, *self._place(), max_sequence_length)
            if blurred and len(prompted[0]) not in (1, len(blurred)):
                raise ValueError(f"`prompt_embeds` must have 1 or {len(blurred)} rows, got {len(prompted[0])}.")
            settings = self._settings(num_inference_steps, sigmas, guidance_scale)
            noise = self._noise([photos[i] for i in new], [generators[i] for i in new], latents, max_area)
            noise = dict(zip(new, noise, strict=True))
        self._interrupt, self._joint_attention_kwargs = False, joint_attention_kwargs
        self._guidance_scale = settings[-1] if new else memories[0].guidance_scale

        # 3. Photos of one size go together
        groups: dict[Any, list[int]] = {}
        for index, photo in enumerate(photos):
            groups.setdefault(photo_size(photo, "image") if index in new else index, []).append(index)
        stacks, reduced = ([None] * len(photos) for _ in range(2))
        timings_s: dict[str, float] = {}
        for chosen in groups.values():
            group = [photos[i] for i in chosen]
            if chosen[0] in new:
                group = self._remember(group, [noise[i] for i in chosen], *prompted, max_area, *settings, timings_s)
            (h, w), padded = group[0].working.shape[-2:], group[0].padded_height
            denoised = [()] * len(group)
            if blurred:
                with timed(timings_s, "stack"):
                    # 4. Denoise all K together
                    denoised = self._sample(
                        group,
                        blurred,
                        bokeh_scale,
                        joint_attention_kwargs,
                        callback_on_step_end,
                        callback_on_step_end_tensor_inputs,
                    )
            for index, memory, kept in zip(chosen, group, denoised, strict=True):
                # 5. Decode frame by frame, which keeps the peak memory at one frame
                with timed(timings_s, "stack"):
                    frames = [self._decode(frame[None], padded, w)[..., :h, :] for frame in kept]
                    generated = torch.cat([memory.working[:0], *frames])  # (F, 3, h, w)
                # 6. To the photo's size, and in the same go over its rows to the depth model's
                with_photo = strengths[0] == 0
                if not restore:
                    whole = torch.cat([memory.working[: int(with_photo)], generated])
                    stacks[index] = to_output(whole, output_type)
                    continue
                height, width = memory.rows.height, memory.rows.width
                size = self.depth_working_size(height, width, processing_resolution) if for_depth else None
                with timed(timings_s, "restore"):
                    made = restored_stack(memory.restorer, generated, with_photo, output_type, size)
                stacks[index], reduced[index] = made

        # 7. Offload, and return
        self.maybe_free_model_hooks()
        output = BokehStackOutput(
            images=stacks if is_list else stacks[0],
            bokeh_strengths=strengths,
            depth_frames=None if not for_depth else reduced if is_list else reduced[0],
        )
        output.timings_s = timings_s
        return output if return_dict else output.to_tuple()

    # ------------------------------------------------------------------ Stage-2

    @torch.no_grad()
    def estimate_depth(
        self,
        image: PhotoInput | Sequence[PhotoInput],
        stack: BokehStackOutput | Frames | Sequence[Frames] | None = None,
        bokeh_strengths: Sequence[float] | float | None = None,
        intrinsics: np.ndarray | Sequence[np.ndarray] | None = None,
        processing_resolution: int | None = None,
        output_type: str = "np",
        return_dict: bool = True,
    ) -> BokehDepthOutput | tuple:
        """Reads metric depth from a photo, and from its bokeh stack where there is one.

        Args:
            image: the sharp RGB photo, a list or a batch, as for `generate_stack`.
            stack: F frames of the photo's size at ascending K, generated or taken with a real aperture bracket; for
                a list of photos a list of stacks; or what `generate_stack` returned, whose `depth_frames` count where
                it has them. None reads depth from the photo alone.
            bokeh_strengths: (F,) K of the frames; None for what `generate_stack` returned, which tells them.
            intrinsics: (3, 3) pinhole matrix in pixels of the photo, for depth models that take one; for a list of
                photos (B, 3, 3) or a list, or one matrix if all have one size.
            processing_resolution: shorter side at work in px; None takes what suits the weights.
            output_type: "np", or "pt" for tensors; "pil" is read as "np", since depth is no picture.
            return_dict: return the dataclass instead of its `to_tuple()`.

        Returns:
            `BokehDepthOutput`; lists in it where a list or a batch was given.

        Raises:
            ValueError: an argument or component cannot be used; nothing has run then.

        Example:
            >>> depth_m = pipe.estimate_depth(photo, stack=[f8, f4], bokeh_strengths=(2.3, 4.6)).depth_m
        """
        # 1. Check inputs
        reduced = getattr(stack, "depth_frames", None)
        if isinstance(stack, BokehStackOutput):
            if bokeh_strengths is not None and list_strengths(bokeh_strengths) != stack.bokeh_strengths:
                raise ValueError(f"bokeh_strengths is {bokeh_strengths}; wanted the stack's own or None.")
            stack, bokeh_strengths = stack.images, stack.bokeh_strengths
        if (stack is None) != (bokeh_strengths is None):
            raise ValueError("stack and bokeh_strengths go together; wanted both or neither.")
        self.check_inputs(
            image,
            bokeh_strengths=bokeh_strengths,
            stack=stack if reduced is None else None,
            processing_resolution=processing_resolution,
            intrinsics=intrinsics,
            output_type=output_type,
            needs=("depth_estimator",),
        )
        strengths = () if stack is None else self.check_bokeh_strengths(bokeh_strengths, ("depth_estimator",))
        photos, is_list = list_photos(image)
        photos = [photo_of(photo) for photo in photos]
        sizes = [photo_size(photo, "image") for photo in photos]
        stacks = [()] * len(photos) if stack is None else list_stacks(stack, is_list, len(photos), len(strengths))
        matrices, model = list_intrinsics(intrinsics, sizes, is_list), self.depth_estimator
        if "intrinsics" not in inspect.signature(model.forward).parameters:
            matrices = None
        # A K = 0 frame is the reference over again.
        kept = [(i, k) for i, k in enumerate(strengths) if k > 0]
        at_work = [self.depth_working_size(*size, processing_resolution) for size in sizes]
        if reduced is not None:
            reduced = list(reduced) if is_list else [reduced]
            for made, size in zip(reduced, at_work, strict=True):
                if made.shape != (wanted := (1 + len(kept), 3, *size)):
                    raise ValueError(f"stack has depth_frames of shape {tuple(made.shape)}; wanted {wanted}.")

        timings_s: dict[str, float] = {}
        depths, cameras, confidences = ([None] * len(photos) for _ in range(3))
        for size in dict.fromkeys(sizes):
            # 2. Photos of one size go together, each before its stack
            chosen = [i for i, own in enumerate(sizes) if own == size]
            with timed(timings_s, "to_network_size"):
                if reduced is None:
                    pictures = [[photos[n], *(stacks[n][i] for i, _ in kept)] for n in chosen]
                    batch = [
                        torch.cat([self._at_work(one, size, at_work[chosen[0]]) for one in own]) for own in pictures
                    ]
                else:
                    batch = [reduced[n] for n in chosen]
            cameras_px = None if matrices is None else torch.tensor(matrices[chosen], dtype=torch.float32)
            # 3. Depth of the references
            with timed(timings_s, "depth"):
                found = self._depth(torch.stack(batch), [k for _, k in kept], cameras_px, size)
            # 4. Back to the photos' size
            with timed(timings_s, "depth_to_photo_size"):
                maps = [value if value is None else _enlarged_maps(value, *size) for value in found[:2]]
                for results, values in zip((depths, confidences, cameras), (*maps, found[2]), strict=True):
                    for n, value in zip(chosen, () if values is None else values.float().cpu(), strict=False):
                        results[n] = value if output_type == "pt" and results is not cameras else value.numpy()

        # 5. Offload, and return
        self.maybe_free_model_hooks()
        if intrinsics is None and cameras[0] is not None:
            intrinsics = cameras if is_list else cameras[0]
        output = BokehDepthOutput(
            depth_m=depths if is_list else depths[0],
            images=stack,
            bokeh_strengths=strengths,
            intrinsics=intrinsics,
            confidence=None if confidences[0] is None else confidences if is_list else confidences[0],
        )
        output.timings_s = timings_s
        return output if return_dict else output.to_tuple()

    def depth_working_size(self, height: int, width: int, processing_resolution: int | None = None) -> tuple[int, int]:
        """Height and width at which the depth model wants a photo's pixels; the photo's where it sizes it itself.

        Args:
            height: of the photo in px.
            width: likewise.
            processing_resolution: shorter side at work in px; None takes what suits the weights.
        """
        model = self.depth_estimator
        if hasattr(model, "infer"):
            keeps_size = "photo_size" in inspect.signature(model.infer).parameters
            return tuple(model.working_size(height, width)) if keeps_size else (height, width)
        patch = getattr(model.config, "patch_size", None) or 14
        side = processing_resolution or getattr(model.config, "processing_resolution", 518)
        scale = side / min(height, width)
        return tuple(max(patch, patch * round(extent * scale / patch)) for extent in (height, width))

    def _at_work(self, picture: PhotoInput, size: tuple[int, int], at_work: tuple[int, int]) -> torch.Tensor:
        """A photo or frame as (1, 3, h, w) on the CPU."""
        if size == at_work:
            return to_pixels(picture, "stack")
        return PhotoRows(picture, "stack").resized(*at_work, self._execution_device)

    def _depth(
        self,
        pixels: torch.Tensor,
        bokeh_strengths: Sequence[float],
        intrinsics: torch.Tensor | None,
        photo_size: tuple[int, int],
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Depth (B, h, w) of photos before their stacks (B, 1 + F, 3, h, w), its confidence and cameras (B, 3, 3)."""
        model, device = self.depth_estimator, self._execution_device
        extra: dict[str, Any] = {} if intrinsics is None else {"intrinsics": intrinsics.to(device)}
        values = torch.tensor([[0.0, *bokeh_strengths]], device=device).expand(len(pixels), -1)
        if hasattr(model, "infer"):  # such a model sizes photos itself, or says what size it wants, and knows cameras
            if "photo_size" in inspect.signature(model.infer).parameters:
                extra["photo_size"] = photo_size
            found = model.infer(pixels, values, **extra)
            return found.predicted_depth, getattr(found, "confidence", None), found.intrinsics
        mean, std = (torch.tensor(v)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
        batch = ((pixels - mean) / std).to(device, model.dtype)
        if bokeh_strengths:
            extra["bokeh_strengths"] = values
        else:
            batch = batch.flatten(0, 1)
        return model(pixel_values=batch, **extra).predicted_depth, None, None

    # ------------------------------------------------------------------ both

    @torch.no_grad()
    def __call__(
        self,
        image: PhotoInput | PhotoMemory | Sequence[PhotoInput | PhotoMemory],
        bokeh_strengths: Sequence[float] | float | None = None,
        num_inference_steps: int | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        intrinsics: np.ndarray | Sequence[np.ndarray] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        guidance_scale: float | None = None,
        bokeh_scale: float | None = None,
        prompt: str | None = None,
        prompt_embeds: torch.Tensor | None = None,
        pooled_prompt_embeds: torch.Tensor | None = None,
        max_area: int | None = None,
        processing_resolution: int | None = None,
        callback_on_step_end: Callable[..., dict[str, Any]] | None = None,
        max_sequence_length: int = 512,
        sigmas: Sequence[float] | None = None,
        latents: torch.Tensor | None = None,
        joint_attention_kwargs: dict[str, Any] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> BokehDepthOutput | tuple:
        """Generates the stack, then reads depth from it: `generate_stack` and `estimate_depth` in one call.

        Args:
            image: as in `generate_stack`.
            bokeh_strengths: ascending K of the frames, or one K, as far as both stages were trained.
            num_inference_steps: None takes what suits the weights.
            generator: source of the noise, or one for each photo.
            intrinsics: as in `estimate_depth`.
            output_type: of the frames: "pil", "np" or "pt"; depth is an array, or a tensor for "pt".
            return_dict: return the dataclass instead of its `to_tuple()`.
            guidance_scale: as in `generate_stack`.
            bokeh_scale: likewise.
            prompt: likewise.
            prompt_embeds: likewise.
            pooled_prompt_embeds: likewise.
            max_area: likewise.
            processing_resolution: as in `estimate_depth`.
            callback_on_step_end: as in `generate_stack`.
            max_sequence_length: likewise.
            sigmas: likewise.
            latents: likewise.
            joint_attention_kwargs: likewise.
            callback_on_step_end_tensor_inputs: likewise.

        Returns:
            `BokehDepthOutput`; lists in it where a list or a batch was given.

        Raises:
            ValueError: an argument or component cannot be used; nothing has run then.

        Example:
            >>> out = pipe(photo, bokeh_strengths=(10, 20, 30))
            >>> out.images[2].save("strongest.png")
            >>> print(out.depth_m.min(), out.depth_m.max())
        """
        strengths = self.check_bokeh_strengths(bokeh_strengths)
        self.check_inputs(
            image,
            strengths,
            processing_resolution=processing_resolution,
            intrinsics=intrinsics,
            output_type=output_type,
            needs=("depth_estimator",),
        )
        stack = self.generate_stack(
            image,
            strengths,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            bokeh_scale=bokeh_scale,
            generator=generator,
            prompt=prompt,
            prompt_embeds=prompt_embeds,
            pooled_prompt_embeds=pooled_prompt_embeds,
            max_area=max_area,
            output_type=output_type,
            callback_on_step_end=callback_on_step_end,
            max_sequence_length=max_sequence_length,
            sigmas=sigmas,
            latents=latents,
            joint_attention_kwargs=joint_attention_kwargs,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
            for_depth=True,
            processing_resolution=processing_resolution,
        )
        found = self.estimate_depth(
            image,
            stack=stack,
            intrinsics=intrinsics,
            processing_resolution=processing_resolution,
            output_type=output_type,
        )
        for part, seconds in stack.timings_s.items():
            found.timings_s[part] = found.timings_s.get(part, 0.0) + seconds
        return found if return_dict else found.to_tuple()


def _enlarged_maps(values: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Maps (B, h, w) as (B, H, W)."""
    values = values.float()
    if values.shape[-2:] != (height, width):
        values = fn.interpolate(values[:, None], (height, width), mode="bilinear", align_corners=False)[:, 0]
    return values

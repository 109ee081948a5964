"""`BokehDepthPipeline`: one photo to a calibrated bokeh stack (Stage-1) and a metric depth map (Stage-2).

A Hub repository carries the file verbatim, with `sampling_bokehdepth.py`, `processing_bokehdepth.py` and
`loading_bokehdepth.py` beside it, the files of ours that it imports. It treats the adapter and the depth model by what
they can do, not by their class.
Method: arXiv 2512.12425.

Shape letters: `F` frames of a stack, `N` tokens, `C` channels, `H W` pixels of the photo, `h w` pixels at work.
"""

from __future__ import annotations

import inspect
import math
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

from .loading_bokehdepth import HubLoading
from .processing_bokehdepth import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    MIN_SIDE_PX,
    BokehDepthOutput,
    BokehStackOutput,
    Frames,
    PhotoInput,
    list_photos,
    list_stacks,
    photo_size,
    resize,
    to_output,
    to_pixels,
)
from .sampling_bokehdepth import DEFAULT_PROMPT as DEFAULT_PROMPT
from .sampling_bokehdepth import PhotoMemory, StackSampling, approximations, photo_of
from .weights_bokehdepth import CheckedPipeline


class BokehDepthPipeline(CheckedPipeline, HubLoading, StackSampling, FluxKontextPipeline):
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
        default_num_inference_steps: steps that suit the weights.
        default_guidance_scale: distilled guidance that suits the weights.
        default_processing_area_px: pixels at work in Stage-1 that suit the weights.
        depth_processing_px: shorter side at work in Stage-2 that suits the weights.
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
    _callback_tensor_inputs = ["latents"]

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
        default_num_inference_steps: int = 10,
        default_guidance_scale: float = 3.5,
        default_processing_area_px: int = 512 * 512,
        depth_processing_px: int = 518,
    ) -> None:
        DiffusionPipeline.__init__(self)
        for name, value in (
            ("default_num_inference_steps", default_num_inference_steps),
            ("default_processing_area_px", default_processing_area_px),
            ("depth_processing_px", depth_processing_px),
        ):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} is {value!r}; wanted a whole number from 1.")
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
        self.register_to_config(
            base_model_id=base_model_id,
            default_num_inference_steps=default_num_inference_steps,
            default_guidance_scale=default_guidance_scale,
            default_processing_area_px=default_processing_area_px,
            depth_processing_px=depth_processing_px,
        )
        # FluxKontextPipeline's methods read these.
        self.image_encoder = self.feature_extractor = None
        self.default_sample_size = 128

    @classmethod
    def from_released(cls, **options: Any) -> BokehDepthPipeline:
        """Loads the released BokehDepth from the Hub; needs the package `bokehdepth`, which reads its files.

        Args:
            **options: of `bokehdepth.released.load_released`, such as `device`, `preset` ("paper", "released",
                "fast"), `depth` ("unidepth", "depth_anything"), `revisions` and `token`.

        Returns:
            `bokehdepth.released.ReleasedPipeline`.

        Raises:
            ValueError: the Hub does not give a file (the sentence says why), or an option is wrong.
        """
        from importlib import import_module  # a Hub repository carries this file without the module of the name

        return import_module("bokehdepth.released").load_released(**options)

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

    # ------------------------------------------------------------------ checks

    def max_bokeh_strength(self) -> float:
        """The largest K that the loaded parts were trained for."""
        return 30.0 if self.bokeh_adapter is None else float(self.bokeh_adapter.config.max_bokeh_strength)

    def check_bokeh_strengths(self, bokeh_strengths: Sequence[float]) -> tuple[float, ...]:
        """Returns K as floats; ValueError unless they are finite, ascending and within the trained range."""
        limit = self.max_bokeh_strength()
        try:
            values = tuple(float(k) for k in bokeh_strengths)
        except TypeError as error:
            raise ValueError(f"bokeh_strengths is {bokeh_strengths!r}; wanted a sequence of numbers.") from error
        if not values or not all(math.isfinite(k) and 0 <= k <= limit for k in values):
            raise ValueError(f"bokeh_strengths is {list(values)}; wanted one or more values from 0 to {limit:g}.")
        if any(a >= b for a, b in zip(values, values[1:], strict=False)):
            raise ValueError(f"bokeh_strengths is {list(values)}; wanted ascending values, each once.")
        return values

    def check_inputs(
        self,
        image: PhotoInput | Sequence[PhotoInput],
        bokeh_strengths: Sequence[float] | None = None,
        stack: Frames | Sequence[Frames] | None = None,
        num_inference_steps: int | None = None,
        processing_area_px: int | None = None,
        processing_px: int | None = None,
        output_type: str = "pil",
        needs: Sequence[str] = (),
    ) -> None:
        """Checks every argument before a model runs.

        Raises:
            ValueError: with one sentence that names the argument, its value and what was wanted.
        """
        for name in needs:
            if getattr(self, name) is None:
                hint = " (call load_base_model() first)" if name in self._base_components else ""
                raise ValueError(f"{name} is None; wanted a loaded component{hint}.")
        if output_type not in ("pil", "np", "pt"):
            raise ValueError(f"output_type is {output_type!r}; wanted 'pil', 'np' or 'pt'.")
        counts = (
            ("num_inference_steps", num_inference_steps, 1),
            ("processing_area_px", processing_area_px, MIN_SIDE_PX**2),
            ("processing_px", processing_px, MIN_SIDE_PX),
        )
        for name, value, least in counts:
            if value is not None and (isinstance(value, bool) or int(value) != value or value < least):
                raise ValueError(f"{name} is {value}; wanted a whole number from {least}.")
        if bokeh_strengths is not None:
            self.check_bokeh_strengths(bokeh_strengths)
        photos, is_list = list_photos(image)
        sizes = [photo_size(photo_of(photo), "image") for photo in photos]
        if stack is not None:
            stacks = list_stacks(stack, is_list, len(photos), len(bokeh_strengths))
            for size, frames in zip(sizes, stacks, strict=True):
                for frame in frames:
                    got = photo_size(frame, "stack")
                    if got != size:
                        raise ValueError(
                            f"stack has a frame of {got[1]}x{got[0]} px; wanted the photo's {size[1]}x{size[0]} px."
                        )
        depth_config = self.depth_estimator.config if "depth_estimator" in needs else None
        if getattr(depth_config, "depth_estimation_type", None) == "relative":
            raise ValueError("depth_estimator predicts relative disparity; wanted one that predicts metric depth.")

    # ------------------------------------------------------------------ Stage-1

    @torch.no_grad()
    def generate_stack(
        self,
        image: PhotoInput | PhotoMemory | Sequence[PhotoInput | PhotoMemory],
        bokeh_strengths: Sequence[float] = (10.0, 20.0, 30.0),
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        bokeh_scale: float | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        prompt: str | None = None,
        prompt_embeds: torch.Tensor | None = None,
        pooled_prompt_embeds: torch.Tensor | None = None,
        processing_area_px: int | None = None,
        restore: bool = True,
        output_type: str = "pil",
        callback_on_step_end: Callable[..., dict[str, Any]] | None = None,
        return_dict: bool = True,
        max_sequence_length: int = 512,
        shared_steps: int = 0,
        reference_refresh: int = 1,
    ) -> BokehStackOutput | tuple:
        """Generates defocused versions of a photo, one for each bokeh strength, all in one denoising run.

        Every K starts from the same noise, so frames differ by their blur alone. K = 0 is the photo itself.

        Args:
            image: an RGB photo, or a list: PIL image, (H, W, 3) array or (3, H, W) tensor; or what `remember_photo`
                made of it, whose noise, prompt, steps, guidance and size at work hold.
            bokeh_strengths: ascending K at the 512 px reference width (Eq. 1, 17), in the trained range.
            num_inference_steps: None takes what suits the weights.
            guidance_scale: distilled guidance; None takes what suits the weights.
            bokeh_scale: lambda, the weight of the bokeh branch; None takes the adapter's.
            generator: source of the noise, or one for each photo.
            prompt: text in place of the constant prompt; needs the text encoders.
            prompt_embeds: (1, N_text, C) in place of the adapter's.
            pooled_prompt_embeds: (1, C), with `prompt_embeds`.
            processing_area_px: pixels at work; None takes what suits the weights.
            restore: return frames at the photo's size with its own pixels where nothing is blurred; otherwise at the
                size at work.
            output_type: "pil", "np" or "pt".
            callback_on_step_end: called as `f(pipeline, step, timestep, {"latents": latents})`.
            return_dict: return the dataclass instead of a tuple.
            max_sequence_length: text tokens of a prompt that is encoded here. Fewer are faster, and are what the
                weights may not have been trained with.
            shared_steps: so many first steps are one frame's, at half the largest K, whatever K; an approximation.
            reference_refresh: the photo's keys and values are computed at every so many steps, counted anew after the
                shared ones, and kept in between; an approximation above 1.

        Returns:
            `BokehStackOutput`, which names the approximations that were asked for.

        Raises:
            ValueError: an argument or component cannot be used; nothing has run then.
        """
        # 1. Check inputs
        photos, is_list = list_photos(image)
        memories = [photo for photo in photos if isinstance(photo, PhotoMemory)]
        own = ("num_inference_steps", "guidance_scale", "generator", "prompt", "prompt_embeds", "processing_area_px")
        values = (num_inference_steps, guidance_scale, generator, prompt, prompt_embeds, processing_area_px)
        given = [name for name, value in zip(own, values, strict=True) if value is not None]
        if memories and given:
            raise ValueError(f"{given[0]} is given with a PhotoMemory; wanted None, since the memory has its own.")
        self.check_inputs(
            image,
            bokeh_strengths=bokeh_strengths,
            num_inference_steps=num_inference_steps,
            processing_area_px=processing_area_px,
            output_type=output_type,
            needs=("transformer", "vae", "scheduler", "bokeh_adapter"),
        )
        strengths = self.check_bokeh_strengths(bokeh_strengths)
        generators = list(generator) if isinstance(generator, list | tuple) else [generator] * len(photos)
        if len(generators) != len(photos):
            raise ValueError(f"generator has {len(generators)} entries; wanted one for each of {len(photos)} photos.")
        steps = int(num_inference_steps or self.config.default_num_inference_steps)
        for count in {memory.steps for memory in memories} or {steps}:
            self._check_approximations(count, shared_steps, reference_refresh)

        # 2. Condition: the prompt, and K of every frame that is not the photo itself
        if len(memories) < len(photos):
            prompted = self._prompt(prompt, prompt_embeds, pooled_prompt_embeds, *self._place(), max_sequence_length)
        blurred = [k for k in strengths if k > 0]

        stacks = []
        for photo, source in zip(photos, generators, strict=True):
            # 3. What no K changes
            memory = photo
            if not isinstance(memory, PhotoMemory):
                memory = self._remember(photo, steps, guidance_scale, source, *prompted, processing_area_px)
            frames, (h, w) = [], memory.working.shape[-2:]
            if blurred:
                # 4. Denoise all K together
                latents = self._sample(
                    memory, blurred, bokeh_scale, callback_on_step_end, shared_steps, reference_refresh
                )
                # 5. Decode frame by frame, which keeps the peak memory at one frame
                for frame in latents:
                    decoded = self._decode(frame[None], memory.padded_height, w)[..., :h, :]  # (1, 3, h, w)
                    frames.append(memory.restorer(decoded) if restore else decoded)
            if strengths[0] == 0:
                frames.insert(0, memory.pixels if restore else memory.working)
            stacks.append(to_output(torch.cat(frames), output_type))

        # 6. Offload, and return
        self.maybe_free_model_hooks()
        images = stacks if is_list else stacks[0]
        if not return_dict:
            return images, strengths
        return BokehStackOutput(
            images=images,
            bokeh_strengths=strengths,
            approximations=approximations(shared_steps, reference_refresh),
        )

    # ------------------------------------------------------------------ Stage-2

    @torch.no_grad()
    def estimate_depth(
        self,
        image: PhotoInput | Sequence[PhotoInput],
        stack: Frames | Sequence[Frames] | None = None,
        bokeh_strengths: Sequence[float] | None = None,
        intrinsics: np.ndarray | None = None,
        processing_px: int | None = None,
        output_type: str = "np",
        return_dict: bool = True,
    ) -> BokehDepthOutput | tuple:
        """Reads metric depth from a photo, and from its bokeh stack where there is one.

        Args:
            image: the sharp RGB photo, or a list.
            stack: F frames of the photo's size at ascending K, generated or taken with a real aperture bracket; for
                a list of photos a list of stacks. None reads depth from the photo alone.
            bokeh_strengths: (F,) K of the frames.
            intrinsics: (3, 3) pinhole matrix in pixels of the photo, for depth models that take one.
            processing_px: shorter side at work; None takes what suits the weights.
            output_type: "np", or "pt" for tensors; "pil" is read as "np", since depth is no picture.
            return_dict: return the dataclass instead of a tuple.

        Returns:
            `BokehDepthOutput`.

        Raises:
            ValueError: an argument or component cannot be used; nothing has run then.
        """
        # 1. Check inputs
        if (stack is None) != (bokeh_strengths is None):
            raise ValueError("stack and bokeh_strengths go together; wanted both or neither.")
        self.check_inputs(
            image,
            bokeh_strengths=bokeh_strengths,
            stack=stack,
            processing_px=processing_px,
            output_type=output_type,
            needs=("depth_estimator",),
        )
        strengths = () if stack is None else self.check_bokeh_strengths(bokeh_strengths)
        photos, is_list = list_photos(image)
        stacks = [()] * len(photos) if stack is None else list_stacks(stack, is_list, len(photos), len(strengths))
        model = self.depth_estimator
        device, dtype = self._execution_device, model.dtype
        side = processing_px or self.config.depth_processing_px
        patch = getattr(model.config, "patch_size", None) or 14
        # A K = 0 frame is the reference over again.
        kept = [(i, k) for i, k in enumerate(strengths) if k > 0]
        extra = {}
        if intrinsics is not None and "intrinsics" in inspect.signature(model.forward).parameters:
            extra["intrinsics"] = torch.as_tensor(intrinsics, device=device, dtype=torch.float32)[None]

        own_size = hasattr(model, "infer")  # such a model sizes photos itself, and knows cameras
        if own_size and processing_px is not None:
            raise ValueError(f"processing_px is {processing_px}; wanted None, since the depth model sizes photos.")

        depths, cameras, confidences = [], [], []
        for photo, frames in zip(photos, stacks, strict=True):
            # 2. Reference first, then the stack, all at one size
            pixels = [to_pixels(photo_of(photo), "image"), *(to_pixels(frames[i], "stack") for i, _ in kept)]
            height, width = pixels[0].shape[-2:]
            if own_size:
                values = torch.tensor([[0.0, *(k for _, k in kept)]], device=device)
                predicted = model.infer(torch.cat(pixels)[None], values, **extra)
                maps = [predicted.predicted_depth, getattr(predicted, "confidence", None)]
                maps = [m if m is None else m[0].float().cpu() for m in maps]
                maps = [m if m is None or output_type == "pt" else m.numpy() for m in maps]
                depths.append(maps[0])
                confidences.append(maps[1])
                cameras.append(predicted.intrinsics[0].float().cpu().numpy())
                continue
            scale = side / min(height, width)
            size = [max(patch, patch * round(extent * scale / patch)) for extent in (height, width)]
            batch = torch.cat([resize(p, *size) for p in pixels])
            mean, std = (torch.tensor(v)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
            batch = ((batch - mean) / std).to(device, dtype)  # (1 + F, 3, h, w)
            # 3. Depth of the reference
            if kept:
                values = torch.tensor([[0.0, *(k for _, k in kept)]], device=device)
                predicted = model(pixel_values=batch[None], bokeh_strengths=values, **extra).predicted_depth
            else:
                predicted = model(pixel_values=batch, **extra).predicted_depth  # (1, h, w)
            # 4. Back to the photo's size
            depth = fn.interpolate(predicted[:, None].float(), (height, width), mode="bilinear", align_corners=False)
            depth = depth[0, 0].cpu()
            depths.append(depth if output_type == "pt" else depth.numpy())

        # 5. Offload, and return
        self.maybe_free_model_hooks()
        result = depths if is_list else depths[0]
        if not return_dict:
            return result, stack, strengths
        if own_size and intrinsics is None:
            intrinsics = cameras if is_list else cameras[0]
        confidence = None
        if own_size and confidences[0] is not None:
            confidence = confidences if is_list else confidences[0]
        return BokehDepthOutput(
            depth_m=result, images=stack, bokeh_strengths=strengths, intrinsics=intrinsics, confidence=confidence
        )

    @torch.no_grad()
    def __call__(
        self,
        image: PhotoInput | Sequence[PhotoInput],
        bokeh_strengths: Sequence[float] = (10.0, 20.0, 30.0),
        num_inference_steps: int | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        intrinsics: np.ndarray | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        **stack_arguments: Any,
    ) -> BokehDepthOutput | tuple:
        """Generates the stack, then reads depth from it: `generate_stack` and `estimate_depth` in one call.

        Args:
            image: an RGB photo, or a list.
            bokeh_strengths: ascending K of the frames.
            num_inference_steps: None takes what suits the weights.
            generator: source of the noise, or one for each photo.
            intrinsics: (3, 3) pinhole matrix in pixels, for depth models that take one.
            output_type: of the frames: "pil", "np" or "pt"; depth is an array, or a tensor for "pt".
            return_dict: return the dataclass instead of a tuple.
            **stack_arguments: further arguments of `generate_stack`.

        Returns:
            `BokehDepthOutput`.

        Raises:
            ValueError: an argument or component cannot be used; nothing has run then.
        """
        self.check_inputs(
            image, bokeh_strengths=bokeh_strengths, output_type=output_type, needs=("depth_estimator",)[:0]
        )
        self.check_inputs(image, needs=("depth_estimator",))
        if stack_arguments.get("restore") is False:
            raise ValueError("restore is False; wanted frames at the photo's size, which depth is read from.")
        stack = self.generate_stack(
            image,
            bokeh_strengths=bokeh_strengths,
            num_inference_steps=num_inference_steps,
            generator=generator,
            output_type=output_type,
            **stack_arguments,
        )
        return self.estimate_depth(
            image,
            stack=stack.images,
            bokeh_strengths=stack.bokeh_strengths,
            intrinsics=intrinsics,
            output_type=output_type,
            return_dict=return_dict,
        )

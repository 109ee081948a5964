"""The released BokehDepth as published: its sampling to the number, its camera, its weights from the Hub.

`load_released` puts FLUX.1-Kontext, the released adapter and a released depth model together, `ReleasedPipeline` is
what a user calls, and `generate_released_stack` repeats the released script's sampling, quirks included. Facts are
those of fogradio/BokehDepth at 0b5a790; the method is arXiv 2512.12425.
"""

from __future__ import annotations

import inspect
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import PIL.Image
import torch

from ..camera.lens import DEFAULT_BOKEH_STRENGTHS
from ..errors import InputError
from ..pipeline_bokehdepth import BokehDepthPipeline
from ..processing_bokehdepth import (
    BokehDepthOutput,
    BokehStackOutput,
    DetailRestorer,
    Frames,
    PhotoInput,
    PhotoRows,
    list_photos,
    photo_size,
    restored_stack,
    to_output,
    to_pixels,
)
from .checkpoint import ADAPTER, BASE_CONFIG, BASE_MODEL, DEPTH_MODELS, REVISIONS, Source, fetch_file, read_checkpoint
from .convert import convert_state

PROMPT_TEMPLATE = (
    "Set dof_cond = {strength:.2f} (stronger background defocus); preserve subject sharpness; keep composition, "
    "lighting, and colors unchanged."
)
"""The sentence that the released scripts write K into, word for word; other words give other pictures."""

RELEASED_SEED = 42
_MIN_STRENGTH, _MAX_STRENGTH = 1.0, 30.0
_MULTIPLE_PX = 16


@dataclass(frozen=True)
class Preset:
    """How stacks are sampled.

    Attributes:
        num_inference_steps: Denoising steps.
        guidance_scale: Distilled guidance.
        exact: Repeat the released script: square 512 px work, noise drawn on the CPU, LAB colour transfer. Otherwise
            the photo keeps its aspect and gets its own detail back where nothing is blurred.
    """

    num_inference_steps: int
    guidance_scale: float
    exact: bool


PRESETS = {
    "paper": Preset(10, 7.0, exact=False),
    "released": Preset(50, 7.0, exact=True),
    "fast": Preset(5, 7.0, exact=False),
}
"""`paper`: the steps of Sec. 12. `released`: the released script's values. `fast`: half of the paper's steps, where
its Table 5 sees clear degradation. The paper names no guidance; all take the released script's 7."""


# --- Stage-1 ---------------------------------------------------------------------------------------------------------


def released_prompt(bokeh_strength: float) -> str:
    """The released scripts' prompt for one K, which it names in two decimals and does not clamp."""
    return PROMPT_TEMPLATE.format(strength=bokeh_strength)


def transfer_color_8bit(image: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Global colour transfer as the released pipeline does it, in 8-bit CIELAB.

    The 8-bit scale is OpenCV's: L * 255/100, a + 128, b + 128, rounded. Each channel gets the reference's mean and
    deviation (of one value throughout: it is left alone), is clipped and cut to whole numbers.

    Args:
        image: (H, W, 3) uint8 sRGB.
        reference: (H', W', 3) uint8 sRGB.

    Returns:
        (H, W, 3) uint8 sRGB. OpenCV converts by tables: single pixels differ from it by a few grey levels.

    """
    from skimage.color import lab2rgb, rgb2lab

    scale, offset = np.array([2.55, 1.0, 1.0]), np.array([0.0, 128.0, 128.0])
    lab, target = (np.clip(np.rint(rgb2lab(array / 255.0) * scale + offset), 0, 255) for array in (image, reference))
    mean, std = lab.mean((0, 1)), lab.std((0, 1))
    moved = (lab - mean) / np.where(std < 1e-6, 1, std) * target.std((0, 1)) + target.mean((0, 1))
    moved = np.clip(np.where(std < 1e-6, lab, moved), 0, 255).astype(np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # colours that sRGB does not have are clipped
        return np.rint(255 * lab2rgb((moved - offset) / scale)).astype(np.uint8)


@torch.no_grad()
def generate_released_stack(
    pipe: BokehDepthPipeline,
    image: PIL.Image.Image,
    bokeh_strengths: Sequence[float] = DEFAULT_BOKEH_STRENGTHS,
    *,
    num_inference_steps: int = 50,
    guidance_scale: float = 7.0,
    seed: int = RELEASED_SEED,
    size_px: tuple[int, int] | None = (512, 512),
    color_transfer: bool = True,
    clamp_strengths: bool = False,
    prompt_embeds: torch.Tensor | None = None,
    pooled_prompt_embeds: torch.Tensor | None = None,
    noise: torch.Tensor | None = None,
    output_type: str = "pil",
) -> BokehStackOutput:
    """Generate a stack the way the released script does.

    The photo is stretched to ``size_px`` (Lanczos), each K starts from the same noise, drawn on the CPU in the
    transformer's precision, stands in the prompt, and reaches the adapter rounded to its precision. In bfloat16 the
    noise of one seed depends on the version of torch.

    Args:
        pipe: With base and a released adapter (`released.convert.convert_adapter`).
        image: RGB photo.
        bokeh_strengths: Ascending K. Every one is generated; 0 is none that the release knows.
        num_inference_steps: Denoising steps.
        guidance_scale: Distilled guidance.
        seed: Of the noise, the same for every K.
        size_px: (width, height) at work; None keeps the photo's own. Both are cut to multiples of 16.
        color_transfer: Give frames the photo's colour statistics, see `transfer_color_8bit`.
        clamp_strengths: Take K outside [1, 30] as the release does: the adapter sees the nearer bound, the prompt
            the number given. Otherwise such a K is refused.
        prompt_embeds: (F, N_text, C) of `released_prompt` for every K; None encodes the prompts.
        pooled_prompt_embeds: (F, C), with ``prompt_embeds``.
        noise: (F, N, C) packed noise in place of the drawn one.
        output_type: "pil", "np" or "pt".

    Returns:
        Frames at the size at work.

    Raises:
        InputError: A value cannot be used; nothing has run then.
        ValueError: The pipeline lacks a component, or the photo cannot be used.
    """
    pipe.check_inputs(
        image,
        num_inference_steps=num_inference_steps,
        output_type=output_type,
        needs=("transformer", "vae", "scheduler", "bokeh_adapter"),
    )
    if not isinstance(image, PIL.Image.Image):
        raise InputError(f"`image` must be a PIL image, which the release stretches, got a {type(image).__name__}.")
    strengths = [float(k) for k in bokeh_strengths]
    if not strengths or not all(np.isfinite(strengths)) or strengths != sorted(set(strengths)) or strengths[0] < 0:
        raise InputError(f"`bokeh_strengths` must be ascending finite values, got {strengths}.")
    if not clamp_strengths and not (strengths[0] >= _MIN_STRENGTH and strengths[-1] <= _MAX_STRENGTH):
        raise InputError(f"`bokeh_strengths` must be from 1 to 30, which the release clamps to, got {strengths}.")
    width_px, height_px = (side // _MULTIPLE_PX * _MULTIPLE_PX for side in size_px or image.size)
    if min(width_px, height_px) < _MULTIPLE_PX:
        raise InputError(f"`size_px` must be sides of {_MULTIPLE_PX} px or more, got {size_px or image.size}.")

    pipe.bokeh_adapter.prepare(pipe.transformer)
    device, dtype = pipe._execution_device, pipe.transformer.dtype
    if prompt_embeds is None:
        prompt_embeds, pooled_prompt_embeds = encode_released_prompts(pipe, strengths)
    for name, value in (("prompt_embeds", prompt_embeds), ("pooled_prompt_embeds", pooled_prompt_embeds)):
        if value is None or len(value) != len(strengths):
            raise InputError(f"`{name}` must have {len(strengths)} rows, got {0 if value is None else len(value)}.")
    stretched = image.resize((width_px, height_px), PIL.Image.Resampling.LANCZOS)
    tokens, ids = pipe._encode(to_pixels(stretched, "image"), device, dtype)
    latent = (pipe.transformer.config.in_channels // 4, *(2 * side // _MULTIPLE_PX for side in (height_px, width_px)))
    if noise is None:
        drawn = torch.randn((1, *latent), generator=torch.Generator().manual_seed(seed), dtype=dtype)
        noise = pipe._pack_latents(drawn, 1, *latent).expand(len(strengths), -1, -1)
    if tuple(noise.shape) != (len(strengths), *tokens.shape[1:]):
        shape = (len(strengths), *tokens.shape[1:])
        raise InputError(f"`noise` must have the shape (F, N, C) = {shape}, got {tuple(noise.shape)}.")
    seen = [float(torch.tensor(k).to(dtype).clamp(_MIN_STRENGTH, _MAX_STRENGTH)) for k in strengths]
    latents = pipe._denoise(
        latents=noise.to(device, dtype),
        reference=tokens.expand(len(strengths), -1, -1),
        ids=ids,
        bokeh_strengths=seen,
        prompt_embeds=prompt_embeds.to(device, dtype),
        pooled=pooled_prompt_embeds.to(device, dtype),
        steps=num_inference_steps,
        guidance_scale=guidance_scale,
    )
    frames = torch.cat([pipe._decode(frame[None], height_px, width_px) for frame in latents])
    pipe.maybe_free_model_hooks()
    if color_transfer:
        pictures = [np.asarray(frame) for frame in to_output(frames, "pil")]
        moved = [transfer_color_8bit(picture, np.asarray(stretched)) for picture in pictures]
        frames = torch.from_numpy(np.stack(moved)).permute(0, 3, 1, 2).float() / 255
    return BokehStackOutput(images=to_output(frames, output_type), bokeh_strengths=tuple(strengths))


def encode_released_prompts(
    pipe: BokehDepthPipeline, bokeh_strengths: Sequence[float]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Encode the prompts of all K.

    Args:
        pipe: With its text encoders.
        bokeh_strengths: (F,) K.

    Returns:
        (F, 512, C) T5 embeddings and (F, C) pooled CLIP embeddings.

    Raises:
        InputError: The text encoders are not loaded.
    """
    if pipe.text_encoder is None or pipe.text_encoder_2 is None:
        raise InputError("The text encoders must be loaded, since the release reads K from the prompt, got None.")
    prompts = [released_prompt(k) for k in bokeh_strengths]
    embeds, pooled, _ = pipe.encode_prompt(prompts, None, device=pipe._execution_device, max_sequence_length=512)
    return embeds, pooled


# --- Stage-2 ---------------------------------------------------------------------------------------------------------


def made_up_camera(height_px: int, width_px: int) -> np.ndarray:
    """The camera that the released pipeline gives every photo: focal length 0.7 widths, principal point in the middle.

    Args:
        height_px: Of the photo.
        width_px: Of the photo.

    Returns:
        (3, 3) pinhole matrix in px.
    """
    focal_px = 0.7 * width_px
    return np.array([[focal_px, 0, width_px / 2], [0, focal_px, height_px / 2], [0, 0, 1]])


# --- the pipeline ----------------------------------------------------------------------------------------------------


class ReleasedPipeline(BokehDepthPipeline):
    """`BokehDepthPipeline` whose adapter reads K from the prompt too, as the released one does.

    Attributes:
        preset: Name in `PRESETS` of how stacks are sampled.
        placement: One of `PLACEMENTS`, where the parts stay.
        revisions: Commit that each repository was loaded at.
        notes: What a user has to know of these weights, a sentence each: licences, and what was not pinned.
        assume_camera: Give the depth model `made_up_camera` where a photo comes without intrinsics, as the released
            pipeline does; otherwise the depth model predicts the camera.
    """

    preset: str = "paper"
    placement: str = "resident"
    revisions: Mapping[str, str] = MappingProxyType({})
    notes: Sequence[str] = ()
    assume_camera: bool = False

    def check_bokeh_strengths(
        self,
        bokeh_strengths: Sequence[float] | float | None = None,
        parts: Sequence[str] = ("bokeh_adapter", "depth_estimator"),
    ) -> tuple[float, ...]:
        """Returns K as floats; ValueError unless ascending, each 0 or from 1 to 30: the release clamps the rest."""
        values = super().check_bokeh_strengths(bokeh_strengths, parts)
        if any(0 < k < _MIN_STRENGTH for k in values):
            raise ValueError(f"`bokeh_strengths` must be 0 or from 1 to {_MAX_STRENGTH:g}, got {list(values)}.")
        return values

    @torch.no_grad()
    def generate_stack(
        self,
        image: PhotoInput | Sequence[PhotoInput],
        bokeh_strengths: Sequence[float] | float | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        prompt: str | None = None,
        prompt_embeds: torch.Tensor | None = None,
        pooled_prompt_embeds: torch.Tensor | None = None,
        restore: bool = True,
        output_type: str = "pil",
        return_dict: bool = True,
        for_depth: bool = False,
        processing_resolution: int | None = None,
        **arguments: Any,
    ) -> BokehStackOutput | tuple:
        """As `BokehDepthPipeline.generate_stack`, sampled by `preset`, with K in the prompt unless one is given.

        Arguments, result and errors are as there, but for K, which is 0 or from 1 to 30, and steps and guidance, of
        which None takes the preset's. The preset "released" takes PIL images, and of ``arguments`` a generator alone:
        its seed, 42 without one.
        """
        preset = PRESETS[self.preset]
        steps = preset.num_inference_steps if num_inference_steps is None else num_inference_steps
        guidance = preset.guidance_scale if guidance_scale is None else guidance_scale
        strengths = self.check_bokeh_strengths(bokeh_strengths, ("bokeh_adapter",))
        own = prompt is None and prompt_embeds is None and pooled_prompt_embeds is None
        if not preset.exact or not own:
            self.check_inputs(image, bokeh_strengths, num_inference_steps=steps, output_type=output_type)
            if own and any(strengths):
                prompt_embeds, pooled_prompt_embeds = self._released_prompts([k for k in strengths if k])
            return super().generate_stack(
                image,
                strengths,
                num_inference_steps=steps,
                guidance_scale=guidance,
                prompt=prompt,
                prompt_embeds=prompt_embeds,
                pooled_prompt_embeds=pooled_prompt_embeds,
                restore=restore,
                output_type=output_type,
                return_dict=return_dict,
                for_depth=for_depth,
                processing_resolution=processing_resolution,
                **arguments,
            )
        usual = inspect.signature(BokehDepthPipeline.generate_stack).parameters
        for name, value in arguments.items():
            if name != "generator" and value is not None and (torch.is_tensor(value) or value != usual[name].default):
                raise ValueError(f"`{name}` must be left out with the preset {self.preset!r}, got {value!r:.60}.")
        photos, is_list = list_photos(image)
        generator = arguments.get("generator")
        generators = list(generator) if isinstance(generator, list | tuple) else [generator] * len(photos)
        if len(generators) != len(photos):
            raise ValueError(f"`generator` must be one for each of {len(photos)} photos, got {len(generators)}.")
        seeds = [RELEASED_SEED if one is None else one.initial_seed() for one in generators]
        sizes = [
            self.depth_working_size(*photo_size(photo, "image"), processing_resolution) if for_depth else None
            for photo in photos
        ]
        stacks = [
            self._exact_stack(photo, strengths, steps, guidance, restore, seed, output_type, size)
            for photo, seed, size in zip(photos, seeds, sizes, strict=True)
        ]
        images, reduced = map(list, zip(*stacks, strict=True)) if is_list else stacks[0]
        output = BokehStackOutput(
            images=images, bokeh_strengths=strengths, depth_frames=reduced if for_depth else None
        )
        return output if return_dict else output.to_tuple()

    def _exact_stack(
        self,
        photo: PIL.Image.Image,
        strengths: Sequence[float],
        steps: int,
        guidance: float,
        restore: bool,
        seed: int,
        output_type: str,
        depth_size: tuple[int, int] | None,
    ) -> tuple[Frames, torch.Tensor | None]:
        """Frames of one photo, the photo itself in the place of K = 0, and what the depth model takes of them."""
        side, blurred = 512, [k for k in strengths if k]
        made = torch.empty(0, 3, side, side)
        if blurred:
            embeds, pooled = self._released_prompts(blurred)
            made = generate_released_stack(
                self,
                photo,
                blurred,
                num_inference_steps=steps,
                guidance_scale=guidance,
                seed=seed,
                prompt_embeds=embeds,
                pooled_prompt_embeds=pooled,
                output_type="pt",
            ).images
        reference = to_pixels(photo.resize((side, side), PIL.Image.Resampling.LANCZOS), "image")
        with_photo = strengths[0] == 0
        if not restore:
            return to_output(torch.cat([reference[: int(with_photo)], made]), output_type), None
        restorer = DetailRestorer(PhotoRows(photo), reference, self._execution_device)
        return restored_stack(restorer, made, with_photo, output_type, depth_size)

    def _released_prompts(self, strengths: Sequence[float]) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings of the released prompts, each encoded once for this pipeline and kept on the CPU."""
        # diffusers reads a pipeline's components from its __init__, which therefore stays the base class's.
        encoded = self.__dict__.setdefault("_encoded_prompts", {})
        missing = [k for k in strengths if released_prompt(k) not in encoded]
        if missing:
            for k, embeds, pooled in zip(missing, *encode_released_prompts(self, missing), strict=True):
                encoded[released_prompt(k)] = (embeds.cpu(), pooled.cpu())
        embeds, pooled = zip(*(encoded[released_prompt(k)] for k in strengths), strict=True)
        return torch.stack(embeds), torch.stack(pooled)

    def estimate_depth(
        self, image: PhotoInput | Sequence[PhotoInput], *arguments: Any, **keywords: Any
    ) -> BokehDepthOutput | tuple:
        """As `BokehDepthPipeline.estimate_depth`, with the made-up camera where `assume_camera` asks for it."""
        if self.assume_camera and keywords.get("intrinsics") is None and len(arguments) < 3:
            photos, is_list = list_photos(image)
            sizes = {photo_size(photo, "image") for photo in photos}
            if len(sizes) > 1:
                raise ValueError(f"`image` must be photos of one size with assume_camera, got {len(sizes)} sizes.")
            keywords["intrinsics"] = made_up_camera(*sizes.pop())
        return super().estimate_depth(image, *arguments, **keywords)

    def save_pretrained(self, save_directory: Any, **keywords: Any) -> None:
        """Refused: the base may not be copied on, and `bokehdepth convert` writes the released parts.

        Raises:
            ValueError: always.
        """
        raise ValueError(f"{save_directory} is not written; `bokehdepth convert` writes the released parts.")


# --- loading ---------------------------------------------------------------------------------------------------------

LICENCE_NOTE = (
    "FLUX.1-Kontext-dev and what is made for it are non-commercial, UniDepthV2 and Depth Anything V2 Large are "
    "CC BY-NC 4.0, and so are these weights."
)


def load_released(
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    depth: str = "unidepth",
    preset: str = "paper",
    placement: str | None = None,
    assume_camera: bool = False,
    base_model_id: str = BASE_MODEL,
    adapter: Source = ADAPTER,
    depth_source: Source | None = None,
    revisions: Mapping[str, str] | None = None,
    with_base: bool = True,
    **options: Any,
) -> ReleasedPipeline:
    """Load the released BokehDepth: base, adapter and depth model, each from one commit, placed to fit the device.

    The base is asked for first, since its gate is what most often refuses. **Licences:** FLUX.1-Kontext-dev is
    non-commercial, UniDepthV2 and Depth Anything V2 Large are CC BY-NC 4.0, and so is what this loads.

    Args:
        device: Where it runs.
        dtype: Of all weights; None is float32 on the CPU and bfloat16 elsewhere.
        depth: "unidepth" or "depth_anything".
        preset: Name in `PRESETS`.
        placement: One of `PLACEMENTS`; None chooses by the device's free memory, see `place`.
        assume_camera: See `ReleasedPipeline`; off by default, since a made-up camera makes metric depth wrong.
        base_model_id: Repository or folder of the base, whose sizes the adapter has to have.
        adapter: File of the adapter.
        depth_source: File of the depth model; None takes the released one.
        revisions: Commit of each repository by its name, before those of `checkpoint.REVISIONS`. What is pinned in
            neither is loaded at its newest, with a warning. The result's ``revisions`` load the same weights again.
        with_base: Load base and adapter too; without them the pipeline reads depth from stacks that the caller brings.
        **options: For the Hub client: ``token``, ``cache_dir``, ``local_files_only``.

    Returns:
        The pipeline, ready to run.

    Raises:
        InputError: An argument is none of these, or a file is not what it should be.
        HubError: The Hub does not give a file; the sentence says why and what to do.
    """
    device = torch.device(device)
    free_bytes(device)
    choices = {"depth": (depth, DEPTH_MODELS), "preset": (preset, PRESETS), "placement": (placement, PLACEMENTS)}
    for name, (value, names) in choices.items():
        if value not in names and not (name == "placement" and value is None):
            raise InputError(f"`{name}` must be one of {', '.join(names)}, got {value!r}.")
    depth_source = depth_source or DEPTH_MODELS[depth]
    repositories = {base_model_id, adapter.repo_id, depth_source.repo_id}
    unknown = sorted(set(revisions or {}) - repositories)
    if unknown:
        raise InputError(f"`revisions` must be of {', '.join(sorted(repositories))}, got one of {unknown[0]}.")
    dtype = dtype or (torch.float32 if device.type == "cpu" else torch.bfloat16)
    pinned = {name: commit for name, commit in {**REVISIONS, **(revisions or {})}.items() if commit is not None}
    commits: dict[str, str] = {}

    def fetch(source: Source) -> Path:
        path, commits[source.repo_id] = fetch_file(
            source, commits.get(source.repo_id, pinned.get(source.repo_id)), **options
        )
        return path

    def convert(source: Source, **sizes: Any) -> torch.nn.Module:
        return convert_state(read_checkpoint(fetch(source))[0], **sizes)[0].to(dtype)

    bokeh_adapter, base_revision = None, {}
    if with_base:
        sizes, base_revision = base_sizes(base_model_id, pinned.get(base_model_id), **options)
        if base_revision:
            commits[base_model_id] = base_revision["revision"]
        bokeh_adapter = convert(adapter, **sizes)
    depth_model = convert(depth_source)
    pipe = ReleasedPipeline(
        **dict.fromkeys(ReleasedPipeline._base_components),
        bokeh_adapter=bokeh_adapter,
        depth_estimator=depth_model,
        base_model_id=base_model_id,
    )
    if with_base:
        suited = {name: getattr(PRESETS[preset], name) for name in ("num_inference_steps", "guidance_scale")}
        bokeh_adapter.register_to_config(**suited)
        pipe.load_base_model(with_text_encoders=True, dtype=dtype, **base_revision, **options)
    pipe.preset, pipe.assume_camera, pipe.revisions = preset, assume_camera, MappingProxyType(commits)
    pipe.notes = [LICENCE_NOTE]
    newest = [f"{repo_id}@{commit}" for repo_id, commit in commits.items() if repo_id not in pinned]
    if newest:
        pipe.notes.append(
            f"not pinned, the newest was loaded; for the same weights again ask for revision {','.join(newest)}."
        )
        warnings.warn(pipe.notes[-1], stacklevel=2)
    pipe.placement = place(pipe, device, placement)
    return pipe


# --- placing ---------------------------------------------------------------------------------------------------------

PLACEMENTS = ("resident", "offload", "stream")
"""From the fastest on: every part on the device; one part at a time there; a few layers at a time."""
_MARGIN_BYTES = 3_000_000_000  # for what is computed beside the weights, with three frames of 512 x 512 px


def free_bytes(device: str | torch.device) -> float:
    """Free memory of a device, infinity for the CPU, where the weights are anyway; InputError if it is not there."""
    device = torch.device(device)
    module = torch.get_device_module(device)
    if not module.is_available():
        raise InputError(f"`device` must be one that this machine has, got {str(device)!r}.")
    if device.type == "cpu":
        return float("inf")
    if device.type == "mps":
        return module.recommended_max_memory() - module.driver_allocated_memory()
    return module.mem_get_info(device)[0]


def place(pipe: BokehDepthPipeline, device: str | torch.device, placement: str | None = None) -> str:
    """Put the parts where diffusers keeps them, so that they fit the device's free memory.

    Args:
        pipe: With all its parts, on the CPU.
        device: Where it runs.
        placement: One of `PLACEMENTS`, taken whether or not it seems to fit; None takes the fastest that fits.

    Returns:
        The placement.

    Raises:
        InputError: This machine does not have the device.
    """
    parts = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    sizes, room = [part.get_memory_footprint() for part in parts], free_bytes(device) - _MARGIN_BYTES
    placement = placement or ("resident" if sum(sizes) <= room else "offload" if max(sizes) <= room else "stream")
    if placement == "resident":
        pipe.to(device)
    elif placement == "offload":
        pipe.enable_model_cpu_offload(device=device)
    else:
        options = {"offload_type": "leaf_level", "use_stream": torch.device(device).type == "cuda"}
        pipe.enable_group_offload(torch.device(device), exclude_modules=["bokeh_adapter"], **options)
    return placement


def base_sizes(
    base_model_id: str, revision: str | None = None, **options: Any
) -> tuple[dict[str, int], dict[str, str]]:
    """Read which adapter fits a base.

    Args:
        base_model_id: Repository or folder of the base.
        revision: Of a repository.
        **options: As in `fetch_file`.

    Returns:
        Sizes by their names in `BokehAdapter`, and under "revision" the commit of a repository.

    Raises:
        InputError: There is no configuration of a FLUX transformer.
        HubError: The Hub does not give it.
    """
    path, commit = Path(base_model_id) / BASE_CONFIG, {}
    if not Path(base_model_id).is_dir():
        path, commit["revision"] = fetch_file(Source(base_model_id, BASE_CONFIG), revision, **options)
    same = ("num_attention_heads", "attention_head_dim", "joint_attention_dim", "pooled_projection_dim")
    names = {"num_double_blocks": "num_layers", "num_single_blocks": "num_single_layers", **{n: n for n in same}}
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        return {size: config[name] for size, name in names.items()}, commit
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"`base_model_id` must be a FLUX.1 model, got {base_model_id!r}, without the configuration of a FLUX "
            f"transformer ({error!r})."
        ) from None

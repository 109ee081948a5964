"""Scene-consistent text-to-image stacks (Sec. 8.2): one scene from a caption, at several bokeh strengths.

`python -m train.grounded --model ID --captions captions.txt --output FOLDER` writes the pictures and `scenes.jsonl`.

All frames start from the same noise. One frame, the pivot, is generated as ever; the others attend to its tokens
beside their own, which holds the layout, and take its colour statistics afterwards.
"""

from __future__ import annotations

import argparse
import json
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from skimage.color import lab2rgb, rgb2lab

from bokehdepth.errors import InputError
from bokehdepth.files.stacks import bokeh_file_name, save_stack
from bokehdepth.hub import load_pipeline
from bokehdepth.manifest import ManifestRow, StackFrame, write_manifest
from bokehdepth.pipeline_bokehdepth import BokehDepthPipeline
from train import config, loop

logger = logging.getLogger("train.grounded")


@torch.no_grad()
def generate_scene(
    pipeline: BokehDepthPipeline,
    prompt: str | None,
    bokeh_strengths: Sequence[float],
    *,
    pivot: int = 0,
    height: int = 512,
    width: int = 512,
    steps: int | None = None,
    generator: torch.Generator | None = None,
    grounded: bool = True,
    transfer: bool = True,
) -> np.ndarray:
    """Generates one scene at several bokeh strengths from text alone.

    Args:
        pipeline: with base and adapter, trained with text-to-image steps.
        prompt: of the scene; None takes the adapter's own embedding.
        bokeh_strengths: ascending K from 0 on, (F,).
        pivot: which frame the others follow.
        height: in px, a multiple of 16.
        width: likewise.
        steps: denoising steps; None takes what suits the weights.
        generator: source of the noise that all frames share.
        grounded: whether frames attend to the pivot.
        transfer: whether they take its colour statistics.

    Returns:
        (F, height, width, 3) float32 in [0, 1].

    Raises:
        InputError: sizes or pivot cannot be used.
        ValueError: as `BokehDepthPipeline.check_bokeh_strengths` says, or a component is missing.
    """
    strengths = pipeline.check_bokeh_strengths(bokeh_strengths, ("bokeh_adapter",))
    multiple = 2 * pipeline.vae_scale_factor
    if not 0 <= pivot < len(strengths):
        raise InputError(f"pivot is {pivot}; wanted 0 to {len(strengths) - 1}.")
    for name, side in (("height", height), ("width", width)):
        if side < multiple or side % multiple:
            raise InputError(f"{name} is {side}; wanted a multiple of {multiple} px.")
    pipeline.bokeh_adapter.prepare(pipeline.transformer)
    device, dtype = pipeline._execution_device, pipeline.transformer.dtype
    embeds, pooled = pipeline._prompt(prompt, None, None, device, dtype)
    count, rows, columns = len(strengths), height // multiple, width // multiple
    shape = (1, pipeline.transformer.config.in_channels // 4, 2 * rows, 2 * columns)
    noise = pipeline._pack_latents(randn_tensor(shape, generator=generator, device=device, dtype=dtype), *shape)
    ids = pipeline._prepare_latent_image_ids(1, rows, columns, device, dtype)
    extra = {"pivot_rows": torch.full((count,), pivot, device=device)} if grounded else {}
    latents = pipeline._denoise(
        noise.expand(count, -1, -1),
        noise.new_zeros(count, 0, noise.shape[-1]),  # no reference
        ids,
        strengths,
        embeds.expand(count, -1, -1),
        pooled.expand(count, -1),
        steps or pipeline.bokeh_adapter.config.num_inference_steps,
        pipeline.bokeh_adapter.config.guidance_scale,
        **extra,
    )
    frames = [pipeline._decode(frame[None], height, width)[0].permute(1, 2, 0).numpy() for frame in latents]
    if transfer:
        frames = [f if i == pivot else color_transfer(f, frames[pivot]) for i, f in enumerate(frames)]
    return np.stack(frames)


def color_transfer(image: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Gives an image the colour statistics of another, by Reinhard's global transfer in CIELAB (Sec. 8.2).

    Args:
        image: (H, W, 3) floating point, sRGB in [0, 1].
        reference: (H', W', 3) of the same kind; its size is free.

    Returns:
        (H, W, 3), dtype of `image`; colours that sRGB does not have are clipped, the one loss of this step.
    """
    lab, reference_lab = rgb2lab(image.astype(np.float64)), rgb2lab(reference.astype(np.float64))
    mean, std = lab.mean((0, 1)), lab.std((0, 1))
    # Below this the spread is rounding of the conversion; a channel of one value throughout is shifted only.
    scale = np.where(std < 1e-6, 1.0, reference_lab.std((0, 1)) / np.maximum(std, 1e-6))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is clipped is told of as a warning
        moved = lab2rgb((lab - mean) * scale + reference_lab.mean((0, 1)))
    return np.clip(moved, 0, 1).astype(image.dtype)


def main() -> None:
    """Generates scenes from captions, each at several bokeh strengths, and a manifest of them."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--model", required=True, help="as in bokehdepth.hub")
    parser.add_argument("--captions", type=Path, required=True, help="text file, one caption a line")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--bokeh-strengths", type=float, nargs="+", default=[0.0, 10.0, 20.0, 30.0], metavar="K")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    loop.set_up_logging()
    if arguments.bokeh_strengths[0] != 0:
        raise InputError(f"bokeh_strengths is {arguments.bokeh_strengths}; wanted 0 first, the sharp picture.")
    captions = [line for line in arguments.captions.read_text(encoding="utf-8").splitlines() if line.strip()]
    pipeline = load_pipeline(arguments.model)
    pipeline.load_base_model(with_text_encoders=True)
    rows = []
    for number, caption in enumerate(captions):
        folder = arguments.output / f"scene_{number:06d}"
        if not folder.is_dir():
            frames = generate_scene(
                pipeline,
                caption,
                arguments.bokeh_strengths,
                height=arguments.size,
                width=arguments.size,
                steps=arguments.steps,
                generator=torch.Generator().manual_seed(arguments.seed + number),
            )
            pictures = [Image.fromarray(np.round(frame * 255).astype(np.uint8)) for frame in frames]
            save_stack(folder, pictures, arguments.bokeh_strengths, {"prompt": json.dumps(caption)})
        stack = tuple(StackFrame(folder / bokeh_file_name(k), k) for k in arguments.bokeh_strengths if k)
        rows.append(
            ManifestRow(
                row_id=folder.name,
                scene=folder.name,
                image_path=folder / bokeh_file_name(0.0),
                captions=(caption,),
                strength_unit="metric",
                stack=stack,
            )
        )
        logger.info("%d of %d", number + 1, len(captions))
    write_manifest(arguments.output / "scenes.jsonl", rows, overwrite=True)


if __name__ == "__main__":
    with config.one_line_errors():
        main()

"""What to look at first in released weights: section by section the questions that no code could answer.

Every check measures and says what it found; only a file that is not what it claims to be fails. Depth is measured on a
procedural scene with known depth and its true stack (`rendering.scenes`), so that numbers have a scale.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import PIL.Image
import torch
from scipy.stats import kstest

from .camera.lens import DEFAULT_BOKEH_STRENGTHS
from .checkpoints import read_checkpoint
from .convert import convert_state, identify
from .errors import InputError
from .released import (
    ReleasedPipeline,
    base_sizes,
    encode_released_prompts,
    generate_released_stack,
    made_up_camera,
    place,
)
from .released_files import BASE_CONFIG, BASE_MODEL, REVISIONS, Source, cached_source, fetch_file
from .rendering.scenes import Scene, SceneGenerator

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from .pipeline_bokehdepth import BokehDepthPipeline

_PATCH_PX = 14
_GENERATION = "which way K reaches the picture"


@dataclass(frozen=True)
class Finding:
    """One answered question.

    Attributes:
        question: What was asked.
        says: What was found, a sentence.
        values: The numbers behind it.
        ok: Whether the file is what it claims to be, as far as this question goes.
        asked: Whether it could be asked here; otherwise ``says`` tells what it needs.
    """

    question: str
    says: str
    values: dict[str, float] = field(default_factory=dict)
    ok: bool = True
    asked: bool = True


def audit_checkpoint(
    path: Path | str, *, size_px: tuple[int, int] = (280, 378), seed: int = 0, **options: object
) -> list[Finding]:
    """Ask a released file the questions that can be answered without the base model.

    Args:
        path: As `read_checkpoint` takes it.
        size_px: (H, W) of the scene, cut to whole patches of 14 px.
        seed: Of the scene and of the noise frames.
        **options: For the converter, as in `convert.convert_state`.

    Returns:
        Findings: what to pin and keys and shapes first; of depth models whether K was trained, whether the stack moves
        the depth, which attention scaling gives the saner depth, and what the made-up camera does; of an adapter which
        parts were trained, and that `audit_adapter` has a question more.

    Raises:
        InputError: The file cannot be read, or ``size_px`` is too small.
    """
    if len(size_px) != 2 or min(size_px) < 4 * _PATCH_PX:
        raise InputError(f"size_px is {size_px}; wanted (H, W), each {4 * _PATCH_PX} px or more.")
    state, notes = read_checkpoint(path)
    findings = [_pin(Path(path))] if Path(path).is_file() else []
    try:
        model, report = convert_state(state, **options)
    except InputError as error:
        return [*findings, Finding("keys and shapes", str(error), ok=False)]
    values = {"tensors": report.tensors, "parameters": report.parameters, "dead": len(report.dead)}
    said = f"kind {report.kind}: all {report.tensors} tensors have their place, {len(report.dead)} change no output"
    findings.append(Finding("keys and shapes", "; ".join([said, *notes, *report.notes]) + ".", values))
    if report.kind == "bokeh_adapter":
        unasked = Finding(_GENERATION, f"not asked, since it needs a base such as {BASE_MODEL}.", asked=False)
        return [*findings, *_live_branches(state), unasked]
    height_px, width_px = (side // _PATCH_PX * _PATCH_PX for side in size_px)
    scene = SceneGenerator((height_px, width_px), seed=seed).generate(0)
    if report.kind != "unidepth":
        findings.append(_k_embedding(state))
        findings.append(_stack_sensitivity(model, scene, seed))
        findings.append(_attention_scaling(state, scene, options))
    if report.kind != "depth_anything_dsfa":
        findings.append(_camera(model, scene))
    return findings


def _pin(path: Path) -> Finding:
    """What names this very file: the commit that belongs into `released_files.REVISIONS`, and its checksum."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    values, found = {"bytes": path.stat().st_size}, cached_source(path)
    if found is None:
        says = f"{path.name} has SHA-256 {digest}; it is not in the Hub's cache, which would tell its commit."
        return Finding("what to pin", says, values)
    repository, commit = found
    pinned = REVISIONS.get(repository)
    known = "pinned so already" if pinned == commit else "not pinned yet" if pinned is None else f"pinned is {pinned}"
    says = f"{repository}@{commit}, {known}; {path.name} there has SHA-256 {digest}."
    return Finding("what to pin", says, values, ok=pinned in (None, commit))


def _live_branches(state: Mapping[str, torch.Tensor]) -> list[Finding]:
    """Sizes of the adapter's parts: an `up` matrix that stayed at zero was never trained."""
    sizes: dict[str, float] = {}
    for name, value in state.items():
        if name.endswith(".up.weight"):
            part = name.split(".")[-3]
            sizes[part] = max(sizes.get(part, 0.0), float(value.float().norm()))
    untrained = sorted(part for part, size in sizes.items() if size == 0)
    says = f"{', '.join(untrained)} stayed at zero." if untrained else "every low-rank part was trained."
    return [Finding("trained parts", says, sizes)]


def _k_embedding(state: Mapping[str, torch.Tensor]) -> Finding:
    """Whether K was trained: its first layer starts uniform in [-1, 1], and weight decay alone only shrinks that."""
    found = {name: value for name, value in state.items() if name.endswith("k_embed.0.weight")}
    chances = {}
    for name, value in found.items():
        weights = value.double().flatten().numpy()
        chances[name] = float(kstest(weights / np.abs(weights).max(), "uniform", args=(-1, 2)).pvalue)
    values = {name: float(value.abs().max()) for name, value in found.items()}
    uniform = all(chance > 0.05 for chance in chances.values()) and all(0.5 < m <= 1 for m in values.values())
    says = (
        "K's first layers still look uniform, as at the start: K seems never to have been trained."
        if uniform
        else "K's first layers do not look as they did at the start."
    )
    return Finding("is K trained", says, values | {f"p({name})": chance for name, chance in chances.items()})


def _tensors(scene: Scene, frames: Sequence[np.ndarray]) -> torch.Tensor:
    from .processing_bokehdepth import IMAGENET_MEAN, IMAGENET_STD

    pixels = torch.from_numpy(np.stack([scene.image, *frames])).permute(0, 3, 1, 2).float()
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    return ((pixels - mean) / std)[None]


@torch.no_grad()
def _depth(
    model: torch.nn.Module, scene: Scene, frames: Sequence[np.ndarray], strengths: Sequence[float]
) -> torch.Tensor:
    pixels = _tensors(scene, frames)
    dtype = next(model.parameters()).dtype
    return model(pixels.to(dtype), torch.tensor([[0.0, *strengths]])).predicted_depth[0].float()


def _change(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def _abs_rel(depth: torch.Tensor, scene: Scene) -> float:
    truth = torch.from_numpy(scene.depth_m).float()
    known = torch.isfinite(truth) & (truth > 0) & (truth < 80)
    return float(((depth - truth).abs() / truth)[known].mean())


def _stack_sensitivity(model: torch.nn.Module, scene: Scene, seed: int) -> Finding:
    """How far the depth moves when the true stack is replaced, at raw K, at K / 30 and at K = 0."""
    frames = [scene.render(k) for k in DEFAULT_BOKEH_STRENGTHS]
    noise = np.random.default_rng(seed).random((len(frames), *scene.image.shape), dtype=np.float32)
    stacks = {"copies": [scene.image] * len(frames), "noise": list(noise)}
    scales = {"raw K": 1.0, "K / 30": 1 / 30, "K = 0": 0.0}
    values = {}
    for label, scale in scales.items():
        strengths = [k * scale for k in DEFAULT_BOKEH_STRENGTHS]
        true = _depth(model, scene, frames, strengths)
        values[f"AbsRel, {label}"] = _abs_rel(true, scene)
        for name, other in stacks.items():
            values[f"{name}, {label}"] = _change(_depth(model, scene, other, strengths), true)
    moved = max(values["copies, raw K"], values["noise, raw K"])
    says = f"at raw K another stack moves the depth by {moved:.1e}" + (
        ": the model looks at one image." if moved < 1e-3 else ": the stack is looked at."
    )
    return Finding("does the stack move the depth", says, values)


def _attention_scaling(state: Mapping[str, torch.Tensor], scene: Scene, options: Mapping[str, object]) -> Finding:
    """Depth under every reading of the release's `use_sdpa`; the saner one is the one that was trained."""
    frames = [scene.render(k) for k in DEFAULT_BOKEH_STRENGTHS]
    readings: list[dict[str, bool]] = [{"double_scaled_space": False}, {"double_scaled_space": True}]
    if identify(state) == "depth_anything_dsfa":
        readings.append({"double_scaled_space": True, "double_scaled_backbone": True})
    values = {}
    for reading in readings:
        model, _ = convert_state(state, **{**options, **reading})
        depth = _depth(model, scene, frames, DEFAULT_BOKEH_STRENGTHS)
        label = "once" if not reading["double_scaled_space"] else "twice"
        label += " and the backbone twice" if len(reading) > 1 else ""
        values[f"AbsRel, {label}"], values[f"median m, {label}"] = _abs_rel(depth, scene), float(depth.median())
        if identify(state) == "depth_anything_dsfa":
            values[f"AbsRel, {label}, 20 m"] = _abs_rel(depth / 4, scene)  # the head's sigmoid times 20 in place of 80
    best = min((value, name) for name, value in values.items() if name.startswith("AbsRel"))[1]
    return Finding("how is attention scaled", f"the sanest depth comes with: {best.removeprefix('AbsRel, ')}.", values)


@torch.no_grad()
def _camera(model: torch.nn.Module, scene: Scene) -> Finding:
    """The predicted camera beside the made-up one and the scene's own."""
    pixels = _tensors(scene, [])[:, 0].to(next(model.parameters()).dtype)
    height_px, width_px = pixels.shape[-2:]
    made_up = torch.tensor(made_up_camera(height_px, width_px))[None]
    free, fixed = model(pixels), model(pixels, intrinsics=made_up)
    values = {
        "predicted focal length, widths": float(free.intrinsics[0, 0, 0] / width_px),
        "true focal length, widths": scene.focal_length_px / width_px,
        "change of depth by the made-up camera": _change(fixed.predicted_depth, free.predicted_depth),
        "AbsRel, predicted camera": _abs_rel(free.predicted_depth[0].float(), scene),
        "AbsRel, made-up camera": _abs_rel(fixed.predicted_depth[0].float(), scene),
    }
    says = f"a camera of 0.7 widths moves the depth by {values['change of depth by the made-up camera']:.1%}."
    return Finding("predicted camera or 0.7 widths", says, values)


def audit_generation(
    pipe: BokehDepthPipeline,
    photo: PIL.Image.Image,
    encode: Callable[[Sequence[float]], tuple[torch.Tensor, torch.Tensor]],
    *,
    num_inference_steps: int = 10,
    size_px: tuple[int, int] | None = (512, 512),
) -> Finding:
    """Ask how K reaches the picture: through the adapter, or through the prompt; needs the base model.

    Args:
        pipe: With base and adapter.
        photo: RGB photo.
        encode: Prompt embeddings (F, N_text, C) and (F, C) of every K, such as `released.encode_released_prompts`.
        num_inference_steps: Denoising steps of each of the runs.
        size_px: As in `released.generate_released_stack`.

    Returns:
        Largest mean change of a picture, in grey levels, when K sweeps with the prompt held, when the prompt sweeps
        with K held, and between K = 1 and no adapter.
    """

    def run(strengths: Sequence[float], prompts: Sequence[float], scale: float | None = None) -> np.ndarray:
        embeds, pooled = encode(prompts)
        before = pipe.bokeh_adapter.config.bokeh_scale
        if scale is not None:
            pipe.bokeh_adapter.register_to_config(bokeh_scale=scale)
        try:
            frames = [
                generate_released_stack(
                    pipe,
                    photo,
                    (strength,),
                    num_inference_steps=num_inference_steps,
                    size_px=size_px,
                    color_transfer=False,
                    prompt_embeds=embeds[i : i + 1],
                    pooled_prompt_embeds=pooled[i : i + 1],
                    output_type="np",
                ).images[0]
                for i, strength in enumerate(strengths)
            ]
        finally:
            pipe.bokeh_adapter.register_to_config(bokeh_scale=before)
        return 255 * np.stack(frames)

    def spread(frames: np.ndarray) -> float:
        return float(max(np.abs(frame - frames[0]).mean() for frame in frames[1:]))

    middle = [DEFAULT_BOKEH_STRENGTHS[1]] * len(DEFAULT_BOKEH_STRENGTHS)
    values = {
        "K sweeps, prompt held": spread(run(DEFAULT_BOKEH_STRENGTHS, middle)),
        "prompt sweeps, K held": spread(run(middle, DEFAULT_BOKEH_STRENGTHS)),
        "K = 1 against no bokeh branch": spread(np.concatenate([run((1.0,), (1.0,)), run((1.0,), (1.0,), scale=0.0)])),
    }
    way = "the adapter" if values["K sweeps, prompt held"] >= values["prompt sweeps, K held"] else "the prompt"
    return Finding(_GENERATION, f"K works mostly through {way}.", values)


def audit_adapter(
    path: Path | str,
    base_model_id: str,
    *,
    device: str | torch.device = "cpu",
    num_inference_steps: int = 10,
    size_px: tuple[int, int] = (512, 512),
    seed: int = 0,
    **options: object,
) -> list[Finding]:
    """`audit_checkpoint` of an adapter, and `audit_generation` of it on its base and a procedural scene.

    Args:
        path: As `read_checkpoint` takes it.
        base_model_id: Repository or folder of the base, which is loaded whole.
        device: Where it runs; off the CPU in bfloat16, placed by a memory plan.
        num_inference_steps: As in `audit_generation`.
        size_px: (width, height) of the scene and at work.
        seed: Of the scene.
        **options: For the converter.

    Returns:
        Findings.

    Raises:
        InputError: The file cannot be read or is no adapter, or the base is none of FLUX.1's.
        HubError: The Hub does not give the base.
    """
    state, _ = read_checkpoint(path)
    if identify(state) != "bokeh_adapter":
        raise InputError(f"checkpoint is {str(path)!r}, no adapter; wanted one, which has a base.")
    folder, revision = None, {}
    if not Path(base_model_id).is_dir():
        config, commit = fetch_file(Source(base_model_id, BASE_CONFIG), REVISIONS.get(base_model_id))
        folder, revision = config.parents[1], {"revision": commit}
    options = {**base_sizes(base_model_id, folder), **options}
    findings = audit_checkpoint(path, **options)
    if not all(finding.ok for finding in findings):
        return findings
    adapter, _ = convert_state(state, **options)
    dtype = torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16
    pipe = ReleasedPipeline(
        **dict.fromkeys(ReleasedPipeline._base_components), bokeh_adapter=adapter.to(dtype), depth_estimator=None
    )
    pipe.load_base_model(base_model_id, with_text_encoders=True, dtype=dtype, **revision)
    pipe.set_progress_bar_config(disable=True)
    place(pipe, device)
    scene = SceneGenerator(size_px[::-1], seed=seed).generate(0)
    photo = PIL.Image.fromarray(np.rint(255 * scene.image).astype(np.uint8))
    encode = functools.partial(encode_released_prompts, pipe)
    asked = audit_generation(pipe, photo, encode, num_inference_steps=num_inference_steps, size_px=size_px)
    return [*findings[:-1], asked]

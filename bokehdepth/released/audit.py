"""What the first owner of the released weights asks them: measured answers, and the commit and checksum to pin."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from scipy.stats import kstest

from ..camera.lens import DEFAULT_BOKEH_STRENGTHS
from ..errors import InputError
from ..processing_bokehdepth import IMAGENET_MEAN, IMAGENET_STD, to_output
from ..rendering.refocus import render_from_depth
from .checkpoint import REVISIONS, cached_source, read_checkpoint
from .convert import convert_state
from .pipeline import ReleasedPipeline, base_sizes, encode_released_prompts, generate_released_stack, place

_PLANES_M = (1.5, 4.0)
_SIDES_PX = {"depth": (280, 378), "picture": (512, 512)}


@dataclass(frozen=True)
class Finding:
    """One answered question: what was found in a sentence, the numbers behind it, whether the file is as it claims."""

    question: str
    says: str
    values: dict[str, float] = field(default_factory=dict)
    ok: bool = True


def audit_checkpoint(
    path: Path | str, base_model_id: str | None = None, *, device: str = "cpu", **options: object
) -> list[Finding]:
    """Ask a released file what no test can know.

    Args:
        path: As `read_checkpoint` takes it.
        base_model_id: Repository or folder of an adapter's base, loaded whole to ask how K reaches the picture.
        device: Where the base runs; off the CPU in bfloat16.
        **options: For the converter, as in `convert.convert_state`.

    Returns:
        What to pin, keys and shapes; of an adapter its live branches and how K reaches the picture; of DSFA whether K
        was trained and whether the stack moves the depth.

    Raises:
        InputError: The file cannot be read, or the base is none of FLUX.1's; `HubError` where the Hub refuses it.
    """
    state, notes = read_checkpoint(path)
    sizes, revision = ({}, {}) if base_model_id is None else base_sizes(base_model_id, REVISIONS.get(base_model_id))
    findings = [_pin(Path(path))] if Path(path).is_file() else []
    try:
        model, report = convert_state(state, **{**sizes, **options})
    except InputError as error:
        return [*findings, Finding("keys and shapes", str(error), ok=False)]
    says = f"kind {report.kind}: all {report.tensors} tensors have their place, {len(report.dead)} change no output"
    findings.append(Finding("keys and shapes", "; ".join([says, *notes, *report.notes]) + "."))
    if report.kind == "bokeh_adapter":
        findings.append(_live_branches(state))
        if base_model_id is not None:
            findings.append(_k_response(model, base_model_id, device, revision))
    elif report.kind != "unidepth":
        findings += [_k_embedding(state), _stack(model)]
    return findings


def _pin(path: Path) -> Finding:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    repository, commit = cached_source(path) or (None, None)
    if repository is None:
        return Finding("what to pin", f"SHA-256 {digest}; the file is not in the Hub's cache, which tells its commit.")
    pinned = REVISIONS.get(repository)
    known = "pinned so already" if pinned == commit else "not pinned yet" if pinned is None else f"pinned is {pinned}"
    says = f"{repository}@{commit}, {known}; {path.name} there has SHA-256 {digest}."
    return Finding("what to pin", says, ok=pinned in (None, commit))


def _live_branches(state: Mapping[str, torch.Tensor]) -> Finding:
    """Largest norm of each part's `up` matrices: one that stayed at zero was never trained."""
    ups = {name: float(value.float().norm()) for name, value in state.items() if name.endswith(".up.weight")}
    parts = sorted({name.split(".")[-3] for name in ups})
    norms = {part: max(norm for name, norm in ups.items() if f".{part}." in name) for part in parts}
    untrained = [part for part, norm in norms.items() if norm == 0]
    return Finding("trained parts", f"{', '.join(untrained) or 'none'} stayed at zero.", norms)


def _k_embedding(state: Mapping[str, torch.Tensor]) -> Finding:
    """Whether K was trained: its first layer starts uniform in [-1, 1], and weight decay alone only shrinks that."""
    layers = {name: value.double().flatten() for name, value in state.items() if name.endswith("k_embed.0.weight")}
    chances = {name: float(kstest(w / w.abs().max(), "uniform", args=(-1, 2)).pvalue) for name, w in layers.items()}
    as_at_start = min(chances.values()) > 0.05 and all(0.5 < w.abs().max() <= 1 for w in layers.values())
    says = "still look as at the start, untrained" if as_at_start else "are not as at the start"
    return Finding("is K trained", f"K's first layers {says}.", chances)


def _scene(height_px: int, width_px: int) -> tuple[np.ndarray, np.ndarray]:
    """A textured plane before another: picture (H, W, 3) in [0, 1] and depth (H, W) in metres."""
    coarse = np.random.default_rng(0).random((height_px // 6 + 1, width_px // 6 + 1, 3), dtype=np.float32)
    image = coarse.repeat(6, axis=0).repeat(6, axis=1)[:height_px, :width_px]
    depth_m = np.full((height_px, width_px), _PLANES_M[1], np.float32)
    depth_m[height_px // 4 : -height_px // 4, width_px // 4 : -width_px // 4] = _PLANES_M[0]
    return image, depth_m


@torch.no_grad()
def _stack(model: torch.nn.Module) -> Finding:
    """How far the depth moves when the true stack gives way to copies of the photo, at raw K and at K / 30."""
    image, depth_m = _scene(*_SIDES_PX["depth"])
    mean, std, dtype = np.array(IMAGENET_MEAN), np.array(IMAGENET_STD), next(model.parameters()).dtype

    def depth(stack: list[np.ndarray], scale: float) -> torch.Tensor:
        pixels = torch.from_numpy((np.stack([image, *stack]) - mean) / std).permute(0, 3, 1, 2).to(dtype)
        strengths = scale * torch.tensor([[0.0, *DEFAULT_BOKEH_STRENGTHS]])
        return model(pixels[None], strengths).predicted_depth[0].float()

    stack = [render_from_depth(image, depth_m, k, _PLANES_M[0]) for k in DEFAULT_BOKEH_STRENGTHS]
    values = {}
    for label, scale in {"raw K": 1.0, "K / 30": 1 / 30}.items():
        seen, copies = depth(stack, scale), depth([image] * len(stack), scale)
        values[f"AbsRel, {label}"] = float(np.mean(np.abs(seen.numpy() - depth_m) / depth_m))
        values[f"change, {label}"] = float((copies - seen).norm() / seen.norm())
    return Finding("does the stack move the depth", f"by {values['change, raw K']:.1e} of it, at raw K.", values)


def _k_response(adapter: torch.nn.Module, base_model_id: str, device: str, revision: Mapping[str, str]) -> Finding:
    """Largest mean change of a picture, in grey levels, when K sweeps with the prompt held, and in reverse."""
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    empty = dict.fromkeys((*ReleasedPipeline._base_components, "depth_estimator"))
    pipe = ReleasedPipeline(**empty, bokeh_adapter=adapter.to(dtype))
    pipe.load_base_model(base_model_id, with_text_encoders=True, dtype=dtype, **revision)
    place(pipe, device)
    photo = to_output(torch.from_numpy(_scene(*_SIDES_PX["picture"])[0]).permute(2, 0, 1)[None], "pil")[0]

    def spread(strengths: Sequence[float], named: Sequence[float]) -> float:
        frames, options = [], {"size_px": None, "color_transfer": False, "num_inference_steps": 10}
        for k, *prompt in zip(strengths, *encode_released_prompts(pipe, named), strict=True):
            options["prompt_embeds"], options["pooled_prompt_embeds"] = (part[None] for part in prompt)
            frames.append(np.asarray(generate_released_stack(pipe, photo, (k,), **options).images[0], np.float32))
        return float(max(np.abs(frame - frames[0]).mean() for frame in frames[1:]))

    strengths, held = DEFAULT_BOKEH_STRENGTHS, DEFAULT_BOKEH_STRENGTHS[1:2] * len(DEFAULT_BOKEH_STRENGTHS)
    values = {"K sweeps, prompt held": spread(strengths, held), "prompt sweeps, K held": spread(held, strengths)}
    return Finding("which way K reaches the picture", "in grey levels, what the picture changes by at most.", values)

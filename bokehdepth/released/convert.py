"""Released checkpoints into our folders: BokehDepth, BokehDiffusion and UniDepthV2.

Keys are translated one by one, strictly: a file converts when it fills our model exactly, and otherwise nothing is
written. Names and shapes are facts of the releases (fogradio/BokehDepth at 0b5a790, atfortes/BokehDiffusion,
lpiccinelli-eth/UniDepth); the method is arXiv 2512.12425.

The weights keep their licences, which `LICENCES` names for every kind of file.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..files.atomic import staged
from .checkpoint import read_checkpoint

if TYPE_CHECKING:
    from diffusers import ModelMixin
    from transformers import PreTrainedModel

KINDS = ("bokeh_adapter", "depth_anything_dsfa", "unidepth_dsfa", "unidepth")
LICENCES = {
    "bokeh_adapter": "adapter for FLUX.1 [dev] models, which are non-commercial; BokehDiffusion's is under S-Lab 1.0",
    "depth_anything_dsfa": "fine-tuned from Depth Anything V2, whose Large and Base are CC BY-NC 4.0",
    "unidepth_dsfa": "fine-tuned from UniDepthV2, which is CC BY-NC 4.0",
    "unidepth": "UniDepthV2, CC BY-NC 4.0",
}
"""What a conversion states about the licence of the weights, by kind."""

REPORT_FILE = "conversion.json"
_HEAD_DIM = 64  # of every DINOv2


# --- names -----------------------------------------------------------------------------------------------------------

_BLOCK = r"^(?:adapter_modules\.)?(\d+)\."
_REFINE = r"^depth_head\.scratch\.refinenet{}\."
_RULES: dict[str, list[tuple[str, str]]] = {
    "bokeh_adapter": [
        (r"^embedding_layer\.([02])\.(weight|bias)$", r"k_embedding.\1.\2"),
        (_BLOCK + r"to_([kv])_(?:dof|bokeh)\.(down|up)\.weight$", r"blocks.\1.to_\2_bokeh.\3.weight"),
        (_BLOCK + r"to_([qk])_adp\.(down|up)\.weight$", r"blocks.\1.to_\2_lora.\3.weight"),
    ],
    "depth_anything_dsfa": [
        (r"^pretrained\.(cls_token|mask_token)$", r"backbone.embeddings.\1"),
        (r"^pretrained\.pos_embed$", "backbone.embeddings.position_embeddings"),
        (r"^pretrained\.patch_embed\.proj\.", "backbone.embeddings.patch_embeddings.projection."),
        (r"^pretrained\.norm\.", "backbone.layernorm."),
        (r"^pretrained\.blocks\.(\d+)\.attn\.qkv\.", r"backbone.encoder.layer.\1.attention.{qkv}_proj."),
        (r"^pretrained\.blocks\.(\d+)\.attn\.proj\.", r"backbone.encoder.layer.\1.attention.o_proj."),
        (r"^pretrained\.blocks\.(\d+)\.ls([12])\.gamma$", r"backbone.encoder.layer.\1.layer_scale\2.lambda1"),
        (r"^pretrained\.blocks\.", "backbone.encoder.layer."),
        (r"^encoder_fusion\.layers\.(\d+)\.block\.focus_film\.0\.", r"dsfa.\1.focus_film."),
        (r"^encoder_fusion\.layers\.(\d+)\.block\.", r"dsfa.\1."),
        (r"^depth_head\.projects\.(\d)\.", r"neck.reassemble_stage.layers.\1.projection."),
        (r"^depth_head\.resize_layers\.(\d)\.", r"neck.reassemble_stage.layers.\1.resize."),
        (r"^depth_head\.scratch\.output_conv1\.", "head.conv1."),
        (r"^depth_head\.scratch\.output_conv2\.0\.", "head.conv2."),
        (r"^depth_head\.scratch\.output_conv2\.2\.", "head.conv3."),
        *((rf"^depth_head\.scratch\.layer{i + 1}_rn\.", f"neck.convs.{i}.") for i in range(4)),
        # The release counts its fusion layers from the shallowest, transformers from the deepest.
        *((_REFINE.format(4 - i) + r"out_conv\.", f"neck.fusion_stage.layers.{i}.projection.") for i in range(4)),
        *(
            (
                _REFINE.format(4 - i) + r"resConfUnit(\d)\.conv(\d)\.",
                rf"neck.fusion_stage.layers.{i}.residual_layer\1.convolution\2.",
            )
            for i in range(4)
        ),
    ],
    "unidepth": [
        (r"^pixel_encoder\.backbone\.", "pixel_encoder."),
        (r"^pixel_encoder\.fusion_blocks\.(\d+)\.focus_film\.0\.", r"dsfa.\1.focus_film."),
        (r"^pixel_encoder\.fusion_blocks\.(\d+)\.", r"dsfa.\1."),
        (r"^pixel_", "pixel_"),
    ],
}
"""Released names and ours, the first that matches; `{qkv}` is a projection that is taken apart into q, k and v."""


@dataclass(frozen=True)
class ConversionReport:
    """Where every tensor of a checkpoint went.

    Attributes:
        kind: One of `KINDS`.
        tensors: Number of tensors that the checkpoint holds.
        parameters: Number of values in them.
        written: Released name -> our names (one, or three where a packed projection is taken apart).
        dead: Names among ``written`` that no output depends on.
        notes: What was done besides renaming, a sentence each.
        licence: Of the weights.
    """

    kind: str
    tensors: int
    parameters: int
    written: dict[str, list[str]]
    dead: list[str]
    notes: list[str]
    licence: str


@dataclass
class _Translated:
    """Our state dict with the account of where each entry came from."""

    kind: str
    state: dict[str, Tensor] = field(default_factory=dict)
    written: dict[str, list[str]] = field(default_factory=dict)

    def shape(self, name: str, dimensions: int) -> tuple[int, ...]:
        """Shape of a tensor, by our name, that the model's sizes are read from."""
        if name not in self.state:
            raise InputError(f"`checkpoint` lacks the tensor for {name} among its {len(self.state)}; it is not whole.")
        shape = tuple(self.state[name].shape)
        if len(shape) != dimensions or not all(shape):
            sizes = f"{dimensions} dimensions, none of them 0"
            raise InputError(f"`checkpoint` must have {sizes}, at {self.source(name)}, got {shape}.")
        return shape

    def numbers(self, pattern: str) -> list[int]:
        """Every number that stands in the place of ``pattern``'s group in one of our names, ascending."""
        return sorted({int(match[1]) for name in self.state if (match := re.match(pattern, name))})

    def source(self, name: str) -> str:
        """Released name of the tensor that has one of our names."""
        return next(released for released, names in self.written.items() if name in names)

    def fill(self, model: nn.Module, dead: list[str], notes: list[str]) -> ConversionReport:
        """Put the tensors into a model on the meta device; every one must fit and none may lack."""
        places = model.state_dict()
        for name, value in self.state.items():
            if name not in places:
                raise InputError(f"`checkpoint` has {self.source(name)}, which has no place in a {self.kind}.")
            if value.shape != places[name].shape:
                shapes = f"{tuple(places[name].shape)}, got {tuple(value.shape)}"
                raise InputError(f"`checkpoint` must have at {self.source(name)} the shape {shapes}.")
        missing = [name for name in places if name not in self.state]
        if missing:
            raise InputError(
                f"`checkpoint` lacks {len(missing)} of {len(places)} tensors, such as the one for {missing[0]}; it is "
                "not whole."
            )
        model.load_state_dict(self.state, assign=True)
        model.eval()
        # A packed projection is three tensors here with as many values.
        parameters = sum(value.numel() for value in self.state.values())
        tensors = len(self.written)
        return ConversionReport(self.kind, tensors, parameters, self.written, dead, notes, LICENCES[self.kind])


def _translate(state: Mapping[str, Tensor], kind: str) -> _Translated:
    ours = _Translated(kind)
    for released, value in state.items():
        for pattern, replacement in _RULES[kind.replace("unidepth_dsfa", "unidepth")]:
            name, matches = re.subn(pattern, replacement, released)
            if matches:
                break
        else:
            raise InputError(f"`checkpoint` has {released}, which has no place in a {kind}.")
        is_packed = "{qkv}" in name
        names = [name.replace("{qkv}", part) for part in "qkv"] if is_packed else [name]
        for own, piece in zip(names, value.chunk(3) if is_packed else [value], strict=True):
            if own in ours.state:
                raise InputError(f"`checkpoint` has two tensors for {own}, one of them {released}.")
            ours.state[own] = piece.contiguous()
        ours.written[released] = names
    return ours


def identify(state: Mapping[str, Tensor]) -> str:
    """Tell which release a checkpoint belongs to, by its names.

    Args:
        state: As `read_checkpoint` returns it.

    Returns:
        One of `KINDS`.

    Raises:
        InputError: It is none of them.
    """
    if any(name.startswith("pixel_decoder.") for name in state):
        return "unidepth_dsfa" if any(".fusion_blocks." in name for name in state) else "unidepth"
    if any(name.startswith("encoder_fusion.") for name in state):
        return "depth_anything_dsfa"
    if any(re.search(r"to_v_(dof|bokeh)\.", name) for name in state):
        return "bokeh_adapter"
    raise InputError(
        f"`checkpoint` must be one of {', '.join(KINDS)}, got {len(state)} tensors (such as {next(iter(state))}) that "
        "match no release."
    )


# --- Stage-1 ---------------------------------------------------------------------------------------------------------


def convert_adapter(
    state: Mapping[str, Tensor], *, rank: int = 128, alpha: float = 128.0, **config: Any
) -> tuple[ModelMixin, ConversionReport]:
    """Build a `BokehAdapter` from the released adapter of BokehDepth or BokehDiffusion (Eq. 3).

    Args:
        state: As `read_checkpoint` returns it: ``embedding_layer.{0,2}`` and ``adapter_modules.{i}.to_*``.
        rank: Rank that the file must have, since only for it ``alpha``, which no file holds, is known.
        alpha: Scale numerator of all low-rank projections.
        **config: Sizes of the base, fields of `BokehAdapter`; the defaults are those of FLUX.1.

    Returns:
        The adapter, and the account of every tensor. ``to_k`` is kept and named dead: with one token its softmax
        is 1 whatever it holds.

    Raises:
        InputError: A tensor is missing, left over or has another shape or rank than the base asks for.
    """
    from ..modeling_bokeh_adapter import BokehAdapter

    ours = _translate(state, "bokeh_adapter")
    for name in ours.state:
        axis = {"down": 0, "up": -1}.get(name.split(".")[-2])
        if axis is not None and ours.shape(name, 2)[axis] != rank:
            found = ours.shape(name, 2)[axis]
            raise InputError(f"`checkpoint` must have LoRAs of rank {rank}, got rank {found} at {ours.source(name)}.")
    if ours.shape("k_embedding.0.weight", 2)[1] != 1:
        raise InputError(f"`checkpoint` must embed K alone, got {ours.shape('k_embedding.0.weight', 2)[1]} inputs.")
    blocks = ours.numbers(r"blocks\.(\d+)\.")
    sizes = {key: config.pop(key, default) for key, default in (("num_double_blocks", 19), ("num_single_blocks", 38))}
    if blocks[-1] >= sum(sizes.values()):
        raise InputError(f"`checkpoint` must adapt blocks 0 to {sum(sizes.values()) - 1}, got block {blocks[-1]}.")
    every = blocks == list(range(sum(sizes.values())))
    with torch.device("meta"):
        adapter = BokehAdapter(
            **sizes,
            block_indices=None if every else blocks,
            rank=rank,
            alpha=alpha,
            query_key_lora=any("_lora." in name for name in ours.state),
            **config,
        )
    dead = [released for released, names in ours.written.items() if ".to_k_bokeh." in names[0]]
    notes = [f"{len(dead)} tensors of to_k change no output while K is one token"]
    if not every:
        notes.append(f"blocks {', '.join(map(str, blocks))} are adapted, the others are not")
    return adapter, ours.fill(adapter, dead, notes)


# --- Stage-2 ---------------------------------------------------------------------------------------------------------


def _dinov2_sizes(ours: _Translated, class_token: str, positions: str, blocks: str) -> dict[str, int]:
    """Fields of a DINOv2 by the names that Depth Anything's and UniDepth's configurations share."""
    dim, count = ours.shape(class_token, 3)[-1], len(ours.numbers(blocks))
    if dim % _HEAD_DIM or count not in (12, 24):
        raise InputError(f"`checkpoint` must be a DINOv2 of size S, B or L, got {count} blocks of width {dim}.")
    side = math.isqrt(ours.shape(positions, 3)[1] - 1)
    return {
        "hidden_size": dim,
        "num_hidden_layers": count,
        "num_attention_heads": dim // _HEAD_DIM,
        "image_size": 14 * side,
        "patch_size": 14,
    }


def _dsfa_fields(dim: int, num_heads: int, double_scaled_space: bool) -> tuple[dict[str, Any], list[str]]:
    """Configuration under which our DSFA computes what the released one does, and a sentence on each difference."""
    if num_heads < 1 or dim % num_heads:
        raise InputError(f"`dsfa_num_heads` must be a divisor of {dim}, got {num_heads}.")
    fields = {
        "dsfa_num_heads": num_heads,
        "bokeh_strength_scale": 1.0,
        "dsfa_focus_bias_slope": 1.0,
        "dsfa_learn_focus_bias": False,
        "space_attention_scale": num_heads / dim if double_scaled_space else None,
    }
    notes = [
        "K enters DSFA and its bias raw, as in the release (bokeh_strength_scale 1): frames of K 10, 20, 30 weigh "
        "e^-10, e^-20, e^-30 against the photo at equal logits"
    ]
    if double_scaled_space:
        notes.append("DSFA's space attention is scaled twice, 1 / head width in all, as the release's fast path does")
    return fields, notes


def convert_depth_anything(
    state: Mapping[str, Tensor],
    *,
    max_depth_m: int = 80,
    dsfa_num_heads: int = 8,
    double_scaled_space: bool = False,
    double_scaled_backbone: bool = False,
) -> tuple[PreTrainedModel, ConversionReport]:
    """Build a `BokehDepthAnythingV2ForDepthEstimation` from the released Depth Anything V2 with DSFA.

    The release's ``use_sdpa`` makes its space attention scale twice, and on CUDA the backbone's attention too. Its
    README's inference leaves it off, its training configuration turns it on; the defaults here follow the former. A
    backbone scaled twice is folded into its query weights.

    Args:
        state: As `read_checkpoint` returns it.
        max_depth_m: Depth that the head's sigmoid is multiplied by, in metres.
        dsfa_num_heads: Heads of the DSFA blocks.
        double_scaled_space: Scale DSFA's space attention twice.
        double_scaled_backbone: Scale the backbone's attention twice.

    Returns:
        The model, and the account of every tensor.

    Raises:
        InputError: A tensor is missing, left over or has another shape than the model's.
    """
    from transformers import Dinov2Config

    from ..modeling_bokehdepth_dav2 import BokehDepthAnythingV2Config, BokehDepthAnythingV2ForDepthEstimation

    ours = _translate(state, "depth_anything_dsfa")
    embeddings = "backbone.embeddings."
    sizes = _dinov2_sizes(
        ours, f"{embeddings}cls_token", f"{embeddings}position_embeddings", r"backbone\.encoder\.layer\.(\d+)\."
    )
    dim, count = sizes["hidden_size"], sizes["num_hidden_layers"]
    fields, notes = _dsfa_fields(dim, dsfa_num_heads, double_scaled_space)
    if double_scaled_backbone:
        for name in ours.state:
            if name.startswith("backbone.") and ".q_proj." in name:
                ours.state[name] = ours.state[name] * _HEAD_DIM**-0.5
        notes.append("the backbone's second attention scale (1/8) is folded into its query weights")
    with torch.device("meta"):
        model = BokehDepthAnythingV2ForDepthEstimation(
            BokehDepthAnythingV2Config(
                backbone_config=Dinov2Config(
                    **sizes,
                    out_indices=[3, 6, 9, 12] if count == 12 else [5, 12, 18, 24],
                    reshape_hidden_states=False,
                    apply_layernorm=True,
                ),
                patch_size=14,
                reassemble_hidden_size=dim,
                neck_hidden_sizes=[
                    ours.shape(f"neck.reassemble_stage.layers.{i}.projection.weight", 4)[0] for i in range(4)
                ],
                fusion_hidden_size=ours.shape("head.conv1.weight", 4)[1],
                head_hidden_size=ours.shape("head.conv2.weight", 4)[0],
                depth_estimation_type="metric",
                max_depth=max_depth_m,
                dsfa_levels=ours.numbers(r"dsfa\.(\d+)\."),
                **fields,
            )
        )
    dead = [name for name in state if name == "pretrained.mask_token" or ".refinenet4.resConfUnit1." in name]
    return model, ours.fill(model, dead, notes)


def convert_unidepth(
    state: Mapping[str, Tensor], *, dsfa_num_heads: int = 8, double_scaled_space: bool = True
) -> tuple[PreTrainedModel, ConversionReport]:
    """Build a `BokehDepthUniDepthForDepthEstimation` from UniDepthV2, with the released DSFA or plain.

    Args:
        state: As `read_checkpoint` returns it, of ``UDv2_dsfa_release.pth`` or of ``unidepth-v2-vit{s,b,l}14``.
        dsfa_num_heads: Heads of the DSFA blocks.
        double_scaled_space: Scale DSFA's space attention twice, as the release's ``use_sdpa`` does.

    Returns:
        The model, without DSFA blocks where the file has none, and the account of every tensor.

    Raises:
        InputError: A tensor is missing, left over or has another shape than the model's.
    """
    from ..modeling_bokehdepth_unidepth import BokehDepthUniDepthConfig, BokehDepthUniDepthForDepthEstimation

    ours = _translate(state, identify(state))
    encoder, head = "pixel_encoder", "pixel_decoder.depth_layer"
    sizes = _dinov2_sizes(ours, f"{encoder}.cls_token", f"{encoder}.pos_embed", rf"{encoder}\.blocks\.(\d+)\.")
    levels = ours.numbers(r"dsfa\.(\d+)\.")
    fields, notes = _dsfa_fields(sizes["hidden_size"], dsfa_num_heads, double_scaled_space) if levels else ({}, [])
    width = ours.shape(f"{head}.to_latents.weight", 2)[0]
    out = ours.shape(f"{head}.confidence_mlp.1.weight", 2)[0]
    with torch.device("meta"):
        model = BokehDepthUniDepthForDepthEstimation(
            BokehDepthUniDepthConfig(
                **sizes,
                out_indices=[sizes["num_hidden_layers"] * i // 4 for i in range(1, 5)],
                decoder_hidden_size=width,
                decoder_out_channels=width // 8 if out == width // 4 else out,
                decoder_depths=[len(ours.numbers(rf"{head}\.ups\.{i}\.convs\.(\d+)\.")) for i in range(3)],
                dsfa_levels=tuple(levels),
                **fields,
            )
        )
    unread = ("mask_token", "register_tokens", "level_embeds")
    dead = [released for released, names in ours.written.items() if names[0].endswith(unread)]
    return model, ours.fill(model, dead, notes)


# --- any of them -----------------------------------------------------------------------------------------------------


def convert_state(state: Mapping[str, Tensor], **options: Any) -> tuple[nn.Module, ConversionReport]:
    """Build the model that a released state dict belongs to.

    Args:
        state: As `read_checkpoint` returns it; tensors on the meta device are taken too.
        **options: For the converter of its kind: `convert_adapter`, `convert_depth_anything`, `convert_unidepth`.

    Returns:
        The model, and the account of every tensor.

    Raises:
        InputError: It is no known release, is not complete, or an option does not belong to its kind.
    """
    kind = identify(state)
    if kind == "bokeh_adapter":
        return convert_adapter(state, **options)
    converter = convert_depth_anything if kind == "depth_anything_dsfa" else convert_unidepth
    unknown = sorted(set(options) - set(converter.__kwdefaults__))
    if unknown:
        raise InputError(f"{unknown[0]} is given, which a checkpoint of kind {kind} has no use for.")
    return converter(state, **options)


def convert_checkpoint(
    source: Path | str,
    folder: Path | str,
    *,
    dtype: torch.dtype | None = None,
    overwrite: bool = False,
    **options: Any,
) -> ConversionReport:
    """Convert a released file to a folder that `from_pretrained` reads.

    Args:
        source: As `read_checkpoint` takes it.
        folder: Folder to write: config.json, safetensors, and the account of every tensor in conversion.json.
        dtype: Of the written weights; None keeps the file's.
        overwrite: Whether files of the same name are replaced.
        **options: As in `convert_state`.

    Returns:
        The account.

    Raises:
        InputError: As `read_checkpoint` and `convert_state`, or the folder holds such files; nothing is written then.
    """
    state, notes = read_checkpoint(source)
    with staged(folder, names=("config.json", REPORT_FILE), overwrite=overwrite) as stage:
        model, report = convert_state(state, **options)
        report.notes[:0] = [f"{note[0].upper()}{note[1:]}" for note in notes]
        if dtype is not None:
            model.to(dtype)
        model.save_pretrained(stage)
        (stage / REPORT_FILE).write_text(json.dumps({"source": Path(source).name, **asdict(report)}, indent=1) + "\n")
    return report

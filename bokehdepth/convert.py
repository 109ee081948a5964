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
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .checkpoints import read_checkpoint
from .errors import InputError
from .files.atomic import staged

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

    state: dict[str, Tensor] = field(default_factory=dict)
    written: dict[str, list[str]] = field(default_factory=dict)

    def put(self, released: str, name: str, value: Tensor) -> None:
        if name in self.state:
            raise InputError(f"checkpoint has two tensors for {name}, one of them {released}; wanted one.")
        self.state[name] = value
        self.written.setdefault(released, []).append(name)


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
    example = next(iter(state))
    raise InputError(
        f"checkpoint matches no release, none of its {len(state)} tensors (such as {example}) has a known name; "
        f"wanted one of {', '.join(KINDS)}."
    )


# --- Stage-1 ---------------------------------------------------------------------------------------------------------

_ADAPTER_PARTS = {
    "to_k_dof": "to_k_bokeh",
    "to_k_bokeh": "to_k_bokeh",
    "to_v_dof": "to_v_bokeh",
    "to_v_bokeh": "to_v_bokeh",
    "to_q_adp": "to_q_lora",
    "to_k_adp": "to_k_lora",
}
_ADAPTER_KEY = re.compile(r"(?:adapter_modules\.)?(\d+)\.(\w+)\.(down|up)\.weight")


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
        InputError: A tensor is missing, left over or has another shape or rank than wanted.
    """
    from .modeling_bokeh_adapter import BokehAdapter

    ours = _Translated()
    blocks, parts = set(), set()
    for name, value in state.items():
        embedding = re.fullmatch(r"embedding_layer\.([02])\.(weight|bias)", name)
        part = _ADAPTER_KEY.fullmatch(name)
        if embedding:
            ours.put(name, f"k_embedding.{embedding[1]}.{embedding[2]}", value)
        elif part and part[2] in _ADAPTER_PARTS:
            own = _ADAPTER_PARTS[part[2]]
            blocks.add(int(part[1]))
            parts.add(own)
            got = _sizes(state, name, 2)[0 if part[3] == "down" else -1]
            if got != rank:
                raise InputError(f"checkpoint has a LoRA of rank {got} at {name}; wanted rank {rank}.")
            ours.put(name, f"blocks.{int(part[1])}.{own}.{part[3]}.weight", value)
        else:
            raise InputError(f"checkpoint has {name}, which no released bokeh adapter has; wanted BokehDepth's own.")
    first = ours.state.get("k_embedding.0.weight")
    if first is None or not blocks:
        raise InputError(f"checkpoint has {len(state)} tensors, no K embedding or no blocks; wanted a whole adapter.")
    if first.ndim != 2 or first.shape[1] != 1:
        raise InputError(f"checkpoint has embedding_layer.0.weight of {tuple(first.shape)}; wanted (64, 1), K alone.")
    sizes = {key: config.pop(key, default) for key, default in (("num_double_blocks", 19), ("num_single_blocks", 38))}
    if max(blocks) >= sum(sizes.values()):
        raise InputError(f"checkpoint adapts block {max(blocks)}; wanted blocks 0 to {sum(sizes.values()) - 1}.")
    every = sorted(blocks) == list(range(sum(sizes.values())))
    with torch.device("meta"):
        adapter = BokehAdapter(
            **sizes,
            block_indices=None if every else sorted(blocks),
            rank=rank,
            alpha=alpha,
            query_key_lora="to_q_lora" in parts or "to_k_lora" in parts,
            **config,
        )
    _fill(adapter, ours)
    dead = [name for name, own in ours.written.items() if own[0].split(".")[2] == "to_k_bokeh"]
    notes = [f"{len(dead)} tensors of to_k change no output while K is one token"]
    if not every:
        notes.append(f"blocks {', '.join(map(str, sorted(blocks)))} are adapted, the others are not")
    return adapter.eval(), _report("bokeh_adapter", state, ours, dead, notes)


# --- Stage-2 ---------------------------------------------------------------------------------------------------------


def _dsfa_fields(dim: int, num_heads: int, double_scaled_space: bool) -> dict[str, Any]:
    """Configuration under which our DSFA computes what the released one does."""
    if num_heads < 1 or dim % num_heads:
        raise InputError(f"dsfa_num_heads is {num_heads}; wanted a divisor of {dim}.")
    return {
        "dsfa_num_heads": num_heads,
        "bokeh_strength_scale": 1.0,
        "dsfa_focus_bias_slope": 1.0,
        "dsfa_learn_focus_bias": False,
        "space_attention_scale": num_heads / dim if double_scaled_space else None,
    }


_DSFA_NOTES = (
    "K enters DSFA and its bias raw, as in the release (bokeh_strength_scale 1): frames of K 10, 20, 30 weigh "
    "e^-10, e^-20, e^-30 against the photo at equal logits",
    "DSFA's space attention is scaled twice, by 1 / head width in all, as the release's fast path does",
)


def _dsfa_notes(double_scaled_space: bool) -> list[str]:
    return list(_DSFA_NOTES if double_scaled_space else _DSFA_NOTES[:1])


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
        InputError: A tensor is missing, left over or has another shape than wanted.
    """
    from transformers import Dinov2Config

    from .modeling_bokehdepth_dav2 import BokehDepthAnythingV2Config, BokehDepthAnythingV2ForDepthEstimation

    dim = _sizes(state, "pretrained.cls_token", 3)[-1]
    positions = _sizes(state, "pretrained.pos_embed", 3)[1]
    count = _count(state, r"pretrained\.blocks\.(\d+)\.")
    projects = _count(state, r"depth_head\.projects\.(\d+)\.")
    neck = [_sizes(state, f"depth_head.projects.{i}.weight", 4)[0] for i in range(4)]
    fusion = _sizes(state, "depth_head.scratch.output_conv1.weight", 4)[1]
    head = _sizes(state, "depth_head.scratch.output_conv2.0.weight", 4)[0]
    if dim % _HEAD_DIM or count not in (12, 24) or projects != 4:
        raise InputError(f"checkpoint has {count} blocks of width {dim}; wanted a DINOv2 of size S, B or L.")
    levels = sorted({int(m[1]) for name in state if (m := re.match(r"encoder_fusion\.layers\.(\d+)\.", name))})
    with torch.device("meta"):
        model = BokehDepthAnythingV2ForDepthEstimation(
            BokehDepthAnythingV2Config(
                backbone_config=Dinov2Config(
                    hidden_size=dim,
                    num_hidden_layers=count,
                    num_attention_heads=dim // _HEAD_DIM,
                    image_size=14 * math.isqrt(max(positions - 1, 0)),
                    patch_size=14,
                    out_indices=[3, 6, 9, 12] if count == 12 else [5, 12, 18, 24],
                    reshape_hidden_states=False,
                    apply_layernorm=True,
                ),
                patch_size=14,
                reassemble_hidden_size=dim,
                neck_hidden_sizes=neck,
                fusion_hidden_size=fusion,
                head_hidden_size=head,
                depth_estimation_type="metric",
                max_depth=max_depth_m,
                dsfa_levels=levels,
                **_dsfa_fields(dim, dsfa_num_heads, double_scaled_space),
            )
        )
    ours = _Translated()
    for name, value in state.items():
        own = _depth_anything_name(name)
        if ".attn.qkv." not in name or not name.startswith("pretrained."):
            ours.put(name, own, value)
            continue
        for part, piece in zip("qkv", value.chunk(3), strict=True):
            if part == "q" and double_scaled_backbone:
                piece = piece * _HEAD_DIM**-0.5
            ours.put(name, own.replace(".attn.qkv.", f".attention.{part}_proj."), piece.contiguous())
    _fill(model, ours)
    dead = [n for n in state if n == "pretrained.mask_token" or ".refinenet4.resConfUnit1." in n]
    notes = _dsfa_notes(double_scaled_space)
    if double_scaled_backbone:
        notes.append("the backbone's second attention scale (1/8) is folded into its query weights")
    return model.eval(), _report("depth_anything_dsfa", state, ours, dead, notes)


_DEPTH_ANYTHING_RULES: list[tuple[str, str | Callable[[re.Match], str]]] = [
    (r"^pretrained\.(cls_token|mask_token)$", r"backbone.embeddings.\1"),
    (r"^pretrained\.pos_embed$", "backbone.embeddings.position_embeddings"),
    (r"^pretrained\.patch_embed\.proj\.", "backbone.embeddings.patch_embeddings.projection."),
    (r"^pretrained\.norm\.", "backbone.layernorm."),
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
    (r"^depth_head\.scratch\.layer(\d)_rn\.", lambda m: f"neck.convs.{int(m[1]) - 1}."),
    (
        r"^depth_head\.scratch\.refinenet(\d)\.resConfUnit(\d)\.conv(\d)\.",
        lambda m: f"neck.fusion_stage.layers.{4 - int(m[1])}.residual_layer{m[2]}.convolution{m[3]}.",
    ),
    (
        r"^depth_head\.scratch\.refinenet(\d)\.out_conv\.",
        lambda m: f"neck.fusion_stage.layers.{4 - int(m[1])}.projection.",
    ),
]


def _depth_anything_name(name: str) -> str:
    for pattern, replacement in _DEPTH_ANYTHING_RULES:
        own, found = re.subn(pattern, replacement, name)
        if found:
            return own
    raise InputError(f"checkpoint has {name}, which Depth Anything V2 with DSFA has not; wanted the released file.")


def convert_unidepth(
    state: Mapping[str, Tensor],
    *,
    dsfa_num_heads: int = 8,
    double_scaled_space: bool = True,
    dsfa_levels: tuple[int, ...] | None = None,
) -> tuple[PreTrainedModel, ConversionReport]:
    """Build a `BokehDepthUniDepthForDepthEstimation` from UniDepthV2, with the released DSFA or plain.

    Args:
        state: As `read_checkpoint` returns it, of ``UDv2_dsfa_release.pth`` or of ``unidepth-v2-vit{s,b,l}14``.
        dsfa_num_heads: Heads of the DSFA blocks.
        double_scaled_space: Scale DSFA's space attention twice, as the release's ``use_sdpa`` does.
        dsfa_levels: Levels that the released blocks belong to, in order; None counts from 0.

    Returns:
        The model, without DSFA blocks where the file has none, and the account of every tensor.

    Raises:
        InputError: A tensor is missing, left over or has another shape than wanted.
    """
    from .modeling_bokehdepth_unidepth import BokehDepthUniDepthConfig, BokehDepthUniDepthForDepthEstimation

    ours = _Translated()
    blocks = sorted({int(m[1]) for n in state if (m := re.match(r"pixel_encoder\.fusion_blocks\.(\d+)\.", n))})
    levels = tuple(blocks) if dsfa_levels is None else tuple(dsfa_levels)
    if len(levels) != len(blocks):
        raise InputError(f"dsfa_levels is {levels}; wanted {len(blocks)} levels, one for each DSFA block of the file.")
    for name, value in state.items():
        own = re.sub(r"^pixel_encoder\.backbone\.", "pixel_encoder.", name)
        fusion = re.match(r"pixel_encoder\.fusion_blocks\.(\d+)\.(.*)", name)
        if fusion:
            own = f"dsfa.{levels[blocks.index(int(fusion[1]))]}.{fusion[2].replace('focus_film.0.', 'focus_film.')}"
        ours.put(name, own, value)
    first, table = "pixel_encoder.cls_token", "pixel_encoder.pos_embed"
    latents, last = "pixel_decoder.depth_layer.to_latents.weight", "pixel_decoder.depth_layer.confidence_mlp.1.weight"
    dim, width = _sizes(ours.state, first, 3)[-1], _sizes(ours.state, latents, 2)[0]
    count = _count(ours.state, r"pixel_encoder\.blocks\.(\d+)\.")
    if dim % _HEAD_DIM or count not in (12, 24):
        raise InputError(f"checkpoint has {count} blocks of width {dim}; wanted a DINOv2 of size S, B or L.")
    out, positions = _sizes(ours.state, last, 2)[0], _sizes(ours.state, table, 3)[1]
    depths = [_count(ours.state, rf"pixel_decoder\.depth_layer\.ups\.{i}\.convs\.(\d+)\.") for i in range(3)]
    with torch.device("meta"):
        model = BokehDepthUniDepthForDepthEstimation(
            BokehDepthUniDepthConfig(
                hidden_size=dim,
                num_hidden_layers=count,
                num_attention_heads=dim // _HEAD_DIM,
                image_size=14 * math.isqrt(max(positions - 1, 0)),
                out_indices=[count * i // 4 for i in range(1, 5)],
                decoder_hidden_size=width,
                decoder_out_channels=width // 8 if out == width // 4 else out,
                decoder_depths=depths,
                dsfa_levels=levels,
                **(_dsfa_fields(dim, dsfa_num_heads, double_scaled_space) if blocks else {}),
            )
        )
    _fill(model, ours)
    unread = ("mask_token", "register_tokens", "level_embeds")
    dead = [released for released, own in ours.written.items() if own[0].endswith(unread)]
    notes = _dsfa_notes(double_scaled_space) if blocks else []
    return model.eval(), _report("unidepth_dsfa" if blocks else "unidepth", state, ours, dead, notes)


# --- strictness and writing ------------------------------------------------------------------------------------------


def _sizes(state: Mapping[str, Tensor], name: str, dimensions: int) -> tuple[int, ...]:
    """Shape of a tensor that the model's sizes are read from."""
    if name not in state:
        raise InputError(f"checkpoint lacks {name} among its {len(state)} tensors; wanted the whole file.")
    shape = tuple(state[name].shape)
    if len(shape) != dimensions or not all(shape):
        raise InputError(f"checkpoint has {name} of shape {shape}; wanted {dimensions} dimensions, none of them 0.")
    return shape


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    return len({m[1] for name in state if (m := re.match(pattern, name))})


def _fill(model: nn.Module, ours: _Translated) -> None:
    """Put the tensors into a model on the meta device; every one must fit and none may lack."""
    wanted = model.state_dict()
    source = {own: released for released, names in ours.written.items() for own in names}
    for name, value in ours.state.items():
        if name not in wanted:
            raise InputError(f"checkpoint has {source[name]}, which has no place in the model; wanted the release.")
        if value.shape != wanted[name].shape:
            raise InputError(
                f"checkpoint has {source[name]} of shape {tuple(value.shape)}; wanted {tuple(wanted[name].shape)}."
            )
    missing = [name for name in wanted if name not in ours.state]
    if missing:
        raise InputError(
            f"checkpoint lacks {len(missing)} of {len(wanted)} tensors, such as the one for {missing[0]}; wanted the "
            "whole file."
        )
    model.load_state_dict(ours.state, assign=True)


def _report(
    kind: str, state: Mapping[str, Tensor], ours: _Translated, dead: list[str], notes: list[str]
) -> ConversionReport:
    parameters = sum(value.numel() for value in state.values())
    return ConversionReport(kind, len(state), parameters, ours.written, dead, notes, LICENCES[kind])


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
    converter = {"bokeh_adapter": convert_adapter, "depth_anything_dsfa": convert_depth_anything}.get(
        kind, convert_unidepth
    )
    if converter is not convert_adapter:
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

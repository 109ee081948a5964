"""Transformer blocks compiled ahead of time, for processes that end before `torch.compile` pays, such as ZeroGPU's.

`save_compiled_blocks` writes one package for each kind of block, without weights; `load_compiled_blocks` lets every
block of the kind run it with the block's own weights, where they lie, and its own rows of the adapter's arguments. A
package is native code for one torch version, dtype and kind of device: load only what you trust.

========================================= ===========================
file                                      what it holds
========================================= ===========================
`transformer_blocks/package.pt2`          the double block
`single_transformer_blocks/package.pt2`   the single block
`compiled_blocks.json`                    what both were compiled for
========================================= ===========================

Shape letters: `B` frames, `N` image tokens, `T` text tokens, `M` fixed tokens of the photo, `L` blocks, `D` width.
"""

from __future__ import annotations

import json
import math
import struct
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from .acceleration import BLOCKS
from .camera.lens import DEFAULT_BOKEH_STRENGTHS
from .errors import InputError
from .files.atomic import staged

if TYPE_CHECKING:
    from .pipeline_bokehdepth import BokehDepthPipeline

FACTS = "compiled_blocks.json"
PACKAGE = "package.pt2"
_FORMAT = 1
# Weights stay outside, under the names that they have in the block.
_OPTIONS = {
    "aot_inductor.package": True,
    "aot_inductor.package_constants_in_so": False,
    "always_keep_tensor_constants": True,
    "joint_graph_constant_folding": False,
}
# Axes of a block's arguments whose size a call chooses.
_AXES: dict[str, dict[int, str]] = {
    "hidden_states": {0: "frames", 1: "image_tokens"},
    "encoder_hidden_states": {0: "frames", 1: "text_tokens"},
    "temb": {0: "frames"},
    "cosines": {0: "tokens"},
    "sines": {0: "tokens"},
    "bokeh_values": {1: "frames"},
    "reference_keys": {2: "reference_tokens"},
    "reference_values": {2: "reference_tokens"},
}
_ROWS = ("bokeh_values", "reference_keys", "reference_values")  # that hold something for each block
# A relative deviation from the eager block that rounding alone does not reach.
_ROUNDING = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


class _CapturedError(Exception):
    """Ends a call of the pipeline once its arguments are known."""


class CompiledBlock:
    """Stands for a block's `forward`: runs the package of the block's kind with the block's own weights and rows.

    Calls that record keys and values, one for each photo, go to the block itself.

    Args:
        block: that it stands for.
        package: of its kind.
        facts: of its kind: `arguments` by name, each with `shape` and `dtype`, and `weights` likewise.
        sizes: name of an axis -> least and largest size.
    """

    def __init__(
        self, block: nn.Module, package: _Package, facts: dict[str, Any], sizes: dict[str, Sequence[int]]
    ) -> None:
        self._block = weakref.ref(block)
        self._package = package
        self._arguments = facts["arguments"]
        self._weights = [(name, name.split(".")) for name in facts["weights"]]
        self._sizes = sizes

    def __call__(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        temb: torch.Tensor,
        image_rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
        joint_attention_kwargs: dict[str, Any] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Text tokens (B, T, D) and image tokens (B, N, D) behind the block.

        Args:
            hidden_states: (B, N, D).
            encoder_hidden_states: (B, T, D).
            temb: (B, D), or (B, 1) of a baked modulation.
            image_rotary_emb: cosines and sines, each (T + N, head_dim).
            joint_attention_kwargs: as the sampler makes them.

        Raises:
            InputError: the arguments, the adapter or the weights are none that the package was compiled for.
        """
        block, condition = self._block(), joint_attention_kwargs or {}
        states = (hidden_states, encoder_hidden_states, temb, image_rotary_emb)
        if "record" in condition:
            return type(block).forward(block, *states, condition)
        inputs = block_inputs(block, *states, condition)
        if list(inputs) != list(self._arguments):
            wanted = ", ".join(name for name in _ROWS if name in self._arguments) or "nothing of the adapter"
            raise InputError(
                f"joint_attention_kwargs has {', '.join(sorted(condition)) or 'nothing'}; the compiled blocks want "
                f"{wanted}, or restore_blocks() first."
            )
        check_inputs(inputs, self._arguments, self._sizes)
        weights = {name: _weight(block, name, path, hidden_states.device) for name, path in self._weights}
        text, image = self._package(weights, list(inputs.values()))
        return text, image


class _Package:
    """A package file, opened in the process that first calls it: ZeroGPU has a GPU only there."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._loader: Any = None

    def _open(self, device: torch.device) -> Any:
        if self._loader is None:
            # Single-threaded under the lock here: the loader's own locks wait for the device after each block.
            opened = torch._inductor.aoti_load_package(
                str(self._path), run_single_threaded=True, device_index=-1 if device.index is None else device.index
            )
            self._loader = opened.loader
        return self._loader

    def weight_names(self, device: torch.device) -> list[str]:
        """Names of the weights that the package wants, as the block's own `named_parameters` and buffers."""
        with self._lock:
            return sorted(self._open(device).get_constant_fqns())

    def __call__(self, weights: dict[str, torch.Tensor], inputs: list[torch.Tensor]) -> list[torch.Tensor]:
        with self._lock:
            loader = self._open(inputs[0].device)
            loader.load_constants(weights, False, True, True)  # active ones, all of them, and not copied
            return loader.run(inputs)


# ---------------------------------------------------------------------- what a block is called with


def block_inputs(
    block: nn.Module,
    hidden_states: torch.Tensor,
    encoder_hidden_states: torch.Tensor,
    temb: torch.Tensor,
    image_rotary_emb: tuple[torch.Tensor, torch.Tensor] | None,
    condition: dict[str, Any],
) -> dict[str, torch.Tensor]:
    """A block's arguments as tensors without gaps, of the adapter's arguments the block's own row.

    Args:
        block: a transformer block that carries the adapter's processor.
        hidden_states: (B, N, D).
        encoder_hidden_states: (B, T, D).
        temb: (B, D), or (B, 1) of a baked modulation.
        image_rotary_emb: cosines and sines, each (T + N, head_dim).
        condition: the sampler's `joint_attention_kwargs`.

    Returns:
        The states, and what `condition` has of `bokeh_values` (1, B, 1, D), weighted, and of `reference_keys` and
        `reference_values` (1, B or 1, M, heads, head_dim). Anything else that the block would read stays there too,
        so that a package notices it.

    Raises:
        InputError: the block carries no folded adapter, or the call has no rotary embedding.
    """
    processor = block.attn.processor
    if not hasattr(processor, "to_v_bokeh") or not (processor.merged or processor.to_q_lora is None):
        raise InputError("bokeh_adapter is not folded into the transformer; wanted attach() and fold() first.")
    if image_rotary_emb is None:
        raise InputError("image_rotary_emb is None; wanted cosines and sines.")
    inputs = {"hidden_states": hidden_states, "encoder_hidden_states": encoder_hidden_states, "temb": temb}
    inputs |= dict(zip(("cosines", "sines"), image_rotary_emb, strict=True))
    own = slice(processor.index, processor.index + 1)
    rows = {name: condition[name][own] for name in _ROWS if name in condition}
    scale = condition.get("bokeh_scale", 1.0)
    if "bokeh_values" in rows and scale != 1:
        rows["bokeh_values"] = scale * rows["bokeh_values"]
    unread = {"bokeh_scale", *rows} | ({"bokeh_embeds"} if processor.to_v_bokeh is None else set())
    others = {name: value for name, value in condition.items() if name not in unread}
    return {name: x.contiguous() for name, x in (inputs | rows).items()} | others


def check_inputs(
    inputs: dict[str, torch.Tensor], arguments: dict[str, Any], sizes: dict[str, Sequence[int]]
) -> dict[str, int]:
    """Refuses what a package would read beyond the end of; it looks at no shape itself.

    Args:
        inputs: as `block_inputs` gives them.
        arguments: `shape` and `dtype` of each, by the same names.
        sizes: name of an axis -> least and largest size.

    Returns:
        Name of an axis -> its size in this call.

    Raises:
        InputError: a dtype, shape or size is none of those.
    """
    found: dict[str, int] = {}
    for name, tensor in inputs.items():
        shape, dtype = arguments[name]["shape"], arguments[name]["dtype"]
        fits = len(shape) == tensor.ndim and _name(tensor.dtype) == dtype
        for wanted, size in zip(shape, tensor.shape, strict=False):
            if not isinstance(wanted, str):
                fits = fits and size == wanted
                continue
            low, high = sizes.get(wanted, (0, math.inf))
            fits = fits and low <= size <= high and found.setdefault(wanted, size) == size
        if not fits or tensor.device != inputs["hidden_states"].device:
            axes = ", ".join("{} from {} to {}".format(x, *sizes[x]) if x in sizes else str(x) for x in shape)
            raise InputError(
                f"{name} is {_name(tensor.dtype)} {tuple(tensor.shape)} on {tensor.device}; the compiled blocks want "
                f"{dtype} ({axes}) beside hidden_states, or restore_blocks() first."
            )
    if found["tokens"] != found["text_tokens"] + found["image_tokens"]:
        raise InputError(
            f"image_rotary_emb has {found['tokens']} positions; wanted {found['text_tokens']} + "
            f"{found['image_tokens']}, one for each token."
        )
    return found


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _weight(block: nn.Module, name: str, path: list[str], device: torch.device) -> torch.Tensor:
    """A block's own weight by its name; never one that a wrapper of the layer shows under the same name."""
    module, key = block, path[-1]
    for child in path[:-1]:
        module = module._modules.get(child)
        if module is None:
            break
    else:
        for kept in (module._parameters, module._buffers):
            if kept.get(key) is not None:
                weight = kept[key].detach()
                # The package takes an address, and what lies there.
                if type(weight) is torch.Tensor and weight.device == device and weight.is_contiguous():
                    return weight
    raise InputError(
        f"a block has no plain weight {name} on {device}; wanted blocks as they were compiled, or restore_blocks() "
        "first."
    )


# ---------------------------------------------------------------------- compiling


@torch.no_grad()
def save_compiled_blocks(
    pipe: BokehDepthPipeline,
    folder: Path | str,
    bokeh_strengths: Sequence[float] = DEFAULT_BOKEH_STRENGTHS,
    max_frames: int = 8,
    max_photo_tokens: int = 4608,
    max_text_tokens: int = 512,
    inductor_options: dict[str, Any] | None = None,
    overwrite: bool = False,
    **sampling: Any,
) -> Path:
    """Compiles one block of each kind as a call of the pipeline uses it, and writes the packages when both are right.

    They serve any number of frames, image tokens and text tokens up to the limits. Each is compared with an eager
    block of other weights than it was compiled from, with all frames and with one. Compile where they will run: on a
    GPU of the same compute capability, and within a GPU call on ZeroGPU.

    Args:
        pipe: with the adapter folded, baked and placed as it will stay, and the attention kernel set.
        folder: to write.
        bokeh_strengths: two or more K above 0 for the call that is listened to; K itself is not compiled in.
        max_frames: frames that are sampled together, at most; 3 or more, which serves fewer too.
        max_photo_tokens: tokens of a picture, (h / 16) (w / 16), at most; above those of 1024 x 1024 px, since sizes
            at work are rounded. Larger limits can make the code slower.
        max_text_tokens: tokens of the prompt, at most.
        inductor_options: for torch's compiler, as `torch._inductor.list_options` names them.
        overwrite: whether files of the same name are replaced.
        **sampling: options of `generate_stack` for that call, such as the number of steps that the modulation was
            baked for.

    Returns:
        The folder.

    Raises:
        InputError: the pipeline cannot be compiled as it is, the call does not fit the limits, or a file exists.
        RuntimeError: a package computes something else than the block; nothing is written.
    """
    if max_frames < 3:
        raise InputError(f"max_frames is {max_frames}; wanted 3 or more, since 2 would be compiled in as a constant.")
    _check_pipeline(pipe)
    folder = Path(folder)
    names = [FACTS, *(f"{group}/{PACKAGE}" for group in BLOCKS)]
    with staged(folder, names=names, overwrite=overwrite) as staging:
        calls, device = _captured(pipe, bokeh_strengths, sampling), pipe.transformer.device
        fixed = pipe.bokeh_adapter.config.reference_timestep is not None
        sizes = {
            "frames": [1, max_frames],
            "image_tokens": [2, max_photo_tokens if fixed else 2 * max_photo_tokens],
            "text_tokens": [2, max_text_tokens],
            "reference_tokens": [2, max_photo_tokens],
        }
        kinds = {}
        for group in BLOCKS:
            (staging / group).mkdir()
            blocks, path = getattr(pipe.transformer, group), staging / group / PACKAGE
            inputs = block_inputs(blocks[0], **calls[group])
            arguments = {
                name: {"shape": [_AXES[name].get(axis, n) for axis, n in enumerate(x.shape)], "dtype": _name(x.dtype)}
                for name, x in inputs.items()
            }
            if check_inputs(inputs, arguments, sizes)["frames"] < 2:
                raise InputError(f"bokeh_strengths is {tuple(bokeh_strengths)}; wanted two or more above 0.")
            _compile(blocks[0], inputs, arguments, sizes, inductor_options or {}, path)
            package = _Package(path)
            kinds[group] = {
                "class": type(blocks[0]).__name__,
                "arguments": arguments,
                "weights": _weight_facts(blocks[0], package.weight_names(device), device),
            }
            _compare(blocks[-1], CompiledBlock(blocks[-1], package, kinds[group], sizes), calls[group])
        facts = {"format": _FORMAT, "made_for": _circumstances(pipe), "sizes": sizes, "blocks": kinds}
        (staging / FACTS).write_text(json.dumps(facts, indent=2) + "\n")
    return folder


def _check_pipeline(pipe: BokehDepthPipeline) -> None:
    """Refuses adapters and weights that one package for each kind of block cannot serve."""
    adapter, transformer = pipe.bokeh_adapter, pipe.transformer
    adapter.attach(transformer)
    config, blocks = adapter.config, [block for group in BLOCKS for block in getattr(transformer, group)]
    if any(isinstance(vars(block).get("forward"), CompiledBlock) for block in blocks):
        raise InputError("the transformer's blocks are compiled already; wanted restore_blocks() first.")
    if any("forward" in vars(block) or block._compiled_call_impl is not None for block in blocks):
        raise InputError("the transformer's blocks have hooks or torch.compile on them; wanted them without.")
    if config.query_key_lora and not adapter.is_folded:
        raise InputError("bokeh_adapter is not folded; wanted fold() first, since compiled blocks have no LoRA.")
    if len(adapter.blocks) != len(blocks):
        raise InputError(f"bokeh_adapter adapts {len(adapter.blocks)} of {len(blocks)} blocks; wanted all of them.")
    if config.attention_conditioning and (config.num_tokens != 1 or config.null_token):
        raise InputError(
            f"bokeh_adapter has num_tokens={config.num_tokens} and null_token={config.null_token}; wanted one token "
            "and no null token, whose branch is the same for all positions."
        )
    if config.reference_attention == "causal" and config.reference_timestep is None:
        raise InputError("reference_timestep is None with causal reference_attention; wanted a fixed one.")
    if pipe.transformer.device.type not in ("cpu", "cuda"):
        raise InputError(f"transformer is on {pipe.transformer.device}; wanted cpu or cuda.")
    if any(is_traceable_wrapper_subclass(weight) for block in blocks for weight in block.parameters()):
        raise InputError("the transformer's weights are quantised; wanted plain tensors.")


def _circumstances(pipe: BokehDepthPipeline) -> dict[str, Any]:
    """What a package is tied to beside shapes."""
    device, config = pipe.transformer.device, pipe.bokeh_adapter.config
    if device.type == "cuda":
        capability = ".".join(map(str, torch.cuda.get_device_capability(device)))
    else:
        capability = torch.backends.cpu.get_cpu_capability()
    return {
        "torch": torch.__version__,
        "device": device.type,
        "capability": capability,
        "dtype": _name(pipe.transformer.dtype),
        "branch": config.attention_conditioning,
        "reference_attention": "full" if config.reference_timestep is None else "causal, fixed timestep",
    }


def _captured(
    pipe: BokehDepthPipeline, bokeh_strengths: Sequence[float], sampling: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    """Arguments of the first block of each kind, as `block_inputs` takes them, in a call of the pipeline."""
    calls: dict[str, dict[str, Any]] = {}

    def listener(group: str) -> Any:
        def listen(block: nn.Module, _: tuple, arguments: dict[str, Any]) -> None:
            condition = arguments["joint_attention_kwargs"]
            if "record" in condition:
                return
            states = ("hidden_states", "encoder_hidden_states", "temb", "image_rotary_emb")
            calls[group] = {name: arguments[name] for name in states} | {"condition": condition}
            if group == BLOCKS[-1]:
                raise _CapturedError

        return listen

    hooks = [
        getattr(pipe.transformer, group)[0].register_forward_pre_hook(listener(group), with_kwargs=True)
        for group in BLOCKS
    ]
    try:
        pipe.generate_stack(np.zeros((64, 64, 3), np.uint8), bokeh_strengths, restore=False, **sampling)
    except _CapturedError:
        pass
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def _compile(
    block: nn.Module,
    inputs: dict[str, torch.Tensor],
    arguments: dict[str, Any],
    sizes: dict[str, Sequence[int]],
    options: dict[str, Any],
    path: Path,
) -> None:
    """Writes the package of a block's kind, whose arguments are `inputs` in their order."""
    from torch._inductor.package import package_aoti  # the whole compiler, which running a package needs none of

    # Export sets the least size itself, and holds the number of positions to the sum of both kinds of token.
    axes = {name: torch.export.Dim(name, max=high) for name, (_, high) in sizes.items()}
    axes["tokens"] = torch.export.Dim.AUTO
    shapes = [
        {axis: axes[name] for axis, name in enumerate(arguments[argument]["shape"]) if isinstance(name, str)}
        for argument in inputs
    ]
    names, processor = [name for name in _ROWS if name in inputs], block.attn.processor
    eager, index = block.forward, processor.index

    def forward(hidden_states, encoder_hidden_states, temb, cosines, sines, *rows):
        condition = dict(zip(names, rows, strict=True))
        text, image = eager(hidden_states, encoder_hidden_states, temb, (cosines, sines), condition)
        # A package reads its inputs as if they had no gaps, and these are the next block's.
        return text.contiguous(), image.contiguous()

    try:
        block.forward, processor.index = forward, 0  # each block is given its own row
        count = len(inputs) - len(names)
        exported = torch.export.export(
            block, tuple(inputs.values()), dynamic_shapes=(*shapes[:count], tuple(shapes[count:])), strict=False
        )
    finally:
        del block.forward
        processor.index = index
    files = torch._inductor.aot_compile(exported.module(), tuple(inputs.values()), options={**options, **_OPTIONS})
    for file in files:
        if str(file).endswith(".so"):
            _forbid_executable_stack(Path(file))
    package_aoti(str(path), files)


def _forbid_executable_stack(path: Path) -> None:
    """Takes back a shared library's wish for an executable stack: it needs none, and new C libraries refuse it."""
    code = bytearray(path.read_bytes())
    if code[:6] != b"\x7fELF\x02\x01":
        return
    start, size, count = *struct.unpack_from("<Q", code, 32), *struct.unpack_from("<HH", code, 54)
    for header in range(start, start + size * count, size):
        kind, flags = struct.unpack_from("<II", code, header)
        if kind == 0x6474E551:  # PT_GNU_STACK
            struct.pack_into("<I", code, header + 4, flags & ~1)
    path.write_bytes(code)


def _compare(block: nn.Module, compiled: CompiledBlock, call: dict[str, Any]) -> None:
    """Refuses a package that gives another result than the block, with all frames or with one and fewer tokens."""
    text, image = call["encoder_hidden_states"].shape[1], call["hidden_states"].shape[1] // 2
    cut = {"bokeh_values": (slice(None), slice(1)), "reference_keys": (slice(None), slice(None), slice(image))}
    cut["reference_values"] = cut["reference_keys"]
    condition = {name: x[cut[name]] if name in cut else x for name, x in call["condition"].items()}
    one = {
        "hidden_states": call["hidden_states"][:1, :image],
        "encoder_hidden_states": call["encoder_hidden_states"][:1],
        "temb": call["temb"][:1],
        "image_rotary_emb": tuple(x[: text + image] for x in call["image_rotary_emb"]),
        "condition": condition,
    }
    for arguments in (call, one):
        states = list(arguments.values())
        for got, wanted in zip(compiled(*states), block.forward(*states), strict=True):
            apart = (got.double() - wanted.double()).norm() / wanted.double().norm()
            if not apart <= _ROUNDING[wanted.dtype]:
                raise RuntimeError(f"the compiled {type(block).__name__} is {apart:.2g} off the eager one.")


def _weight_facts(block: nn.Module, names: Sequence[str], device: torch.device) -> dict[str, Any]:
    weights = {name: _weight(block, name, name.split("."), device) for name in names}
    return {name: {"shape": list(x.shape), "dtype": _name(x.dtype)} for name, x in weights.items()}


# ---------------------------------------------------------------------- running


def load_compiled_blocks(pipe: BokehDepthPipeline, folder: Path | str) -> None:
    """Lets all blocks of the transformer run packages that `save_compiled_blocks` wrote; `restore_blocks` undoes it.

    No GPU is needed yet: a package is opened at its first call, in each process, and a process that is killed leaves
    it unpacked in the temporary folder. Weights are used where they lie at each call, so a change of them changes the
    result, and no second copy is made. Frames are those of the eager blocks to rounding. Gradients do not pass, and
    calls of another kind are refused.

    Args:
        pipe: as it was when they were compiled: with the adapter folded, baked for as many rows, and placed.
        folder: that was written.

    Raises:
        InputError: the folder holds no packages, or they were made for another torch, device, dtype, adapter, block
            or shape of weights.
    """
    _check_pipeline(pipe)
    folder = Path(folder).resolve()  # packages are opened later
    facts = _read_facts(folder)
    here = _circumstances(pipe)
    for name, value in here.items():
        if facts["made_for"].get(name) != value:
            raise InputError(
                f"{folder} was compiled for {name} {facts['made_for'].get(name)!r}; wanted {value!r}, as this "
                "pipeline has."
            )
    compiled = {}
    for group in BLOCKS:
        kind, package = facts["blocks"][group], _Package(folder / group / PACKAGE)
        for block in getattr(pipe.transformer, group):
            if type(block).__name__ != kind["class"]:
                raise InputError(f"{folder} was compiled for {kind['class']}; wanted {type(block).__name__}.")
            own = _weight_facts(block, kind["weights"], pipe.transformer.device)
            for name, wanted in kind["weights"].items():
                if own[name] != wanted:
                    raise InputError(
                        f"{folder} was compiled for {group} with {name} {wanted['dtype']} {wanted['shape']}; wanted "
                        f"{own[name]['dtype']} {own[name]['shape']}, as this pipeline has."
                    )
            compiled[block] = CompiledBlock(block, package, kind, facts["sizes"])
    for block, forward in compiled.items():
        block.forward = forward


def restore_blocks(transformer: nn.Module) -> None:
    """Gives the blocks of a transformer their own `forward` back; does nothing to blocks that have it.

    Raises:
        InputError: hooks were put on compiled blocks.
    """
    blocks = [block for group in BLOCKS for block in getattr(transformer, group) if "forward" in vars(block)]
    if not all(isinstance(block.forward, CompiledBlock) for block in blocks):
        raise InputError("the transformer's blocks have hooks on them; wanted these taken off first.")
    for block in blocks:
        del block.forward


def _read_facts(folder: Path) -> dict[str, Any]:
    missing = [n for n in (FACTS, *(f"{group}/{PACKAGE}" for group in BLOCKS)) if not (folder / n).is_file()]
    if missing:
        raise InputError(
            f"folder is {str(folder)!r}, which has no {missing[0]}; wanted one of save_compiled_blocks()."
        )
    try:
        facts = json.loads((folder / FACTS).read_text())
        if facts["format"] == _FORMAT:
            return facts
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder / FACTS} is not readable; wanted one of save_compiled_blocks().") from error
    raise InputError(f"{folder / FACTS} has format {facts['format']!r}; wanted {_FORMAT}.")

"""How a bokeh adapter comes into a transformer and its change of queries and keys into the weights, and out again.

Everything that is done to one transformer is kept by one `BokehAttachment`, which the transformer itself carries as a
hook. A copy of the transformer therefore has a copy of it, and every pass, whoever calls it, finds weights that fit.
"""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Iterable, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

# Two threads may ask for the first stack of one pipeline.
ATTACHING = threading.RLock()
_CONDITION = ("bokeh_embeds", "bokeh_values", "record")
_SAMPLES = 64


def sample_of(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    """Some entries of each tensor (n,), by which a change of weights is noticed without reading all of them."""
    found: dict[torch.device, list[torch.Tensor]] = {}
    for tensor in tensors:
        if not tensor.is_meta:
            flat = tensor.detach().reshape(-1)
            found.setdefault(tensor.device, []).append(flat[:: max(1, len(flat) // _SAMPLES)].to(torch.float32))
    # One transfer for each device.
    return torch.cat([torch.zeros(0), *(torch.cat(parts).cpu() for parts in found.values())])


@dataclass
class MergedLinear:
    """A linear layer of the base with a low-rank change merged in, and what it was before.

    Args:
        place: name of the layer inside the transformer.
        attention: module that the layer belongs to.
        name: of the layer inside the attention.
        linear: the layer.
        change: the adapter's `LowRankProjection`.
        weight: the base's own weight, on the CPU.
        bias: likewise, or None.
        merged: sample of the layer's weights as merged.
        source: sample of the change's weights.
    """

    place: str
    attention: nn.Module
    name: str
    linear: nn.Linear
    change: nn.Module
    weight: torch.Tensor
    bias: torch.Tensor | None
    merged: torch.Tensor | None = None
    source: torch.Tensor | None = None

    def merge(self) -> None:
        """`W <- (I + s U D) W`, `b <- (I + s U D) b`, in float32 or wider."""
        wide = torch.promote_types(self.linear.weight.dtype, torch.float32)
        up, down = (part.weight.detach().to(self.linear.weight.device, wide) for part in self._parts())
        with torch.no_grad():
            for parameter in (self.linear.weight, self.linear.bias):
                if parameter is not None:
                    base = parameter.to(wide)
                    parameter.copy_(base + self.change.scaling * (up @ (down @ base)))
        self.merged = sample_of([self.linear.weight])
        self.source = sample_of(part.weight for part in self._parts())

    def undo(self) -> None:
        """Gives the layer the base's own weights, to the last bit."""
        with torch.no_grad():
            self.linear.weight.copy_(self.weight)
            if self.bias is not None:
                self.linear.bias.copy_(self.bias)

    def is_in_place(self) -> bool:
        """Whether the attention still calls the merged layer itself, and not a LoRA around it."""
        return getattr(self.attention, self.name, None) is self.linear

    def was_overwritten(self) -> bool:
        """Whether other weights stand in the layer than were merged there; of another precision it is not known."""
        weight = self.linear.weight
        waiting = getattr(getattr(self.linear, "_hf_hook", None), "weights_map", None)
        if weight.is_meta and waiting is not None:  # offloaded by accelerate
            weight = waiting["weight"]
        if weight.is_meta or weight.dtype != self.weight.dtype:
            return False
        return not torch.equal(sample_of([weight]), self.merged)

    def is_outdated(self) -> bool:
        """Whether the change was trained on, or the layer's precision is another one, since the merge."""
        weight, up = self.linear.weight, self.change.up.weight
        recast = weight.dtype != self.weight.dtype and weight.dtype.itemsize > 1
        stored = up.dtype.itemsize == 1  # in fewer bits than it was merged from
        return recast or not (stored or torch.equal(sample_of(part.weight for part in self._parts()), self.source))

    def _parts(self) -> tuple[nn.Module, nn.Module]:
        return self.change.up, self.change.down


class BokehAttachment:
    """What one adapter did to one transformer.

    As a hook in front of the transformer's passes it takes the merged change out again where a pass must not see it:
    a pass without a K, which is the base's own, a LoRA around merged layers, or training of the change itself. The
    adapter merges it anew for the next stack. As a hook on the transformer's state it shows the base's own weights,
    without the adapter's.

    Args:
        adapter: a `BokehAdapter`.
        transformer: that it goes into.
    """

    # Classes of this name may come from the package and from a Hub repository, so nobody asks for the class.
    is_bokeh_attachment = True

    def __init__(self, adapter: nn.Module, transformer: nn.Module) -> None:
        self.owner = weakref.ref(adapter)
        doubles = len(transformer.transformer_blocks)
        names = [
            f"transformer_blocks.{i}.attn" if i < doubles else f"single_transformer_blocks.{i - doubles}.attn"
            for i in map(int, adapter.blocks)
        ]
        self.places = {name: transformer.get_submodule(name) for name in names}
        self.processors = list(adapter.blocks.values())
        self.displaced: list[Any] = [attention.processor for attention in self.places.values()]
        self.merges: list[MergedLinear] = []
        self.sealed: str | None = None
        self.lent = False
        for processor in self.processors:
            processor.merged = False
        self.handles = [
            transformer.register_forward_pre_hook(self, with_kwargs=True),
            transformer.register_state_dict_post_hook(functools.partial(_show_base, self)),
            transformer.register_load_state_dict_pre_hook(functools.partial(_take_base, self)),
        ]

    def __call__(self, transformer: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """Before each pass of the transformer."""
        if not self.merges:
            return
        condition = kwargs.get("joint_attention_kwargs") or {}
        conditioned = any(condition.get(name) is not None for name in _CONDITION)
        trained = torch.is_grad_enabled() and any(part.change.up.weight.requires_grad for part in self.merges)
        if not conditioned or trained or not self.is_current():
            with ATTACHING:
                self.unmerge()

    # ------------------------------------------------------------------ processors

    def belongs_to(self, adapter: nn.Module | None) -> bool:
        """Whether the processors are the adapter's own, and not those of a copy."""
        blocks = [] if adapter is None else list(adapter.blocks.values())
        return len(blocks) == len(self.processors) and all(
            own is other for own, other in zip(blocks, self.processors, strict=True)
        )

    def put(self) -> None:
        """Puts the processors in, also where others were set since.

        Raises:
            ValueError: others than diffusers' own stand there; nothing is changed then.
        """
        for name, attention in self.places.items():
            processor = attention.processor
            plain = type(processor) in (type(attention)._default_processor_cls, *map(type, self.processors))
            if not plain:
                raise ValueError(
                    f"`{name}.processor` must be diffusers' own before the bokeh adapter comes in, got "
                    f"{type(processor).__name__}."
                )
        self.lent = False
        for index, attention in enumerate(self.places.values()):
            if attention.processor is not self.processors[index]:
                self.displaced[index] = attention.processor
                attention.set_processor(self.processors[index])

    def lend(self) -> None:
        """Puts back the processors that stood there before, and keeps everything else.

        Until `put` the transformer's state has the weights as they lie, since offloading reads them from it.
        """
        self.lent = True
        for attention, own, before in zip(self.places.values(), self.processors, self.displaced, strict=True):
            if attention.processor is own:
                attention.set_processor(before)

    def remove(self) -> None:
        """Gives the transformer back the processors and weights that it had before."""
        self.unmerge()
        self.lend()
        for handle in self.handles:
            handle.remove()

    # ------------------------------------------------------------------ merging

    def is_current(self) -> bool:
        """Whether the merged layers are those that the attentions call, with the adapter's processors."""
        processors = zip(self.places.values(), self.processors, strict=True)
        return all(a.processor is p for a, p in processors) and all(m.is_in_place() for m in self.merges)

    def obstacle(self) -> str | None:
        """Why the change cannot be merged now, or None."""
        for name, attention in self.places.items():
            for linear in ("to_q", "to_k"):
                layer = getattr(attention, linear, None)
                weight = getattr(layer, "weight", None)
                plain = type(layer) is nn.Linear and type(weight.data) is torch.Tensor and not weight.is_meta
                if attention.fused_projections or not plain or weight.dtype.itemsize < 2:
                    kind = "fused" if attention.fused_projections else type(layer).__name__
                    return (
                        f"`{name}.{linear}` must be an unfused, unquantised torch.nn.Linear that is not offloaded, "
                        f"got {kind}."
                    )
        return None

    def merge(self) -> None:
        """Merges the low-rank change of every block; the caller asks `obstacle` before."""
        for (name, attention), processor in zip(self.places.items(), self.processors, strict=True):
            for layer, change in (("to_q", processor.to_q_lora), ("to_k", processor.to_k_lora)):
                linear = getattr(attention, layer)
                bias = None if linear.bias is None else linear.bias.detach().cpu().clone()
                kept = (linear.weight.detach().cpu().clone(), bias)
                merge = MergedLinear(f"{name}.{layer}", attention, layer, linear, change, *kept)
                merge.merge()
                self.merges.append(merge)
            processor.merged = True

    def check(self) -> None:
        """ValueError where the base's weights were changed while the change was merged into them."""
        for merge in self.merges:
            fused = getattr(getattr(merge.attention, merge.name, None), "merged", False)
            if fused or merge.was_overwritten():
                raise ValueError(
                    f"`{merge.place}` must keep the weights that the adapter was folded into, got others (change them "
                    "by the pipeline's own methods, or call bokeh_adapter.unfold() before)."
                )

    def unmerge(self) -> None:
        """Gives the base its own weights, to the last bit.

        Raises:
            ValueError: they were quantised, offloaded, fused or changed since; nothing is changed then.
        """
        if not self.merges:
            return
        if self.sealed is not None:  # the layers do not hold plain numbers any more
            raise ValueError(f"`transformer` must be as it was folded to be unfolded, got {self.sealed} weights.")
        for merge in self.merges:
            if merge.attention.fused_projections or merge.linear.weight.is_meta:
                state = "fused" if merge.attention.fused_projections else "offloaded"
                raise ValueError(f"`transformer` must be as it was folded to be unfolded, got {state} projections.")
        self.check()
        for merge in self.merges:
            merge.undo()
        for processor in self.processors:
            processor.merged = False
        self.merges = []

    def refresh(self) -> None:
        """Takes out what does not fit any more; ValueError where that cannot be done."""
        if self.sealed is not None and self.is_current():
            return
        self.check()
        if self.merges and (not self.is_current() or any(merge.is_outdated() for merge in self.merges)):
            self.unmerge()


def attachment_of(transformer: nn.Module) -> BokehAttachment | None:
    """What an adapter did to a transformer, or None."""
    hooks: Sequence[Any] = list(transformer._forward_pre_hooks.values())
    return next((hook for hook in hooks if getattr(hook, "is_bokeh_attachment", False)), None)


def _show_base(
    attachment: BokehAttachment, transformer: nn.Module, state: MutableMapping[str, Any], prefix: str, *_: Any
) -> None:
    """After `state_dict`: the base's own weights in place of merged ones, and none of the adapter's."""
    for merge in () if attachment.lent else attachment.merges:
        for kind, own in (("weight", merge.weight), ("bias", merge.bias)):
            key = f"{prefix}{merge.place}.{kind}"
            if attachment.sealed is None and key in state:
                state[key] = own.to(state[key].dtype)
    owned = tuple(f"{prefix}{name}.processor." for name in attachment.places)
    for key in [key for key in state if key.startswith(owned)]:
        del state[key]


def _take_base(
    attachment: BokehAttachment, transformer: nn.Module, state: MutableMapping[str, Any], prefix: str, *_: Any
) -> None:
    """Before `load_state_dict`: what comes are the base's own weights, and the adapter's stay as they are."""
    attachment.unmerge()
    for (name, attention), processor in zip(attachment.places.items(), attachment.processors, strict=True):
        if attention.processor is processor:
            for key, value in processor.state_dict().items():
                state.setdefault(f"{prefix}{name}.processor.{key}", value)

"""Peak memory of what a call allocates, on any device."""

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as fn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _LiveStorages(TorchDispatchMode):
    """Adds up the storages that operations make, and takes them off as they are freed."""

    def __init__(self) -> None:
        super().__init__()
        self.known: set[int] = set()
        self.live = self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: ANN001, D105
        # What an operation takes and none has made was there before: known, and of no size here.
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, torch.Tensor):
                self._add(leaf.untyped_storage(), 0)
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                storage = leaf.untyped_storage()
                self._add(storage, storage.nbytes())
        return out

    def _add(self, storage: torch.UntypedStorage, size: int) -> None:
        name = storage._cdata
        if name in self.known:
            return
        self.known.add(name)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._remove, name, size)

    def _remove(self, name: int, size: int) -> None:
        self.known.discard(name)
        self.live -= size


def peak_bytes(run: Callable[[], object], device: torch.device) -> int:
    """Largest number of bytes that a call holds in tensors beside those that were there before it.

    On CUDA the allocator is asked. Elsewhere every operation's output is followed, without what kernels allocate for
    themselves, so the figure is a lower bound there.

    Args:
        run: called once.
        device: where it runs.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    mode = _LiveStorages()
    with mode:
        run()
    return mode.peak


def saved_bytes(forward: Callable[[], object], besides: Iterable[torch.Tensor]) -> int:
    """Bytes of the storages that a call keeps for its backward pass, each once; the meta device has sizes too.

    Args:
        forward: called once; builds a graph and does not go back through it.
        besides: tensors whose storages are there anyway, such as weights.
    """
    there = {tensor.untyped_storage()._cdata for tensor in besides}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in there:
            kept[storage._cdata] = storage  # held, so that no other storage gets its place
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        graph = forward()
    count = sum(storage.nbytes() for storage in kept.values())
    del graph
    return count


@contextmanager
def fused_attention() -> Iterator[None]:
    """Gives attention on the meta device the outputs of CUDA's fused kernels, as long as the context lasts.

    By itself the meta device decomposes attention and keeps tokens times tokens of each head, which no fused kernel
    does. One without a mask is the flash kernel, one with a mask the memory-efficient kernel.
    """
    plain = fn.scaled_dot_product_attention

    def fused(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> torch.Tensor:
        if attn_mask is None:
            kernel = torch.ops.aten._scaled_dot_product_flash_attention
            return kernel(query, key, value, dropout_p, is_causal, False, scale=scale)[0]
        bias = torch.zeros_like(attn_mask, dtype=query.dtype) if attn_mask.dtype == torch.bool else attn_mask
        bias = bias.expand(*query.shape[:3], key.shape[2])
        kernel = torch.ops.aten._scaled_dot_product_efficient_attention
        return kernel(query, key, value, bias, True, dropout_p, is_causal, scale=scale)[0]

    fn.scaled_dot_product_attention = fused
    try:
        yield
    finally:
        fn.scaled_dot_product_attention = plain

"""Peak memory of what a call allocates, on any device."""

import weakref
from collections.abc import Callable

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _LiveStorages(TorchDispatchMode):
    """Adds up the storages that operations make, and takes them off as they are freed."""

    def __init__(self) -> None:
        super().__init__()
        self.known: set[int] = set()
        self.live = self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: ANN001, D105
        # What an operation takes and none has made was there before.
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        self.known.update(leaf.untyped_storage()._cdata for leaf in given)
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self._add(leaf.untyped_storage())
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self.known:
            return
        name, size = storage._cdata, storage.nbytes()
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

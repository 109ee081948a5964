"""Files of released weights, read as plain tensors.

This is the one module that reads pickles, with ``weights_only=True``, so that no file can run code.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .errors import InputError

_FOLDER_FILES = ("model.safetensors", "pytorch_model.bin")


def read_checkpoint(path: Path | str) -> tuple[dict[str, Tensor], list[str]]:
    """Read the tensors of a checkpoint, whatever it wraps them in.

    Safetensors and PyTorch files are told apart by their content. ``model`` or ``state_dict`` entries are unwrapped,
    ``ema.shadow_params`` replaces the weights as the releases do, and ``module.`` is stripped from names that DDP
    prefixed.

    Args:
        path: A file, or a folder with ``model.safetensors`` or ``pytorch_model.bin``.

    Returns:
        The tensors by name, on the CPU, and sentences about what was unwrapped.

    Raises:
        InputError: The file is missing, damaged, holds anything but tensors under names, or would run code.
    """
    path = Path(path)
    if path.is_dir():
        found = [path / name for name in _FOLDER_FILES if (path / name).is_file()]
        if not found:
            raise InputError(f"checkpoint is {str(path)!r}, a folder; wanted one with {' or '.join(_FOLDER_FILES)}.")
        path = found[0]
    if not path.is_file():
        raise InputError(f"checkpoint is {str(path)!r}, which does not exist; wanted a file.")
    with path.open("rb") as file:
        head = file.read(64)
    if head.startswith(b"version https://git-lfs"):
        raise InputError(f"checkpoint is {str(path)!r}, a Git LFS pointer; wanted the file that it points to.")
    notes: list[str] = []
    if head[8:9] == b"{":
        state = _read_safetensors(path)
    elif head.startswith((b"PK", b"\x80")):  # a zip archive, or a bare pickle of protocol 2 or later
        state = _unwrap(_read_pickle(path), notes)
    else:
        raise InputError(f"checkpoint is {path.name!r}, no PyTorch or safetensors file; wanted one of them.")
    return _strip_prefixes(state, notes), notes


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except SafetensorError as error:
        raise _damaged(path, error) from None


def _read_pickle(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError:
        raise InputError(
            f"checkpoint is {path.name!r}, a pickle of more than tensors that could run code; wanted tensors alone."
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> InputError:
    reason = str(error).strip().partition("\n")[0] or type(error).__name__
    return InputError(f"checkpoint is {path.name!r}, damaged or not complete ({reason}); download it again.")


def _unwrap(loaded: Any, notes: list[str]) -> dict[str, Any]:
    if not isinstance(loaded, Mapping):
        raise InputError(f"checkpoint holds a {type(loaded).__name__}; wanted tensors under names.")
    state = loaded
    for name in ("model", "state_dict"):
        if isinstance(loaded.get(name), Mapping):
            state = loaded[name]
            others = sorted(str(key) for key in loaded if key != name)
            notes.append(f"the weights stood under {name!r}" + f", beside {', '.join(others)}" * bool(others))
            break
    shadow = loaded["ema"].get("shadow_params") if isinstance(loaded.get("ema"), Mapping) else None
    if shadow is not None:
        state = _averaged(_bare(state), shadow)
        notes.append(f"{len(shadow)} averaged weights (ema.shadow_params) took the place of the last ones")
    return dict(state)


def _averaged(state: dict[str, Any], shadow: Any) -> dict[str, Any]:
    """The weights with their running averages in their place, which are named or stand in the same order."""
    if not isinstance(shadow, Mapping):
        if len(shadow) != len(state):
            raise InputError(f"checkpoint has ema.shadow_params of {len(shadow)} tensors; wanted {len(state)}.")
        return dict(zip(state, shadow, strict=True))
    unknown = sorted(set(_bare(shadow)) - set(state))
    if unknown:
        raise InputError(f"checkpoint has ema.shadow_params for {unknown[0]}, which the model lacks.")
    return {**state, **_bare(shadow)}


def _bare(state: Mapping[str, Any]) -> dict[str, Any]:
    return {re.sub(r"^(module\.)+", "", str(name)): value for name, value in state.items()}


def _strip_prefixes(state: Mapping[str, Any], notes: list[str]) -> dict[str, Tensor]:
    bare = _bare(state)
    prefixed = sum(str(name).startswith("module.") for name in state)
    if len(bare) != len(state):
        raise InputError("checkpoint has tensors with and without the prefix 'module.' under one name; wanted one.")
    if prefixed:
        notes.append(f"the prefix 'module.' was stripped from {prefixed} of {len(state)} names")
    for name, value in bare.items():
        if not isinstance(value, Tensor) or not value.is_floating_point():
            kind = f"a tensor of {value.dtype}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
            raise InputError(f"checkpoint has {kind} at {name}; wanted floating-point tensors alone.")
        if not bool(torch.isfinite(value).all()):
            raise InputError(f"checkpoint has values at {name} that are not finite; download it again.")
    if not bare:
        raise InputError("checkpoint holds no tensors; wanted a released model.")
    return bare

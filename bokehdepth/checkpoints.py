"""Files of released weights, read as plain tensors.

This is the one module that reads pickles, with ``weights_only=True``, so that no file can run code.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .errors import InputError

_FOLDER_FILES = ("model.safetensors", "pytorch_model.bin")
_WRAPPERS = ("model", "state_dict")
_PREFIX = "module."
_COUNTER = ".num_batches_tracked"


def read_checkpoint(path: Path | str) -> tuple[dict[str, Tensor], list[str]]:
    """Read the tensors of a checkpoint, whatever it wraps them in.

    Safetensors and PyTorch files are told apart by their content. ``model`` or ``state_dict`` is unwrapped, beside
    which trainers keep optimizer and step, and ``ema.shadow_params`` replaces the weights, as the releases do.
    ``module.``, which DDP puts before every name, is stripped where it stands once and before every name; names that
    are only partly or doubly wrapped come from something else than one saved model and are refused.

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
        state = _strip_prefix(_read_safetensors(path), notes)
    elif head.startswith((b"PK", b"\x80")):  # a zip archive, or a bare pickle of protocol 2 or later
        if path.suffix == ".safetensors":
            raise InputError(f"checkpoint is {path.name!r}, a PyTorch file by its content; wanted safetensors.")
        state = _unwrap(_read_pickle(path), notes)
    else:
        raise InputError(f"checkpoint is {path.name!r}, no PyTorch or safetensors file; wanted one of them.")
    # Batch norm counts its batches in an integer, which no network computes with.
    state = {name: value for name, value in state.items() if not name.endswith(_COUNTER)}
    _check_tensors(state)
    return state, notes


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


def _unwrap(loaded: Any, notes: list[str]) -> dict[str, Tensor]:
    if not isinstance(loaded, Mapping):
        raise InputError(f"checkpoint holds a {type(loaded).__name__}; wanted tensors under names.")
    wrappers = [name for name in _WRAPPERS if isinstance(loaded.get(name), Mapping)]
    if len(wrappers) > 1:
        raise InputError(f"checkpoint has weights under {' and under '.join(wrappers)}; wanted one set of them.")
    if loaded and not wrappers and not any(isinstance(value, Tensor) for value in loaded.values()):
        raise InputError(
            f"checkpoint has no weights, only {_listed(loaded)}; wanted tensors under names, or those under "
            f"{' or '.join(_WRAPPERS)}."
        )
    state = loaded
    for name in wrappers:
        state = loaded[name]
        others = [key for key in loaded if key != name]
        notes.append(f"the weights stood under {name!r}" + f", beside {_listed(others)}" * bool(others))
    state = _strip_prefix(state, notes)
    shadow = loaded["ema"].get("shadow_params") if isinstance(loaded.get("ema"), Mapping) else None
    if shadow is not None:
        state = _averaged(state, shadow)
        notes.append(f"{len(shadow)} averaged weights (ema.shadow_params) took the place of the last ones")
    return state


def _listed(names: Iterable[Any], most: int = 6) -> str:
    names = sorted(str(name) for name in names)
    return ", ".join(names[:most]) + f" and {len(names) - most} more" * (len(names) > most)


def _averaged(state: dict[str, Any], shadow: Any) -> dict[str, Any]:
    """The weights with their running averages in their place, which are named or stand in the same order."""
    if not isinstance(shadow, Mapping):
        if not isinstance(shadow, list | tuple):
            raise InputError(f"checkpoint has ema.shadow_params that is a {type(shadow).__name__}; wanted tensors.")
        if len(shadow) != len(state):
            raise InputError(f"checkpoint has ema.shadow_params of {len(shadow)} tensors; wanted {len(state)}.")
        return dict(zip(state, shadow, strict=True))
    shadow = _strip_prefix(shadow, [])
    unknown = sorted(set(shadow) - set(state))
    if unknown:
        raise InputError(f"checkpoint has ema.shadow_params for {unknown[0]}, which the model lacks.")
    return {**state, **shadow}


def _strip_prefix(state: Mapping[Any, Any], notes: list[str]) -> dict[str, Any]:
    """The entries without the prefix that DDP puts before every name; InputError unless all or none have it, once."""
    names = [str(name) for name in state]
    prefixed = [name for name in names if name.startswith(_PREFIX)]
    if not prefixed:
        return dict(zip(names, state.values(), strict=True))
    if len(prefixed) < len(names):
        raise InputError(
            f"checkpoint has the prefix {_PREFIX!r} before {len(prefixed)} of {len(names)} names, such as "
            f"{prefixed[0]}; wanted it before all or before none."
        )
    bare = [name.removeprefix(_PREFIX) for name in names]
    doubled = next((name for name in bare if name.startswith(_PREFIX)), None)
    if doubled is not None:
        raise InputError(f"checkpoint has the prefix {_PREFIX!r} twice, before {_PREFIX}{doubled}; wanted it once.")
    notes.append(f"the prefix {_PREFIX!r} was stripped from all {len(names)} names")
    return dict(zip(bare, state.values(), strict=True))


def _check_tensors(state: Mapping[str, Any]) -> None:
    for name, value in state.items():
        # Of fewer than 16 bits come with scales that the names here have no place for.
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.element_size() < 2:
            kind = f"a tensor of {value.dtype}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
            raise InputError(
                f"checkpoint has {kind} at {name}; wanted floating-point tensors alone, of 16 bits or more."
            )
        if value.layout != torch.strided or value.is_meta:
            kind = "no values" if value.is_meta else f"the layout {value.layout}"
            raise InputError(f"checkpoint has a tensor with {kind} at {name}; wanted dense tensors alone.")
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise InputError(
                f"checkpoint has a tensor of {tuple(value.shape)} at {name}, of which the file holds "
                f"{value.untyped_storage().nbytes()} bytes; wanted all values."
            )
        if not bool(torch.isfinite(value).all()):
            raise InputError(f"checkpoint has values at {name} that are not finite; download it again.")
    if not state:
        raise InputError("checkpoint holds no tensors; wanted a released model.")

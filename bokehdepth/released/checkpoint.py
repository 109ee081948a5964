"""The files that the release is made of: where they are and at which commits, how they are fetched and read.

This is the one module that reads pickles, with ``weights_only=True``, so that no file can run code.
"""

from __future__ import annotations

import pickle
import types
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import InputError


@dataclass(frozen=True)
class Source:
    """A file of a repository on the Hub."""

    repo_id: str
    filename: str


BASE_MODEL = "black-forest-labs/FLUX.1-Kontext-dev"
BASE_CONFIG = "transformer/config.json"
"""The file of the base that is asked for first: its gate is met before anything large is fetched."""
ADAPTER = Source("fogradio/BokehDepth", "bokeh_lora.bin")
DEPTH_MODELS: Mapping[str, Source] = types.MappingProxyType(
    {
        "unidepth": Source("fogradio/BokehDepth", "UDv2_dsfa_release.pth"),
        "depth_anything": Source("fogradio/BokehDepth", "DAV2_dsfa_release.pth"),
    }
)
REVISIONS: Mapping[str, str | None] = types.MappingProxyType({BASE_MODEL: None, "fogradio/BokehDepth": None})
"""Commit of each repository. None is not pinned: the newest is loaded, and said to be. `bokehdepth convert --audit` of
a file in the Hub's cache prints what belongs here; no commit may stand here that nobody has audited."""

_FOLDER_FILES = ("model.safetensors", "pytorch_model.bin")
_WRAPPERS = ("model", "state_dict")
_PREFIX = "module."
_COUNTER = ".num_batches_tracked"


# --- on the Hub ------------------------------------------------------------------------------------------------------


def parse_revisions(text: str) -> dict[str, str]:
    """Read commits as the command line takes them.

    Args:
        text: ``REPOSITORY@COMMIT``, several of them with commas between.

    Returns:
        Commit, tag or branch by repository.

    Raises:
        InputError: A part is not of this form, or names a repository twice.
    """
    parts = [part.strip().partition("@") for part in text.split(",")]
    revisions = {repo_id: revision for repo_id, _, revision in parts}
    if len(revisions) < len(parts) or not all(repo_id and revision for repo_id, _, revision in parts):
        raise InputError(
            f"`revision` must be REPOSITORY@COMMIT of each of {' and '.join(REVISIONS)} that is pinned, with a comma "
            f"between, got {text!r}."
        )
    return revisions


def cached_source(path: Path) -> tuple[str, str] | None:
    """Repository and commit that a file in the Hub's cache is of; None of any other file."""
    parts = path.absolute().parts
    for repository, snapshots, commit in zip(parts, parts[1:], parts[2:], strict=False):
        if repository.startswith("models--") and snapshots == "snapshots":
            return repository.removeprefix("models--").replace("--", "/", 1), commit
    return None


def fetch_file(source: Source, revision: str | None = None, **options: Any) -> tuple[Path, str]:
    """Fetch one file of a repository.

    Args:
        source: The file.
        revision: Commit, tag or branch; None is the main branch.
        **options: For `huggingface_hub.snapshot_download`: ``token``, ``cache_dir``, ``local_files_only``.

    Returns:
        The file, and the commit that it came from, by which the same file is found again.

    Raises:
        HubError: The Hub does not give it.
        InputError: The repository has no such file at that commit.
    """
    from ..loading_bokehdepth import fetch_repository

    folder = Path(fetch_repository(source.repo_id, revision=revision, allow_patterns=[source.filename], **options))
    if not (folder / source.filename).is_file():
        raise InputError(f"{source.repo_id} has no file {source.filename} at {folder.name}; ask for another revision.")
    return folder / source.filename, folder.name


# --- on disk ---------------------------------------------------------------------------------------------------------


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
        path = next((path / name for name in _FOLDER_FILES if (path / name).is_file()), path)
    if not path.is_file():
        kind = f"a folder with {' or '.join(_FOLDER_FILES)}" if path.is_dir() else "a file that exists"
        raise InputError(f"`checkpoint` must be {kind}, got {str(path)!r}.")
    with path.open("rb") as file:
        head = file.read(64)
    notes: list[str] = []
    if head.startswith(b"version https://git-lfs"):
        raise InputError(f"`checkpoint` must be the file itself, got the Git LFS pointer {str(path)!r}.")
    if head[8:9] == b"{":
        state = _strip_prefix(_read_safetensors(path), notes)
    elif head.startswith((b"PK", b"\x80")):  # a zip archive, or a bare pickle of protocol 2 or later
        if path.suffix == ".safetensors":
            raise InputError(f"`checkpoint` must hold what its name says, got a PyTorch file {path.name!r}.")
        state = _unwrap(_read_pickle(path), notes)
    else:
        raise InputError(f"`checkpoint` must be a PyTorch or safetensors file, got {path.name!r}.")
    # Batch norm counts its batches in an integer, which no network computes with.
    state = {name: value for name, value in state.items() if not name.endswith(_COUNTER)}
    if not state:
        raise InputError("`checkpoint` must hold a released model, got no tensors.")
    for name, value in state.items():
        _check_tensor(name, value)
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
            f"`checkpoint` must hold tensors alone, got {path.name!r}, a pickle of more that could run code."
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> InputError:
    reason = str(error).strip().partition("\n")[0] or type(error).__name__
    return InputError(f"`checkpoint` {path.name!r} is damaged or not complete ({reason}); download it again.")


def _unwrap(loaded: Any, notes: list[str]) -> dict[str, Tensor]:
    if not isinstance(loaded, Mapping):
        raise InputError(f"`checkpoint` must hold tensors under names, got a {type(loaded).__name__}.")
    wrappers = [name for name in _WRAPPERS if isinstance(loaded.get(name), Mapping)]
    if len(wrappers) > 1:
        raise InputError(f"`checkpoint` must have one set of weights, got some under {' and under '.join(wrappers)}.")
    if loaded and not wrappers and not any(isinstance(value, Tensor) for value in loaded.values()):
        raise InputError(
            f"`checkpoint` must have weights under names, or those under {' or '.join(_WRAPPERS)}, got only "
            f"{_listed(loaded)}."
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
    if isinstance(shadow, list | tuple) and len(shadow) == len(state):
        return dict(zip(state, shadow, strict=True))
    names = _strip_prefix(shadow, []) if isinstance(shadow, Mapping) else {}
    if not names or not names.keys() <= state.keys():
        raise InputError("`checkpoint` must have ema.shadow_params for tensors that it holds, got others.")
    return {**state, **names}


def _strip_prefix(state: Mapping[Any, Any], notes: list[str]) -> dict[str, Any]:
    """The entries without the prefix that DDP puts before every name; InputError unless all or none have it, once."""
    state = {str(name): value for name, value in state.items()}
    bare = {name.removeprefix(_PREFIX): value for name, value in state.items()}
    prefixed = sum(name.startswith(_PREFIX) for name in state)
    doubled = any(name.startswith(_PREFIX) for name in bare)
    if prefixed not in (0, len(state)) or doubled:
        where = "twice" if doubled else f"before {prefixed} of {len(state)} names"
        raise InputError(f"`checkpoint` must have the prefix {_PREFIX!r} before all names or none, got it {where}.")
    if prefixed:
        notes.append(f"the prefix {_PREFIX!r} was stripped from all {len(state)} names")
    return bare


def _check_tensor(name: str, value: Any) -> None:
    # Tensors of fewer than 16 bits come with scales that the names here have no place for.
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.element_size() < 2:
        kind = f"a tensor of {value.dtype}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise InputError(
            f"`checkpoint` must hold floating-point tensors alone, of 16 bits or more, got {kind} at {name}."
        )
    if value.layout != torch.strided or value.is_meta:
        kind = "without values" if value.is_meta else f"with the layout {value.layout}"
        raise InputError(f"`checkpoint` must hold dense tensors alone, got one {kind} at {name}.")
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise InputError(f"`checkpoint` must hold all values of {name}, got {value.untyped_storage().nbytes()} bytes.")
    if not bool(torch.isfinite(value).all()):
        raise InputError(f"`checkpoint` has values at {name} that are not finite; download it again.")

"""Weights that are loaded are all there and all finite, or loading ends with one sentence.

diffusers and transformers fill what a folder lacks with random numbers and only warn. The file stands alone; a Hub
repository carries it joined in front of the pipeline's code and of each model's.
"""

import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

_ALIGNED_BYTES = 64  # of a cache line, and of what torch allocates by itself
_MOST_MOVED_BYTES = 2**28


class WeightsError(ValueError):
    """Weights are not what their model needs; the message is one sentence that says which."""


def _first(names: Iterable[str], most: int = 3) -> str:
    names = sorted(names)
    return ", ".join(names[:most]) + f" and {len(names) - most} more" * (len(names) > most)


def _is_finite(values: torch.Tensor) -> bool:
    values = values.float() if values.element_size() < 2 else values  # an 8-bit type has no sum
    # A sum passes over the values once and allocates nothing; only where it overflows is each one looked at.
    total = values.sum(dtype=torch.promote_types(values.dtype, torch.float32))
    return bool(total.isfinite()) or bool(values.isfinite().all())


def check_weights(
    part: str,
    module: torch.nn.Module,
    missing: Iterable[str] = (),
    extra: Iterable[str] = (),
    reshaped: Iterable[str] = (),
) -> None:
    """Checks weights that were loaded.

    Args:
        part: name for the sentence.
        module: that has them. Values are looked at wherever they are plain floating-point tensors.
        missing: names that the module has and the file has not.
        extra: names that the file has and the module has not.
        reshaped: names whose shapes differ.

    Raises:
        WeightsError: a tensor is missing, left over, of another shape, without values, or not finite.
    """
    missing, extra, infinite = set(missing), set(extra), []
    for name, value in module.state_dict(keep_vars=True).items():
        if type(value) not in (torch.Tensor, torch.nn.Parameter) or not value.is_floating_point():
            continue
        if value.is_meta:
            # What a large model keeps on a disk has no values here either, but a hook that fetches them.
            if not hasattr(module, "_hf_hook") and not hasattr(module, "hf_device_map"):
                missing.add(name)
        elif not _is_finite(value.detach()):
            infinite.append(name)
    faults = [
        f"{what} {len(names)} of its tensors ({_first(names)})"
        for what, names in (
            ("lack", missing),
            ("have another shape in", set(reshaped)),
            ("have values that are not finite in", infinite),
        )
        if names
    ]
    if extra:
        faults.append(f"have {len(extra)} tensors that it does not know ({_first(extra)})")
    if faults:
        raise WeightsError(f"The weights of {part} {' and '.join(faults)}; wanted whole, finite ones of that model.")


def _part_name(source: Any, subfolder: str | None, kind: type) -> str:
    """How a sentence calls a part: by the folder of a pipeline that it lies in, or by its class."""
    place = Path(str(source)) / (subfolder or "")
    if not subfolder and not (place.parent / "model_index.json").is_file():
        return f"{kind.__name__} in {str(source)!r}"
    return f"{place.name} in {str(place.parent)!r}"


def align_weights(module: torch.nn.Module) -> None:
    """Moves weights that a file's layout has put at odd addresses: one model gives the same bits however it was saved.

    Kernels of a CPU round sums differently where memory is not aligned. Weights of more than 256 MB stay mapped to
    their file.

    Args:
        module: that was loaded.
    """
    tensors = [tensor for tensor in (*module.parameters(), *module.buffers()) if tensor.device.type == "cpu"]
    if sum(tensor.nbytes for tensor in tensors) <= _MOST_MOVED_BYTES:
        for tensor in tensors:
            if type(tensor.data) is torch.Tensor and tensor.data_ptr() % _ALIGNED_BYTES:
                tensor.data = tensor.data.clone()


class CheckedLoading:
    """A model whose `from_pretrained` refuses weights that are not whole and finite; stands before its base class."""

    checks_its_weights = True

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike | None,
        *args: Any,
        fresh_parts: Sequence[str] = (),
        **kwargs: Any,
    ) -> Any:
        """Loads the model as its base class does, and checks what was loaded.

        Args:
            pretrained_model_name_or_path: as the base class takes it.
            *args: likewise.
            fresh_parts: sub-modules whose weights may be missing, since they are to be trained.
            **kwargs: as the base class takes them.

        Raises:
            WeightsError: a tensor is missing, left over or not finite.
        """
        with_info = kwargs.pop("output_loading_info", False)
        other_shapes = kwargs.pop("ignore_mismatched_sizes", False)
        source, subfolder = pretrained_model_name_or_path, kwargs.get("subfolder")
        part, place = _part_name(source, subfolder, cls), Path(str(source)) / (subfolder or "")
        # transformers would take a default configuration.
        if place.is_dir() and kwargs.get("config") is None and not (place / "config.json").is_file():
            raise WeightsError(f"{part} has no config.json; wanted a saved model.")
        model, info = super().from_pretrained(
            source, *args, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
        )
        fresh = tuple(f"{name}." for name in fresh_parts)
        missing = [name for name in info["missing_keys"] if not name.startswith(fresh)]
        reshaped = [] if other_shapes else [name for name, *_ in info["mismatched_keys"]]
        # The index of sharded files says what is read, not what they hold.
        extra = {*info["unexpected_keys"], *_compared_names(model, place)[1]}
        check_weights(part, model, set(missing) - set(reshaped), extra, reshaped)
        align_weights(model)
        return (model, info) if with_info else model


class CheckedPipeline:
    """A pipeline whose `from_pretrained` also refuses weights of parts that are diffusers' or transformers' own."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> Any:
        """Loads the pipeline as diffusers does, and checks what was loaded.

        Args:
            pretrained_model_name_or_path: folder or Hub repository.
            **kwargs: for `DiffusionPipeline.from_pretrained`.

        Raises:
            WeightsError: a tensor of a part is missing, left over or not finite.
        """
        pipeline = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        pipeline.check_parts(name for name in pipeline.components if name not in kwargs)
        return pipeline

    def check_parts(self, names: Iterable[str]) -> None:
        """Checks the weights of components that were just loaded.

        Args:
            names: of components; those that are no networks, or check themselves, are passed over.

        Raises:
            WeightsError: a tensor is missing, left over or not finite.
        """
        for name in names:
            part = getattr(self, name)
            if isinstance(part, torch.nn.Module) and not hasattr(part, "checks_its_weights"):
                place = Path(str(getattr(part.config, "_name_or_path", "")))
                missing, extra = _compared_names(part, place)
                check_weights(f"{name} in {str(place.parent)!r}", part, missing, extra)
                align_weights(part)


def _compared_names(part: torch.nn.Module, folder: Path) -> tuple[set[str], set[str]]:
    """Names that a diffusers model and the files it came from have not in common; none where they cannot be told.

    transformers renames tensors as it loads them, and quantisation packs them, so these are not compared.
    """
    from diffusers import ModelMixin
    from safetensors import safe_open

    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    if not files or not isinstance(part, ModelMixin) or getattr(part, "hf_quantizer", None) is not None:
        return set(), set()
    indices = [json.loads(path.read_text()) for path in folder.glob("*.safetensors.index.json")]
    listed = {file for index in indices for file in index["weight_map"].values()}
    names: set[str] = set()
    for file in [path for path in files if path.name in listed] or files:
        with safe_open(file, "pt") as opened:
            names |= set(opened.keys())
    own = set(part.state_dict())
    # Attention processors are an adapter's, which has its own file.
    ignored = [r"\.processor\.", *(part._keys_to_ignore_on_load_unexpected or ())]
    extra = {name for name in names - own if not any(re.search(pattern, name) for pattern in ignored)}
    return own - names, extra

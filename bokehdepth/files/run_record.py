"""The record of a run, as strictly valid JSON: what is needed to understand and repeat it. No torch import."""

import dataclasses
import json
import os
import reprlib
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata as package_metadata
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from ..errors import InputError
from .atomic import write_file
from .stacks import BOKEH_STRENGTH_UNIT, check_strengths

_RECORDED_PACKAGES = ("torch", "diffusers", "transformers", "peft", "safetensors", "numpy", "scipy", "pillow")


def to_json_value(value: Any) -> Any:
    """Turn a value into plain JSON types: None, bool, int, float, str, list or dict.

    NumPy scalars and arrays become numbers and lists, paths strings, dataclasses and mappings objects. JSON has no
    infinity and no NaN: they become the strings ``"inf"``, ``"-inf"`` and ``"nan"``, which ``float()`` reads back.

    Raises:
        InputError: If a value or a key is of another type.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, np.generic | np.ndarray):
        return to_json_value(value.tolist())
    if isinstance(value, float):
        return value if np.isfinite(value) else str(value)
    if isinstance(value, os.PathLike):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_json_value(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: to_json_value(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [to_json_value(entry) for entry in value]
    raise InputError(
        f"a record has the value {reprlib.repr(value)}, wanted a number, text, list, mapping with texts as keys, "
        "dataclass or array"
    )


def save_json(path: Path | str, obj: Any, *, overwrite: bool = False) -> Path:
    """Write strictly valid JSON: UTF-8, indented, values turned by ``to_json_value``, which may refuse one."""
    text = json.dumps(to_json_value(obj), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    data = text.encode(errors="backslashreplace")  # a file name that is not UTF-8 becomes a JSON escape
    return write_file(path, lambda file: file.write(data), overwrite=overwrite)


def _installed_version(package: str) -> str | None:
    try:
        return package_metadata.version(package)
    except package_metadata.PackageNotFoundError:
        return None


def run_record(
    *,
    arguments: Mapping[str, Any],
    seed: int | None,
    weights: Mapping[str, Mapping[str, str | None]],
    camera: Mapping[str, Mapping[str, Any]],
    bokeh_strengths: Sequence[float] | np.ndarray,
    sizes_px: Mapping[str, tuple[int, int]],
    timings_s: Mapping[str, float],
    assumptions: Sequence[str] = (),
    photo_notes: Sequence[str] = (),
) -> dict[str, Any]:
    """Collect what is needed to understand and repeat one run; the result is what ``save_json`` writes beside it.

    Args:
        arguments: Arguments of the call or the command.
        seed: Seed of the noise; None if there was none.
        weights: Component to ``{"id": ..., "revision": ...}``; revision None for a local folder.
        camera: Camera value, its unit in its name, to ``{"value": ..., "source": ...}``: read, given or assumed.
        bokeh_strengths: K of the frames, ``(F,)``, ascending.
        sizes_px: What to ``(width, height)`` in pixels: the photo, the frames, the depth map.
        timings_s: Step to seconds.
        assumptions: One sentence for each thing that was assumed.
        photo_notes: One sentence for each thing about the photo that its user should know.

    Returns:
        Plain JSON types, with the versions of this package, Python and the libraries, and the time (UTC).

    Raises:
        InputError: If K is not ascending or a value has no JSON form.
    """
    versions = {name: _installed_version(name) for name in _RECORDED_PACKAGES}
    record = {
        "bokehdepth_version": __version__,
        "created_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "arguments": arguments,
        "seed": seed,
        "bokeh_strengths": check_strengths(bokeh_strengths),
        "bokeh_strength_unit": BOKEH_STRENGTH_UNIT,
        "camera": camera,
        "assumptions": list(assumptions),
        "photo_notes": list(photo_notes),
        "sizes_px": sizes_px,
        "timings_s": timings_s,
        "weights": weights,
        "versions": {"python": ".".join(map(str, sys.version_info[:3])), **versions},
    }
    return to_json_value(record)

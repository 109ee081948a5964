"""The files of one photo's result, as the command line and the Space write them. No torch import.

``bokeh_k10.png`` ... (one for each K), ``depth.npz``, ``depth.png`` (16 bit), ``depth_preview.png`` and the run
record: all of them appear together or none does.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, MutableMapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..camera import Camera
from ..errors import InputError
from ..files.arrays import check_depth, finite_range
from ..files.atomic import in_parallel, staged
from ..files.depth_maps import save_depth_npz, save_depth_png
from ..files.photos import Photo
from ..files.pictures import depth_preview
from ..files.png import save_image
from ..files.run_record import run_record, save_json, to_json_value
from ..files.stacks import bokeh_file_name, save_stack

DEPTH_NAMES = ("depth.npz", "depth.png", "depth_preview.png")
"""The three forms of the depth map: exact, for other programs, to look at."""

_RECORD_NAMES = ("run.json", "stack.json", "depth.json")
"""Names that the commands give their records."""

PREVIEW_SIDE_PX = 2048
"""Longest side of the colours of ``depth_preview.png``: it is there to look at, and colours cost more than depth."""

CONFIDENCE_NAME = "confidence.png"
"""How far the depth is to be believed, 8-bit grey: 255 is 1. Only methods that can say it write it."""


def result_names(
    bokeh_strengths: Sequence[float] = (),
    *,
    depth: bool = True,
    confidence: bool = False,
    record_name: str = "run.json",
) -> list[str]:
    """Names of the files that ``write_results`` writes.

    Args:
        bokeh_strengths: K of the frames that are written; empty where none is.
        depth: whether there is a depth map.
        confidence: whether there is a confidence map.
        record_name: name of the run record.

    Returns:
        The file names, frames first, the record last.

    Raises:
        InputError: a K is negative or not finite.
    """
    frames = [bokeh_file_name(strength) for strength in bokeh_strengths]
    return [*frames, *(DEPTH_NAMES if depth else ()), *([CONFIDENCE_NAME] if confidence else ()), record_name]


def check_folder(folder: Path | str, names: Sequence[str], *, overwrite: bool = False) -> None:
    """Check before any work that a photo's result can be written.

    Args:
        folder: where the files go; it need not exist.
        names: as ``result_names`` returns them.
        overwrite: whether an earlier result is replaced (``files_replaced``).

    Raises:
        InputError: a file stands where a folder is wanted, the folder may not be written to, or it holds an earlier
            result and ``overwrite`` is not set.
    """
    folder = Path(folder)
    standing = folder
    while not os.path.lexists(standing) and standing != standing.parent:
        standing = standing.parent
    if not standing.is_dir():
        raise InputError(f"output folder {str(folder)!r} cannot be made, since {str(standing)!r} is a file.")
    if not os.access(standing, os.W_OK | os.X_OK):
        raise InputError(f"output folder {str(folder)!r} may not be written to by this user.")
    if standing != folder:
        return
    for name in names:
        target = folder / name
        if target.is_dir():
            raise InputError(f"output file {str(target)!r} cannot be written, since a folder has its name.")
    earlier = files_replaced(folder, names)
    if earlier and not overwrite:
        raise InputError(
            f"output folder {str(folder)!r} holds an earlier result ({earlier[0]} exists), wanted another folder or "
            "leave to replace it (--overwrite)."
        )


def files_replaced(folder: Path | str, names: Sequence[str]) -> list[str]:
    """Find the files of earlier results that give way to a new one, so that nothing stale stands beside it.

    They are the files of the same names; where frames are written, all frames, since one of another K would pass for
    a part of the new stack; and whatever the record of a result that loses a file lists. The frames of a result stay
    where depth alone is written: it may have been read from them.

    Args:
        folder: where the files go; it need not exist.
        names: as ``result_names`` returns them.

    Returns:
        Names of files in the folder, sorted. Files that no record lists are not among them.
    """
    folder = Path(folder)
    has_frames = any(map(_is_frame, names))
    found = set(names)
    if has_frames:
        found |= {path.name for path in folder.glob("bokeh_k*.png")}
    records = {name: _files_of_record(folder / name) for name in _RECORD_NAMES}
    count = 0
    while count < len(found):  # a file that goes can be listed by another record too
        count = len(found)
        for record_name, listed in records.items():
            if listed & found:
                kept = set() if has_frames else set(filter(_is_frame, listed))
                found |= listed - kept - ({record_name} if kept else set())
    return sorted(name for name in found if os.path.lexists(folder / name))


def _is_frame(name: str) -> bool:
    return name.startswith("bokeh_k") and name.endswith(".png")


def _files_of_record(path: Path) -> set[str]:
    """Names that a run record lists, its own among them; none where it is no record of ours."""
    try:
        listed = json.loads(path.read_bytes())["files"]
        return {name for name in listed if isinstance(name, str) and Path(name).name == name}
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return set()


def write_results(
    folder: Path | str,
    *,
    photo: Photo,
    camera: Camera,
    bokeh_strengths: Sequence[float] = (),
    images: Sequence[Image.Image] | None = None,
    depth_m: np.ndarray | None = None,
    confidence: np.ndarray | None = None,
    depth_details: Mapping[str, Any] | None = None,
    focal_length_px: float | None = None,
    arguments: Mapping[str, Any],
    seed: int | None,
    weights: Mapping[str, Mapping[str, str | None]],
    timings_s: MutableMapping[str, float],
    started_s: float | None = None,
    record_name: str = "run.json",
    overwrite: bool = False,
) -> list[Path]:
    """Write the stack, the depth map and the run record of one photo, all or none.

    Args:
        folder: where the files go; made if it does not exist.
        photo: the photo as ``photos.open_photo`` returned it.
        camera: its lens settings.
        bokeh_strengths: (F,) ascending K of the frames; those that depth was read from where ``images`` is None.
        images: F pictures of the photo's size; None writes no frames.
        depth_m: (H, W) metres, floating point, above 0, at the photo's size; None writes no depth map.
        confidence: (H, W) in [0, 1], how far ``depth_m`` is to be believed; None writes no map of it.
        depth_details: what the record says under ``depth`` of how the depth came about; None says nothing.
        focal_length_px: focal length that belongs to ``depth_m``, where the depth model predicted it; None takes the
            camera's.
        arguments: arguments of the command or call, for the record.
        seed: seed of the noise; None if there was none.
        weights: as ``hub.weights_record`` returns it.
        timings_s: step to seconds; ``write_preview``, ``write_files``, ``rest`` and ``total`` are added to it.
        started_s: ``time.perf_counter()`` when the first of these steps began, so that ``rest`` is what none of them
            names; None where nothing but them has happened.
        record_name: name of the run record.
        overwrite: whether an earlier result in the folder is replaced (``files_replaced``).

    Returns:
        The paths written, in the order of ``result_names``.

    Raises:
        InputError: there is neither a stack nor depth, sizes or numbers disagree, a value has no file form, or as
            ``check_folder`` says.
    """
    size_px = photo.image.size
    sizes_px = {"photo": size_px}
    if images is None and depth_m is None:
        raise InputError("images and depth_m are both None, wanted at least one of them.")
    if images is not None:
        sizes_px |= {"stack": images[0].size if len(images) else (0, 0)}
    if depth_m is not None:
        sizes_px |= {"depth": (check_depth(depth_m).shape[1], depth_m.shape[0])}
    if confidence is not None:
        if depth_m is None or not (np.min(confidence) >= 0 and np.max(confidence) <= 1):
            raise InputError("confidence must be in [0, 1] everywhere and stand beside a depth map.")
        sizes_px |= {"confidence": np.shape(confidence)[::-1]}
    for name, size in sizes_px.items():
        if size != size_px:
            raise InputError(
                f"{name} has {size[0]} x {size[1]} pixels, wanted the photo's {size_px[0]} x {size_px[1]}."
            )
    names = result_names(
        bokeh_strengths if images is not None else (),
        depth=depth_m is not None,
        confidence=confidence is not None,
        record_name=record_name,
    )
    check_folder(folder, names, overwrite=overwrite)
    if started_s is None:
        started_s = time.perf_counter() - sum(timings_s.values())
    record = run_record(
        arguments=arguments,
        seed=seed,
        weights=weights,
        camera=camera.record(),
        bokeh_strengths=bokeh_strengths,
        sizes_px=sizes_px,
        timings_s=timings_s,
        assumptions=camera.assumptions(),
        photo_notes=(*photo.notes, *camera.notes),
    )
    if depth_details is not None:
        record["depth"] = to_json_value(depth_details)
    if focal_length_px is not None:
        predicted = {"focal_length_px": focal_length_px, "focal_length_source": "predicted by the depth model"}
        record["depth"] = {**record.get("depth", {}), **predicted}
    record["files"] = names
    replaced = files_replaced(folder, names) if overwrite else ()
    with staged(folder, names=names, overwrite=overwrite, replaced=replaced) as staging:
        tasks = []
        if images is not None:
            origin = {"seed": str(seed), "weights": ", ".join(map(_weights_text, weights.values()))}
            tasks.append(partial(save_stack, staging, images, bokeh_strengths, origin))
        if depth_m is not None:
            began_s = time.perf_counter()
            preview = depth_preview(depth_m, max_side_px=PREVIEW_SIDE_PX)
            save_image(staging / DEPTH_NAMES[2], preview, ai_generated=False)
            timings_s["write_preview"] = time.perf_counter() - began_s
            tasks += [
                partial(save_depth_png, staging / DEPTH_NAMES[1], depth_m, encoding=_depth_encoding(depth_m)),
                partial(
                    save_depth_npz,
                    staging / DEPTH_NAMES[0],
                    depth_m,
                    focal_length_px=focal_length_px or camera.focal_length_px.value,
                    bokeh_strengths=bokeh_strengths,
                ),
            ]
        if confidence is not None:
            grey = Image.fromarray(np.rint(np.asarray(confidence) * 255).astype(np.uint8))
            tasks.append(partial(save_image, staging / CONFIDENCE_NAME, grey, ai_generated=False))
        began_s = time.perf_counter()
        in_parallel(tasks)
        now_s = time.perf_counter()
        timings_s["write_files"] = now_s - began_s
        timings_s["rest"] = now_s - started_s - sum(timings_s.values())
        timings_s["total"] = now_s - started_s
        record["timings_s"] = to_json_value({part: round(value, 3) for part, value in timings_s.items()})
        save_json(staging / record_name, record)
    return [Path(folder) / name for name in names]


def _depth_encoding(depth_m: np.ndarray) -> str:
    """``"linear"``, which other programs read, unless the nearest depth would vanish in its first half step."""
    ends = finite_range(depth_m)
    return "log" if ends is not None and ends[0] < ends[1] / 65534 else "linear"


def _weights_text(entry: Mapping[str, str | None]) -> str:
    """Name weights in a picture that may be shared: local ones by their checksum, not by their folder."""
    revision = entry["revision"] or ""
    return revision if revision.startswith("sha256:") else f"{entry['id']}@{revision}".rstrip("@")

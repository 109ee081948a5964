"""Bokeh stacks as files: frames with their K in the name and in a text chunk, all or none. No torch import."""

import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from ..camera.lens import check_number
from ..errors import InputError
from .atomic import in_parallel, staged
from .photos import open_photo, read_text_chunks
from .png import save_image

BOKEH_STRENGTH_UNIT = "px radius per dioptre of disparity at 512 px width"

_BOKEH_NAME = re.compile(r"bokeh_k(\d+(?:\.\d+)?)\.[^.]+")


def check_strengths(bokeh_strengths: Sequence[float] | np.ndarray) -> np.ndarray:
    """Return ascending K, (F,) float64, finite and 0 or more; anything else is an ``InputError``."""
    strengths = np.asarray(bokeh_strengths, dtype=np.float64)
    if strengths.ndim != 1 or not np.isfinite(strengths).all() or (strengths < 0).any():
        raise InputError(f"bokeh_strengths is {bokeh_strengths!r}, wanted a list of finite numbers, 0 or more")
    if (np.diff(strengths) <= 0).any():
        raise InputError(f"bokeh_strengths is {bokeh_strengths!r}, wanted ascending values, none of them twice")
    return strengths


def _strength_text(bokeh_strength: float) -> str:
    check_number(bokeh_strength, "bokeh_strength", zero=True)
    # abs: a negative zero is the same strength and must not get a name of its own
    return np.format_float_positional(np.abs(bokeh_strength), unique=True, trim="-")


def bokeh_file_name(bokeh_strength: float) -> str:
    """Name the file of one frame: ``bokeh_k10.png``, ``bokeh_k7.5.png``; another value has another name.

    A float32 is written with the digits that a float32 needs; a negative or infinite K is an ``InputError``.
    """
    return f"bokeh_k{_strength_text(bokeh_strength)}.png"


def save_stack(
    folder: Path | str,
    images: Sequence[Image.Image],
    bokeh_strengths: Sequence[float] | np.ndarray,
    metadata: Mapping[str, str] | None = None,
    *,
    ai_generated: bool = True,
    overwrite: bool = False,
) -> list[Path]:
    """Write the frames of a stack, all or none, each with its K in the name and in a text chunk.

    Args:
        folder: Where the files go; made if it does not exist.
        images: F pictures of equal size.
        bokeh_strengths: K of each, ``(F,)``, ascending; 0 is the sharp photo.
        metadata: Text chunks for every frame.
        ai_generated: Whether a network made the frames with K above 0. The frame at K = 0 is the photo: never marked.
        overwrite: Whether existing files are replaced.

    Returns:
        The F paths in the order given.

    Raises:
        InputError: If the numbers or sizes disagree, K is not ascending, or as ``save_image`` and ``staged`` say.
    """
    strengths = check_strengths(bokeh_strengths)
    if len(images) != len(strengths) or len(images) == 0:
        raise InputError(f"images has {len(images)} frames for {len(strengths)} bokeh_strengths, wanted one for each")
    sizes = {getattr(image, "size", None) for image in images}
    if len(sizes) != 1:
        raise InputError(f"images have the sizes {sorted(map(str, sizes))}, wanted one size for a stack")
    names = [bokeh_file_name(strength) for strength in bokeh_strengths]
    if len(set(names)) != len(names):
        raise InputError(f"bokeh_strengths is {bokeh_strengths!r}, wanted values whose file names differ")
    with staged(folder, names=names, overwrite=overwrite) as staging:

        def save(name: str, image: Image.Image, strength: float) -> None:
            own = {"bokeh_strength": _strength_text(strength)}
            text = {"bokeh_strength_unit": BOKEH_STRENGTH_UNIT, **(metadata or {}), **own}
            save_image(staging / name, image, metadata=text, ai_generated=ai_generated and strength > 0)

        # PIL keeps what it is writing in the picture, so one that comes twice is two.
        once = [image.copy() if any(image is it for it in images[:at]) else image for at, image in enumerate(images)]
        in_parallel([partial(save, *frame) for frame in zip(names, once, bokeh_strengths, strict=True)])
    return [Path(folder) / name for name in names]


def _strength_of(path: Path) -> float | None:
    """Read K of one frame: its text chunk, else its name, else None."""
    text = read_text_chunks(path).get("bokeh_strength")
    if text is None:
        match = _BOKEH_NAME.fullmatch(path.name)
        return float(match[1]) if match else None
    try:
        strength = float(text)
    except ValueError:
        strength = float("nan")
    if not (np.isfinite(strength) and strength >= 0):
        raise InputError(f"paths has {str(path)!r}, whose bokeh_strength is {text!r}, wanted a number, 0 or more")
    return strength


def frame_strengths(paths: Sequence[Path | str]) -> list[float] | None:
    """Read K of the frames of a stack from picture files, in whatever format they are.

    Returns:
        (F,) K from the text chunk ``bokeh_strength``, else from a name like ``bokeh_k7.5.png``; None if no file says.

    Raises:
        InputError: If a file cannot be read, or if only some of the files say their K.
    """
    if isinstance(paths, str | Path) or len(paths) == 0:
        raise InputError(f"paths is {paths!r}, wanted a list of at least one file")
    strengths = [_strength_of(path) for path in map(Path, paths)]
    unknown = [str(path) for path, strength in zip(paths, strengths, strict=True) if strength is None]
    if unknown and len(unknown) < len(strengths):
        raise InputError(f"paths has {unknown[0]!r}, which has no bokeh strength as others have, wanted all or none")
    return None if unknown else [strength for strength in strengths if strength is not None]


def load_stack(paths: Sequence[Path | str]) -> tuple[list[Image.Image], list[float] | None]:
    """Read the frames of a stack as any photo is read.

    Args:
        paths: F picture files of equal size: a saved stack, or an aperture bracket of one's own.

    Returns:
        F RGB pictures in the order given, upright and in sRGB, and their K as ``frame_strengths`` tells it.

    Raises:
        InputError: If a file cannot be read, if the sizes differ, or if only some of the files say their K.
    """
    strengths = frame_strengths(paths)
    frames = [open_photo(path).image for path in paths]
    for path, frame in zip(paths, frames, strict=True):
        if frame.size != frames[0].size:
            raise InputError(f"paths has {str(path)!r} of size {frame.size}, wanted {frames[0].size} for all")
    return frames, strengths

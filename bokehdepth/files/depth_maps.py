"""Depth maps as files: our own, and those of other programs with the unit that they are in. No torch import.

What a file is, its first bytes tell, not its name: ``.npz``, ``.npy``, 16-bit PNG, TIFF, PFM, OpenEXR. Our own files
state metres; so do an array called ``depth_m`` and the scale in our PNG's text. For all others the caller states the
unit. Nothing is guessed, and the size is known from a header before a value is read.

In a file of another program 0 and NaN mean that a pixel has no depth, and infinity that it is infinitely far.
"""

from __future__ import annotations

import dataclasses
import re
import reprlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image
from scipy import ndimage

from ..camera.lens import check_number
from ..errors import InputError
from .arrays import check_depth, check_file, finite_range, open_arrays
from .atomic import write_file
from .exr import load_exr_channel
from .photos import MAX_PIXELS
from .png import write_png
from .stacks import check_strengths

METRES_OF_UNIT = {"m": 1.0, "cm": 0.01, "mm": 0.001}
UNIT_WORDS = "m, cm, mm, or the depth of one step such as 1/256m (KITTI) or 0.2mm"
"""How a unit is stated, for help and errors."""

_UNIT = re.compile(r"(?:(?P<over>\d+\.?\d*(?:e[+-]?\d+)?)(?:/(?P<under>\d+\.?\d*(?:e[+-]?\d+)?))?)?(?P<unit>m|cm|mm)")
_MOST_STRENGTHS = 4096
_OWN_KEYS = {"depth_m": 2, "focal_length_px": 0, "bokeh_strengths": 1}
_DEPTH_KEYS = ("depth_m", "depth", "depth_map")
"""Names that the array of depth has in archives of other programs, the surest first."""

_PICTURES = {b"\x89PNG": "PNG", b"II*\0": "TIFF", b"MM\0*": "TIFF", b"Pf\n": "PPM", b"Pf\r": "PPM", b"Pf ": "PPM"}
"""First bytes of a picture file to the name of PIL's reader, of which PPM is the one for PFM."""

_CODE_NO_VALUE = 0
_CODE_INFINITE = 65535
_CODE_MAX = 65534
_STRIP_PX = 2**18  # that have float64 values at a time
_SCALE_KEYS = {"linear": ("depth_scale_m",), "log": ("depth_near_m", "depth_far_m")}

_WIDE_MODES = ("I;16", "I;16B", "I;16L", "I", "F")
_DECODE_FAULTS = (OSError, ValueError, SyntaxError, TypeError, LookupError, MemoryError, Image.DecompressionBombError)


@dataclasses.dataclass(frozen=True)
class DepthFile:
    """What a depth ``.npz`` holds.

    Attributes:
        depth_m: Depth in metres, float32 ``(H, W)``; NaN has no value, inf is infinitely far.
        focal_length_px: Focal length in pixels of this depth map.
        bokeh_strengths: K of the frames that the depth was estimated from, float32 ``(F,)``, ascending.
    """

    depth_m: np.ndarray
    focal_length_px: float
    bokeh_strengths: np.ndarray


def save_depth_png(
    path: Path | str,
    depth_m: np.ndarray,
    *,
    max_depth_m: float | None = None,
    encoding: Literal["linear", "log"] = "linear",
    overwrite: bool = False,
) -> Path:
    """Write a depth map as a 16-bit grey PNG whose text chunks say how to read it.

    Code 0 has no value (NaN) and code 65535 is infinitely far (inf). Codes 1 to 65534 are depths, which come back to
    within half a step:

    * ``"linear"``: ``depth_m = code * depth_scale_m``, as other programs read it. One step is the largest depth by
      65534: 0.15 mm up to 10 m, 1.2 mm up to 80 m.
    * ``"log"``: ``depth_m = depth_near_m * (depth_far_m / depth_near_m) ** ((code - 1) / 65533)``. One step is a fixed
      share of the depth, 0.012 % from 0.1 m to 200 m, so one very far pixel costs near things nothing.

    Args:
        path: File to write.
        depth_m: Depth in metres, floating point ``(H, W)``, above 0; NaN and inf are kept.
        max_depth_m: Depth of code 65534, so that several maps share one scale; by default the largest finite depth.
        encoding: How depths become codes.
        overwrite: Whether an existing file is replaced.

    Returns:
        The path written.

    Raises:
        InputError: If ``depth_m`` is not such an array, a finite depth is above ``max_depth_m`` or, linear, below half
            a step (nothing is clipped), or the path cannot be used.
    """
    ends = finite_range(check_depth(depth_m))
    least, largest = (1.0, 1.0) if ends is None else ends
    far = largest if max_depth_m is None else check_number(max_depth_m, "max_depth_m", "m")
    if ends is not None and largest > far:
        raise InputError(f"max_depth_m is {far:g}, wanted at least the largest finite depth, {largest:g} m")

    text = {"depth_unit": "m", "depth_encoding": encoding}
    text |= {"depth_no_value": str(_CODE_NO_VALUE), "depth_infinite": str(_CODE_INFINITE)}
    if encoding == "linear":
        scale = far / _CODE_MAX
        if ends is not None and least < 0.5 * scale:
            raise InputError(
                f"depth_m has the value {least:g} m, less than half a step of {scale:g} m, wanted "
                "encoding='log' or an npz file for this range"
            )
        text |= {"depth_scale_m": repr(scale), "depth_formula": "depth_m = code * depth_scale_m"}
    elif encoding == "log":
        near = far if ends is None else least
        span = np.log(far / near) if far > near else 1.0
        text |= {"depth_near_m": repr(near), "depth_far_m": repr(far)}
        text |= {"depth_formula": "depth_m = depth_near_m * (depth_far_m / depth_near_m) ** ((code - 1) / 65533)"}
    else:
        raise InputError(f"encoding is {encoding!r}, wanted 'linear' or 'log'")
    codes = np.empty(depth_m.shape, np.uint16)
    rows = max(1, _STRIP_PX // depth_m.shape[1])
    for start in range(0, len(codes), rows):
        depth = depth_m[start : start + rows].astype(np.float64)
        coded = depth / scale if encoding == "linear" else 1 + np.log(depth / near) / span * (_CODE_MAX - 1)
        other = np.where(np.isnan(depth), _CODE_NO_VALUE, _CODE_INFINITE)
        codes[start : start + rows] = np.where(np.isfinite(depth), np.rint(coded), other)
    return write_png(path, Image.fromarray(codes), text, overwrite=overwrite)


def save_depth_npz(
    path: Path | str,
    depth_m: np.ndarray,
    *,
    focal_length_px: float,
    bokeh_strengths: Sequence[float] | np.ndarray,
    overwrite: bool = False,
) -> Path:
    """Write a depth map without loss, with what is needed to make points of it.

    The keys are ``depth_m`` float32 ``(H, W)``, ``focal_length_px`` float32 ``()`` and ``bokeh_strengths`` float32
    ``(F,)``.

    Args:
        path: File to write; the name is taken as it is.
        depth_m: Depth in metres, floating point ``(H, W)``, above 0; NaN and inf are kept.
        focal_length_px: Focal length in pixels of this depth map.
        bokeh_strengths: K of the frames that the depth was estimated from, ``(F,)``, ascending.
        overwrite: Whether an existing file is replaced.

    Returns:
        The path written.

    Raises:
        InputError: If a value is not of this kind or the path cannot be used.
    """
    depth = check_depth(depth_m)
    arrays = {
        "depth_m": depth.astype(np.float32, copy=False),
        "focal_length_px": np.float32(check_number(focal_length_px, "focal_length_px", "px")),
        "bokeh_strengths": check_strengths(bokeh_strengths).astype(np.float32),
    }
    # Stored, not deflated: that takes a fifth off such numbers, and thirty times as long.
    return write_file(path, lambda file: np.savez(file, **arrays), overwrite=overwrite)


def decode_depth_png(codes: np.ndarray, text: Mapping[str, str], name: str) -> np.ndarray:
    """Turn the pixels, uint16 ``(H, W)``, of a PNG that ``save_depth_png`` wrote into depth, by its text chunks.

    Returns:
        Depth in metres, float32 ``(H, W)``; NaN where there is no value, inf where it is infinitely far.

    Raises:
        InputError: If the chunks do not say how depth is coded; the sentence calls the file ``name``.
    """
    try:
        scale = [float(text[key]) for key in _SCALE_KEYS[text["depth_encoding"]]]
    except (KeyError, ValueError) as error:
        raise InputError(f"{name} has text chunks that do not say its depth scale.") from error
    if not all(np.isfinite(value) and value > 0 for value in scale):
        raise InputError(f"{name} has the depth scale {scale}, wanted finite metres above 0.")
    if len(scale) == 1:
        depth = codes * scale[0]
    else:
        depth = scale[0] * (scale[1] / scale[0]) ** ((codes.astype(np.float64) - 1) / (_CODE_MAX - 1))
    depth[codes == _CODE_NO_VALUE] = np.nan
    depth[codes == _CODE_INFINITE] = np.inf
    return depth.astype(np.float32)


def depth_step_m(unit: str) -> float:
    """Metres of a stored value of 1, from how a depth file's unit is stated.

    Args:
        unit: ``m``, ``cm`` or ``mm``, with a number or a fraction before it where one step is not one unit:
            ``1/256m``, ``0.2mm``. Spaces do not count.

    Returns:
        The step in metres.

    Raises:
        InputError: it is stated in another way.
    """
    match = _UNIT.fullmatch("".join(unit.split()).lower()) if isinstance(unit, str) and len(unit) < 40 else None
    over, under = (float(match[name] or 1) for name in ("over", "under")) if match else (0.0, 1.0)
    step_m = over / under * METRES_OF_UNIT[match["unit"]] if match and under else 0.0
    if not 0 < step_m < 1e6:
        raise InputError(f"depth_unit is {reprlib.repr(unit)}, wanted {UNIT_WORDS}.")
    return step_m


def load_depth(
    path: Path | str,
    *,
    unit: str | None = None,
    size_px: tuple[int, int] | None = None,
    max_pixels: int = MAX_PIXELS,
) -> np.ndarray:
    """Read a depth map of any form that is read here.

    Args:
        path: ``.npz`` (an array ``depth_m``, ``depth`` or ``depth_map``, or its only array of two axes), ``.npy``,
            16-bit grey PNG, TIFF (16 or 32 bit), PFM or OpenEXR (``exr.load_exr_channel``). Axes of length 1 around
            the two of a picture are taken off: (1, H, W), (H, W, 1).
        unit: of the stored values, as `depth_step_m` says; None, or ``m``, for a file that states it.
        size_px: (width, height) that it has to have, those of its photo; None takes any.
        max_pixels: most pixels that are read.

    Returns:
        Depth in metres, float32 (H, W); NaN where there is no value, inf where it is infinitely far.

    Raises:
        InputError: the file is missing, damaged, of another kind or another size; its unit is stated twice or nowhere;
            or a depth is negative, or no pixel has any.
    """
    step_m = None if unit is None else depth_step_m(unit)
    path = check_file(path)
    name = f"file {path.name!r}"
    with path.open("rb") as file:
        first = file.read(4)

    def check_shape(shape: tuple[int, ...]) -> None:
        _check_shape(name, shape, size_px, max_pixels)

    if first[:2] == b"PK" or first == b"\x93NUM":
        stored, states_metres = _from_arrays(path, check_shape, max_pixels)
    elif first == b"\x76\x2f\x31\x01":
        stored, states_metres = load_exr_channel(path, check_shape, max_pixels)
    elif (kind := _PICTURES.get(first) or _PICTURES.get(first[:3])) is not None:
        stored, states_metres = _from_picture(path, kind, check_shape)
    else:
        raise InputError(f"{name} is no depth map, wanted npz, npy, 16-bit PNG, TIFF, PFM or EXR.")
    if not states_metres and step_m is None:
        raise InputError(f"{name} does not say its unit, wanted depth_unit (--depth-unit): {UNIT_WORDS}.")
    if states_metres and step_m not in (None, 1.0):
        raise InputError(f"depth_unit is {unit!r}, wanted none, since {name} states its own.")
    with np.errstate(over="ignore"):  # what float32 cannot hold is infinitely far
        depth = stored.reshape(_map_shape(stored.shape)).astype(np.float32)
    if not states_metres:
        depth[depth == 0] = np.nan
        depth *= np.float32(step_m)
    if np.isnan(depth).all():
        raise InputError(f"{name} has no pixel with a depth.")
    if (depth <= 0).any():
        raise InputError(f"{name} has the depth {np.nanmin(depth):g}, wanted depths above 0.")
    return depth


def load_depth_npz(path: Path | str, *, max_pixels: int = MAX_PIXELS) -> DepthFile:
    """Read a depth map of at most `max_pixels` that ``save_depth_npz`` wrote, with what stands beside it.

    Raises:
        InputError: the file is missing, damaged or too large, or has other keys, shapes, types or values.
    """
    path = Path(path)
    with open_arrays(path) as stored:
        kinds = {key: (array.dtype, len(array.shape)) for key, array in stored.items()}
        if kinds != {key: (np.dtype(np.float32), axes) for key, axes in _OWN_KEYS.items()}:
            raise InputError(
                f"file {path.name!r} has not the float32 arrays {', '.join(_OWN_KEYS)} of our depth files."
            )
        most = {2: max_pixels}
        arrays = {key: stored[key].read(most.get(axes, _MOST_STRENGTHS)) for key, axes in _OWN_KEYS.items()}
    focal_px = float(arrays["focal_length_px"])
    if not (np.isfinite(focal_px) and focal_px > 0):
        raise InputError(f"file {path.name!r} has the focal length {focal_px:g} px, wanted a finite one above 0.")
    return DepthFile(check_depth(arrays["depth_m"]), focal_px, arrays["bokeh_strengths"])


def fill_unknown(depth_m: np.ndarray) -> np.ndarray:
    """Give each pixel without depth that of the nearest pixel that has one.

    Args:
        depth_m: depth in metres, floating point (H, W); NaN has no value, at least one pixel has.

    Returns:
        float32 (H, W) without NaN.

    Raises:
        InputError: it is no depth map, or no pixel has a value.
    """
    unknown = np.isnan(check_depth(depth_m))
    if unknown.all():
        raise InputError("depth_m has no value anywhere, wanted one to fill the others with.")
    if not unknown.any():
        return depth_m.astype(np.float32)
    rows, columns = ndimage.distance_transform_edt(unknown, return_distances=False, return_indices=True)
    return depth_m[rows, columns].astype(np.float32)


def _map_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of a picture without axes of length 1 around it."""
    return shape if len(shape) == 2 else tuple(length for length in shape if length != 1)


def _check_shape(name: str, shape: tuple[int, ...], size_px: tuple[int, int] | None, max_pixels: int) -> None:
    """Refuse an array that is no map of the size wanted, before its values are read."""
    if len(_map_shape(shape)) != 2:
        raise InputError(f"{name} holds an array of the shape {reprlib.repr(shape)}, wanted (H, W).")
    height, width = _map_shape(shape)
    if size_px is not None and (width, height) != size_px:
        raise InputError(f"{name} has {width} x {height} pixels, wanted the photo's {size_px[0]} x {size_px[1]}.")
    if width * height > max_pixels:
        raise InputError(f"{name} has {width} x {height} pixels; at most {max_pixels:,} in all are read.")


def _from_arrays(
    path: Path, check_shape: Callable[[tuple[int, ...]], None], max_pixels: int
) -> tuple[np.ndarray, bool]:
    """The array of depth in a file of NumPy's, and whether its name says that it is in metres."""
    with open_arrays(path) as arrays:
        key = next((key for key in ("", *_DEPTH_KEYS) if key in arrays), None)
        if key is None:
            maps = [name for name, array in arrays.items() if sum(length > 1 for length in array.shape) == 2]
            if len(maps) != 1:
                names = reprlib.repr(sorted(arrays))
                raise InputError(
                    f"file {path.name!r} has the arrays {names}, wanted one called {' or '.join(_DEPTH_KEYS)}."
                )
            key = maps[0]
        check_shape(arrays[key].shape)
        return arrays[key].read(max_pixels), key == "depth_m"


def _from_picture(path: Path, kind: str, check_shape: Callable[[tuple[int, ...]], None]) -> tuple[np.ndarray, bool]:
    """The pixels of a picture of one wide channel; metres where it is a PNG that says how to read it."""
    try:
        with path.open("rb") as file:
            image = Image.open(file, formats=[kind])
            if image.mode not in _WIDE_MODES:
                wanted = "a grey picture of 16 or 32 bits; one of 8 bits has too few steps for depth"
                raise InputError(f"file {path.name!r} is a picture of mode {image.mode}, wanted {wanted}.")
            if image.info.get("scale", 1) != 1:
                raise InputError(f"file {path.name!r} has the scale {image.info['scale']:g}, wanted 1 in a PFM file.")
            check_shape((image.height, image.width))
            if kind == "TIFF" and _has_second_page(image):
                raise InputError(f"file {path.name!r} has several pages, wanted one depth map.")
            image.load()
    except InputError:
        raise
    except _DECODE_FAULTS as error:
        raise InputError(f"file {path.name!r} is no readable picture: it is damaged or cut short.") from error
    if kind == "PNG" and "depth_encoding" in image.text:
        return decode_depth_png(np.asarray(image), image.text, f"file {path.name!r}"), True
    return np.asarray(image), False


def _has_second_page(image: Image.Image) -> bool:
    """Whether there is another page, without counting them, which takes minutes in a file made to harm."""
    try:
        image.seek(1)
    except EOFError:
        return False
    return True

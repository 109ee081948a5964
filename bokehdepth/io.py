"""Files of one photo's result: depth maps, bokeh stacks, pictures and the run record. No torch import.

Every file is written under a temporary name and renamed when it is complete (``bokehdepth.staging``); nothing that
exists is replaced unless ``overwrite`` is set. Depth is z-depth in metres; bokeh strength is K of the paper's Eq. 15
and 26 (blur radius in pixels per dioptre at a width of 512 px).
"""

import dataclasses
import json
import os
import re
import reprlib
import sys
import zlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from importlib import metadata as package_metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from bokehdepth import __version__
from bokehdepth.errors import InputError
from bokehdepth.imaging import open_photo, read_text_chunks
from bokehdepth.optics import check_number
from bokehdepth.staging import in_parallel, staged, write_file

BOKEH_STRENGTH_UNIT = "px radius per dioptre of disparity at 512 px width"
DIGITAL_SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"

_CODE_NO_VALUE = 0
_CODE_INFINITE = 65535
_CODE_MAX = 65534
_STRIP_PX = 2**18  # that have float64 values at a time
_SCALE_KEYS = {"linear": ("depth_scale_m",), "log": ("depth_near_m", "depth_far_m")}
_RECORDED_PACKAGES = ("torch", "diffusers", "transformers", "peft", "safetensors", "numpy", "scipy", "pillow")
_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
_RESERVED_TEXT = ("Software", "Comment", "ai_generated", "digital_source_type", "XML:com.adobe.xmp")
_BOKEH_NAME = re.compile(r"bokeh_k(\d+(?:\.\d+)?)\.[^.]+")
_XMP = f"""<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
   Iptc4xmpExt:DigitalSourceType="{DIGITAL_SOURCE_TYPE}"/>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="r"?>"""


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


def check_depth(depth_m: np.ndarray) -> np.ndarray:
    """Return a depth map: metres, floating point ``(H, W)``, above 0; NaN has no value, inf is infinitely far.

    Raises:
        InputError: If it is anything else.
    """
    is_float = isinstance(depth_m, np.ndarray) and np.issubdtype(depth_m.dtype, np.floating)
    if not is_float or depth_m.ndim != 2 or depth_m.size == 0:
        described = f"{depth_m.dtype} {depth_m.shape}" if isinstance(depth_m, np.ndarray) else type(depth_m).__name__
        raise InputError(f"depth_m is {described}, wanted a floating-point array (H, W) in metres")
    if (depth_m <= 0).any():
        raise InputError(f"depth_m has the value {np.nanmin(depth_m):g}, wanted depths above 0 m and NaN for no value")
    return depth_m


def finite_range(depth_m: np.ndarray) -> tuple[float, float] | None:
    """Find the least and the greatest finite value of an array, without a copy of it; None where there is none."""
    finite = np.isfinite(depth_m)
    least, most = np.min(depth_m, where=finite, initial=np.inf), np.max(depth_m, where=finite, initial=-np.inf)
    return (float(least), float(most)) if least <= most else None


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
    return _write_png(path, Image.fromarray(codes), text, overwrite=overwrite)


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


def _checked_strengths(bokeh_strengths: Sequence[float] | np.ndarray) -> np.ndarray:
    strengths = np.asarray(bokeh_strengths, dtype=np.float64)
    if strengths.ndim != 1 or not np.isfinite(strengths).all() or (strengths < 0).any():
        raise InputError(f"bokeh_strengths is {bokeh_strengths!r}, wanted a list of finite numbers, 0 or more")
    if (np.diff(strengths) <= 0).any():
        raise InputError(f"bokeh_strengths is {bokeh_strengths!r}, wanted ascending values, none of them twice")
    return strengths


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
        "bokeh_strengths": _checked_strengths(bokeh_strengths).astype(np.float32),
    }
    # Stored, not deflated: that takes a fifth off such numbers, and thirty times as long.
    return write_file(path, lambda file: np.savez(file, **arrays), overwrite=overwrite)


def _write_png(path: Path | str, image: Image.Image, text: Mapping[str, str], overwrite: bool) -> Path:
    chunks = PngInfo()
    for key, value in text.items():
        if not (isinstance(key, str) and isinstance(value, str)):
            raise InputError(f"metadata has {key!r}: {value!r}, wanted a string for a string")
        if not (1 <= len(key) <= 79 and key.isascii() and key.isprintable() and key == key.strip()):
            raise InputError(f"metadata has the key {key!r}, wanted 1 to 79 printable ASCII characters")
        if "\0" in value:
            raise InputError(f"metadata has a NUL character under {key!r}, wanted plain text")
        if key == "XML:com.adobe.xmp" or not value.isascii():
            chunks.add_itxt(key, value)
        else:
            chunks.add_text(key, value)
    # PIL's default takes five times as long for a twentieth off a photo, whose filtered rows repeat in runs alone.
    kind = zlib.Z_DEFAULT_STRATEGY if image.mode == "I;16" else zlib.Z_RLE
    options = {"format": "PNG", "pnginfo": chunks, "compress_level": 1, "compress_type": kind}
    return write_file(path, lambda file: image.save(file, **options), overwrite=overwrite)


def save_image(
    path: Path | str,
    image: Image.Image,
    *,
    metadata: Mapping[str, str] | None = None,
    ai_generated: bool = True,
    overwrite: bool = False,
) -> Path:
    """Write a picture as PNG with text chunks and the mark of its origin.

    A generated picture carries the text chunks ``ai_generated`` and ``Comment`` and an XMP packet whose IPTC
    ``DigitalSourceType`` is ``trainedAlgorithmicMedia``, which photo programs and platforms read. EXIF (the
    place of the photo among it) is not written; the colour profile is.

    Args:
        path: File to write.
        image: PIL picture of a mode that PNG has.
        metadata: Text chunks, names to text.
        ai_generated: Whether a network made the picture. A photo, a render or a colour map of depth is not marked.
        overwrite: Whether an existing file is replaced.

    Returns:
        The path written.

    Raises:
        InputError: If ``image`` is no such picture, ``metadata`` has a name or value that PNG cannot hold or that is
            written here, or the path cannot be used.
    """
    if not isinstance(image, Image.Image):
        raise InputError(f"image is {type(image).__name__}, wanted a PIL picture")
    if image.mode not in _PNG_MODES:
        raise InputError(f"image has the mode {image.mode!r}, wanted one of {', '.join(_PNG_MODES)}")
    for key in metadata or {}:
        if key in _RESERVED_TEXT:
            raise InputError(f"metadata has the key {key!r}, which save_image writes itself, wanted another name")
    text = {**(metadata or {}), "Software": f"bokehdepth {__version__}"}
    if ai_generated:
        text |= {"ai_generated": "true", "Comment": "AI-generated picture", "digital_source_type": DIGITAL_SOURCE_TYPE}
        text |= {"XML:com.adobe.xmp": _XMP}
    return _write_png(path, image, text, overwrite=overwrite)


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
    strengths = _checked_strengths(bokeh_strengths)
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
        "bokeh_strengths": _checked_strengths(bokeh_strengths),
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

"""The JSONL row that data sets, Stage-1, Stage-2 and evaluation share (section 8.3 of arXiv 2512.12425). No torch.

One line of UTF-8 JSON for each row, keys as the paper and its released rows call them. In memory the same row is a
``ManifestRow`` with this project's names and absolute paths; on disk its paths are relative to the file, with forward
slashes, and none leaves the file's folder (links are followed before that is decided).

| key in the file | attribute | meaning |
|---|---|---|
| ``id`` | ``row_id`` | name of the row, unique in the file; letters, digits, ``. _ -``; names its results |
| ``scene`` | ``scene`` | what splits and bootstrap clusters keep together |
| ``dataset``, ``split`` | same | where it is from; train, validation or test |
| ``input_image_path`` | ``image_path`` | the all-in-focus photo |
| ``target_image_path`` | ``target_path`` | the bokeh photo of strength ``camera_anns["dof-cond"]`` |
| ``depth_map_path`` | ``depth_path`` | depth of the all-in-focus photo |
| ``depth_unit``, ``depth_scale`` | same | m, dpt or relative_disparity; stored value times the scale is in that unit |
| ``fg_mask_path`` | ``mask_path`` | foreground mask |
| ``captions`` | ``captions`` | list of texts |
| ``k_unit`` | ``strength_unit`` | metric (K per dioptre) or relative (K per unit of relative disparity) |
| ``stack`` | ``stack`` | Stage-2 frames: list of ``{"image_path", "dof-cond"}``, K ascending |
| ``intrinsics`` | ``intrinsics`` | ``{"fx", "fy", "cx", "cy"}`` of the all-in-focus photo, pixels |
| ``camera_anns`` | ``camera_anns`` | the object below |
| ``N`` | ``f_number`` | f-number |
| ``fmm``, ``f35mm`` | ``focal_length_mm``, ``focal_length_35mm`` | true and 35 mm equivalent focal length |
| ``sensor_width`` | ``sensor_width_mm`` | sensor along the picture's width, mm |
| ``s1`` | ``focus_distance_m`` | focus distance, m |
| ``disp_focus`` | ``focus_relative_disparity`` | focus in relative disparity, for relative K |
| ``dof-cond`` | ``bokeh_strength`` | K at 512 px width |
| ``dof-cond-crop`` | ``full_frame_strength`` | K over the crop factor |
| ``foreground_clear`` | ``foreground_clear`` | ``lens.foreground_clear`` of the row |

A key whose attribute is None (or an empty tuple) is left out of the file.
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

from bokehdepth.camera import lens as optics
from bokehdepth.errors import InputError
from bokehdepth.files.atomic import write_file

STRENGTH_TOLERANCE = 0.01
"""Largest relative gap between a stated K and the K of the row's own lens: room for rounded decimals, no more."""

STRENGTH_UNITS = ("metric", "relative")
DEPTH_UNITS = ("m", "dpt", "relative_disparity")
SPLITS = ("train", "validation", "test")
_ROW_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")


def _key(name: str, kind: str, *, required: bool = False) -> Any:
    metadata = {"key": name, "kind": kind, "required": required}
    return field(metadata=metadata) if required else field(default=None, metadata=metadata)


def _list(name: str, kind: str) -> Any:
    return field(default=(), metadata={"key": name, "kind": kind, "required": False})


@dataclass(frozen=True)
class CameraAnns:
    """Lens and bokeh strength of a row's target (``camera_anns`` of section 8.3).

    Attributes:
        bokeh_strength: K at 512 px width, in [0, 30].
        full_frame_strength: K over the crop factor ``f35mm / fmm``.
        f_number: N.
        focal_length_mm: True focal length.
        focal_length_35mm: 35 mm equivalent focal length.
        sensor_width_mm: Sensor along the picture's width.
        focus_distance_m: S1, beyond the focal length.
        focus_relative_disparity: Focus in units of relative disparity; of rows with relative K alone.
        foreground_clear: Whether the near foreground stays sharp, ``lens.foreground_clear``.

    Raises:
        InputError: A number is out of its range, or ``full_frame_strength`` differs from K over the crop factor by
            more than ``STRENGTH_TOLERANCE``.
    """

    bokeh_strength: float | None = _key("dof-cond", "number")
    full_frame_strength: float | None = _key("dof-cond-crop", "number")
    f_number: float | None = _key("N", "number")
    focal_length_mm: float | None = _key("fmm", "number")
    focal_length_35mm: float | None = _key("f35mm", "number")
    sensor_width_mm: float | None = _key("sensor_width", "number")
    focus_distance_m: float | None = _key("s1", "number")
    focus_relative_disparity: float | None = _key("disp_focus", "number")
    foreground_clear: bool | None = _key("foreground_clear", "flag")

    def __post_init__(self) -> None:
        """Check every value and the crop-corrected K."""
        _check_types(self)
        for key, value, unit in (
            ("N", self.f_number, ""),
            ("fmm", self.focal_length_mm, "mm"),
            ("f35mm", self.focal_length_35mm, "mm"),
            ("sensor_width", self.sensor_width_mm, "mm"),
            ("s1", self.focus_distance_m, "m"),
        ):
            if value is not None:
                optics.check_number(value, key, unit)
        if self.focus_relative_disparity is not None:
            optics.check_number(self.focus_relative_disparity, "disp_focus", zero=True)
        if self.bokeh_strength is not None:
            optics.check_bokeh_strength(self.bokeh_strength, "dof-cond")
        if self.full_frame_strength is None:
            return
        optics.check_number(self.full_frame_strength, "dof-cond-crop", zero=True)
        if None not in (self.bokeh_strength, self.focal_length_mm, self.focal_length_35mm):
            crop = optics.crop_factor(self.focal_length_mm, self.focal_length_35mm)
            expected = optics.full_frame_strength(self.bokeh_strength, crop)
            _check_close("dof-cond-crop", self.full_frame_strength, expected, "dof-cond over f35mm / fmm")

    def lens_strength(self) -> float | None:
        """K of the lens that the row states, by ``lens.bokeh_strength`` (Eq. 17); None where a part is missing."""
        parts = (self.focal_length_mm, self.f_number, self.focus_distance_m, self.sensor_width_mm)
        return None if None in parts else optics.bokeh_strength(*parts)


@dataclass(frozen=True)
class StackFrame:
    """One frame of a Stage-2 stack.

    Attributes:
        image_path: The picture, of the all-in-focus photo's size.
        bokeh_strength: Its K at 512 px width, in (0, 30], in the row's unit.

    Raises:
        InputError: K is out of range.
    """

    image_path: Path = _key("image_path", "path", required=True)
    bokeh_strength: float = _key("dof-cond", "number", required=True)

    def __post_init__(self) -> None:
        """Check the types and K."""
        _check_types(self)
        if optics.check_bokeh_strength(self.bokeh_strength, "dof-cond of a stack frame") == 0:
            raise InputError("dof-cond of a stack frame is 0, wanted above 0: K = 0 is the all-in-focus photo itself.")


@dataclass(frozen=True)
class Intrinsics:
    """Pinhole intrinsics of the all-in-focus photo, in its pixels; the centre of the first pixel is (0.5, 0.5).

    Attributes:
        fx: Focal length over the pixel's width.
        fy: Focal length over the pixel's height.
        cx: Principal point from the left edge.
        cy: Principal point from the upper edge.

    Raises:
        InputError: A focal length is not above 0, or the principal point is negative or not finite.
    """

    fx: float = _key("fx", "number", required=True)
    fy: float = _key("fy", "number", required=True)
    cx: float = _key("cx", "number", required=True)
    cy: float = _key("cy", "number", required=True)

    def __post_init__(self) -> None:
        """Check the four numbers."""
        _check_types(self)
        for name in ("fx", "fy", "cx", "cy"):
            optics.check_number(getattr(self, name), f"intrinsics {name}", "px", zero=name[0] == "c")


@dataclass(frozen=True)
class ManifestRow:
    """One row; see the module's table. At least one of ``image_path`` and ``target_path`` is given.

    A row with both pictures is a pair for image-to-image training; with the target alone, a real defocused photo for
    text-to-image; with the photo and depth or a stack, on-the-fly rendering, Stage-2 and depth evaluation.

    Attributes:
        row_id: Unique name of the row in its file.
        scene: Cluster of the row; several rows share it.
        image_path: All-in-focus photo.
        target_path: Bokeh photo; then ``camera_anns.bokeh_strength`` is its K.
        depth_path: Depth of the photo: an image or a ``.npy`` or ``.npz`` file; 0 and NaN have no value.
        depth_unit: m, dpt or relative_disparity; given with a depth.
        depth_scale: Factor from the stored value to the unit; None where the file states its own
            (``depth_maps.load_depth``).
        mask_path: Foreground mask.
        captions: Texts about the picture.
        strength_unit: metric or relative; given with a K.
        camera_anns: Lens and K of the target.
        stack: Frames of ascending K.
        intrinsics: Of the photo.
        dataset: Name of the data set.
        split: train, validation or test.

    Raises:
        InputError: A value breaks a rule above, the units of K, focus and depth do not go together, or K differs from
            that of the row's lens by more than ``STRENGTH_TOLERANCE``.
    """

    row_id: str = _key("id", "text", required=True)
    scene: str = _key("scene", "text", required=True)
    image_path: Path | None = _key("input_image_path", "path")
    target_path: Path | None = _key("target_image_path", "path")
    depth_path: Path | None = _key("depth_map_path", "path")
    depth_unit: str | None = _key("depth_unit", "text")
    depth_scale: float | None = _key("depth_scale", "number")
    mask_path: Path | None = _key("fg_mask_path", "path")
    captions: tuple[str, ...] = _list("captions", "texts")
    strength_unit: str | None = _key("k_unit", "text")
    camera_anns: CameraAnns | None = _key("camera_anns", "camera")
    stack: tuple[StackFrame, ...] = _list("stack", "frames")
    intrinsics: Intrinsics | None = _key("intrinsics", "intrinsics")
    dataset: str | None = _key("dataset", "text")
    split: str | None = _key("split", "text")

    def __post_init__(self) -> None:
        """Check the row against itself."""
        _check_types(self)
        if not _ROW_ID.fullmatch(self.row_id):
            raise InputError(f"id is {self.row_id!r}, wanted up to 200 letters, digits, '.', '_' or '-'.")
        if self.image_path is None and self.target_path is None:
            raise InputError("input_image_path and target_image_path are both missing, wanted at least one.")
        if self.image_path is None and (self.stack or self.depth_path or self.mask_path or self.intrinsics):
            raise InputError(
                "input_image_path is missing, wanted one: depth, mask, intrinsics and stack belong to it."
            )
        if self.split is not None and self.split not in SPLITS:
            raise InputError(f"split is {self.split!r}, wanted one of {SPLITS}.")
        self._check_depth()
        self._check_strength()

    def _check_depth(self) -> None:
        if self.depth_path is None:
            if self.depth_unit is not None or self.depth_scale is not None:
                raise InputError("depth_unit or depth_scale is given without depth_map_path, wanted none of them.")
            return
        if self.depth_unit not in DEPTH_UNITS:
            raise InputError(f"depth_unit is {self.depth_unit!r}, wanted one of {DEPTH_UNITS} with depth_map_path.")
        if self.depth_scale is not None:
            optics.check_number(self.depth_scale, "depth_scale")

    def _check_strength(self) -> None:
        camera = self.camera_anns
        stated = None if camera is None else camera.bokeh_strength
        if self.target_path is not None and stated is None:
            raise InputError("camera_anns has no dof-cond, wanted the K of target_image_path.")
        ascending = [frame.bokeh_strength for frame in self.stack]
        if any(b <= a for a, b in zip(ascending, ascending[1:], strict=False)):
            raise InputError(f"stack has the dof-cond {ascending}, wanted ascending values, each once.")
        if stated is None and not self.stack and self.strength_unit is None:
            return
        if self.strength_unit not in STRENGTH_UNITS:
            raise InputError(f"k_unit is {self.strength_unit!r}, wanted one of {STRENGTH_UNITS} with a K.")
        relative = self.strength_unit == "relative"
        if self.depth_unit is not None and (self.depth_unit == "relative_disparity") != relative:
            raise InputError(
                f"k_unit is {self.strength_unit} and depth_unit {self.depth_unit}, which do not go together."
            )
        if camera is None:
            return
        wrong = ("s1", camera.focus_distance_m) if relative else ("disp_focus", camera.focus_relative_disparity)
        if wrong[1] is not None:
            raise InputError(f"{wrong[0]} is {wrong[1]:g} in a row of {self.strength_unit} K, wanted none there.")
        expected = camera.lens_strength()
        if stated is not None and expected is not None:
            _check_close("dof-cond", stated, expected, "K by fmm, N, s1 and sensor_width (Eq. 17)")

    def paths(self) -> dict[str, Path]:
        """Return every file of the row by its key, stack frames as ``stack[0]`` and so on."""
        found = {
            item.metadata["key"]: getattr(self, item.name)
            for item in dataclasses.fields(self)
            if item.metadata["kind"] == "path" and getattr(self, item.name) is not None
        }
        return found | {f"stack[{index}]": frame.image_path for index, frame in enumerate(self.stack)}


_KINDS = {"camera": CameraAnns, "intrinsics": Intrinsics, "frames": StackFrame}


def _check_close(name: str, stated: float, expected: float, rule: str) -> None:
    if abs(stated - expected) > STRENGTH_TOLERANCE * max(stated, expected):
        raise InputError(
            f"{name} is {stated:g} but {rule} is {expected:g}, wanted a gap of at most {STRENGTH_TOLERANCE:.0%}."
        )


def _fits(value: Any, kind: str) -> bool:
    if kind == "number":
        # An integer of thousands of digits is no number that a float can hold.
        return isinstance(value, Real) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    if kind == "flag":
        return isinstance(value, bool)
    if kind == "text":
        # Half a surrogate pair is valid JSON but no text that UTF-8 can write back.
        return isinstance(value, str) and bool(value.strip()) and not re.search("[\ud800-\udfff]", value)
    if kind == "texts":
        return isinstance(value, tuple) and all(_fits(item, "text") for item in value)
    if kind == "path":
        return isinstance(value, Path)
    if kind == "frames":
        return isinstance(value, tuple) and all(isinstance(item, StackFrame) for item in value)
    return isinstance(value, _KINDS[kind])


_WANTED = {
    "number": "a number",
    "flag": "true or false",
    "text": "a text that is not empty",
    "texts": "a list of texts that are not empty",
    "path": "a path",
    "frames": 'a list of {"image_path", "dof-cond"}',
    "camera": "an object",
    "intrinsics": 'an object {"fx", "fy", "cx", "cy"}',
}


def _check_types(row: Any) -> None:
    for item in dataclasses.fields(row):
        value, kind = getattr(row, item.name), item.metadata["kind"]
        empty = value is None and item.default is None
        if not empty and not _fits(value, kind):
            raise InputError(f"{item.metadata['key']} is {value!r}, wanted {_WANTED[kind]}.")


def _inside(text: Any, key: str, root: Path) -> Path:
    """Return the file that a manifest's path names, which must exist inside ``root``."""
    if not _fits(text, "text") or "\\" in text or "\0" in text:
        raise InputError(f"{key} is {text!r}, wanted a relative path with forward slashes.")
    relative = PurePosixPath(text)
    if relative.is_absolute() or ".." in relative.parts:
        raise InputError(f"{key} is {text!r}, wanted a path relative to the manifest's folder that stays inside it.")
    path = root / relative
    _check_file(path, key, root, text)
    return path


def _check_file(path: Path, key: str, root: Path, shown: str) -> None:
    if not path.is_file():
        raise InputError(f"{key} is {shown!r}, which is no file, wanted one that exists.")
    if not path.resolve().is_relative_to(root.resolve()):
        raise InputError(f"{key} is {shown!r}, which leads out of the manifest's folder, wanted a file inside it.")


def _from_json(cls: type, values: Any, root: Path, where: str) -> Any:
    if not isinstance(values, dict):
        raise InputError(f"{where} is {values!r}, wanted an object.")
    fields = {item.metadata["key"]: item for item in dataclasses.fields(cls)}
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise InputError(f"{where} has the unknown key {unknown[0]!r}, wanted only {', '.join(fields)}.")
    missing = [key for key, item in fields.items() if item.metadata["required"] and key not in values]
    if missing:
        raise InputError(f"{where} lacks the key {missing[0]!r}.")
    arguments: dict[str, Any] = {}
    for key, value in values.items():
        kind = fields[key].metadata["kind"]
        if value is None:
            raise InputError(f"{key} is null, wanted {_WANTED[kind]} or no such key.")
        if kind == "path":
            value = _inside(value, key, root)
        elif kind in ("texts", "frames"):
            if not isinstance(value, list):
                raise InputError(f"{key} is {value!r}, wanted {_WANTED[kind]}.")
            if kind == "frames":
                value = [_from_json(StackFrame, item, root, f"stack[{index}]") for index, item in enumerate(value)]
            value = tuple(value)
        elif kind in ("camera", "intrinsics"):
            value = _from_json(_KINDS[kind], value, root, key)
        arguments[fields[key].name] = value
    return cls(**arguments)


def _to_json(row: Any, root: Path) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for item in dataclasses.fields(row):
        key, kind, value = item.metadata["key"], item.metadata["kind"], getattr(row, item.name)
        if value is None or value == ():
            continue
        if kind == "path":
            absolute = value.absolute()
            if not absolute.is_relative_to(root) or ".." in absolute.parts:
                raise InputError(f"{key} is {str(value)!r}, wanted a file inside the manifest's folder {str(root)!r}.")
            _check_file(absolute, key, root, str(value))
            value = absolute.relative_to(root).as_posix()
        elif kind == "frames":
            value = [_to_json(frame, root) for frame in value]
        elif kind == "texts":
            value = list(value)
        elif kind == "number":
            value = float(value)
        elif kind in ("camera", "intrinsics"):
            value = _to_json(value, root)
        values[key] = value
    return values


def _refuse_constant(name: str) -> NoReturn:
    raise InputError(f"a value is {name}, wanted finite numbers.")


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    for key in keys:
        if keys.count(key) > 1:
            raise InputError(f"the key {key!r} stands twice, wanted each key once.")
    return dict(pairs)


def read_manifest(path: Path | str) -> list[ManifestRow]:
    """Read and check every row of a manifest.

    Args:
        path: A ``.jsonl`` file; its folder is the root of all its paths.

    Returns:
        The rows in the file's order, paths absolute.

    Raises:
        InputError: The file is missing, empty or not UTF-8, or a row breaks a rule of this module; the sentence begins
            with the file and the line.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"path is {str(path)!r}, which is no file, wanted a manifest.")
    root = path.parent.absolute()
    rows: list[ManifestRow] = []
    lines_of: dict[str, int] = {}
    lines = path.read_bytes().split(b"\n")
    if lines[-1] == b"":
        lines.pop()
    if not lines:
        raise InputError(f"path is {str(path)!r}, which is empty, wanted at least one row.")
    for number, line in enumerate(lines, 1):
        try:
            values = json.loads(
                line.decode("utf-8"), parse_constant=_refuse_constant, object_pairs_hook=_each_key_once
            )
            row = _from_json(ManifestRow, values, root, "the row")
            if row.row_id in lines_of:
                raise InputError(f"id is {row.row_id!r} as in line {lines_of[row.row_id]}, wanted another one.")
        except InputError as error:
            raise InputError(f"{path}, line {number}: {error}") from error
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}, line {number}: not one JSON object in UTF-8 ({error}).") from error
        lines_of[row.row_id] = number
        rows.append(row)
    return rows


def write_manifest(path: Path | str, rows: Iterable[ManifestRow], *, overwrite: bool = False) -> Path:
    """Write rows so that ``read_manifest`` gives them back; nothing is written unless every row is good.

    Args:
        path: File to write; all files of the rows lie in its folder or below.
        rows: At least one, each ``row_id`` once.
        overwrite: Whether an existing file is replaced.

    Returns:
        The path written.

    Raises:
        InputError: There is no row, an id comes twice, a file of a row is missing or lies outside the manifest's
            folder, or ``path`` exists and ``overwrite`` is not set.
    """
    path = Path(path)
    root = path.parent.absolute()
    lines: list[str] = []
    seen: set[str] = set()
    for number, row in enumerate(rows, 1):
        try:
            if row.row_id in seen:
                raise InputError(f"id is {row.row_id!r}, which an earlier row has, wanted another one.")
            lines.append(json.dumps(_to_json(row, root), ensure_ascii=False, allow_nan=False))
        except InputError as error:
            raise InputError(f"{path}, row {number}: {error}") from error
        seen.add(row.row_id)
    if not lines:
        raise InputError("rows is empty, wanted at least one row.")
    return write_file(path, lambda file: file.write(("\n".join(lines) + "\n").encode()), overwrite=overwrite)

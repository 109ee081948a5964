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

import json
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, NoReturn, dataclass_transform, get_args

import pydantic
from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, TypeAdapter, ValidationError

from bokehdepth.camera import lens as optics
from bokehdepth.errors import InputError
from bokehdepth.files.atomic import write_file

STRENGTH_TOLERANCE = 0.01
"""Largest relative gap between a stated K and the K of the row's own lens: room for rounded decimals, no more."""

Split = Literal["train", "validation", "test"]
SPLITS = get_args(Split)


def _inside(value: Any, info: pydantic.ValidationInfo) -> Path:
    """The file that a manifest's path names, which must exist inside the manifest's folder; any path elsewhere."""
    if info.context is None:
        if not isinstance(value, Path):
            raise ValueError("must be a path")
        return value
    if not isinstance(value, str) or not value.strip() or "\\" in value or "\0" in value:
        raise ValueError("must be a relative path with forward slashes")
    relative = PurePosixPath(value)
    if relative.is_absolute() or ".." in relative.parts:
        raise ValueError("must be relative to the manifest's folder and stay inside it")
    path = info.context / relative
    problem = _misplaced(path, info.context)
    if problem:
        raise ValueError(problem)
    return path


def _misplaced(path: Path, root: Path) -> str | None:
    if not path.is_file():
        return "must be a file that exists"
    # Links are followed before it is decided where a file lies.
    inside = path.resolve().is_relative_to(root.resolve())
    return None if inside else "must lead to a file inside the manifest's folder"


def _filled(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be empty")
    if re.search("[\ud800-\udfff]", text):  # half a surrogate pair is valid JSON
        raise ValueError("must be text that UTF-8 can hold")
    return text


FilePath = Annotated[
    Path,
    BeforeValidator(_inside),
    PlainSerializer(lambda path, info: path.absolute().relative_to(info.context).as_posix()),
]
Text = Annotated[str, Field(strict=True), AfterValidator(_filled)]
Positive = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
Strength = Annotated[NotNegative, AfterValidator(lambda value: optics.check_bokeh_strength(value, "dof-cond"))]
FrameStrength = Annotated[Strength, Field(alias="dof-cond", gt=0)]
RowId = Annotated[str, Field(alias="id", strict=True, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,199}$")]


def _sentence(error: ValidationError) -> str:
    """The first fault of a row, by the key in the file."""
    fault = error.errors(include_url=False)[0]
    key = ".".join(map(str, fault["loc"])) or "the row"
    said = fault["msg"]
    if fault["type"] == "value_error":
        said = str(fault["ctx"]["error"])
        if isinstance(fault["ctx"]["error"], InputError):
            return said
    if fault["type"] == "missing":
        return f"`{key}` must be there, got a row without it."
    if fault["type"] == "unexpected_keyword_argument":
        return f"`{key}` must be left out, got an unknown key."
    if fault["type"].startswith("dataclass"):
        return f"{key} must be an object, got {fault['input']!r:.100}."
    said = re.sub("^(Input|String) should", "must", said).replace("tuple", "list")
    return f"`{key}` {said}, got {fault['input']!r:.100}."


@dataclass_transform(frozen_default=True, field_specifiers=(Field,))
def _row(cls: type) -> type:
    """A frozen pydantic dataclass whose keys in the file are aliases, and whose errors are one sentence."""
    config = pydantic.ConfigDict(extra="forbid", validate_by_name=True, validate_by_alias=True)
    made = pydantic.dataclasses.dataclass(frozen=True, config=config)(cls)
    checked_init = made.__init__

    def __init__(self: Any, *arguments: Any, **values: Any) -> None:  # noqa: N807
        try:
            checked_init(self, *arguments, **values)
        except ValidationError as error:
            raise InputError(_sentence(error)) from error

    made.__init__ = __init__
    return made


def _check_close(name: str, stated: float, expected: float, rule: str) -> None:
    if abs(stated - expected) > STRENGTH_TOLERANCE * max(stated, expected):
        raise InputError(
            f"{name} is {stated:g} but {rule} is {expected:g}, wanted a gap of at most {STRENGTH_TOLERANCE:.0%}."
        )


@_row
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

    bokeh_strength: Strength | None = Field(None, alias="dof-cond")
    full_frame_strength: NotNegative | None = Field(None, alias="dof-cond-crop")
    f_number: Positive | None = Field(None, alias="N")
    focal_length_mm: Positive | None = Field(None, alias="fmm")
    focal_length_35mm: Positive | None = Field(None, alias="f35mm")
    sensor_width_mm: Positive | None = Field(None, alias="sensor_width")
    focus_distance_m: Positive | None = Field(None, alias="s1")
    focus_relative_disparity: NotNegative | None = Field(None, alias="disp_focus")
    foreground_clear: pydantic.StrictBool | None = None

    def __post_init__(self) -> None:
        """Check the crop-corrected K."""
        if None not in (self.full_frame_strength, self.bokeh_strength, self.focal_length_mm, self.focal_length_35mm):
            crop = optics.crop_factor(self.focal_length_mm, self.focal_length_35mm)
            expected = optics.full_frame_strength(self.bokeh_strength, crop)
            _check_close("dof-cond-crop", self.full_frame_strength, expected, "dof-cond over f35mm / fmm")

    def lens_strength(self) -> float | None:
        """K of the lens that the row states, by ``lens.bokeh_strength`` (Eq. 17); None where a part is missing."""
        parts = (self.focal_length_mm, self.f_number, self.focus_distance_m, self.sensor_width_mm)
        return None if None in parts else optics.bokeh_strength(*parts)


@_row
class StackFrame:
    """One frame of a Stage-2 stack.

    Attributes:
        image_path: The picture, of the all-in-focus photo's size.
        bokeh_strength: Its K at 512 px width, in (0, 30], in the row's unit.

    Raises:
        InputError: K is out of range.
    """

    image_path: FilePath
    bokeh_strength: FrameStrength


@_row
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

    fx: Positive
    fy: Positive
    cx: NotNegative
    cy: NotNegative


@_row
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

    row_id: RowId
    scene: Text
    image_path: FilePath | None = Field(None, alias="input_image_path")
    target_path: FilePath | None = Field(None, alias="target_image_path")
    depth_path: FilePath | None = Field(None, alias="depth_map_path")
    depth_unit: Literal["m", "dpt", "relative_disparity"] | None = None
    depth_scale: Positive | None = None
    mask_path: FilePath | None = Field(None, alias="fg_mask_path")
    captions: tuple[Text, ...] = ()
    strength_unit: Literal["metric", "relative"] | None = Field(None, alias="k_unit")
    camera_anns: CameraAnns | None = None
    stack: tuple[StackFrame, ...] = ()
    intrinsics: Intrinsics | None = None
    dataset: Text | None = None
    split: Split | None = None

    def __post_init__(self) -> None:
        """Check the row against itself."""
        if self.image_path is None and self.target_path is None:
            raise InputError("input_image_path and target_image_path are both missing, wanted at least one.")
        if self.image_path is None and (self.stack or self.depth_path or self.mask_path or self.intrinsics):
            raise InputError(
                "input_image_path is missing, wanted one: depth, mask, intrinsics and stack belong to it."
            )
        if self.depth_path is None and (self.depth_unit or self.depth_scale):
            raise InputError("depth_unit or depth_scale is given without depth_map_path, wanted none of them.")
        if self.depth_path is not None and self.depth_unit is None:
            raise InputError("depth_unit is missing, wanted that of depth_map_path.")
        self._check_strength()

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
        if self.strength_unit is None:
            raise InputError("k_unit is missing, wanted metric or relative with a K.")
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
        values = {field.alias: getattr(self, name) for name, field in type(self).__pydantic_fields__.items()}
        paths = {key: value for key, value in values.items() if isinstance(value, Path)}
        return paths | {f"stack[{index}]": frame.image_path for index, frame in enumerate(self.stack)}


_ROWS = TypeAdapter(ManifestRow)


def _refuse_constant(name: str) -> NoReturn:
    raise InputError(f"a value is {name}, wanted finite numbers.")


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        raise InputError(
            f"the key {next(key for key in keys if keys.count(key) > 1)!r} stands twice, wanted each once."
        )
    for key, value in pairs:
        if value is None:
            raise InputError(f"{key} is null, wanted a value or no such key.")
    return values


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
            row = _ROWS.validate_python(values, context=root, by_alias=True, by_name=False)
            if row.row_id in lines_of:
                raise InputError(f"id is {row.row_id!r} as in line {lines_of[row.row_id]}, wanted another one.")
        except ValidationError as error:
            raise InputError(f"{path}, line {number}: {_sentence(error)}") from error
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
            for key, file in row.paths().items():
                if not file.absolute().is_relative_to(root) or ".." in file.parts:
                    raise InputError(f"{key} must lie inside the manifest's folder {str(root)!r}, got {str(file)!r}.")
                problem = _misplaced(file.absolute(), root)
                if problem:
                    raise InputError(f"{key} {problem}, got {str(file)!r}.")
            values = _ROWS.dump_python(row, by_alias=True, exclude_defaults=True, context=root)
            lines.append(json.dumps(values, ensure_ascii=False, allow_nan=False))
        except InputError as error:
            raise InputError(f"{path}, row {number}: {error}") from error
        seen.add(row.row_id)
    if not lines:
        raise InputError("rows is empty, wanted at least one row.")
    return write_file(path, lambda file: file.write(("\n".join(lines) + "\n").encode()), overwrite=overwrite)

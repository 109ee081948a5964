"""The rules of SYSTHEBOKEH300, checked on the written files of a build."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError
from scipy import ndimage

from bokehdepth.camera import lens as optics
from bokehdepth.errors import InputError
from bokehdepth.files.depth_maps import load_depth
from datasets_scripts.systhebokeh300.raytraced import DisparityPlane
from datasets_scripts.systhebokeh300.scene import (
    BOX_SHARE,
    DEPTH_SCALE_M,
    F_NUMBERS,
    STRENGTHS,
    Settings,
    scene_files,
    scene_id,
)

SHARP_LEVELS = 3.0
"""Largest mean difference, in 8-bit levels, between a rendering and the all-in-focus picture where it is in focus."""

_SHARP_RADIUS_PX = 0.25


def read_settings(folder: Path) -> Settings:
    """Read ``build.json``.

    Args:
        folder: of a build.

    Raises:
        InputError: If there is none, or it holds something else.
    """
    path = folder / "build.json"
    if not path.is_file():
        raise InputError(f"{str(folder)!r} has no build.json, wanted the folder of a build")
    try:
        values = json.loads(path.read_text())
        for key in ("foregrounds", "backgrounds"):
            values[key] = tuple(tuple(pair) for pair in values[key])
        return Settings(**values)
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"build.json of {str(folder)!r} cannot be read ({error}), wanted that of a build") from error


def check_files(folder: Path, settings: Settings) -> None:
    """Check that the scenes' files are those of the build, no more and no less; InputError names one that is not."""
    expected = {name for index in range(settings.scenes) for name in scene_files(index)}
    present = {
        path.relative_to(folder).as_posix()
        for part in ("aif", "depth", "images", "metadata")
        for path in (folder / part).glob("*")
    }
    if present != expected:
        name = min(present ^ expected)
        said = "is missing" if name in expected else "does not belong to the data set"
        raise InputError(f"{name} {said}: {len(present)} files, wanted {len(expected)}")


def check_scene(folder: Path, settings: Settings, index: int) -> None:
    """Check pictures, maps and records of a scene: sizes, formats, ranges, lens, geometry, focus.

    Args:
        folder: of the build.
        settings: of the build.
        index: number of the scene.

    Raises:
        InputError: In one sentence the first thing that is wrong.
    """
    names = scene_files(index)
    aif, disparity = _picture(folder, names[0], settings), _disparity(folder, names[1], settings)
    try:
        depth_m = load_depth(folder / names[2])
    except (InputError, OSError, SyntaxError) as error:
        raise InputError(f"{names[2]} cannot be read as a depth map ({error})") from error
    error_m = float(np.abs(depth_m - 1 / disparity).max()) if depth_m.shape == disparity.shape else math.inf
    _require(error_m <= 0.51 * DEPTH_SCALE_M, f"{names[2]} is {error_m:g} m off the disparity of {names[1]}")
    previous = 0.0
    for image, name in zip(names[3 : 3 + STRENGTHS], names[3 + STRENGTHS :], strict=True):
        try:
            record = json.loads((folder / name).read_text())
            mask = _check_record(record, name, image, settings, disparity)
            strength, focus = record["bokeh_strength"], record["focus_disparity_dpt"]
        except (KeyError, TypeError, IndexError, json.JSONDecodeError) as error:
            raise InputError(f"{name} lacks a value or has one of another kind ({error!r})") from error
        _require(strength > previous, f"{name} has K = {strength:g} after {previous:g}, wanted K ascending in a scene")
        previous = strength
        rendered = _picture(folder, image, settings)
        radius_px = strength / record["s"] * np.abs(disparity - focus)
        sharp = ndimage.binary_erosion(mask, iterations=3) & (radius_px < _SHARP_RADIUS_PX)
        levels = float(np.abs(rendered - aif)[sharp].mean()) if sharp.any() else 0.0
        _require(
            levels <= SHARP_LEVELS,
            f"{image} differs by {levels:.2f} levels from {names[0]} where it is in focus, wanted at most "
            f"{SHARP_LEVELS:g}",
        )


def _require(holds: bool, sentence: str) -> None:
    if not holds:
        raise InputError(sentence)


def _picture(folder: Path, name: str, settings: Settings) -> np.ndarray:
    try:
        with Image.open(folder / name) as picture:
            _require(picture.format == "JPEG", f"{name} is a {picture.format} file, wanted a JPEG")
            layers = {layer[1:3] for layer in picture.layer}
            _require(layers == {(1, 1)}, f"{name} has reduced colour resolution, wanted JPEG 4:4:4")
            array = np.asarray(picture)
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise InputError(f"{name} cannot be read as a picture ({error})") from error
    shape = (settings.size_px, settings.size_px, 3)
    _require(array.shape == shape and array.dtype == np.uint8, f"{name} is {array.shape}, wanted 8-bit RGB {shape}")
    return array.astype(np.float32)


def _disparity(folder: Path, name: str, settings: Settings) -> np.ndarray:
    try:
        array = np.load(folder / name, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise InputError(f"{name} cannot be read as an array ({error})") from error
    shape = (settings.size_px, settings.size_px)
    _require(
        array.shape == shape and array.dtype == np.float32,
        f"{name} is {array.dtype} {array.shape}, wanted float32 {shape}",
    )
    _require(bool(np.isfinite(array).all()), f"{name} has values that are not finite")
    _require(array.min() > 0 and array.max() <= 1, f"{name} spans [{array.min():g}, {array.max():g}], wanted (0, 1]")
    return array


def _check_record(
    record: dict[str, Any], name: str, image: str, settings: Settings, disparity: np.ndarray
) -> np.ndarray:
    """Check one record against the settings, the lens equations and the disparity; the foreground's mask."""
    size_px, scene = settings.size_px, scene_id(int(Path(image).stem.split("_")[0]))
    expected = {
        "id": Path(image).stem,
        "image": image,
        "aif": f"aif/{scene}.jpg",
        "disparity": f"depth/{scene}.npy",
        "depth": f"depth/{scene}.png",
        "seed": settings.seed,
        "rays": settings.rays,
        "size_px": size_px,
        "s": optics.REFERENCE_WIDTH_PX / size_px,
        "depth_scale_m": DEPTH_SCALE_M,
    }
    for key, value in expected.items():
        _require(record[key] == value, f"{name} has {key} = {record[key]!r}, wanted {value!r}")
    strength, f_number, lens = record["bokeh_strength"], record["f_number"], record["lens"]
    _require(0 < strength <= optics.MAX_BOKEH_STRENGTH, f"{name} has K = {strength:g}, wanted (0, 30]")
    low, high = F_NUMBERS
    _require(low <= f_number <= high, f"{name} has the f-number {f_number:g}, wanted {low:g} to {high:g}")
    of_lens = optics.bokeh_strength(
        lens["focal_length_mm"], f_number, lens["focus_distance_m"], lens["sensor_width_mm"]
    )
    _require(
        math.isclose(of_lens, strength, rel_tol=1e-9), f"{name} has K = {strength:g}, but its lens gives {of_lens:g}"
    )
    focus = record["focus_disparity_dpt"]
    _require(
        0 < focus <= 1 and math.isclose(1 / focus, lens["focus_distance_m"], rel_tol=1e-9),
        f"{name} has the focus {focus:g} dpt and {lens['focus_distance_m']:g} m, wanted one focus in (0, 1] dpt",
    )
    share = record["foreground_box_share"]
    _require(BOX_SHARE[0] <= share <= BOX_SHARE[1], f"{name} has a foreground box of {share:.1%}, wanted 30 % to 80 %")
    left, top, right, bottom = record["foreground_box_px"]
    near, far = (
        DisparityPlane(*record[key]).disparity_dpt((size_px, size_px))
        for key in ("foreground_plane", "background_plane")
    )
    _require(bool((near > far).all()), f"{name} has a background that is not behind the foreground everywhere")
    mask = disparity == near
    _require(
        bool((mask | (disparity == far)).all()),
        f"{record['disparity']} has disparities that lie on neither plane of {name}",
    )
    boxed = np.zeros_like(mask)
    boxed[top:bottom, left:right] = True
    _require(
        math.isclose(boxed.mean(), share) and not (mask & ~boxed).any() and mask.any(),
        f"{name} has the foreground box {record['foreground_box_px']}, wanted one around it, of the recorded share",
    )
    _require(
        math.isclose(float(mask.mean()), record["foreground_mask_share"], abs_tol=1e-9),
        f"{record['disparity']} shows another foreground than {name} records",
    )
    return mask

"""A photo refocused by its depth, for the command line and the Space: checked, rendered, written. No torch import."""

from __future__ import annotations

import dataclasses
import reprlib
from pathlib import Path

import numpy as np
from PIL import Image

from ..camera import Camera, read_camera
from ..camera.lens import check_number
from ..errors import InputError
from ..files.photos import Photo
from ..files.pictures import shrunk_depth, shrunk_image, size_within
from ..files.png import save_image
from ..rendering.aperture import DISK, Aperture
from ..rendering.refocus import check_depth_for, focus_distance_at, render_from_depth, signed_radius_px
from .limits import COMMAND_LINE, Limits


@dataclasses.dataclass(frozen=True)
class Refocusing:
    """A photo, its depth and the lens that it is rendered through, all checked; made by `plan_refocusing`.

    Attributes:
        photo: the sharp photo.
        depth_m: (H, W) z-depth in metres, finite and above 0, of the photo's size.
        focus_distance_m: S1 in metres.
        bokeh_strength: K, 0 or more.
        camera: the photo's lens settings at this focus.
        aperture: shape of the lens opening.
        limits: what a rendering may cost.
    """

    photo: Photo
    depth_m: np.ndarray
    focus_distance_m: float
    bokeh_strength: float
    camera: Camera
    aperture: Aperture
    limits: Limits = COMMAND_LINE

    @property
    def stem(self) -> str:
        """Name of its files: ``refocus_k20_2.4m``."""
        return f"refocus_k{self.bokeh_strength:.4g}_{self.focus_distance_m:.4g}m"

    def render(self, max_side_px: int | None = None) -> Image.Image:
        """Render it with occlusion (Eq. 15, 26).

        Args:
            max_side_px: longest side of the picture, 1 or more; None keeps the photo's size.

        Returns:
            RGB picture.

        Raises:
            InputError: `max_side_px` is below 1, or the rendering is more than the limits allow.
        """
        depth_m = shrunk_depth(self.depth_m, size_within(self.photo.image.size, max_side_px))
        signed_px = signed_radius_px(depth_m, self.bokeh_strength, self.focus_distance_m)
        self.limits.check_rendering(signed_px, self.aperture)
        pixels = np.asarray(shrunk_image(self.photo.image, max_side_px), dtype=np.float32) / 255
        rendered = render_from_depth(
            pixels,
            depth_m,
            self.bokeh_strength,
            self.focus_distance_m,
            aperture=self.aperture,
        )
        return Image.fromarray(np.round(rendered * 255).astype(np.uint8))

    def save(self, folder: Path | str, picture: Image.Image) -> Path:
        """Write a rendered picture as PNG that says how it came about: it is rendered, not generated.

        Args:
            folder: where ``<stem>.png`` goes.
            picture: as `render` returned it.

        Returns:
            The path written.

        Raises:
            InputError: the file exists, or the path cannot be used.
        """
        text = {"bokeh_strength": f"{self.bokeh_strength:g}", "focus_distance_m": f"{self.focus_distance_m:g}"}
        text |= {"source": "rendered from depth"}
        return save_image(Path(folder) / f"{self.stem}.png", picture, metadata=text, ai_generated=False)


def plan_refocusing(
    photo: Photo,
    depth_m: np.ndarray,
    *,
    focus_distance_m: float | None = None,
    focus_at_px: tuple[float, float] | None = None,
    bokeh_strength: float | None = None,
    f_number: float | None = None,
    focal_length_mm: float | None = None,
    focal_length_35mm: float | None = None,
    sensor_width_mm: float | None = None,
    aperture: Aperture = DISK,
    limits: Limits = COMMAND_LINE,
) -> Refocusing:
    """Check everything that a refocused picture is rendered from, before any rendering (Eq. 1).

    Args:
        photo: the sharp photo.
        depth_m: (H, W) z-depth in metres, finite and above 0, of the photo's size.
        focus_distance_m: S1 in metres, or
        focus_at_px: (x, y) in pixels of the photo: focus on what is there. Exactly one of the two.
        bokeh_strength: K, 0 or more, or
        f_number: the f-number on the photo's own lens. Exactly one of the two.
        focal_length_mm: in mm, in place of EXIF's.
        focal_length_35mm: 35 mm equivalent in mm, in place of EXIF's.
        sensor_width_mm: sensor width in mm along the upright photo, in place of EXIF's.
        aperture: shape of the lens opening.
        limits: what a rendering may cost.

    Returns:
        What is to be rendered.

    Raises:
        InputError: neither or both of a pair are given, or a value, size or depth is out of range.
    """
    if (focus_distance_m is None) == (focus_at_px is None):
        given = reprlib.repr(focus_distance_m), reprlib.repr(focus_at_px)
        raise InputError(f"focus_distance_m is {given[0]} and focus_at_px {given[1]}, wanted one.")
    if (bokeh_strength is None) == (f_number is None):
        given = reprlib.repr(bokeh_strength), reprlib.repr(f_number)
        raise InputError(f"bokeh_strength is {given[0]} and f_number {given[1]}, wanted one of them.")
    pixels = np.broadcast_to(np.float32(0), (photo.image.height, photo.image.width, 3))  # its size alone is checked
    depth = check_depth_for(depth_m, pixels)
    if focus_at_px is not None:
        focus_distance_m = focus_distance_at(depth, *focus_at_px)
    camera = read_camera(
        photo,
        focal_length_mm=focal_length_mm,
        focal_length_35mm=focal_length_35mm,
        sensor_width_mm=sensor_width_mm,
        focus_distance_m=focus_distance_m,
    )
    if f_number is not None:
        bokeh_strength = camera.bokeh_strength(check_number(f_number, "f_number"))
    strength = limits.check_render_strength(bokeh_strength)
    return Refocusing(photo, depth, float(focus_distance_m), strength, camera, aperture, limits)

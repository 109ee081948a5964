"""What one request may cost, decided from its arguments and headers before any work. No torch import.

The command line and the page ask the same questions with different limits: `COMMAND_LINE` stops what would not end or
not fit into a machine's memory, `PAGE` what would keep other visitors waiting.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..camera.lens import check_number, check_whole_number
from ..errors import InputError
from ..files.photos import MAX_FILE_BYTES, MAX_PIXELS, Photo, open_photo
from ..rendering.aperture import Aperture, radii_per_px

# A pixel of a kernel costs so many times what a pixel costs that is spread over one pixel of radius (measured).
_ROUND_KERNEL, _OTHER_KERNEL = 2.0, 3.0


def render_work(signed_radius_px: np.ndarray, aperture: Aperture) -> float:
    """Work of rendering a picture: its pixels and those continued beyond its frame, times their mean radius in pixels.

    Making the kernels of all radii is counted in; it is most of the work on a small picture. One unit takes about
    20 ns on one core.

    Args:
        signed_radius_px: (H, W) blur radius, negative behind the focus.
        aperture: shape of the lens opening.

    Returns:
        The work, 0 or more.
    """
    radius_px = np.abs(signed_radius_px)
    largest_px, mean_px = float(radius_px.max()), float(radius_px.mean(dtype=np.float64))
    height, width = radius_px.shape
    height, width = height + 2 * largest_px * aperture.squeeze**0.5, width + 2 * largest_px / aperture.squeeze**0.5
    kernel_px = 4 * largest_px**3 / 3 * radii_per_px(largest_px)
    if aperture.is_round:
        return height * width * mean_px + _ROUND_KERNEL * kernel_px
    return height * width * mean_px + _OTHER_KERNEL * kernel_px * (1 + aperture.blades % 2)


@dataclass(frozen=True)
class Limits:
    """The most that one request may ask for.

    Attributes:
        max_photo_px: pixels of a photo, a frame or a depth map.
        max_photo_bytes: size of such a file.
        max_frames: frames of a stack.
        max_steps: steps of denoising.
        max_render_strength: K of a rendering, which is not bound to what networks are trained on.
        max_render_work: of one rendering, as `render_work` counts it.
    """

    max_photo_px: int
    max_photo_bytes: int
    max_frames: int
    max_steps: int
    max_render_strength: float
    max_render_work: float

    def open_photo(self, path: Path | str) -> Photo:
        """Open a photo within the limits on its size, as `photos.open_photo` does."""
        return open_photo(path, max_pixels=self.max_photo_px, max_file_bytes=self.max_photo_bytes)

    def check_frames(self, values: Sequence | np.ndarray | None, name: str) -> None:
        """Refuse a list with a value for each frame that is none, or has too many.

        Raises:
            InputError: it is neither None nor a list of at most `max_frames`.
        """
        if values is None:
            return
        if not isinstance(values, Sequence | np.ndarray) or isinstance(values, str):
            raise InputError(f"{name} must be a list, got {reprlib.repr(values)}.")
        if len(values) > self.max_frames:
            raise InputError(f"{name} must have at most {self.max_frames} values, got {len(values)}.")

    def check_steps(self, steps: float) -> int:
        """Return the steps of denoising as a whole number; InputError beyond 1 to `max_steps`."""
        return check_whole_number(steps, "steps", 1, self.max_steps)

    def check_render_strength(self, bokeh_strength: float) -> float:
        """Return K of a rendering; InputError for one that is no number from 0 to `max_render_strength`."""
        strength = check_number(bokeh_strength, "bokeh_strength", zero=True)
        if strength > self.max_render_strength:
            raise InputError(
                f"bokeh_strength must be at most {self.max_render_strength:g} for a rendering, got {strength:g}."
            )
        return strength

    def check_rendering(self, signed_radius_px: np.ndarray, aperture: Aperture) -> None:
        """Refuse a rendering that takes too long.

        Args:
            signed_radius_px: (H, W) blur radius, negative behind the focus.
            aperture: shape of the lens opening.

        Raises:
            InputError: its `render_work` is more than `max_render_work`.
        """
        work = render_work(signed_radius_px, aperture)
        if work > self.max_render_work:
            height, width = signed_radius_px.shape
            shape = "a round aperture" if aperture.is_round else "an aperture that is not round"
            raise InputError(
                f"bokeh_strength must be smaller: {width} x {height} pixels blurred with radii up to "
                f"{np.abs(signed_radius_px).max():.0f} px through {shape} are {work / self.max_render_work:.2g} times "
                "the work allowed; a smaller photo or a round aperture takes less."
            )


COMMAND_LINE = Limits(
    max_photo_px=MAX_PIXELS,
    max_photo_bytes=MAX_FILE_BYTES,
    max_frames=128,
    max_steps=1000,
    max_render_strength=math.inf,
    max_render_work=1e11,
)
"""A rendering of half an hour is somebody's own affair; a day of it is a slip."""

PAGE = Limits(
    max_photo_px=16_000_000,
    max_photo_bytes=32 * 1024 * 1024,
    max_frames=6,
    max_steps=50,
    max_render_strength=120.0,
    max_render_work=3e9,
)
"""They keep a run under 3 GB and two minutes on the two cores of a free Space, a rendering under one minute on one;
phones take 12 megapixels, and K = 120 is more than 200 mm at f/2.8."""

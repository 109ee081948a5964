"""Two planes seen through a thin lens, ray by ray: the reference renderer (paper, section 11, Eq. 44 and 45).

A foreground with an opacity stands before a background; each has a disparity field

    d(x, y) = c / (1 - a x - b y)                                  (Eq. 44)

in dioptres (1/m), where x and y run from -1 to 1 between the outer borders of the output frame, to the right and
downwards. A ray leaves the output pixel p, passes the point u of the unit disk of the lens and meets a plane at

    q = p + u r(q),    r(q) = K (d(q) - d_f) / s                    (Eq. 45)

in pixels, r positive in front of the focus. With s = 512 / W and d in dioptres Eq. 45 is Eq. 15 with a sign. q is the
exact root of a quadratic on each plane, so a slant bends the blur as it does behind a lens, and one ray is followed
through both planes: ``fg(q1) + (1 - alpha(q1)) bg(q2)`` in linear light. What the foreground hides from one part of
the lens and shows to another comes out right, which layers blurred by themselves cannot give.

Lens points lie on a sunflower (Vogel) spiral: equal areas, golden angle. A ray stands for its share of the blur disk,
so it reads the planes through a Gaussian about as wide as that share; the width goes to 0 when the rays become more,
and the picture then goes to that of plain rays. The canvas of the planes may be larger than the frame; `margin_px`
says by how much it must be. Beyond the canvas its edge pixels go on.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import ndimage

from bokehdepth.camera.lens import REFERENCE_WIDTH_PX
from bokehdepth.errors import InputError
from bokehdepth.rendering.scatter import from_light, to_light
from datasets_scripts.systhebokeh300 import _raytraced_numba

DEFAULT_RAYS = 128
_FIRST_SIGMA_PX = 0.35  # filters: none, this one, then in steps of the ratio
_SIGMA_RATIO = 1.5
_SIGMA_PER_SPACING = 0.35  # best of 0.25 to 0.6 against many plain rays
_FINE_SPACING_PX = 0.5  # filtered rays closer than this change little (52 dB and more)
_FEWEST_RAYS = 16


@dataclass(frozen=True)
class DisparityPlane:
    """Planar disparity field of Eq. 44: depth is affine in the position in the picture.

    Attributes:
        a: slope in x; x is -1 at the left border of the frame and 1 at the right one.
        b: slope in y; y is -1 at the upper border and 1 at the lower one.
        c: disparity at the centre of the frame in dioptres (1/m), above 0.
    """

    a: float
    b: float
    c: float

    def disparity_dpt(self, size_px: tuple[int, int], margin_px: tuple[int, int] = (0, 0)) -> np.ndarray:
        """Sample the field at pixel centres.

        Args:
            size_px: (H, W) of the frame.
            margin_px: rows and columns around the frame on each side that are wanted too.

        Returns:
            (H + 2 rows, W + 2 columns) float32, dioptres.

        Raises:
            InputError: If the field is not finite and above 0 everywhere there.
        """
        y, x = (
            (np.arange(-margin, size + margin) + 0.5) * (2 / size) - 1
            for size, margin in zip(size_px, margin_px, strict=True)
        )
        term = 1 - self.a * x[None] - self.b * y[:, None]
        if term.min() <= 0:
            raise InputError(
                f"the plane a = {self.a:g}, b = {self.b:g} reaches 1 - a x - b y = {term.min():g} on a frame of "
                f"{size_px} px with a margin of {margin_px} px, wanted more than 0"
            )
        return (self.c / term).astype(np.float32)

    def _steepness_per_px(self, size_px: tuple[int, int]) -> float:
        return math.hypot(2 * self.a / size_px[1], 2 * self.b / size_px[0])


def disk_points(count: int) -> np.ndarray:
    """Spread lens points over a round aperture: the sunflower (Vogel) spiral.

    Args:
        count: N, 1 or more.

    Returns:
        (N, 2) float64, x and y in the unit disk; each stands for the same area.
    """
    index = np.arange(count)
    radius, angle = np.sqrt((index + 0.5) / count), index * (math.pi * (3 - math.sqrt(5)))
    points = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return points - points.mean(axis=0)  # no ray set may shift the picture


@dataclass(frozen=True)
class TwoPlaneScene:
    """A cut-out before a background. Its arrays are not to be changed afterwards.

    Light sources may be brighter than white: display values above 1 are wanted in ``background_rgb`` and
    ``foreground_rgba`` where a lamp or a glint should still shine when it is spread over a blur disk. Pictures that
    come back are clipped at white, as those of a sensor are.

    Attributes:
        foreground_rgba: float32 ``(Hc, Wc, 4)``, display values (gamma 2.2), 0 or more, not premultiplied; opacity
            in [0, 1] last.
        background_rgb: float32 ``(Hc, Wc, 3)``, display values, 0 or more.
        foreground_plane: disparity of the foreground.
        background_plane: disparity of the background; less than that of the foreground where the foreground is.
        size_px: (H, W) of the frame, which lies in the middle of the canvas: ``Hc - H`` and ``Wc - W`` are even.
    """

    foreground_rgba: np.ndarray
    background_rgb: np.ndarray
    foreground_plane: DisparityPlane
    background_plane: DisparityPlane
    size_px: tuple[int, int]

    @property
    def margin_px(self) -> tuple[int, int]:
        """Rows and columns of the canvas on each side of the frame."""
        height, width = self.background_rgb.shape[:2]
        return (height - self.size_px[0]) // 2, (width - self.size_px[1]) // 2

    @cached_property
    def _foreground_light(self) -> np.ndarray:
        light = to_light(self.foreground_rgba)
        light[..., 3] = self.foreground_rgba[..., 3]
        light[..., :3] *= light[..., 3:]
        return light

    @cached_property
    def _background_light(self) -> np.ndarray:
        return to_light(self.background_rgb)

    def all_in_focus(self) -> np.ndarray:
        """Lay the foreground over the background, both sharp: float32 ``(H, W, 3)`` display values in [0, 1]."""
        frame = self._frame
        front = self._foreground_light[frame]
        return from_light(front[..., :3] + (np.float32(1) - front[..., 3:]) * self._background_light[frame])

    def disparity_dpt(self) -> np.ndarray:
        """Disparity of what is seen: the foreground's where its opacity is one half or more, else the background's.

        Returns:
            float32 ``(H, W)`` in 1/m; the two are never mixed.
        """
        near, far = (plane.disparity_dpt(self.size_px) for plane in (self.foreground_plane, self.background_plane))
        return np.where(self.foreground_rgba[..., 3][self._frame] >= 0.5, near, far)

    @property
    def _frame(self) -> tuple[slice, slice]:
        (top, left), (height, width) = self.margin_px, self.size_px
        return slice(top, top + height), slice(left, left + width)


def margin_px(
    planes: tuple[DisparityPlane, ...], size_px: tuple[int, int], bokeh_strength: float, focus_disparity_dpt: float
) -> int:
    """Width of the canvas around the frame that no ray leaves.

    Args:
        planes: disparity fields that are looked at.
        size_px: (H, W) of the frame.
        bokeh_strength: K, 0 or more (Eq. 15).
        focus_disparity_dpt: d_f in dioptres, 0 or more.

    Returns:
        Pixels on each side: the largest blur radius in the frame and in that margin, rounded up, and 2 for the
        interpolation.

    Raises:
        InputError: If a plane is too steep for any margin to do.
    """
    px_per_dpt = bokeh_strength * size_px[1] / REFERENCE_WIDTH_PX
    margin = 0
    for _ in range(32):
        reach = max(
            float(np.abs(plane.disparity_dpt(size_px, (margin, margin)) - focus_disparity_dpt).max())
            for plane in planes
        )
        wanted = math.ceil(px_per_dpt * reach) + 2
        if wanted <= margin:
            return margin
        margin = wanted
    raise InputError(f"bokeh_strength is {bokeh_strength:g}, too much for planes this steep: no margin is enough")


def render_raytraced(
    scene: TwoPlaneScene,
    bokeh_strength: float,
    focus_disparity_dpt: float,
    *,
    rays: int = DEFAULT_RAYS,
    filtered: bool = True,
    aperture: Callable[[int], np.ndarray] = disk_points,
) -> np.ndarray:
    """Render the scene through a thin lens (section 11, Eq. 44, 45).

    Args:
        scene: the two planes.
        bokeh_strength: K, pixels of blur radius per dioptre at 512 px width, 0 or more. 0 gives
            `TwoPlaneScene.all_in_focus`, to the last bit.
        focus_disparity_dpt: d_f = 1 / S1 in dioptres, 0 (infinity) or more.
        rays: rays of a pixel, 1 or more. A pixel whose blur is so small that fewer (16, 64, 256, ...) lie half a
            pixel apart gets those.
        filtered: whether a ray reads the planes through a filter as wide as its share of the blur disk. Without it
            rays are points, every pixel gets all of them, and many more are needed for the same error.
        aperture: gives (N, 2) points of the unit disk for N rays, each of the same weight.

    Returns:
        float32 ``(H, W, 3)``, display values in [0, 1]; the same bits for the same input.

    Raises:
        InputError: If a plane is so steep that a ray meets it nowhere or in two places.
    """
    px_per_dpt = bokeh_strength * scene.size_px[1] / REFERENCE_WIDTH_PX
    if px_per_dpt == 0:
        return scene.all_in_focus()
    lens, counts = _patterns(rays, aperture)
    planes = (scene.foreground_plane, scene.background_plane)
    for name, plane in zip(("foreground_plane", "background_plane"), planes, strict=True):
        _check_steepness(name, plane, scene.size_px, px_per_dpt, focus_disparity_dpt)

    share = _SIGMA_PER_SPACING if filtered else 0.0
    levels, bases, reaches = [], [], []
    for plane, light in zip(planes, (scene._foreground_light, scene._background_light), strict=True):
        radius = px_per_dpt * np.abs(plane.disparity_dpt(scene.size_px) - focus_disparity_dpt)
        spacing = math.sqrt(math.pi / rays) * share
        first, stack = _filtered(light, float(radius.min()) * spacing, float(radius.max()) * spacing)
        levels.append(stack)
        bases.append(first)
        widest = _sigma_px(first + len(stack) - 1)
        reaches.append(_reach_px(plane, scene.size_px, px_per_dpt, focus_disparity_dpt) + math.ceil(4 * widest) + 1)

    kinds = _kinds(scene, reaches[0])
    out = np.empty((*scene.size_px, 3), dtype=np.float32)
    _raytraced_numba.trace(
        out,
        levels[0],
        levels[1],
        (bases[0], bases[1]),
        kinds,
        tuple((float(plane.a), float(plane.b), float(plane.c)) for plane in planes),
        scene.margin_px,
        px_per_dpt,
        float(focus_disparity_dpt),
        lens,
        counts,
        (_FIRST_SIGMA_PX, _SIGMA_RATIO, share, _FINE_SPACING_PX if filtered else 0.0),
    )
    return from_light(out)


def _check_steepness(
    name: str, plane: DisparityPlane, size_px: tuple[int, int], px_per_dpt: float, focus_disparity_dpt: float
) -> None:
    """Every ray of the frame must meet the plane on the branch that `ray_radius_px` follows."""
    term = 1 - abs(plane.a) - abs(plane.b)  # smallest in the frame
    steepest = plane._steepness_per_px(size_px)
    slopes = [-steepest, steepest]
    if focus_disparity_dpt > 0:  # where the discriminant is least
        slopes.append(
            float(
                np.clip(
                    (2 * plane.c / focus_disparity_dpt - term) / (px_per_dpt * focus_disparity_dpt),
                    -steepest,
                    steepest,
                )
            )
        )
    least = min((term + px_per_dpt * focus_disparity_dpt * g) ** 2 - 4 * px_per_dpt * plane.c * g for g in slopes)
    if term - px_per_dpt * focus_disparity_dpt * steepest <= 0 or least <= 0:
        raise InputError(
            f"{name} has a = {plane.a:g}, b = {plane.b:g}, too steep at {px_per_dpt:g} px of radius per dioptre: its "
            "blur radius would grow as fast as the distance along a ray"
        )


def _reach_px(plane: DisparityPlane, size_px: tuple[int, int], px_per_dpt: float, focus_disparity_dpt: float) -> int:
    """Largest distance in pixels between a pixel of the frame and where one of its rays meets the plane.

    The radius rises or falls throughout with D and, for one sign of it, with g: its largest values are at their ends.
    """
    spread, steepest = abs(plane.a) + abs(plane.b), plane._steepness_per_px(size_px)
    ends = [(1 + side * spread, turn * steepest) for side in (-1, 1) for turn in (-1, 1)]
    return math.ceil(
        max(
            abs(_raytraced_numba.ray_radius_px(term, slope, float(plane.c), px_per_dpt, float(focus_disparity_dpt)))
            for term, slope in ends
        )
    )


def _patterns(rays: int, aperture: Callable[[int], np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Lens points for each ray count in use: ``(P, rays, 3)`` and the counts ``(P,)``."""
    counts = [_FEWEST_RAYS * 4**k for k in range(16) if _FEWEST_RAYS * 4**k < rays] + [rays]
    lens = np.zeros((len(counts), rays, 3))
    for row, count in zip(lens, counts, strict=True):
        row[:count, :2] = aperture(count)
        row[:count, 2] = (np.arange(count) + 0.5) * 0.7548776662466927 % 1  # another irrational than the spiral's
    return lens, np.array(counts)


def _sigma_px(level: int) -> float:
    return 0.0 if level == 0 else _FIRST_SIGMA_PX * _SIGMA_RATIO ** (level - 1)


def _filtered(light: np.ndarray, low_px: float, high_px: float) -> tuple[int, np.ndarray]:
    """First level and copies ``(F, Hc, Wc, 4)`` of a plane at filter widths from ``low_px`` to ``high_px``."""
    first = 0
    while _sigma_px(first + 1) <= low_px:
        first += 1
    last = first
    while _sigma_px(last) < high_px:
        last += 1
    stack = np.zeros((last - first + 1, *light.shape[:2], 4), dtype=np.float32)
    for copy, level in zip(stack[..., : light.shape[2]], range(first, last + 1), strict=True):
        if level == 0:
            copy[:] = light
        else:
            copy[:] = ndimage.gaussian_filter(light, _sigma_px(level), axes=(0, 1), mode="nearest", truncate=3.5)
    return first, stack


def _kinds(scene: TwoPlaneScene, reach_px: int) -> np.ndarray:
    """What the foreground does to the rays of each pixel, uint8 ``(H, W)``; in doubt MIXED."""
    alpha, size = scene.foreground_rgba[..., 3], 2 * reach_px + 1
    some = ndimage.maximum_filter(alpha > 0, size=size, mode="nearest")[scene._frame]
    all_ = ndimage.minimum_filter(alpha == 1, size=size, mode="nearest")[scene._frame]
    kinds = np.full(scene.size_px, _raytraced_numba.MIXED, dtype=np.uint8)
    kinds[~some] = _raytraced_numba.EMPTY
    kinds[all_] = _raytraced_numba.OPAQUE
    return kinds

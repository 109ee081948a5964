"""One scene of SYSTHEBOKEH300: what is drawn by chance, its layers, its pictures (paper, section 11).

A scene depends on the settings and its number alone. Disparities are in dioptres and lie in [0, 1], so they
are at once metric and the paper's normalised ones; with s = 512 / W, K is that of the whole project (Eq. 15, 45).
"""

import hashlib
import io
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from bokehdepth import __version__
from bokehdepth.camera import lens as optics
from bokehdepth.errors import InputError
from bokehdepth.files import photos
from bokehdepth.files.depth_maps import save_depth_png
from bokehdepth.rendering.raytraced import DisparityPlane, TwoPlaneScene, margin_px, render_raytraced
from bokehdepth.rendering.scatter import GAMMA
from datasets_scripts.backgrounds import VIEWS, draw_background
from datasets_scripts.foregrounds import FIGURES, draw_foreground

STRENGTHS = 3
F_NUMBERS = (1.4, 22.0)
BOX_SHARE = (0.3, 0.8)
SENSOR_WIDTH_MM = 24.0  # the square in the middle of a 36 mm x 24 mm frame
FOCAL_LENGTHS_MM = (35.0, 50.0, 70.0, 85.0)
FOCUS_DPT = (0.45, 0.95)
FARTHEST_DPT = 0.02
BACKGROUND_SHARE_OF_FOCUS = 0.75  # the background stays farther than this
FOREGROUND_SLANT = 0.008  # keeps the subject within 1 px of sharp at K = 30 and 1024 px
DEPTH_SCALE_M = 0.001
MAX_DEPTH_M = 65534 * DEPTH_SCALE_M
JPEG_QUALITY = 95
_SOLID = 8 / 255  # opacity from which a pixel belongs to a cut-out's box
_LARGEST_SIDE = 0.96  # of a foreground, in frame sides


@dataclass(frozen=True)
class Settings:
    """What a build depends on; written to ``build.json``, and a build goes on only with the same.

    Attributes:
        scenes: number of scenes.
        seed: of everything random.
        size_px: side of the square pictures.
        rays: rays of a pixel.
        foregrounds: names and SHA-256 of RGBA files; none: drawn ones.
        backgrounds: names and SHA-256 of photographs; none: drawn ones.
        version: of this package.
    """

    scenes: int
    seed: int
    size_px: int
    rays: int
    foregrounds: tuple[tuple[str, str], ...] = ()
    backgrounds: tuple[tuple[str, str], ...] = ()
    version: str = __version__

    def to_json(self) -> str:
        """The settings as text."""
        return json.dumps(asdict(self), indent=1, sort_keys=True) + "\n"


def scene_id(index: int) -> str:
    """Name of a scene: four digits or more."""
    return f"{index:04d}"


def scene_files(index: int) -> list[str]:
    """Files of a scene, relative to the data set's folder, in the order in which they are published."""
    name, images = scene_id(index), [f"{scene_id(index)}_{k}" for k in range(STRENGTHS)]
    return [
        f"aif/{name}.jpg",
        f"depth/{name}.npy",
        f"depth/{name}.png",
        *(f"images/{image}.jpg" for image in images),
        *(f"metadata/{image}.json" for image in images),
    ]


def _sampled_strengths(rng: np.random.Generator, focal_length_mm: float, focus_distance_m: float) -> list[float]:
    """Three K, ascending: one in each third, by logarithm, of what f/22 to f/1.4 give, up to 30."""
    low, high = (optics.bokeh_strength(focal_length_mm, n, focus_distance_m, SENSOR_WIDTH_MM) for n in F_NUMBERS[::-1])
    edges = np.linspace(math.log(1.001 * low), math.log(min(0.999 * high, optics.MAX_BOKEH_STRENGTH)), STRENGTHS + 1)
    return [float(f"{math.exp(rng.uniform(a, b)):.5g}") for a, b in zip(edges[:-1], edges[1:], strict=True)]


def _sampled_background_plane(
    rng: np.random.Generator, size_px: int, nearest_dpt: float, strength: float, focus_dpt: float
) -> tuple[DisparityPlane, int]:
    """A plane (Eq. 44) between the farthest and the nearest disparity on its whole canvas, and the margin of that."""
    frame = (size_px, size_px)
    while True:
        a, b, c = rng.uniform(-0.25, 0.25), rng.uniform(-0.15, 0.35), rng.uniform(0.03, 0.6) * focus_dpt
        plane = DisparityPlane(*(round(float(value), 6) for value in (a, b, c)))
        try:
            margin = margin_px((plane,), frame, strength, focus_dpt)
            field = plane.disparity_dpt(frame, (margin, margin))
        except InputError:
            continue
        if field.min() >= FARTHEST_DPT and field.max() <= nearest_dpt:
            return plane, margin


def _tight(rgba: np.ndarray, label: str) -> tuple[Image.Image, bool]:
    """Crop to the visible, uint8 RGBA, and say whether it ends at the lower border of its picture."""
    solid = rgba[..., 3] > 255 * _SOLID
    rows, columns = np.flatnonzero(solid.any(1)), np.flatnonzero(solid.any(0))
    if rows.size == 0:
        raise InputError(f"{label} has no visible pixel, wanted a cut-out with an alpha channel")
    grounded = bool((rgba[-1, :, 3] > 127).mean() > 0.01)
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    return Image.fromarray(np.ascontiguousarray(rgba[box]), "RGBA"), grounded


def _read_foreground(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as picture:
            return np.asarray(picture.convert("RGBA"))
    except (UnidentifiedImageError, OSError) as error:
        raise InputError(f"{str(path)!r} cannot be read as a picture ({error}), wanted an RGBA file") from error


def box_share_range(width: int, height: int) -> tuple[float, float]:
    """Shares of a square frame that the box of a cut-out can cover inside it: at most 0.96 of a side, 30 to 80 %."""
    largest = _LARGEST_SIDE**2 * min(width / height, height / width)
    return BOX_SHARE[0] + 0.008, min(BOX_SHARE[1] - 0.008, largest)


def _placed(
    rng: np.random.Generator, rgba: np.ndarray, label: str, size_px: int, margin: int
) -> tuple[np.ndarray, list[int]]:
    """Crop, scale and place a cut-out on the canvas: float32 (Hc, Wc, 4) and its box in the frame."""
    picture, grounded = _tight(rgba, label)
    low, high = box_share_range(*picture.size)
    if high < low:
        raise InputError(
            f"{label} is {picture.size[0]} x {picture.size[1]} px, too slim: its box cannot cover "
            f"{BOX_SHARE[0]:.0%} of a square frame"
        )
    scale = math.sqrt(rng.uniform(low, high) * size_px**2 / (picture.size[0] * picture.size[1]))
    width, height = (min(max(1, round(n * scale)), size_px) for n in picture.size)
    scaled = picture.convert("RGBa").resize((width, height), Image.Resampling.LANCZOS).convert("RGBA")
    left = round((size_px - width) / 2 + rng.uniform(-0.05, 0.05) * size_px)
    top = round((size_px - height) / 2 + rng.uniform(-0.03, 0.05) * size_px)
    left, top = (min(max(start, 0), size_px - n) for start, n in ((left, width), (top, height)))
    if grounded:
        top = size_px - height
    canvas = np.zeros((size_px + 2 * margin, size_px + 2 * margin, 4), dtype=np.float32)
    canvas[margin + top : margin + top + height, margin + left : margin + left + width] = np.asarray(
        scaled
    ) / np.float32(255)
    return canvas, [left, top, left + width, top + height]


def _toned(foreground: np.ndarray, background: np.ndarray) -> np.ndarray:
    """Drawn figures take a little of the colour and brightness of where they stand; uint8."""
    light = np.clip(background, 0, 1).mean(axis=(0, 1))
    gain = np.clip(0.72 + 0.6 * light.mean(), 0.72, 1.05) * (light / light.mean()) ** 0.35
    toned = foreground.copy()
    toned[..., :3] *= gain.astype(np.float32)
    return (255 * np.clip(toned, 0, 1) + 0.5).astype(np.uint8)


def _covering(path: Path, side_px: int) -> np.ndarray:
    """A photograph scaled to cover a square canvas, its middle: float32 (side, side, 3)."""
    picture = photos.open_photo(path).image
    scale = side_px / min(picture.size)
    picture = picture.resize([max(side_px, round(n * scale)) for n in picture.size], Image.Resampling.LANCZOS)
    left, top = ((n - side_px) // 2 for n in picture.size)
    return np.asarray(picture.crop((left, top, left + side_px, top + side_px)), dtype=np.float32) / 255


def make_scene(
    settings: Settings, index: int, folders: tuple[Path | None, Path | None]
) -> tuple[TwoPlaneScene, dict[str, Any]]:
    """Draw one scene.

    Args:
        settings: of the build.
        index: number of the scene.
        folders: of foreground and background files, where settings name files.

    Returns:
        The layers, and the record that its pictures share; ``bokeh_strengths`` holds the three K.

    Raises:
        InputError: If a file cannot be used.
    """
    rng = np.random.default_rng([settings.seed, index])
    size_px = settings.size_px
    focus_dpt = round(float(rng.uniform(*FOCUS_DPT)), 6)
    focal_length_mm = float(rng.choice(FOCAL_LENGTHS_MM))
    strengths = _sampled_strengths(rng, focal_length_mm, 1 / focus_dpt)
    slant = [round(float(value), 6) for value in rng.uniform(-FOREGROUND_SLANT, FOREGROUND_SLANT, 2)]
    front = DisparityPlane(*slant, focus_dpt)
    back, margin = _sampled_background_plane(
        rng, size_px, BACKGROUND_SHARE_OF_FOCUS * focus_dpt, strengths[-1], focus_dpt
    )
    margin = max(margin, margin_px((front,), (size_px, size_px), strengths[-1], focus_dpt))
    side_px, assets = size_px + 2 * margin, {}
    if settings.backgrounds:
        name, digest = settings.backgrounds[int(rng.integers(len(settings.backgrounds)))]
        background = _covering(folders[1] / name, side_px)
        assets["background"] = {"source": "folder", "name": name, "sha256": digest}
    else:
        name = list(VIEWS)[(index + index // 24) % len(VIEWS)]
        background = draw_background(np.random.default_rng([settings.seed, index, 1]), name, (side_px, side_px))
        assets["background"] = {"source": "drawn", "name": name}
    if settings.foregrounds:
        name, digest = settings.foregrounds[int(rng.integers(len(settings.foregrounds)))]
        rgba = _read_foreground(folders[0] / name)
        assets["foreground"] = {"source": "folder", "name": name, "sha256": digest}
    else:
        name = list(FIGURES)[index % len(FIGURES)]
        rgba = _toned(draw_foreground(np.random.default_rng([settings.seed, index, 2]), name), background)
        assets["foreground"] = {"source": "drawn", "name": name}
    foreground, box = _placed(rng, rgba, f"foreground {name!r}", size_px, margin)
    scene = TwoPlaneScene(foreground, background, front, back, (size_px, size_px))
    alpha = foreground[margin : margin + size_px, margin : margin + size_px, 3]
    record = {
        "scene": scene_id(index),
        "bokeh_strengths": strengths,
        "focus_disparity_dpt": focus_dpt,
        "s": optics.REFERENCE_WIDTH_PX / size_px,
        "lens": {
            "focal_length_mm": focal_length_mm,
            "sensor_width_mm": SENSOR_WIDTH_MM,
            "focus_distance_m": 1 / focus_dpt,
        },
        "foreground_plane": [front.a, front.b, front.c],
        "background_plane": [back.a, back.b, back.c],
        "foreground_box_px": box,
        "foreground_box_share": (box[2] - box[0]) * (box[3] - box[1]) / size_px**2,
        "foreground_alpha_share": float(alpha.mean(dtype=np.float64)),
        "foreground_mask_share": float((alpha >= 0.5).mean()),
        "canvas_margin_px": margin,
        "size_px": size_px,
        "seed": settings.seed,
        "rays": settings.rays,
        "gamma": GAMMA,
        "renderer": f"bokehdepth.rendering.raytraced {settings.version}",
        "jpeg_quality": JPEG_QUALITY,
        "depth_scale_m": DEPTH_SCALE_M,
        "assets": assets,
    }
    return scene, record


def _jpeg(picture: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray((picture * 255 + 0.5).astype(np.uint8)).save(file, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return file.getvalue()


def write_scene(settings: Settings, index: int, folders: tuple[Path | None, Path | None], target: Path) -> None:
    """Draw, render and write all files of a scene (`scene_files`) below a folder.

    Args:
        settings: of the build.
        index: number of the scene.
        folders: of foreground and background files, or None.
        target: an empty folder.

    Raises:
        InputError: If a file cannot be used.
    """
    scene, record = make_scene(settings, index, folders)
    for part in ("aif", "depth", "images", "metadata"):
        (target / part).mkdir(parents=True, exist_ok=True)
    name = record["scene"]
    (target / f"aif/{name}.jpg").write_bytes(_jpeg(scene.all_in_focus()))
    disparity = scene.disparity_dpt()
    np.save(target / f"depth/{name}.npy", disparity, allow_pickle=False)
    save_depth_png(target / f"depth/{name}.png", 1 / disparity, max_depth_m=MAX_DEPTH_M)
    for k, strength in enumerate(record["bokeh_strengths"]):
        image = f"{name}_{k}"
        rendered = render_raytraced(scene, strength, record["focus_disparity_dpt"], rays=settings.rays)
        (target / f"images/{image}.jpg").write_bytes(_jpeg(rendered))
        lens = record["lens"]
        f_number = optics.f_number_for_strength(
            strength, lens["focal_length_mm"], lens["focus_distance_m"], SENSOR_WIDTH_MM
        )
        own = {key: value for key, value in record.items() if key != "bokeh_strengths"} | {
            "id": image,
            "image": f"images/{image}.jpg",
            "aif": f"aif/{name}.jpg",
            "disparity": f"depth/{name}.npy",
            "depth": f"depth/{name}.png",
            "bokeh_strength": strength,
            "f_number": f_number,
        }
        (target / f"metadata/{image}.json").write_text(json.dumps(own, indent=1, sort_keys=True) + "\n")


def list_files(folder: Path, name: str, endings: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """Names and SHA-256 of the pictures of a folder, sorted.

    Args:
        folder: where they lie.
        name: of the argument, for the error message.
        endings: lower-case file endings that count.

    Raises:
        InputError: If it is no folder or holds no such file.
    """
    if not folder.is_dir():
        raise InputError(f"{name} is {str(folder)!r}, which is no folder, wanted one with pictures")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in endings and path.is_file())
    if not paths:
        raise InputError(f"{name} is {str(folder)!r}, which holds none of {', '.join(endings)}, wanted pictures")
    return tuple((path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in paths)

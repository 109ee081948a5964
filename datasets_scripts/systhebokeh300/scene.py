"""One scene of SYSTHEBOKEH300: what is drawn by chance, its layers, its pictures (paper, section 11).

A scene depends on the settings and its number alone. Disparities are in dioptres and lie in [0, 1], so they
are at once metric and the paper's normalised ones; with s = 512 / W, K is that of the whole project (Eq. 15, 45).
"""

import io
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bokehdepth import __version__
from bokehdepth.camera import lens as optics
from bokehdepth.errors import InputError
from bokehdepth.files import photos
from bokehdepth.files.depth_maps import save_depth_png
from bokehdepth.rendering.scatter import GAMMA
from datasets_scripts.scenes.materials import Sprite, read_matte
from datasets_scripts.systhebokeh300.drawn import BACKGROUNDS, FOREGROUNDS, draw_background, draw_foreground
from datasets_scripts.systhebokeh300.raytraced import DisparityPlane, TwoPlaneScene, margin_px, render_raytraced

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
_LARGEST_SIDE = 0.96  # of a foreground, in frame sides

Folders = tuple[Path | None, Path | None]
"""Of foregrounds and of backgrounds; None where they are drawn."""


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
        license: the Hub's name for the terms of all that.
        version: of this package.
    """

    scenes: int
    seed: int
    size_px: int
    rays: int
    foregrounds: tuple[tuple[str, str], ...] = ()
    backgrounds: tuple[tuple[str, str], ...] = ()
    license: str = "apache-2.0"
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


def box_share_range(width: int, height: int) -> tuple[float, float]:
    """Shares of a square frame that the box of a cut-out can cover inside it: at most 0.96 of a side, 30 to 80 %."""
    largest = _LARGEST_SIDE**2 * min(width / height, height / width)
    return BOX_SHARE[0] + 0.008, min(BOX_SHARE[1] - 0.008, largest)


def _fits(sprite: Sprite) -> bool:
    """Whether a cut-out can fill enough of the frame, and where its picture ends can be outside of it."""
    low, high = box_share_range(*sprite.rgba.shape[1::-1])
    return low <= high and not sprite.open_sides >= {"left", "right"} and "top" not in sprite.open_sides


def _placed(rng: np.random.Generator, sprite: Sprite, size_px: int, margin: int) -> tuple[np.ndarray, list[int]]:
    """Scale and place a cut-out on the canvas: float32 (Hc, Wc, 4) and its box in the frame."""
    picture = Image.fromarray(sprite.rgba)
    share = rng.uniform(*box_share_range(*picture.size))
    scale = math.sqrt(share * size_px**2 / (picture.size[0] * picture.size[1]))
    width, height = (min(max(1, round(n * scale)), size_px) for n in picture.size)
    scaled = picture.convert("RGBa").resize((width, height), Image.Resampling.LANCZOS).convert("RGBA")
    left = round((size_px - width) / 2 + rng.uniform(-0.05, 0.05) * size_px)
    top = round((size_px - height) / 2 + rng.uniform(-0.03, 0.05) * size_px)
    left, top = (min(max(start, 0), size_px - n) for start, n in ((left, width), (top, height)))
    if "bottom" in sprite.open_sides:
        top = size_px - height
    if sprite.open_sides & {"left", "right"}:
        left = 0 if "left" in sprite.open_sides else size_px - width
    canvas = np.zeros((size_px + 2 * margin, size_px + 2 * margin, 4), dtype=np.float32)
    frame = canvas[margin : margin + size_px, margin : margin + size_px]
    frame[top : top + height, left : left + width] = np.asarray(scaled) / np.float32(255)
    return canvas, [left, top, left + width, top + height]


def _toned(rgba: np.ndarray, background: np.ndarray) -> np.ndarray:
    """Drawn figures take a little of the colour and brightness of where they stand; uint8 in and out."""
    light = np.clip(background, 0, 1).mean(axis=(0, 1))
    gain = np.clip(0.72 + 0.6 * light.mean(), 0.72, 1.05) * (light / light.mean()) ** 0.35
    return np.dstack([np.clip(rgba[..., :3] * gain + 0.5, 0, 255).astype(np.uint8), rgba[..., 3]])


def _covering(path: Path, side_px: int) -> np.ndarray:
    """A photograph scaled to cover a square canvas, its middle: float32 (side, side, 3)."""
    picture = photos.open_photo(path).image
    scale = side_px / min(picture.size)
    picture = picture.resize([max(side_px, round(n * scale)) for n in picture.size], Image.Resampling.LANCZOS)
    left, top = ((n - side_px) // 2 for n in picture.size)
    return np.asarray(picture.crop((left, top, left + side_px, top + side_px)), dtype=np.float32) / 255


def _background(settings: Settings, index: int, folder: Path | None, side_px: int) -> tuple[np.ndarray, dict]:
    rng = np.random.default_rng([settings.seed, index, 1])
    if settings.backgrounds:
        name, digest = settings.backgrounds[int(rng.integers(len(settings.backgrounds)))]
        return _covering(folder / name, side_px), {"source": "folder", "name": name, "sha256": digest}
    name = BACKGROUNDS[index % len(BACKGROUNDS)]
    return draw_background(rng, name, side_px), {"source": "drawn", "name": name}


def _foreground(settings: Settings, index: int, folder: Path | None, background: np.ndarray) -> tuple[Sprite, dict]:
    rng = np.random.default_rng([settings.seed, index, 2])
    for number in rng.permutation(len(settings.foregrounds)):
        name, digest = settings.foregrounds[number]
        sprite = read_matte(folder / name, settings.size_px)
        if _fits(sprite):
            return sprite, {"source": "folder", "name": name, "sha256": digest}
    if settings.foregrounds:
        raise InputError(
            f"--foregrounds must hold a cut-out that its picture does not cut at the top or on both sides and whose "
            f"box can cover {BOX_SHARE[0]:.0%} of a square frame, got {len(settings.foregrounds)} others."
        )
    name = list(FOREGROUNDS)[index % len(FOREGROUNDS)]
    while not _fits(sprite := draw_foreground(rng, name, settings.seed)):
        pass
    return Sprite(_toned(sprite.rgba, background), sprite.open_sides, sprite.height_m, name), {
        "source": "drawn", "name": name
    }  # fmt: skip


def make_scene(settings: Settings, index: int, folders: Folders) -> tuple[TwoPlaneScene, dict[str, Any]]:
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
    background, origin_of_background = _background(settings, index, folders[1], size_px + 2 * margin)
    sprite, origin_of_foreground = _foreground(settings, index, folders[0], background)
    foreground, box = _placed(rng, sprite, size_px, margin)
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
        "renderer": f"datasets_scripts.systhebokeh300.raytraced {settings.version}",
        "jpeg_quality": JPEG_QUALITY,
        "depth_scale_m": DEPTH_SCALE_M,
        "assets": {"background": origin_of_background, "foreground": origin_of_foreground},
    }
    return scene, record


def _jpeg(picture: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray((picture * 255 + 0.5).astype(np.uint8)).save(file, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return file.getvalue()


def write_scene(settings: Settings, index: int, folders: Folders, target: Path) -> None:
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
    name, lens = record["scene"], record["lens"]
    (target / f"aif/{name}.jpg").write_bytes(_jpeg(scene.all_in_focus()))
    disparity = scene.disparity_dpt()
    np.save(target / f"depth/{name}.npy", disparity, allow_pickle=False)
    save_depth_png(target / f"depth/{name}.png", 1 / disparity, max_depth_m=MAX_DEPTH_M)
    for k, strength in enumerate(record.pop("bokeh_strengths")):
        image = f"{name}_{k}"
        rendered = render_raytraced(scene, strength, record["focus_disparity_dpt"], rays=settings.rays)
        (target / f"images/{image}.jpg").write_bytes(_jpeg(rendered))
        of_image = {
            "id": image,
            "image": f"images/{image}.jpg",
            "aif": f"aif/{name}.jpg",
            "disparity": f"depth/{name}.npy",
            "depth": f"depth/{name}.png",
            "bokeh_strength": strength,
            "f_number": optics.f_number_for_strength(
                strength, lens["focal_length_mm"], lens["focus_distance_m"], SENSOR_WIDTH_MM
            ),
        }
        text = json.dumps(record | of_image, indent=1, sort_keys=True) + "\n"
        (target / f"metadata/{image}.json").write_text(text)

"""Makes what the embedded model's scenes are put together from: cut-out subjects, drawn figures, backdrops, textures.

`python -m train.materials --marks train/marks/subjects.yaml --output runs/materials`

Subjects are cut out of photographs along the rough outlines of the marks (GrabCut of OpenCV, extra `train`). Each file
of `cutouts` is the whole photograph with the subject as its alpha channel; `portraits` are those whose subject is what
the photograph shows, so that the rest is behind it. The figures are those of SYSTHEBOKEH300's
generator. Backdrops and textures are links. A file's name begins with its photograph's, by which splits are made.
"""

from __future__ import annotations

import argparse
import glob
import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import yaml
from PIL import Image, ImageDraw
from scipy import ndimage

from bokehdepth.errors import InputError
from bokehdepth.files.atomic import staged
from datasets_scripts.foregrounds import FIGURES, draw_foreground
from train import config

logger = logging.getLogger("train.materials")
SIDE_PX = 512
FIGURE_PX = 448
_SUBJECT_SHARES = (0.01, 0.93)
_BAND_SHARE = 0.06  # of the square root of an outline's area: how far from the true edge it may be drawn
_AGREEMENT = 0.75  # shared area over joint area, below which the outline is trusted more than GrabCut


def cut_out(photo: np.ndarray, outline: Sequence[Sequence[float]]) -> np.ndarray:
    """Separates what a rough outline goes round from what is around it.

    GrabCut (of OpenCV) decides in a band along the outline; where it strays far from the outline, this is taken.

    Args:
        photo: uint8 (H, W, 3).
        outline: corners (x, y) in order, as shares of the photo's width and height.

    Returns:
        float32 (H, W), the opacity in [0, 1].
    """
    import cv2

    height, width = photo.shape[:2]
    drawn = Image.new("1", (width, height))
    ImageDraw.Draw(drawn).polygon([(x * width, y * height) for x, y in outline], fill=1)
    inside = np.asarray(drawn)
    if not inside.any():
        return np.zeros((height, width), np.float32)
    # What is cut by the photo's border goes on beyond it: the distances there are to the outline alone.
    band_px = float(np.clip(_BAND_SHARE * np.sqrt(inside.sum()), 2, 14))
    depth, distance = (ndimage.distance_transform_edt(part) for part in (inside, ~inside))
    mask = np.where(inside, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    mask[depth > band_px] = cv2.GC_FGD
    mask[distance > band_px] = cv2.GC_BGD
    rows, columns = np.nonzero(distance <= 4 * band_px)  # its surroundings alone: far away says nothing about the edge
    part = np.s_[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    solid = inside.copy()
    near = np.ascontiguousarray(mask[part])
    if np.isin(near, (cv2.GC_FGD, cv2.GC_PR_FGD)).any() and np.isin(near, (cv2.GC_BGD, cv2.GC_PR_BGD)).any():
        models = np.zeros((1, 65)), np.zeros((1, 65))
        cv2.setRNGSeed(0)
        cv2.grabCut(np.ascontiguousarray(photo[part][..., ::-1]), near, None, *models, 4, cv2.GC_INIT_WITH_MASK)
        solid[part] = np.isin(near, (cv2.GC_FGD, cv2.GC_PR_FGD))
    solid = ndimage.binary_opening(np.pad(solid, 2, mode="edge"), iterations=2)[2:-2, 2:-2]
    pieces, count = ndimage.label(solid)
    if count > 1:
        sizes = np.bincount(pieces.ravel())
        sizes[0] = 0
        solid = sizes[pieces] > 0.15 * sizes.max()
    solid = ~_small_holes(~solid, 0.005)
    if (solid & inside).sum() < _AGREEMENT * (solid | inside).sum():
        solid = inside
    return np.clip(ndimage.gaussian_filter(solid.astype(np.float32), 1.2, mode="nearest") * 1.6 - 0.3, 0, 1)


def _small_holes(empty: np.ndarray, share: float) -> np.ndarray:
    """What stays empty when holes smaller than a share of the picture are filled."""
    holes, _ = ndimage.label(empty)
    sizes = np.bincount(holes.ravel())
    sizes[0] = 0
    return sizes[holes] > share * empty.size


def make_cutouts(photos: dict[str, Path], subjects: dict[str, list[dict]], folder: Path, portraits: Path) -> int:
    """Writes the outlined subjects as RGBA files; those that came out too small or too large are left out.

    Args:
        photos: file of each photograph's name.
        subjects: by the photograph's name: `outline`, as `cut_out` wants it, and `main`, whether it is what the
            photograph shows, all the rest behind it.
        folder: where to write NAME.png, NAME--2.png and so on.
        portraits: where to link the main ones.

    Returns:
        How many files there are.
    """
    written = 0
    for name, marked in subjects.items():
        with Image.open(photos[name]) as opened:
            picture = opened.convert("RGB")
        picture.thumbnail((SIDE_PX, SIDE_PX), Image.Resampling.LANCZOS)
        photo = np.asarray(picture)
        for number, subject in enumerate(marked, 1):
            alpha = cut_out(photo, subject["outline"])
            if not _SUBJECT_SHARES[0] <= alpha.mean() <= _SUBJECT_SHARES[1]:
                logger.info("%s: the cut-out covers %.3f of the photo and is left out", name, alpha.mean())
                continue
            file = folder / (f"{name}.png" if number == 1 else f"{name}--{number}.png")
            Image.fromarray(np.dstack([photo, np.round(alpha * 255).astype(np.uint8)])).save(file)
            if subject["main"]:
                (portraits / file.name).symlink_to(Path("..") / folder.name / file.name)
            written += 1
    return written


def draw_figures(count: int, folder: Path) -> None:
    """Draws figures of every kind in turn, as RGBA files."""
    names = list(FIGURES)
    for number in range(count):
        figure = names[number % len(names)]
        rgba = draw_foreground(np.random.default_rng([17, number]), figure)
        picture = Image.fromarray(np.round(rgba * 255).astype(np.uint8))
        picture.thumbnail((FIGURE_PX, FIGURE_PX), Image.Resampling.LANCZOS)
        picture.save(folder / f"{figure}-{number:04d}.png")


def link(photos: Iterable[Path], folder: Path) -> None:
    """Links files into a folder."""
    for photo in photos:
        (folder / photo.name).symlink_to(photo.resolve())


def find_photos(patterns: list[str]) -> dict[str, Path]:
    """Files that match the patterns, by their names without suffix.

    Raises:
        InputError: a pattern matches no file.
    """
    photos: dict[str, Path] = {}
    for pattern in patterns:
        files = sorted(glob.glob(os.path.expandvars(pattern)))
        if not files:
            raise InputError(f"photos has {pattern!r}, which no file matches; wanted patterns of files.")
        photos |= {Path(file).stem: Path(file) for file in files}
    return photos


def main() -> None:
    """Makes the materials of the embedded model's scenes."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--marks", required=True, help="YAML file of what was marked in the photographs")
    parser.add_argument("--output", type=Path, required=True, help="a new folder")
    parser.add_argument("--figures", type=int, default=360, help="how many figures are drawn")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    marks = yaml.safe_load(Path(arguments.marks).read_text())
    photos = find_photos(marks["photos"])
    if unknown := {*marks["subjects"], *marks["backdrops"], *marks["left_out"]} - set(photos):
        raise InputError(f"marks names {sorted(unknown)[0]!r}, which is no photograph of its patterns.")
    if arguments.output.exists():
        raise InputError(f"output is {str(arguments.output)!r}, which exists; wanted a new folder.")
    with staged(arguments.output) as unfinished:
        folders = {name: unfinished / name for name in ("cutouts", "portraits", "figures", "backdrops", "textures")}
        for folder in folders.values():
            folder.mkdir()
        link((photos[name] for name in marks["backdrops"]), folders["backdrops"])
        link((file for name, file in photos.items() if name not in marks["left_out"]), folders["textures"])
        count = make_cutouts(photos, marks["subjects"], folders["cutouts"], folders["portraits"])
        draw_figures(arguments.figures, folders["figures"])
    logger.info("%d cut-outs, %d figures, %d backdrops", count, arguments.figures, len(marks["backdrops"]))


if __name__ == "__main__":
    with config.one_line_errors():
        main()

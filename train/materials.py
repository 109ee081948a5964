"""Makes what the embedded model's scenes are put together from: cut-out subjects, drawn figures, backdrops, textures.

`python -m train.materials --marks train/marks/subjects.yaml --output runs/materials`

Subjects are cut out of photographs at the boxes that the marks name (GrabCut of OpenCV, extra `train`). Each file of
`cutouts` is the whole photograph with the subject as its alpha channel. The figures are those of SYSTHEBOKEH300's
generator. Backdrops and textures are links. A file's name begins with its photograph's, by which splits are made.
"""

from __future__ import annotations

import argparse
import glob
import logging
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import yaml
from PIL import Image
from scipy import ndimage

from bokehdepth.errors import InputError
from datasets_scripts.foregrounds import FIGURES, draw_foreground
from train import config

logger = logging.getLogger("train.materials")
SIDE_PX = 512
FIGURE_PX = 448
_SUBJECT_SHARES = (0.02, 0.93)


def cut_out(photo: np.ndarray, box: tuple[float, float, float, float]) -> np.ndarray:
    """Separates what is inside a box from what is around it.

    Args:
        photo: uint8 (H, W, 3).
        box: left, top, right, bottom as shares of the photo. On a side that reaches the photo's border the subject is
            taken to go on, so the border says nothing there about the background.

    Returns:
        float32 (H, W), the opacity in [0, 1].
    """
    import cv2

    height, width = photo.shape[:2]
    left, top, right, bottom = (round(share * side) for share, side in zip(box, (width, height) * 2, strict=True))
    mask = np.full((height, width), cv2.GC_BGD, np.uint8)
    mask[top:bottom, left:right] = cv2.GC_PR_FGD
    # A box that fills the photo leaves no background to learn from: its upper corners are background then.
    corner = max(4, round(0.05 * min(height, width)))
    if (mask == cv2.GC_BGD).mean() < 0.1:
        mask[:corner, :corner] = mask[:corner, -corner:] = cv2.GC_BGD
        mask[: height // 3, :corner] = mask[: height // 3, -corner:] = cv2.GC_BGD
    y, x = np.mgrid[:height, :width]
    centre = ((x - (left + right) / 2) / (0.18 * (right - left))) ** 2
    centre = centre + ((y - (top + 2 * bottom) / 3) / (0.2 * (bottom - top))) ** 2 < 1
    mask[centre] = cv2.GC_FGD
    background, foreground = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.setRNGSeed(0)
    cv2.grabCut(np.ascontiguousarray(photo[..., ::-1]), mask, None, background, foreground, 6, cv2.GC_INIT_WITH_MASK)
    solid = np.isin(mask, (cv2.GC_FGD, cv2.GC_PR_FGD))
    solid = ndimage.binary_opening(solid, iterations=2)
    pieces, count = ndimage.label(solid)
    if count > 1:
        sizes = np.bincount(pieces.ravel())
        sizes[0] = 0
        solid = sizes[pieces] > 0.15 * sizes.max()
    solid = ~_small_holes(~solid, 0.01)
    return np.clip(ndimage.gaussian_filter(solid.astype(np.float32), 1.2) * 1.6 - 0.3, 0, 1)


def _small_holes(empty: np.ndarray, share: float) -> np.ndarray:
    """What stays empty when holes smaller than a share of the picture are filled."""
    holes, _ = ndimage.label(empty)
    sizes = np.bincount(holes.ravel())
    sizes[0] = 0
    return sizes[holes] > share * empty.size


def make_cutouts(photos: dict[str, Path], subjects: dict[str, list[list[float]]], folder: Path) -> int:
    """Writes the marked subjects as RGBA files; those that came out too small or too large are left out.

    Args:
        photos: file of each photograph's name.
        subjects: boxes by the photograph's name.
        folder: where to write NAME.png, and NAME--2.png of a second subject.

    Returns:
        How many files there are.
    """
    written = 0
    for name, boxes in subjects.items():
        with Image.open(photos[name]) as opened:
            picture = opened.convert("RGB")
        picture.thumbnail((SIDE_PX, SIDE_PX), Image.Resampling.LANCZOS)
        photo = np.asarray(picture)
        for number, box in enumerate(boxes, 1):
            alpha = cut_out(photo, tuple(box))
            if not _SUBJECT_SHARES[0] <= alpha.mean() <= _SUBJECT_SHARES[1]:
                logger.info("%s: the cut-out covers %.3f of the photo and is left out", name, alpha.mean())
                continue
            rgba = np.dstack([photo, np.round(alpha * 255).astype(np.uint8)])
            Image.fromarray(rgba).save(folder / (f"{name}.png" if number == 1 else f"{name}--{number}.png"))
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
    unfinished = arguments.output.with_name(f".{os.getpid()}_{arguments.output.name}")
    folders = {name: unfinished / name for name in ("cutouts", "figures", "backdrops", "textures")}
    for folder in folders.values():
        folder.mkdir(parents=True)
    link((photos[name] for name in marks["backdrops"]), folders["backdrops"])
    link((file for name, file in photos.items() if name not in marks["left_out"]), folders["textures"])
    count = make_cutouts(photos, marks["subjects"], folders["cutouts"])
    draw_figures(arguments.figures, folders["figures"])
    unfinished.rename(arguments.output)
    logger.info("%d cut-outs, %d figures, %d backdrops", count, arguments.figures, len(marks["backdrops"]))


if __name__ == "__main__":
    with config.one_line_errors():
        main()

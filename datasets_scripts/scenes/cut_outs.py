"""Cuts subjects out of photographs, for procedural scenes and for SYSTHEBOKEH300.

`python -m datasets_scripts.scenes.cut_outs --marks train/marks/subjects.yaml --output runs/materials`

Subjects are cut out along the rough outlines of the marks (GrabCut of OpenCV, extra `train`). Each file of `cutouts`
is the whole photograph with the subject as its alpha channel; `portraits` are those whose subject is what the
photograph shows, so that the rest is behind it. Backdrops and textures are links. A file's name begins with its
photograph's, by which splits are made. `license.txt` says the terms of the photographs, which are those of the
cut-outs and of a data set that is built with them: never commit or publish them under other ones.
"""

from __future__ import annotations

import argparse
import glob
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import yaml
from PIL import Image, ImageDraw
from scipy import ndimage

from bokehdepth.errors import InputError
from bokehdepth.files.atomic import staged

logger = logging.getLogger("datasets_scripts.scenes.cut_outs")
SIDE_PX = 512
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


def find_photos(patterns: list[str]) -> dict[str, Path]:
    """Files that match the patterns, by their names without suffix.

    Raises:
        InputError: a pattern matches no file.
    """
    photos: dict[str, Path] = {}
    for pattern in patterns:
        files = sorted(glob.glob(os.path.expandvars(pattern)))
        if not files:
            raise InputError(f"photos must be patterns of files, got {pattern!r}, which none matches.")
        photos |= {Path(file).stem: Path(file) for file in files}
    return photos


def build(marks: dict, output: Path) -> int:
    """Makes the folders `cutouts`, `portraits`, `backdrops` and `textures`.

    Args:
        marks: `photos` (patterns of files), their `license`, `subjects` (as `make_cutouts` wants them), and names of
            photographs that are `backdrops` or `left_out` of the textures.
        output: a new folder.

    Returns:
        How many subjects were cut out.

    Raises:
        InputError: the marks name a photograph that is not there, or the folder exists.
    """
    if "license" not in marks:
        raise InputError("marks must have the `license` of their photographs, got none.")
    photos = find_photos(marks["photos"])
    if unknown := {*marks["subjects"], *marks["backdrops"], *marks["left_out"]} - set(photos):
        raise InputError(f"marks must name photographs of its patterns, got {sorted(unknown)[0]!r}.")
    if output.exists():
        raise InputError(f"--output must be a new folder, got {str(output)!r}, which exists.")
    with staged(output) as unfinished:
        folders = {name: unfinished / name for name in ("cutouts", "portraits", "backdrops", "textures")}
        for folder in folders.values():
            folder.mkdir()
        (unfinished / "license.txt").write_text(marks["license"] + "\n")
        textures = [name for name in photos if name not in marks["left_out"]]
        for part, names in (("backdrops", marks["backdrops"]), ("textures", textures)):
            for name in names:
                (folders[part] / photos[name].name).symlink_to(photos[name].resolve())
        return make_cutouts(photos, marks["subjects"], folders["cutouts"], folders["portraits"])


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; 0, or 2 after one sentence on what is wrong."""
    parser = argparse.ArgumentParser(prog="python -m datasets_scripts.scenes.cut_outs", description=__doc__)
    parser.add_argument("--marks", type=Path, required=True, help="YAML file of what was marked in the photographs")
    parser.add_argument("--output", type=Path, required=True, help="a new folder")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        logger.info("%d cut-outs", build(yaml.safe_load(given.marks.read_text()), given.output))
    except (InputError, OSError, yaml.YAMLError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)  # noqa: T201 - the command's own voice
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

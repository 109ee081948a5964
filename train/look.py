"""Shows what a model makes of photos: one sheet with each photo, its blurred frame and its depth.

`python -m train.look --photos "FOLDER/*.jpg" --model embedded --output sheet.png`

Depth is read from the model's own stack, with the camera of the photo's EXIF where it states one.
"""

from __future__ import annotations

import argparse
import glob
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from bokehdepth.camera import read_camera
from bokehdepth.camera.lens import DEFAULT_BOKEH_STRENGTHS as STACK
from bokehdepth.errors import InputError
from bokehdepth.files.photos import open_photo
from bokehdepth.files.pictures import contact_sheet, depth_preview
from train.methods.stage1 import load_stage1
from train.sources import Prepared, Sample, Source

if TYPE_CHECKING:
    from bokehdepth.pipeline_bokehdepth import BokehDepthPipeline

LONGER_SIDE_PX = 512


class PhotoSource(Source):
    """Photos by their files, with the intrinsics that their EXIF states.

    Args:
        paths: of the photos; their names without suffix are the ids.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths, self.description = list(paths), f"{len(paths)} photos"
        self.ids = [path.stem for path in paths]
        self.scenes = self.ids

    def __getitem__(self, number: int) -> Sample:
        """Reads one photo; InputError as `open_photo` says."""
        photo = open_photo(self.paths[number])
        pixels = np.asarray(photo.image, dtype=np.float32) / 255
        return Sample(self.ids[number], self.ids[number], pixels, intrinsics=read_camera(photo).known_intrinsics)


@dataclass(frozen=True)
class Result:
    """What a model made of a photo.

    Attributes:
        frames: at `STACK`, float32 (F, H, W, 3) in [0, 1].
        depth_m: from these frames, float32 (H, W).
    """

    frames: np.ndarray
    depth_m: np.ndarray


def load_model(model: str) -> BokehDepthPipeline:
    """A pipeline with both stages; InputError where one is missing."""
    pipeline = load_stage1(model)
    if pipeline.depth_estimator is None:
        raise InputError(f"`model` must estimate depth, got {model!r}, which has no Stage-2.")
    return pipeline


def run(pipeline: BokehDepthPipeline, sample: Sample, seed: int) -> Result:
    """Runs both stages on one photo, with its intrinsics where it has them."""
    generator = torch.Generator().manual_seed(seed)
    frames = pipeline.generate_stack(sample.photo, STACK, generator=generator, output_type="np").images
    output = pipeline.estimate_depth(sample.photo, list(frames), STACK, intrinsics=sample.intrinsics)
    return Result(np.clip(frames, 0, 1), output.depth_m)


def as_picture(values: np.ndarray) -> Image.Image:
    """Display values (H, W, 3) in [0, 1] as a picture."""
    return Image.fromarray(np.round(np.clip(values, 0, 1) * 255).astype(np.uint8))


def look(patterns: Sequence[str], model: str, output: Path, colormap: str = "turbo_r") -> list[str]:
    """Writes the sheet.

    Args:
        patterns: of the photos' paths.
        model: as in `bokehdepth.hub`, with both stages.
        output: picture to write.
        colormap: of depth, as in `bokehdepth.files.pictures`.

    Returns:
        One line for each photo: its range of depth.

    Raises:
        InputError: a pattern finds nothing, or a photo or the model cannot be used.
    """
    paths: list[Path] = []
    for pattern in patterns:
        found = sorted(Path(name) for name in glob.glob(pattern))
        if not found:
            raise InputError(f"`photos` must find files, got {pattern!r}.")
        paths += found
    source, pipeline = Prepared(PhotoSource(paths), LONGER_SIDE_PX), load_model(model)
    pictures, labels, lines = [], [], []
    for number, sample in enumerate(source):
        result = run(pipeline, sample, number)
        low, middle, high = np.quantile(result.depth_m, (0.02, 0.5, 0.98))
        pictures += [as_picture(sample.photo), as_picture(result.frames[-1])]
        pictures.append(depth_preview(result.depth_m, colormap=colormap))
        labels += [sample.sample_id, f"K = {STACK[-1]:g}", f"{low:.2f} to {high:.2f} m"]
        camera = "camera of its EXIF" if sample.intrinsics is not None else "no camera given"
        lines.append(f"{sample.sample_id}: {low:.2f}, {middle:.2f}, {high:.2f} m (2, 50, 98 %), {camera}")
    output.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(pictures, labels, columns=3).save(output)
    return lines


def main() -> None:
    """Writes the sheet and prints each photo's range of depth."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--photos", nargs="+", required=True, metavar="GLOB", help="paths or patterns of photos")
    parser.add_argument("--model", default="embedded", help="as in bokehdepth.hub, with both stages")
    parser.add_argument("--colormap", default="turbo_r", help="of depth, its first colour near")
    parser.add_argument("--output", type=Path, required=True, help="PNG file of the sheet")
    arguments = parser.parse_args()
    try:
        lines = look(arguments.photos, arguments.model, arguments.output, arguments.colormap)
    except InputError as error:
        sys.exit(f"error: {error}")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

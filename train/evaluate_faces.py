"""Looks whether Stage-1 leaves a face alone that is the subject of a real photograph.

`python -m train.evaluate_faces --marks train/marks/faces.yaml --root $BOKEHDEPTH_DATA --model embedded`

For each photo it prints how much the faces and the rest changed at one K, each relative to what a uniform blur of the
same width would change there (that of the radius `K * width / 512` at one dioptre), and counts a face as sharp below a
quarter. The whole of `--output` is one sheet of photos and results, to be looked at.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image

from bokehdepth.errors import InputError
from bokehdepth.files.photos import open_photo
from bokehdepth.files.pictures import contact_sheet
from bokehdepth.rendering.disk import disk_blur
from train.methods.stage1 import load_stage1
from train.predictions import markdown

SHARP_BELOW = 0.25
_SHEET_PX = 320


def relative_changes(
    photo: np.ndarray, bokeh: np.ndarray, boxes: list[list[float]], bokeh_strength: float
) -> tuple[float, float]:
    """Mean change of the faces and of everything else, relative to a uniform blur of one dioptre's radius.

    Args:
        photo: float (H, W, 3) display values in [0, 1].
        bokeh: the same of the generated frame.
        boxes: left, top, right, bottom of each face, as shares of the photo.
        bokeh_strength: K of the frame, above 0.
    """
    height, width = photo.shape[:2]
    face = np.zeros((height, width), dtype=bool)
    for left, top, right, bottom in boxes:
        face[round(top * height) : round(bottom * height), round(left * width) : round(right * width)] = True
    reference = np.abs(disk_blur(photo, bokeh_strength * width / 512, gamma=2.2) - photo).mean(axis=-1)
    change = np.abs(bokeh - photo).mean(axis=-1)
    return tuple(float(change[area].mean() / reference[area].mean()) for area in (face, ~face))


def find(root: Path, name: str) -> Path:
    """The one file of a name without suffix.

    Raises:
        InputError: there is none, or more than one.
    """
    files = sorted(root.glob(f"{name}.*"))
    if len(files) != 1:
        raise InputError(f"root is {str(root)!r}, which has {len(files)} files {name}.*; wanted one.")
    return files[0]


def evaluate(root: Path, marks: dict[str, list[list[float]]], model: str, bokeh_strength: float, sheet: Path) -> str:
    """Scores every marked photo and writes the sheet.

    Args:
        root: folder that the names of the marks start from.
        marks: boxes of faces by the photo's name.
        model: as in `bokehdepth.hub`.
        bokeh_strength: K.
        sheet: picture to write: each photo beside its result.

    Returns:
        The table.

    Raises:
        InputError: a photo or the model cannot be found.
    """
    photos = {name: open_photo(find(root, name)).image for name in marks}
    pipeline = load_stage1(model)
    lines, pictures, labels, kept = [], [], [], 0
    for number, (name, boxes) in enumerate(marks.items()):
        photo = np.asarray(photos[name].convert("RGB"), dtype=np.float32) / 255
        generator = torch.Generator().manual_seed(number)
        frame = pipeline.generate_stack(photo, [bokeh_strength], generator=generator, output_type="np").images[0]
        face, rest = relative_changes(photo, np.clip(frame, 0, 1), boxes, bokeh_strength)
        kept += face < SHARP_BELOW
        lines.append([name, f"{face:.2f}", f"{rest:.2f}", "sharp" if face < SHARP_BELOW else "blurred"])
        for picture, label in ((photo, name), (frame, f"face {face:.2f}, rest {rest:.2f}")):
            image = Image.fromarray(np.round(np.clip(picture, 0, 1) * 255).astype(np.uint8))
            image.thumbnail((_SHEET_PX, _SHEET_PX))
            square = Image.new("RGB", (_SHEET_PX, _SHEET_PX), "white")
            square.paste(image)
            pictures.append(square)
            labels.append(label)
    sheet.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(pictures, labels, columns=4).save(sheet)
    header = ["photo", "change of the face", "change of the rest", "the face is"]
    return f"K = {bokeh_strength:g}; {kept} of {len(marks)} faces are sharp\n\n{markdown(header, lines)}"


def main() -> None:
    """Prints the table and writes the sheet."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--marks", type=Path, required=True, help="YAML file: boxes of faces by the photo's name")
    parser.add_argument("--root", type=Path, required=True, help="folder that the names start from")
    parser.add_argument("--model", default="embedded", help="as in bokehdepth.hub, or the folder of a Stage-1 run")
    parser.add_argument("--bokeh-strength", type=float, default=30.0)
    parser.add_argument("--output", type=Path, required=True, help="PNG file of the sheet")
    arguments = parser.parse_args()
    try:
        marks = yaml.safe_load(arguments.marks.read_text(encoding="utf-8"))
        place = (arguments.model, arguments.bokeh_strength, arguments.output)
        sys.stdout.write(evaluate(arguments.root, marks, *place) + "\n")
    except InputError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()

"""Example photos that this project renders itself, with the EXIF of the lens that they are rendered for.

No torch import, no data: the scenes are drawn (``rendering.scenes``): no licence to mind, and their lens is known.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from .camera.lens import FULL_FRAME_WIDTH_MM
from .files.atomic import write_file
from .rendering.scenes import SceneGenerator

_SCENES = (("street.jpg", "street", 3), ("room.jpg", "room", 2))
_BUNDLED = ("chelsea.png", "coffee.png", "astronaut.png", "rocket.jpg")
_SIZE_PX = (600, 900)  # the 3:2 of a full frame, so that the true and the 35 mm equivalent focal length agree
_F_NUMBER = 16
_TAG_EXIF, _TAG_F_NUMBER, _TAG_FOCAL, _TAG_FOCAL_35MM, _TAG_DISTANCE = 0x8769, 0x829D, 0x920A, 0xA405, 0x9206


def write_example_scenes(folder: Path | str) -> list[Path]:
    """Render the example scenes, all in focus, as JPEG photos of 900 x 600 px.

    Their EXIF names a full-frame lens of the scene's field of view, f/16 and the distance of the subject.

    Args:
        folder: where the files go; made if it does not exist.

    Returns:
        The paths written.

    Raises:
        InputError: a file exists, or the folder cannot be made.
    """
    generator = SceneGenerator(_SIZE_PX, seed=0)
    paths = []
    for name, kind, index in _SCENES:
        scene = generator.generate(index, kind)
        focal_mm = scene.focal_length_px * FULL_FRAME_WIDTH_MM / _SIZE_PX[1]
        exif = Image.Exif()
        exif[_TAG_EXIF] = {
            _TAG_F_NUMBER: float(_F_NUMBER),
            _TAG_FOCAL: float(focal_mm),
            _TAG_FOCAL_35MM: round(focal_mm),
            _TAG_DISTANCE: float(scene.focus_distance_m),
        }
        picture = Image.fromarray(np.round(scene.image * 255).astype(np.uint8))
        path = Path(folder) / name
        write_file(path, lambda file, p=picture, e=exif: p.save(file, format="JPEG", quality=92, exif=e.tobytes()))
        paths.append(path)
    return paths


def bundled_photos() -> list[Path]:
    """Photos that scikit-image bundles; none where it is not installed.

    Returns:
        Their paths.
    """
    package = find_spec("skimage")
    folder = Path() if package is None or package.origin is None else Path(package.origin).parent / "data"
    return [folder / name for name in _BUNDLED if (folder / name).is_file()]

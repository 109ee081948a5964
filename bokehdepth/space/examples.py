"""Example photos that come with the package. No torch import."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

# Rendered by this project (`datasets_scripts.scenes`, 900 x 600 px, seed 0: street 3 and room 2). Their EXIF names a
# full-frame lens of the scene's field of view, f/16 and the distance of the subject.
_SCENES = Path(__file__).parents[1] / "mini" / "examples" / "scenes"
_BUNDLED = ("chelsea.png", "coffee.png", "astronaut.png", "rocket.jpg")


def example_photos() -> list[Path]:
    """Photos that scikit-image bundles, where it is installed, then our own scenes, `street.jpg` the first of them.

    Returns:
        Their paths.
    """
    package = find_spec("skimage")
    folder = Path() if package is None or package.origin is None else Path(package.origin).parent / "data"
    bundled = [folder / name for name in _BUNDLED if (folder / name).is_file()]
    return [*bundled, *(_SCENES / name for name in ("street.jpg", "room.jpg"))]

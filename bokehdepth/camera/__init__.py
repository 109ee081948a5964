"""From a photo to its camera and lens: thin-lens optics, EXIF, f-numbers. No torch import."""

from .exif import Value
from .settings import Camera, read_camera

__all__ = ["Camera", "Value", "read_camera"]

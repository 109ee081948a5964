"""Pictures in and out of `BokehDepthPipeline`: reading, sizing, restoring detail, results.

The file stands alone, since a Hub repository carries it verbatim.

Shape letters: `F` frames of a stack, `H W` pixels of the photo, `h w` pixels at work.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as fn
from diffusers.utils import BaseOutput

MIN_SIDE_PX = 32
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

PhotoInput = PIL.Image.Image | np.ndarray | torch.Tensor
Frames = list[PIL.Image.Image] | np.ndarray | torch.Tensor


@dataclass
class BokehStackOutput(BaseOutput):
    """Frames of one photo, or a list of them where a list of photos was given.

    Args:
        images: F frames at the photo's size, in the order of `bokeh_strengths`: a list of PIL images, an array
            (F, H, W, 3) or a tensor (F, 3, H, W), the latter two float32 in [0, 1].
        bokeh_strengths: (F,) K of each frame at the 512 px reference width.
    """

    images: Frames | list[Frames]
    bokeh_strengths: tuple[float, ...]


@dataclass
class BokehDepthOutput(BaseOutput):
    """Depth of one photo with the stack that it was read from, or lists of both where a list of photos was given.

    Args:
        depth_m: (H, W) float32 metres along the optical axis, at the photo's size: an array, or a tensor for
            `output_type="pt"`.
        images: the stack's F frames as in `BokehStackOutput`; None where depth was read from the photo alone.
        bokeh_strengths: (F,) K of each frame; empty without a stack.
        intrinsics: pinhole matrix in pixels, (3, 3) for each photo, that the caller gave or else the depth model
            predicts, or None.
        confidence: (H, W) of depth models that tell one; larger means a larger expected error.
    """

    depth_m: np.ndarray | torch.Tensor | list[np.ndarray] | list[torch.Tensor]
    images: Frames | list[Frames] | None
    bokeh_strengths: tuple[float, ...]
    intrinsics: np.ndarray | list[np.ndarray] | None = None
    confidence: np.ndarray | torch.Tensor | list[np.ndarray] | list[torch.Tensor] | None = None


def working_size(height: int, width: int, area_px: int, multiple: int) -> tuple[int, int, int]:
    """Size at which a photo is worked on: its aspect, about `area_px` pixels, the width a multiple.

    The width is exact because K is defined by it; the height is rounded to a pixel and then padded.

    Args:
        height: of the photo in px.
        width: of the photo in px.
        area_px: pixels wanted.
        multiple: what the network's grid asks for.

    Returns:
        h, w, and h padded to the multiple.
    """
    scale = math.sqrt(area_px / (height * width))
    w = max(multiple, multiple * round(width * scale / multiple))
    h = max(1, round(height * w / width))
    return h, w, multiple * math.ceil(h / multiple)


def resize(image: torch.Tensor, height: int, width: int, mode: str = "bicubic") -> torch.Tensor:
    """Resizes (B, C, H, W) in [0, 1] with antialiasing; returns the input itself where the size is right."""
    if image.shape[-2:] == (height, width):
        return image
    return fn.interpolate(image, size=(height, width), mode=mode, antialias=True, align_corners=False).clamp(0, 1)


class DetailRestorer:
    """Brings generated frames to the photo's size, with the photo's own pixels wherever nothing was blurred.

    The share of fine detail that survived generation is measured by local regression of the frame's detail on the
    reference's. Where all of it survived the photo is returned as it is; where some did, that share of the photo's
    finest detail is added to the enlarged frame; where none did, the enlarged frame stands. What depends on the photo
    alone is computed once for all frames.

    Args:
        photo: (1, 3, H, W) in [0, 1].
        reference: (1, 3, h, w), the photo as the network saw it.
    """

    # Flat places ask their wider surroundings; where those are flat too there is no detail to keep or lose.
    _WIDE, _FLOOR = 0.05, 1e-6

    def __init__(self, photo: torch.Tensor, reference: torch.Tensor) -> None:
        self.photo, self.detail = photo, _detail(reference)
        self.power = self._surroundings(self.detail.square())
        self.finest = photo - resize(reference, *photo.shape[-2:])

    def __call__(self, generated: torch.Tensor) -> torch.Tensor:
        """Generated frames (F, 3, h, w) to (F, 3, H, W) in [0, 1]."""
        size = self.photo.shape[-2:]
        share = (self._surroundings(self.detail * _detail(generated)) / self.power).clamp(0, 1)

        def ramp(low: float, high: float) -> torch.Tensor:
            t = ((share - low) / (high - low)).clamp(0, 1)
            return fn.interpolate(t * t * (3 - 2 * t), size=size, mode="bilinear", align_corners=False)

        enlarged = resize(generated, *size) + ramp(0.5, 1.0) * self.finest
        return torch.lerp(enlarged, self.photo, ramp(0.75, 0.95)).clamp(0, 1)

    def _surroundings(self, product: torch.Tensor) -> torch.Tensor:
        return _smooth(product, 2) + self._WIDE * _smooth(product, 8) + self._FLOOR


def _detail(image: torch.Tensor) -> torch.Tensor:
    """Luma (B, 1, H, W) of a picture (B, 3, H, W) without what is larger than a few pixels."""
    luma = image.mean(1, keepdim=True)
    return luma - _smooth(luma, 2)


def _smooth(image: torch.Tensor, radius: int) -> torch.Tensor:
    """Mean over a square around each pixel, rows and columns in turn."""
    side = 2 * radius + 1
    padded = fn.pad(image, (radius,) * 4, mode="replicate")
    return fn.avg_pool2d(fn.avg_pool2d(padded, (side, 1), stride=1), (1, side), stride=1)


def restore_detail(photo: torch.Tensor, reference: torch.Tensor, generated: torch.Tensor) -> torch.Tensor:
    """`DetailRestorer` for one call: (1, 3, H, W), (1, 3, h, w) and (F, 3, h, w) to (F, 3, H, W)."""
    return DetailRestorer(photo, reference)(generated)


def list_photos(image: PhotoInput | Sequence[PhotoInput]) -> tuple[list[PhotoInput], bool]:
    """The photos of an argument, and whether it was a list or a batch (B, H, W, 3) or (B, 3, H, W).

    Raises:
        ValueError: it is an empty one.
    """
    is_batch = not isinstance(image, list | tuple) and getattr(image, "ndim", 3) == 4
    if not (is_batch or isinstance(image, list | tuple)):
        return [image], False
    if len(image) == 0:
        raise ValueError("image is an empty list; wanted one photo or more.")
    return [photo[0] if getattr(photo, "ndim", 3) == 4 and len(photo) == 1 else photo for photo in image], True


def list_stacks(stack: Any, is_list: bool, photos: int, frames: int) -> list[Sequence[PhotoInput]]:
    """The stack of each photo; ValueError unless there is one for each, of as many frames as wanted."""
    stacks = list(stack) if is_list else [stack]
    if len(stacks) != photos:
        raise ValueError(f"stack has {len(stacks)} stacks; wanted one for each of the {photos} photos.")
    for one in stacks:
        if len(one) != frames:
            raise ValueError(f"stack has {len(one)} frames; wanted {frames}, one for each of bokeh_strengths.")
    return stacks


def list_intrinsics(intrinsics: Any, sizes: Sequence[tuple[int, int]], is_list: bool) -> np.ndarray | None:
    """The pinhole matrix of each photo (B, 3, 3), from one for all photos of one size or from one for each.

    Args:
        intrinsics: (3, 3), or (B, 3, 3) or a list of matrices for a list of photos: arrays, tensors or numbers.
        sizes: height and width of each photo.
        is_list: whether a list of photos was given.

    Raises:
        ValueError: it is neither, or one matrix is to serve photos of different sizes.
    """
    if intrinsics is None:
        return None
    try:
        if isinstance(intrinsics, list | tuple):
            intrinsics = np.stack([np.asarray(torch.as_tensor(row, dtype=torch.float64).cpu()) for row in intrinsics])
        matrices = np.asarray(torch.as_tensor(intrinsics, dtype=torch.float64).cpu())
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"`intrinsics` must be numbers of shape (3, 3) for each photo, got {error}.") from error
    each = (len(sizes), 3, 3)
    if matrices.shape != (3, 3) and not (is_list and matrices.shape == each):
        wanted = f"(3, 3) or {each}" if is_list else "(3, 3)"
        raise ValueError(f"`intrinsics` must have shape {wanted}, got {matrices.shape}.")
    if not np.isfinite(matrices).all():
        raise ValueError("`intrinsics` must be finite numbers, got NaN or infinity.")
    if matrices.ndim == 2 and len(set(sizes)) > 1:
        raise ValueError(
            f"`intrinsics` must be one matrix for each photo of {len(set(sizes))} different sizes, got one for all."
        )
    return np.broadcast_to(matrices, each)


def list_strengths(bokeh_strengths: Any) -> tuple[float, ...]:
    """K as floats, of one number or a sequence; ValueError where it is neither."""
    try:
        return (float(bokeh_strengths),) if np.ndim(bokeh_strengths) == 0 else tuple(float(k) for k in bokeh_strengths)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"bokeh_strengths is {bokeh_strengths!r}; wanted a number or a sequence of numbers."
        ) from error


def photo_size(photo: PhotoInput, name: str) -> tuple[int, int]:
    """Height and width of a photo in px; ValueError for what is no RGB photo. Whole-numbered values are not copied."""
    if isinstance(photo, PIL.Image.Image):
        if photo.mode != "RGB":
            raise ValueError(f"{name} has PIL mode {photo.mode}; wanted RGB (bokehdepth.imaging converts files).")
        height, width = photo.size[::-1]
    elif isinstance(photo, np.ndarray):
        if photo.ndim != 3 or photo.shape[-1] != 3:
            raise ValueError(f"{name} is an array of shape {photo.shape}; wanted (H, W, 3).")
        height, width = photo.shape[:2]
    elif isinstance(photo, torch.Tensor):
        if photo.ndim != 3 or photo.shape[0] != 3:
            raise ValueError(f"{name} is a tensor of shape {tuple(photo.shape)}; wanted (3, H, W).")
        height, width = photo.shape[-2:]
    else:
        raise ValueError(f"{name} is a {type(photo).__name__}; wanted a PIL image, an array or a tensor.")
    if min(height, width) < MIN_SIDE_PX:
        raise ValueError(f"{name} has {width}x{height} px; wanted at least {MIN_SIDE_PX} px on each side.")
    if not isinstance(photo, PIL.Image.Image) and photo.dtype not in _WHOLE:
        real = photo.is_floating_point() if isinstance(photo, torch.Tensor) else photo.dtype.kind == "f"
        if not real:
            raise ValueError(f"`{name}` must hold uint8, uint16 or floating-point values, got {photo.dtype}.")
        low, high = photo.min(), photo.max()
        if not (low >= 0 and high <= 1):  # NaN fails every comparison
            raise ValueError(f"{name} has values outside [0, 1]; wanted display values in [0, 1], uint8 or uint16.")
    return height, width


_WHOLE = {np.dtype(np.uint8): 255, np.dtype(np.uint16): 65535, torch.uint8: 255, torch.uint16: 65535}
"""Types of whole numbers, and the one that means 1."""


def to_pixels(photo: PhotoInput, name: str) -> torch.Tensor:
    """A photo as float32 (1, 3, H, W) in [0, 1] on the CPU; ValueError for what is no RGB photo."""
    photo_size(photo, name)
    if isinstance(photo, torch.Tensor):
        values = photo.detach().cpu().float()[None]
        return values / _WHOLE[photo.dtype] if photo.dtype in _WHOLE else values
    array = np.array(photo) if isinstance(photo, PIL.Image.Image) else photo
    values = array.astype(np.float32, order="C")  # a view may run backwards
    if array.dtype in _WHOLE:
        values = values / _WHOLE[array.dtype]
    return torch.from_numpy(values).permute(2, 0, 1)[None]


def to_output(frames: torch.Tensor, output_type: str) -> Frames:
    """(F, 3, H, W) in [0, 1] to what the caller asked for."""
    if output_type == "pt":
        return frames
    array = frames.permute(0, 2, 3, 1).numpy()
    if output_type == "np":
        return array
    return [PIL.Image.fromarray((frame * 255).round().astype(np.uint8)) for frame in array]

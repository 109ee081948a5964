"""Pictures in and out of `BokehDepthPipeline`: reading, sizing, restoring detail, results.

The file stands alone; a Hub repository carries it joined in front of `pipeline_bokehdepth.py`.

Shape letters: `F` frames of a stack, `H W` pixels of the photo, `h w` pixels at work.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as fn
from diffusers.utils import BaseOutput

MIN_SIDE_PX = 32
MAX_ASPECT = 8
"""Longest side over shortest that a photo may have: a thin strip becomes many times its area on a network's grid."""

STRIP_PX = 2**16
"""Pixels that full-size work has in hand at a time: few enough for a processor's cache, whatever the photo's size."""

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
        depth_frames: (1 + F, 3, h, w) float32 in [0, 1] on the CPU, the photo and its frames of K above 0 at the depth
            model's size, reduced from what no output type has rounded; None unless asked for.

    Attributes:
        timings_s: seconds of each part: "to_network_size", "stack", "restore".
    """

    images: Frames | list[Frames]
    bokeh_strengths: tuple[float, ...]
    depth_frames: torch.Tensor | list[torch.Tensor] | None = None

    def __post_init__(self) -> None:
        """Has timings beside the fields, so that the tuple is what was asked for."""
        super().__post_init__()
        self.timings_s: dict[str, float] = {}


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

    Attributes:
        timings_s: seconds of each part: "to_network_size", "depth", "depth_to_photo_size".
    """

    depth_m: np.ndarray | torch.Tensor | list[np.ndarray] | list[torch.Tensor]
    images: Frames | list[Frames] | None
    bokeh_strengths: tuple[float, ...]
    intrinsics: np.ndarray | list[np.ndarray] | None = None
    confidence: np.ndarray | torch.Tensor | list[np.ndarray] | list[torch.Tensor] | None = None

    def __post_init__(self) -> None:
        """As in `BokehStackOutput`."""
        super().__post_init__()
        self.timings_s: dict[str, float] = {}


@contextmanager
def timed(timings_s: dict[str, float], part: str) -> Iterator[None]:
    """Adds the seconds of its body to those of a part."""
    started = time.perf_counter()
    try:
        yield
    finally:
        timings_s[part] = timings_s.get(part, 0.0) + time.perf_counter() - started


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


class PhotoRows:
    """The rows of a photo, given out in strips, so that full-size work never holds a float copy of the whole.

    A strip is (R, 3W) float32 in [0, 1]: R rows, each with its colours interleaved.

    Args:
        photo: RGB photo as `photo_size` passes it.
        name: of the argument, for errors.

    Raises:
        ValueError: as `photo_size` says.
    """

    def __init__(self, photo: PhotoInput, name: str = "image") -> None:
        self.height, self.width = photo_size(photo, name)
        is_picture = isinstance(photo, PIL.Image.Image)
        is_bytes = is_picture or (isinstance(photo, np.ndarray) and photo.dtype == np.uint8 and photo.ndim == 3)
        self._photo = photo if is_bytes else to_pixels(photo, name)

    def strip(self, start: int, stop: int, device: torch.device | str = "cpu") -> torch.Tensor:
        """Rows `start` to `stop`."""
        if isinstance(self._photo, torch.Tensor):
            rows = self._photo[0, :, start:stop].to(device).permute(1, 2, 0)
        elif isinstance(self._photo, np.ndarray):
            rows = torch.from_numpy(self._photo[start:stop].copy()).to(device).float() / 255
        else:
            rows = np.array(self._photo.crop((0, start, self.width, stop)))
            rows = torch.from_numpy(rows).to(device).float() / 255
        return rows.reshape(stop - start, 3 * self.width)

    def strips(self, device: torch.device | str = "cpu") -> Iterator[tuple[int, torch.Tensor]]:
        """All rows from above to below: the first row's number and the strip, `STRIP_PX` pixels or one row."""
        rows = max(1, STRIP_PX // self.width)
        for start in range(0, self.height, rows):
            yield start, self.strip(start, min(start + rows, self.height), device)

    def resized(self, height: int, width: int, device: torch.device | str = "cpu") -> torch.Tensor:
        """The photo as (1, 3, height, width), as `resize` makes it, on the CPU."""
        reduction = Reduction(self.height, self.width, height, width)
        for start, strip in self.strips(device):
            reduction.add(start, strip[None])
        return reduction.pictures()


class Reduction:
    """Pictures made smaller while their rows go by; to rounding what `resize` makes of the whole.

    Args:
        height: of the pictures in px.
        width: likewise.
        to_height: wanted.
        to_width: wanted.
    """

    def __init__(self, height: int, width: int, to_height: int, to_width: int) -> None:
        self._from, self._to = (height, width), (to_height, to_width)
        self._rows: torch.Tensor | None = None

    def add(self, start: int, strips: torch.Tensor) -> None:
        """Takes the rows from `start` on of all pictures, (F, R, 3W)."""
        if self._rows is None:
            self._rows = strips.new_zeros(len(strips), self._to[0], strips.shape[2])
        first, weights = _weights_of_rows(self._from[0], self._to[0], start, start + strips.shape[1])
        weights = weights.to(strips).expand(len(strips), -1, -1)
        self._rows[:, first : first + weights.shape[1]].baddbmm_(weights, strips)

    def pictures(self) -> torch.Tensor:
        """(F, 3, h, w) in [0, 1] on the CPU, once all rows have gone by."""
        picture = self._rows.unflatten(2, (self._from[1], 3)).permute(0, 3, 1, 2)
        return resize(picture, *self._to).clamp(0, 1).cpu()


def _kernel(offset: np.ndarray, mode: str) -> np.ndarray:
    """Weight of a row so many rows away: Keys' cubic with a = -1/2, or the triangle of linear interpolation."""
    x = np.abs(offset)
    if mode == "bilinear":
        return np.clip(1 - x, 0, None)
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0))


def _weights_to_rows(rows: int, to_rows: int, start: int, stop: int, mode: str) -> tuple[int, torch.Tensor]:
    """What makes the new rows `start` to `stop` of `to_rows` out of old ones, as `torch.nn.functional.interpolate`.

    Cubic is antialiased, linear is not. The first old row that takes part, and weights (stop - start, old rows).
    """
    scale = rows / to_rows
    spread = max(scale, 1.0) if mode == "bicubic" else 1.0
    reach = spread * (2 if mode == "bicubic" else 1)
    centre = (np.arange(start, stop) + 0.5) * scale
    first = min(max(0, math.floor(centre[0] - reach)), rows - 1)
    last = max(min(rows, math.ceil(centre[-1] + reach)), first + 1)
    if mode == "bilinear":  # beyond the edge lies the edge
        centre = centre.clip(0.5, rows - 0.5)
    weights = _kernel((np.arange(first, last) + 0.5 - centre[:, None]) / spread, mode)
    weights /= weights.sum(1, keepdims=True)
    return first, torch.from_numpy(weights.astype(np.float32))


def _weights_of_rows(rows: int, to_rows: int, start: int, stop: int) -> tuple[int, torch.Tensor]:
    """What old rows `start` to `stop` give to new ones: the first of these, and weights (new rows, stop - start)."""
    scale = rows / to_rows
    reach = 2 * max(scale, 1.0)
    first = min(max(0, math.floor((start - reach) / scale - 0.5)), to_rows - 1)
    last = max(min(to_rows, math.ceil((stop + reach) / scale + 0.5)), first + 1)
    lowest, weights = _weights_to_rows(rows, to_rows, first, last, "bicubic")
    given = torch.zeros(last - first, stop - start)
    low, high = max(start, lowest), min(stop, lowest + weights.shape[1])
    given[:, low - start : high - start] = weights[:, low - lowest : high - lowest]
    return first, given


class _Enlarged:
    """Pictures (B, 3 or 1, h, w) at a larger size, of which rows are made when they are asked for, in order.

    Columns are enlarged first, a window of old rows at a time, then each strip's rows. Not clamped.
    """

    _WINDOW = 32  # old rows

    def __init__(self, small: torch.Tensor, height: int, width: int, mode: str) -> None:
        self.small, self.height, self.width, self.mode = small, height, width, mode
        self.low, self.wide = 0, small.new_empty(len(small), 0, 3 * width)
        self.strips = small.new_empty(0)

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Rows `start` to `stop`, (B, R, 3W); one channel is given three times. They last until the next call."""
        first, weights = _weights_to_rows(self.small.shape[2], self.height, start, stop, self.mode)
        last = first + weights.shape[1]
        if first < self.low or last > self.low + self.wide.shape[1]:
            self.low = first
            rows = self.small[:, :, first : max(last, first + self._WINDOW)]
            options = {"mode": self.mode, "antialias": self.mode == "bicubic", "align_corners": False}
            wide = fn.interpolate(rows, size=(rows.shape[2], self.width), **options)
            self.wide = wide.permute(0, 2, 3, 1).expand(-1, -1, -1, 3).flatten(2)
        window = self.wide[:, first - self.low : last - self.low]
        size = len(window), stop - start, window.shape[2]
        if self.strips.shape != size:
            self.strips = window.new_empty(size)  # asked for anew each time, its pages would cost more than the rows
        return torch.bmm(weights.to(window).expand(len(window), -1, -1), window, out=self.strips)


class DetailRestorer:
    """Brings generated frames to the photo's size, with the photo's own pixels wherever nothing was blurred.

    The share of fine detail that survived generation is measured by local regression of the frame's detail on the
    reference's. Where all of it survived the photo is returned as it is; where some did, that share of the photo's
    finest detail is added to the enlarged frame; where none did, the enlarged frame stands. All frames are restored
    together, strip by strip, so that the memory at work does not grow with the photo.

    Args:
        photo: rows of the photo, H x W.
        reference: (1, 3, h, w), the photo as the network saw it.
        device: where the work is done.
    """

    # Flat places ask their wider surroundings; where those are flat too there is no detail to keep or lose.
    _WIDE, _FLOOR = 0.05, 1e-6

    def __init__(self, photo: PhotoRows, reference: torch.Tensor, device: torch.device | str = "cpu") -> None:
        self.photo, self.device = photo, device
        self.reference = reference.to(device)
        self.detail = _detail(self.reference)
        self.power = self._surroundings(self.detail.square())

    def strips(self, generated: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
        """Restores generated frames (F, 3, h, w), strip by strip.

        Yields:
            Number of a strip's first row, and (1 + F, R, 3W) in [0, 1]: the photo, then the frames; of use until the
            next one, which takes its place in memory.
        """
        generated = generated.to(self.device)
        share = (self._surroundings(self.detail * _detail(generated)) / self.power).clamp(0, 1)
        size = self.photo.height, self.photo.width
        pictures = _Enlarged(torch.cat([self.reference, generated]), *size, "bicubic")
        ramps = _Enlarged(torch.cat([_ramp(share, 0.5, 1.0), _ramp(share, 0.75, 0.95)]), *size, "bilinear")
        for start, photo in self.photo.strips(self.device):
            stop = start + len(photo)
            strips = pictures.rows(start, stop).clamp_(0, 1)  # (1 + F, R, 3W)
            adding, keeping = ramps.rows(start, stop).chunk(2)
            finest = torch.sub(photo, strips[0], out=strips[0])
            strips[1:].addcmul_(adding, finest).lerp_(photo.expand_as(adding), keeping).clamp_(0, 1)
            strips[0] = photo
            yield start, strips

    def __call__(self, generated: torch.Tensor) -> torch.Tensor:
        """Generated frames (F, 3, h, w) to (F, 3, H, W) in [0, 1] on the CPU."""
        frames = FullFrames(len(generated), self.photo.height, self.photo.width, "pt")
        for start, strips in self.strips(generated):
            frames.add(start, strips[1:])
        return frames.frames

    def _surroundings(self, product: torch.Tensor) -> torch.Tensor:
        return _smooth(product, 2) + self._WIDE * _smooth(product, 8) + self._FLOOR


def _ramp(share: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """0 where the share is `low`, 1 where it is `high`, a smooth step in between."""
    t = ((share - low) / (high - low)).clamp(0, 1)
    return t * t * (3 - 2 * t)


def _detail(image: torch.Tensor) -> torch.Tensor:
    """Luma (B, 1, H, W) of a picture (B, 3, H, W) without what is larger than a few pixels."""
    luma = image.mean(1, keepdim=True)
    return luma - _smooth(luma, 2)


def _smooth(image: torch.Tensor, radius: int) -> torch.Tensor:
    """Mean over a square around each pixel, rows and columns in turn."""
    side = 2 * radius + 1
    padded = fn.pad(image, (radius,) * 4, mode="replicate")
    return fn.avg_pool2d(fn.avg_pool2d(padded, (side, 1), stride=1), (1, side), stride=1)


class FullFrames:
    """Frames of the photo's size in what the caller asked for, filled strip by strip.

    Args:
        count: F.
        height: H.
        width: W.
        output_type: "pil", "np" or "pt".
    """

    def __init__(self, count: int, height: int, width: int, output_type: str) -> None:
        self.output_type = output_type
        if output_type == "pil":
            self.frames = [PIL.Image.new("RGB", (width, height)) for _ in range(count)]
        elif output_type == "np":
            self.frames = np.empty((count, height, width, 3), np.float32)
        else:
            self.frames = torch.empty(count, 3, height, width)

    def add(self, start: int, strips: torch.Tensor) -> None:
        """Takes the rows from `start` on of all frames, (F, R, 3W) in [0, 1]."""
        rows = strips.unflatten(2, (-1, 3))
        stop = start + rows.shape[1]
        if self.output_type == "pt":
            self.frames[:, :, start:stop] = rows.permute(0, 3, 1, 2)
        elif self.output_type == "np":
            self.frames[:, start:stop] = rows.cpu().numpy()
        else:
            for frame, levels in zip(self.frames, (rows * 255).round_().to(torch.uint8).cpu().numpy(), strict=True):
                frame.paste(PIL.Image.fromarray(levels), (0, start))


def restored_stack(
    restorer: DetailRestorer,
    generated: torch.Tensor,
    with_photo: bool,
    output_type: str,
    depth_size: tuple[int, int] | None = None,
) -> tuple[Frames, torch.Tensor | None]:
    """All of a photo's frames at its size, restored in one go over its rows.

    Args:
        restorer: of the photo.
        generated: (F, 3, h, w) in [0, 1].
        with_photo: whether the photo itself, the frame at K = 0, comes first.
        output_type: "pil", "np" or "pt".
        depth_size: (h, w) at which the depth model works; None makes no frames for it.

    Returns:
        The frames, and (1 + F, 3, h, w) for the depth model, the photo first and once, or None.
    """
    height, width = restorer.photo.height, restorer.photo.width
    first = 0 if with_photo else 1
    frames = FullFrames(len(generated) + 1 - first, height, width, output_type)
    reduction = None if depth_size is None else Reduction(height, width, *depth_size)
    for start, strips in restorer.strips(generated):
        frames.add(start, strips[first:])
        if reduction is not None:
            reduction.add(start, strips)
    return frames.frames, None if reduction is None else reduction.pictures()


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
            raise ValueError(f"{name} has PIL mode {photo.mode}; wanted RGB (bokehdepth.files.photos converts files).")
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
    if max(height, width) > MAX_ASPECT * min(height, width):
        raise ValueError(f"{name} has {width}x{height} px; wanted sides of a ratio up to {MAX_ASPECT}:1.")
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

"""Whether the frames of a bracket belong to the photo and to their labels: by EXIF and by what the pictures show.

Depth from a bracket assumes one scene, camera, focal length and focus, a photo that is the sharpest frame, and blur
that grows as the labels say. What contradicts this is refused, and what is merely odd is a sentence that names the
frame. Pictures are compared at a small size, so that a large photo costs no more; blur that is not seen there proves
nothing. No torch import.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real

import numpy as np
import PIL.Image
import scipy.fft
from PIL.ExifTags import IFD
from PIL.ExifTags import Base as Tag
from scipy import ndimage

from ..camera import read_camera
from ..errors import InputError
from ..files.photos import Photo
from .fit import LARGEST_SHIFT_PX, fit_confidence, fit_offsets, make_bracket, relative_strengths

_F_NUMBER_TOLERANCE = 0.06  # half a third of a stop; engraved numbers are rounded by up to 3.5 %
_FOCAL_LENGTH_TOLERANCE = 0.02
_FOCUS_TOLERANCE = 0.1  # of the focus in dioptres; cameras report it in steps
_FOCUS_TOLERANCE_DPT = 0.05
_STRENGTH_TOLERANCE = 0.12  # of K times f-number between frames
_LENS_STRENGTH_FACTOR = 1.5  # between a K that is given and that of the lens
_EXPOSURE_STOPS = 0.7

_LONG_SIDE_PX, _SHORT_SIDE_PX = 384, 64  # at which the pictures are compared
_LARGEST_RADIUS_PX = 18.0
_SEEN_RADIUS_PX = 1.5  # blur that is measured well enough to be held against a label
_OFF_PX, _OFF_SHARE = 0.55, 0.35  # by which a radius is more or less than the labels say
_LEAST_SHARE = 0.01  # of the pixels, to say anything
_MOST = 0.5  # share of the pixels that speak, from which they decide
_FINE_PX, _COARSE_PX = 4.0, 24.0  # the details by which a scene is recognised, whatever the blur
_LEAST_CONTRAST = 0.004  # of these details, in display values
_OTHER_SCENE, _DOUBTFUL_SCENE = 0.4, 0.75  # correlation of them
_LARGEST_SHIFT_SHARE = 0.25  # of a side
_SHIFT_PX = 1.0
_CELL_PX = 24
_DETAILS_PX = (1.0, 2.0, 4.0)
_CELL_CONTRAST = 0.004  # of such details, beyond which a cell is textured
_SHARPER = 1.25  # amplitude of details over that of the other picture
_SHARPER_SHARE = 0.1  # of the cells
_CONFIDENT = 0.5


@dataclass(frozen=True)
class Exposure:
    """What one picture of a bracket tells of itself.

    Attributes:
        name: file name, for sentences.
        small: float32 (h, w, 3), display values, for the comparison with others.
        reduction: pixels of the picture over those of ``small``, along a side.
        digest: of the pixels.
        f_number: f-number that EXIF tells, else None; so with the next four.
        focal_length_mm: focal length in mm.
        focus_distance_m: focus distance in metres, ``math.inf`` for infinity.
        camera: make and model.
        lens: name of the lens.
        stops: logarithm to base 2 of the exposure: time in seconds by ISO speed over the squared f-number.
    """

    name: str
    small: np.ndarray
    reduction: float
    digest: bytes
    f_number: float | None
    focal_length_mm: float | None
    focus_distance_m: float | None
    camera: str | None
    lens: str | None
    stops: float | None


def read_exposure(photo: Photo, name: str) -> Exposure:
    """Gather what the checks need of a picture of a given file name, so that its pixels need not be kept."""
    settings = read_camera(photo)
    f_number, focal_mm, focus_m = (
        value.value if value.source in ("read", "derived") else None
        for value in (settings.f_number, settings.focal_length_mm, settings.focus_distance_m)
    )
    time_s, iso = _number(photo, Tag.ExposureTime), _number(photo, Tag.ISOSpeedRatings)
    known = bool(time_s and iso and f_number)
    image = photo.image
    factor = min(1.0, max(_LONG_SIDE_PX / max(image.size), _SHORT_SIDE_PX / min(image.size)))
    small = image
    if factor < 1:
        size = tuple(max(1, round(side * factor)) for side in image.size)
        small = image.resize(size, PIL.Image.Resampling.BOX, reducing_gap=3.0)
    return Exposure(
        name=name,
        small=np.asarray(small, dtype=np.float32) / 255,
        reduction=max(image.size) / max(small.size),
        digest=hashlib.blake2b(np.asarray(image), digest_size=16).digest(),
        f_number=f_number,
        focal_length_mm=focal_mm,
        focus_distance_m=focus_m,
        camera=" ".join(filter(None, (_text(photo, Tag.Make), _text(photo, Tag.Model)))) or None,
        lens=_text(photo, Tag.LensModel),
        stops=math.log2(time_s * iso / f_number**2) if known else None,
    )


def _entry(photo: Photo, tag: int) -> object:
    if photo.exif is None:
        return None
    raw = photo.exif.get_ifd(IFD.Exif).get(tag, photo.exif.get(tag))
    return raw[0] if isinstance(raw, tuple) and raw else raw


def _number(photo: Photo, tag: int) -> float | None:
    raw = _entry(photo, tag)
    return float(raw) if isinstance(raw, Real) and math.isfinite(raw) and raw > 0 else None


def _text(photo: Photo, tag: int) -> str | None:
    raw = _entry(photo, tag)
    return (" ".join(raw.replace("\0", " ").split()) or None) if isinstance(raw, str) else None


def check_labels(frames: Sequence[Exposure], f_numbers: Sequence[float]) -> None:
    """Hold the f-number that a caller gives of each frame against its EXIF, where that tells one.

    Raises:
        InputError: they differ by more than rounding.
    """
    for frame, label in zip(frames, f_numbers, strict=True):
        if frame.f_number is not None and abs(math.log(label / frame.f_number)) > _F_NUMBER_TOLERANCE:
            raise InputError(
                f"stack has the frame {frame.name!r} labelled f/{label:g}, but its EXIF says f/{frame.f_number:.3g}, "
                "wanted the f-number that each picture was taken with, in their order."
            )


def check_strengths(
    frames: Sequence[Exposure], bokeh_strengths: Sequence[float], lens_strengths: Sequence[float | None]
) -> list[str]:
    """Hold the K of frames against the f-numbers that their EXIF tells: K is in proportion to 1 / f-number (Eq. 1).

    Args:
        frames: (F,) the frames.
        bokeh_strengths: (F,) K of each; frames with K = 0 pass.
        lens_strengths: (F,) K of each by its f-number and a lens and focus that are known, else None.

    Returns:
        A sentence on the first frame whose K is not that of the lens; by the proportion, it stands for all.

    Raises:
        InputError: two frames are out of proportion.
    """
    known = [(f, k) for f, k in zip(frames, bokeh_strengths, strict=True) if f.f_number is not None and k > 0]
    for (one, k), (other, other_k) in itertools.combinations(known, 2):
        if abs(math.log(k * one.f_number / (other_k * other.f_number))) > _STRENGTH_TOLERANCE:
            raise InputError(
                f"stack has the frame {one.name!r} with K = {k:.4g} and EXIF f/{one.f_number:.3g} beside "
                f"{other.name!r} with K = {other_k:.4g} and EXIF f/{other.f_number:.3g}, wanted K in proportion to "
                "1 / f-number, in the order of the frames."
            )
    for frame, k, lens_k in zip(frames, bokeh_strengths, lens_strengths, strict=True):
        if lens_k and k > 0 and abs(math.log(k / lens_k)) > math.log(_LENS_STRENGTH_FACTOR):
            return [
                f"frame {frame.name!r} is labelled K = {k:.4g}, but its EXIF f/{frame.f_number:.3g} gives "
                f"{lens_k:.3g} with this lens and focus, and depth follows the label"
            ]
    return []


def check_settings(photo: Exposure, frames: Sequence[Exposure], *, depends_on_blur: bool) -> list[str]:
    """Hold the EXIF of the frames against the photo's: one camera, focal length and focus, and about one exposure.

    What one of two pictures does not tell is not compared; ``depends_on_blur`` is as in ``check_pictures``.

    Returns:
        Sentences on what is odd: another lens name, another exposure, an aperture that is not wider than the photo's.

    Raises:
        InputError: the focal length, the focus or the camera differ, or an aperture is no wider (``depends_on_blur``).
    """
    notes = []
    for frame in frames:
        pairs = {
            name: (getattr(frame, name), getattr(photo, name))
            for name in ("focal_length_mm", "focus_distance_m", "camera", "lens", "stops", "f_number")
        }
        told = {name: pair for name, pair in pairs.items() if None not in pair}
        if "focal_length_mm" in told and _ratio(told["focal_length_mm"]) > 1 + _FOCAL_LENGTH_TOLERANCE:
            raise _contradiction(frame, photo, "a focal length of {:.4g} mm", told["focal_length_mm"], "one for all")
        if "focus_distance_m" in told:
            near, far = sorted((1 / distance for distance in told["focus_distance_m"]), reverse=True)
            if near - far > max(_FOCUS_TOLERANCE * near, _FOCUS_TOLERANCE_DPT):
                raise _contradiction(frame, photo, "a focus at {:.4g} m", told["focus_distance_m"], "one for all")
        if "camera" in told and len({name.casefold() for name in told["camera"]}) > 1:
            raise _contradiction(frame, photo, "the camera {!r}", told["camera"], "one for all")
        if "f_number" in told and told["f_number"][0] >= told["f_number"][1]:
            wanted = "the photo to be the sharpest frame of the bracket"
            if depends_on_blur:
                raise _contradiction(frame, photo, "f/{:.3g}", told["f_number"], wanted)
            here, there = told["f_number"]
            notes.append(
                f"frame {frame.name!r} is at f/{here:.3g} by its EXIF, the photo at f/{there:.3g}, wanted {wanted}"
            )
        if "lens" in told and len({name.casefold() for name in told["lens"]}) > 1:
            notes.append(
                "frame {!r} was taken with the lens {!r}, the photo with {!r}".format(frame.name, *told["lens"])
            )
        if "stops" in told and abs(brighter := told["stops"][0] - told["stops"][1]) > _EXPOSURE_STOPS:
            notes.append(
                f"frame {frame.name!r} is exposed {abs(brighter):.1f} stops {'more' if brighter > 0 else 'less'} than "
                "the photo by its EXIF; that is evened out except where a picture is black or white"
            )
    return notes


def _ratio(pair: tuple[float, float]) -> float:
    return max(pair) / min(pair)


def _contradiction(frame: Exposure, photo: Exposure, form: str, pair: tuple, wanted: str) -> InputError:
    here, there = (form.format(value) for value in pair)
    return InputError(
        f"stack has the frame {frame.name!r} whose EXIF says {here}, and the photo {photo.name!r} says {there}, "
        f"wanted {wanted}."
    )


def check_pictures(
    photo: Exposure,
    frames: Sequence[Exposure],
    bokeh_strengths: Sequence[float],
    photo_bokeh_strength: float,
    *,
    labels: Sequence[str],
    depends_on_blur: bool,
) -> list[str]:
    """Hold the pictures against each other and against their labels.

    Args:
        photo: the sharp photo.
        frames: (F,) the wider frames, of the photo's size.
        bokeh_strengths: (F,) K of each; a frame with K = 0 may be the photo itself.
        photo_bokeh_strength: K0 of the photo, 0 where nothing tells it.
        labels: (F,) what sentences call the strength of each, as the caller knows it.
        depends_on_blur: whether depth is computed from the measured blur, so that blur which contradicts the labels
            is refused and no mere sentence.

    Returns:
        Sentences on what is odd.

    Raises:
        InputError: two pictures are one, a frame shows another scene, or (``depends_on_blur``) a frame is sharper
            than the photo or blur does not grow with the labels.
    """
    blurred = [index for index, strength in enumerate(bokeh_strengths) if strength > photo_bokeh_strength]
    frames, strengths, labels = ([values[index] for index in blurred] for values in (frames, bokeh_strengths, labels))
    if not frames:
        return []
    notes = _copies(photo, frames)
    severe = []
    for frame in frames:
        notes += _scene_notes(photo, frame)
        for found, more in zip((severe, notes), _sharpness_notes(photo, frame), strict=True):
            found += more
    slopes = relative_strengths(strengths, photo_bokeh_strength)
    for found, more in zip((severe, notes), _growth_notes(photo, frames, slopes, labels), strict=True):
        found += more
    if severe and depends_on_blur:
        raise InputError(f"stack has the {severe[0]}.")
    return notes + severe


def _copies(photo: Exposure, frames: Sequence[Exposure]) -> list[str]:
    notes = []
    for one, other in itertools.combinations((photo, *frames), 2):
        if one.digest != other.digest:
            continue
        of_one = f"those of the photo {one.name!r}" if one is photo else f"those of {one.name!r}"
        # Blur of less than half a pixel makes no difference to a picture without noise.
        if None in (one.f_number, other.f_number) or one.f_number == other.f_number:
            raise InputError(f"stack has the frame {other.name!r} whose pixels are {of_one}, wanted each frame once.")
        notes.append(f"frame {other.name!r} has the same pixels as {one.name!r}: it adds nothing")
    return notes


def _grey(picture: np.ndarray) -> np.ndarray:
    return picture.mean(axis=2, dtype=np.float32)


def _scene_notes(photo: Exposure, frame: Exposure) -> list[str]:
    """Compare what is coarser than the blur, wherever in the frame it lies: another scene, or a camera that moved."""
    details = []
    for picture in (photo.small, frame.small):
        grey = _grey(picture)
        band = ndimage.gaussian_filter(grey, _FINE_PX) - ndimage.gaussian_filter(grey, _COARSE_PX)
        band -= band.mean()
        details.append(band)
    if details[0].std() < _LEAST_CONTRAST:
        return []
    product = math.prod(float(np.linalg.norm(band)) for band in details)
    spectra = [scipy.fft.rfft2(band, [2 * size for size in band.shape], workers=1) for band in details]
    correlation = scipy.fft.irfft2(spectra[1] * spectra[0].conj(), [2 * size for size in details[0].shape], workers=1)
    reach = [int(_LARGEST_SHIFT_SHARE * size) for size in details[0].shape]
    near = np.roll(correlation, reach, axis=(0, 1))[: 2 * reach[0] + 1, : 2 * reach[1] + 1] / max(product, 1e-12)
    row, column = np.unravel_index(near.argmax(), near.shape)
    if near[row, column] < _OTHER_SCENE:
        raise InputError(
            f"stack has the frame {frame.name!r}, which does not show the scene of the photo {photo.name!r}, wanted "
            "frames of one scene from one place."
        )
    shift = math.hypot(row - reach[0], column - reach[1])
    if shift > _SHIFT_PX and shift * photo.reduction > LARGEST_SHIFT_PX:
        return [
            f"frame {frame.name!r} is shifted by about {shift * photo.reduction:.0f} px against the photo: the camera "
            "moved, and depth suffers"
        ]
    if near[row, column] < _DOUBTFUL_SCENE:
        return [f"frame {frame.name!r} differs from the photo by more than blur: something moved, and depth suffers"]
    return []


def _sharpness_notes(photo: Exposure, frame: Exposure) -> tuple[list[str], list[str]]:
    """Compare details cell by cell: what a wider aperture contradicts, and what a focus that moved would explain.

    Details of the two are multiplied, so that noise, which they do not share, makes neither of them sharper.
    """
    grey, other = _grey(photo.small), _grey(frame.small)
    other = other * (grey.mean() / max(float(other.mean()), 1e-3))
    sharper, softer = (np.zeros([size // _CELL_PX for size in grey.shape], dtype=bool) for _ in range(2))
    for width_px in _DETAILS_PX:
        before, after = (picture - ndimage.gaussian_filter(picture, width_px) for picture in (grey, other))
        own, others, common = (_cell_means(product) for product in (before**2, after**2, before * after))
        sharper |= (own > _CELL_CONTRAST**2) & (common > _SHARPER * own)
        softer |= (others > _CELL_CONTRAST**2) & (common > _SHARPER * others)
    sharper, softer = (float(np.mean(cells)) for cells in (sharper & ~softer, softer & ~sharper))
    if sharper < _SHARPER_SHARE:
        return [], []
    if sharper < 2 * softer:
        return [], [f"frame {frame.name!r} is partly sharper than the photo and partly not: the focus may have moved"]
    return [
        f"frame {frame.name!r}, which is sharper than the photo {photo.name!r}, wanted the sharpest frame as the photo"
    ], []


def _cell_means(values: np.ndarray) -> np.ndarray:
    rows, columns = (size // _CELL_PX for size in values.shape)
    cut = values[: rows * _CELL_PX, : columns * _CELL_PX]
    return cut.reshape(rows, _CELL_PX, columns, _CELL_PX).mean(axis=(1, 3))


def _growth_notes(
    photo: Exposure, frames: Sequence[Exposure], slopes: np.ndarray, labels: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Measure the blur of each frame by itself and compare it between frames: what is inverted, and what is off."""
    # One strength for all: the radii that are found do not depend on the labels.
    bracket = make_bracket(photo.small, [frame.small for frame in frames], np.ones(len(frames)), 0.0, None)
    per_dpt_px = float(bracket.slopes_px[0])
    fit = fit_offsets(bracket, [[index] for index in range(len(frames))], _LARGEST_RADIUS_PX / per_dpt_px)
    radii_px = fit.offset_dpt * per_dpt_px
    sure = fit_confidence(fit.std_dpt * per_dpt_px, radii_px, fit.misfit, fit.at_end) >= _CONFIDENT
    inverted, odd = [], []
    for narrow, wide in itertools.combinations(np.argsort(slopes), 2):
        growth = slopes[narrow] / slopes[wide]
        speak = sure[narrow] & sure[wide] & (np.maximum(radii_px[narrow], radii_px[wide]) >= _SEEN_RADIUS_PX)
        if speak.mean() < _LEAST_SHARE:
            continue
        small, large = radii_px[narrow][speak], radii_px[wide][speak]
        told = [f"{frames[index].name!r} ({labels[index]})" for index in (narrow, wide)]
        if np.mean(small > large + np.maximum(0.5, 0.15 * large)) > _MOST:
            inverted.append(
                f"frame {told[0]}, which is blurred more than the frame {told[1]}, wanted blur that grows with the "
                "labels, in the order of the frames"
            )
            continue
        wider = large >= np.median(large)
        measured, radius_px = float(np.median(small[wider] / large[wider])), float(np.median(large[wider]))
        off = abs(measured - growth)
        if off * radius_px > _OFF_PX and off > _OFF_SHARE * max(measured, growth):
            times = 1 / max(measured, 0.5 / radius_px)
            odd.append(
                f"frame {told[1]} is blurred {times:.2g} times as much as the frame {told[0]}, where their labels "
                f"say {1 / growth:.2g}: a label may be wrong"
            )
    return inverted, odd

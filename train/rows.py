"""Rows of manifests (bokehdepth.manifest) as training batches of both stages.

K belongs to the width of a picture, so a crop changes it: the radius in pixels stays, and
`K_crop = K * width / crop_width` in the photo's pixels. Rows whose K would leave the trained range are not used.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as fn
from PIL import Image
from scipy import ndimage

from bokehdepth.camera.lens import MAX_BOKEH_STRENGTH
from bokehdepth.errors import InputError
from bokehdepth.files.photos import open_photo, upright_size_px
from bokehdepth.manifest import ManifestRow, read_manifest
from bokehdepth.processing_bokehdepth import resize, to_pixels
from bokehdepth.rendering.aperture import MAX_RADIUS_PX
from bokehdepth.rendering.refocus import render_from_depth, signed_radius_px
from train.checkpointing import step_rng
from train.config import ManifestConfig, PhaseConfig, Stage1Config, Stage2Config
from train.data import (
    chosen_frames,
    colour_matrix,
    is_text_step,
    lone_samples,
    recoloured,
    strength_drops,
    told_strength,
)
from train.evaluation.samples import read_depth as read_depth_file
from train.prompts import Prompts
from train.row_checks import UnusableError, checked, outcome, redrawn, sorted_out, told, unusable

logger = logging.getLogger("train.rows")
MULTIPLE_PX = 16
_LONGEST = 2.0  # aspect ratio of the longest bucket
_FOREGROUND = 0.5


# ---------------------------------------------------------------------- files


def load_rows(cfg: ManifestConfig) -> list[ManifestRow]:
    """All rows of the chosen splits, in the files' order.

    Raises:
        InputError: as `read_manifest` says, no row is left, or the rows' K have two units.
    """
    rows = [row for name in cfg.files for row in read_manifest(os.path.expandvars(name))]
    rows = [row for row in rows if (row.split or "train") in cfg.splits]
    if not rows:
        raise InputError(f"files is {cfg.files}, which have no row of splits {cfg.splits}; wanted at least one.")
    units = {row.strength_unit for row in rows} - {None}
    if len(units) > 1:
        raise InputError(f"files is {cfg.files}, whose rows have metric and relative K; wanted one unit in a run.")
    return rows


@cache
def picture_size(path: Path) -> tuple[int, int]:
    """Height and width in px of a photo turned upright, from its header; InputError as `upright_size_px` says."""
    return upright_size_px(path)[::-1]


def load_picture(path: Path) -> torch.Tensor:
    """A picture as (1, 3, H, W) in [0, 1]."""
    return to_pixels(open_photo(path).image, str(path))


def read_depth(row: ManifestRow) -> np.ndarray:
    """Depth of a row's photo, float32 (H, W): metres, or 1 / relative disparity; NaN where there is no value.

    Raises:
        InputError: the file cannot be read as depth of the photo's size, or has no value at all.
    """
    depth = read_depth_file(row.depth_path, row.depth_scale, "m" if row.depth_unit == "m" else "dpt")
    if depth.shape != picture_size(row.image_path):
        wanted = picture_size(row.image_path)
        raise InputError(f"row {row.row_id}: {row.depth_path} is {depth.shape}; wanted the photo's {wanted} px.")
    if not np.isfinite(depth).any():
        raise InputError(f"row {row.row_id}: {row.depth_path} has no value above 0; wanted depth.")
    return depth


def read_mask(row: ManifestRow) -> np.ndarray:
    """What is marked in a row's photo, bool (H, W).

    Raises:
        InputError: the file cannot be read, or is not of the photo's size.
    """
    try:
        with Image.open(row.mask_path) as image:
            mask = np.asarray(image.convert("L")) > 255 * _FOREGROUND
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise InputError(f"row {row.row_id}: {row.mask_path} is no picture that can be read ({error}).") from error
    wanted = picture_size(row.image_path)
    if mask.shape != wanted:
        raise InputError(f"row {row.row_id}: {row.mask_path} is {mask.shape}; wanted the photo's {wanted} px.")
    return mask


def can_be_rendered(row: ManifestRow) -> bool:
    """Whether a row has what refocusing needs: photo, depth, and a focus (stated, or that of its foreground)."""
    camera = row.camera_anns
    stated = camera is not None and (camera.focus_distance_m or camera.focus_relative_disparity)
    return row.image_path is not None and row.depth_path is not None and bool(stated or row.mask_path)


def focus_of(row: ManifestRow, depth: np.ndarray) -> float:
    """Where a row's photo is in focus, in the unit of `depth`: as it states, else the foreground's median."""
    camera = row.camera_anns
    if camera is not None and camera.focus_distance_m:
        return camera.focus_distance_m
    if camera is not None and camera.focus_relative_disparity:
        return 1 / camera.focus_relative_disparity
    inside = depth[read_mask(row) & np.isfinite(depth)]
    if inside.size == 0:
        raise InputError(f"row {row.row_id}: {row.mask_path} covers no depth; wanted a foreground.")
    return float(1 / np.median(1 / inside))


def check_pictures(row: ManifestRow) -> None:
    """Decodes every picture of a row as training does.

    Raises:
        UnusableError: one cannot be read, or differs in size from the others.
    """
    paths = [path for path in (row.image_path, row.target_path) if path is not None]
    for path in (*paths, *(frame.image_path for frame in row.stack)):
        with unusable("a picture cannot be read"):
            open_photo(path)
            if picture_size(path) != picture_size(paths[0]):
                words = "photo and target differ in size" if path in paths else "frame and photo differ in size"
                raise UnusableError(words, f"{path.name}: {picture_size(path)} px, photo {picture_size(paths[0])} px")


def check_blur(depth: np.ndarray, strength: float, focus: float) -> None:
    """Refuses depth whose blur the renderer cannot do.

    Args:
        depth: (H, W) at the size that is rendered; holes do not count.
        strength: the largest K that may be drawn.
        focus: in the unit of the depth.

    Raises:
        UnusableError: nothing has a value, or a blur is too wide.
    """
    known = np.isfinite(depth)
    if not known.any():
        raise UnusableError("no depth inside the crop")
    with unusable(f"blur at K = {strength:g} is wider than the renderer's {MAX_RADIUS_PX} px"):
        signed_radius_px(np.where(known, depth, depth[known][0]), strength, focus)


def fill_holes(depth: np.ndarray) -> np.ndarray:
    """Gives every pixel without a value, NaN or infinite, that of the nearest one that has one, where any has."""
    hole = ~np.isfinite(depth)
    if not hole.any() or hole.all():
        return depth
    nearest = ndimage.distance_transform_edt(hole, return_distances=False, return_indices=True)
    return depth[tuple(nearest)]


def rendered(photo: torch.Tensor, depth: np.ndarray, strengths: Sequence[float], focus: float) -> torch.Tensor:
    """Frames (F, 3, H, W) of a photo (3, H, W) through the lens; without any depth they are the photo.

    Args:
        photo: in [0, 1].
        depth: (H, W), NaN where it is not known.
        strengths: (F,) K.
        focus: in the unit of the depth.
    """
    if not np.isfinite(depth).any():
        return photo.expand(len(strengths), -1, -1, -1)
    picture = np.ascontiguousarray(photo.permute(1, 2, 0).numpy())
    whole = fill_holes(depth)
    frames = [render_from_depth(picture, whole, float(strength), focus) for strength in strengths]
    return torch.stack([torch.from_numpy(frame).permute(2, 0, 1) for frame in frames])


# ---------------------------------------------------------------------- geometry


def bucket_sizes(side_px: int) -> list[tuple[int, int]]:
    """Sizes (height, width) of about `side_px`^2 pixels with sides that are multiples of 16, up to 2 : 1."""
    found = set()
    for height in range(MULTIPLE_PX, 4 * side_px, MULTIPLE_PX):
        width = MULTIPLE_PX * round(side_px**2 / height / MULTIPLE_PX)
        if width and 1 / _LONGEST <= height / width <= _LONGEST:
            found.add((height, width))
    return sorted(found)


def _buckets(phase: PhaseConfig) -> list[tuple[int, int]]:
    return bucket_sizes(phase.size_px) if phase.buckets else [(phase.size_px, phase.size_px)]


def nearest_bucket(size: tuple[int, int], buckets: list[tuple[int, int]]) -> tuple[int, int]:
    """The bucket whose aspect ratio is nearest, in logarithms, to that of a picture (height, width)."""
    aspect = math.log(size[1] / size[0])
    return min(buckets, key=lambda b: (abs(math.log(b[1] / b[0]) - aspect), b))


@dataclass(frozen=True)
class Crop:
    """A part of a photo, enlarged or reduced to a size.

    Args:
        top: first row.
        left: first column.
        height: rows.
        width: columns.
        size: (height, width) that it gets.
    """

    top: int
    left: int
    height: int
    width: int
    size: tuple[int, int]

    def of(self, pixels: torch.Tensor) -> torch.Tensor:
        """Cuts and resizes a picture (1, 3, H, W)."""
        part = pixels[..., self.top : self.top + self.height, self.left : self.left + self.width]
        return resize(part, *self.size)

    def of_depth(self, depth: np.ndarray) -> np.ndarray:
        """Cuts and resizes a depth map (H, W) without mixing its values."""
        part = torch.from_numpy(depth[self.top : self.top + self.height, self.left : self.left + self.width])
        return fn.interpolate(part[None, None], size=self.size, mode="nearest-exact")[0, 0].numpy()

    def strength(self, bokeh_strength: float, full_width: int) -> float:
        """K at the crop's width of a K at the photo's."""
        return bokeh_strength * full_width / self.width

    def intrinsics(self, row: ManifestRow) -> torch.Tensor:
        """(3, 3) of the row's photo, in pixels of the crop."""
        given = row.intrinsics
        x, y = self.size[1] / self.width, self.size[0] / self.height
        return torch.tensor(
            [
                [given.fx * x, 0.0, (given.cx - self.left) * x],
                [0.0, given.fy * y, (given.cy - self.top) * y],
                [0.0, 0.0, 1.0],
            ]
        )


def centre_crop(size: tuple[int, int], wanted: tuple[int, int]) -> Crop:
    """The largest part in the middle of a photo (height, width) that has the aspect ratio of `wanted`."""
    scale = min(size[0] / wanted[0], size[1] / wanted[1])
    height, width = min(size[0], round(wanted[0] * scale)), min(size[1], round(wanted[1] * scale))
    return Crop((size[0] - height) // 2, (size[1] - width) // 2, height, width, wanted)


def _source(seed: int, step: int, number: int, attempt: int) -> np.random.Generator:
    """The random source of a sample, and others for the further draws of one whose row cannot be read."""
    return step_rng(seed, step, number, *((2, attempt) if attempt else ()))


# ---------------------------------------------------------------------- Stage-1


@dataclass(frozen=True)
class _Index:
    """Numbers of the rows that a phase can use, by bucket, for each use."""

    edited: dict[tuple[int, int], list[int]] = field(default_factory=dict)
    rendered: dict[tuple[int, int], list[int]] = field(default_factory=dict)
    photographed: dict[tuple[int, int], list[int]] = field(default_factory=dict)


class RowPairs:
    """Stage-1 batches from manifests.

    Image-to-image: captured pairs, really loaded, and renders at a random K of photos with depth and focus.
    Text-to-image, in alternation: real defocused photos with their K, and groups of one sharp photo (K = 0, the
    pivot) with renders of it that share augmentation, caption, noise and noise level.

    Args:
        cfg: of the run.
        prompts: encoded captions; None for a run without.
    """

    def __init__(self, cfg: Stage1Config, prompts: Prompts | None) -> None:
        self.cfg, self.prompts = cfg, prompts
        self.group = 1 + cfg.manifests.renders
        rows = load_rows(cfg.manifests)
        good, self.left_out = sorted_out(rows, checked(rows, self._check), "altogether")
        self.rows = [row for row, _ in good]
        for size in sorted({size for _, sizes in good for size in sizes}):
            bad = [(row, sizes[size]) for row, sizes in good if sizes.get(size)]
            self.left_out += told(bad, f"where {size[1]} x {size[0]} px are rendered")
        self.rendered = [{size for size, error in sizes.items() if error is None} for _, sizes in good]
        self.indices = {phase: self._index(phase) for phase in cfg.phases}

    def _check(self, row: ManifestRow) -> dict[tuple[int, int], UnusableError | None]:
        """For each size that a row is cut to, whether it can be rendered there; none where it never can."""
        check_pictures(row)
        if not can_be_rendered(row):
            return {}
        size = picture_size(row.image_path)
        sizes = {nearest_bucket(size, _buckets(phase)) for phase in self.cfg.phases}
        try:
            with unusable("depth cannot be used"):
                depth = read_depth(row)
            with unusable("the foreground mask cannot be used"):
                focus = focus_of(row, depth)
        except UnusableError as error:
            return dict.fromkeys(sizes, error)
        crops = {bucket: centre_crop(size, bucket).of_depth(depth) for bucket in sizes}
        return {bucket: outcome(check_blur, crop, MAX_BOKEH_STRENGTH, focus) for bucket, crop in crops.items()}

    def _index(self, phase: PhaseConfig) -> _Index:
        buckets, index, lost = _buckets(phase), _Index(), 0
        for number, row in enumerate(self.rows):
            size = picture_size(row.image_path or row.target_path)
            bucket = nearest_bucket(size, buckets)
            known, rendered_here = self._is_known(row, bucket, size), bucket in self.rendered[number]
            lost += row.target_path is not None and not known
            pair = known and row.image_path is not None
            uses = (index.photographed, known), (index.rendered, rendered_here), (index.edited, rendered_here or pair)
            for use, fits in uses:
                if fits:
                    use.setdefault(bucket, []).append(number)
        if lost:
            logger.info("%d targets are left out at %d px: their K is above 30 after the crop", lost, phase.size_px)
        share = self.cfg.text_share(phase)
        why = f" ({self.left_out})" if self.left_out else ""
        if share < 1 and not index.edited:
            raise InputError(f"manifests have neither pairs nor rows that can be rendered{why}; wanted some to edit.")
        if share > 0 and not (index.photographed or index.rendered):
            raise InputError(f"manifests have no row for text-to-image steps{why}; wanted targets or depth and focus.")
        if share > 0 and index.rendered and phase.batch % self.group:
            raise InputError(
                f"batch is {phase.batch} in a phase with text-to-image steps; wanted a multiple of {self.group}, the "
                "pictures of one group (manifests.renders and the sharp photo)."
            )
        return index

    def _is_known(self, row: ManifestRow, bucket: tuple[int, int], size: tuple[int, int]) -> bool:
        """Whether a row has a target whose K stays in the trained range after the crop."""
        return row.target_path is not None and self._strength(row, bucket, size) <= MAX_BOKEH_STRENGTH

    def _strength(self, row: ManifestRow, bucket: tuple[int, int], size: tuple[int, int]) -> float:
        return centre_crop(size, bucket).strength(row.camera_anns.bokeh_strength, size[1])

    def __call__(
        self, step: int, phase: PhaseConfig, numbers: np.ndarray, samples: int | None = None
    ) -> dict[str, Any]:
        """Draws a batch; as `PoolPairs` says, without offsets, and with prompt embeddings where there are captions."""
        index, seed = self.indices[phase], self.cfg.seed
        text = is_text_step(step, self.cfg.text_share(phase))
        common = step_rng(seed, step)  # what all samples and all processes share: kind and bucket
        grouped = text and bool(index.rendered) and (not index.photographed or common.random() < 0.5)
        kind = (index.rendered if grouped else index.photographed) if text else index.edited
        sizes = sorted(kind)
        weights = np.array([len(kind[size]) for size in sizes], float)
        bucket = sizes[common.choice(len(sizes), p=weights / weights.sum())]
        samples = []
        for number in map(int, numbers):

            def draw(attempt: int, number: int = number) -> dict[str, Any]:
                rng = _source(seed, step, number // self.group if grouped else number, attempt)
                row = kind[bucket][rng.integers(len(kind[bucket]))]
                return self._sample(row, bucket, rng, text, number % self.group if grouped else None)

            samples.append(redrawn(draw))
        place = torch.arange(len(samples))
        member = torch.from_numpy(numbers % self.group) if grouped else torch.zeros_like(place)
        grounded = torch.tensor([bool(sample.pop("grounded")) for sample in samples])
        batch: dict[str, Any] = {name: torch.stack([s[name] for s in samples]) for name in samples[0]}
        batch["text_to_image"] = text
        batch["drop_strength"] = strength_drops(self.cfg, step, numbers, text)
        batch["pivot_rows"] = torch.where(grounded, place - member, place)
        return batch

    def _sample(
        self, number: int, bucket: tuple[int, int], rng: np.random.Generator, text: bool, member: int | None
    ) -> dict[str, Any]:
        """One sample of a row; the members of a group get equal generators and use them alike up to their own K."""
        row = self.rows[number]
        size = picture_size(row.image_path or row.target_path)
        crop = centre_crop(size, bucket)
        seed = torch.tensor(int(rng.integers(2**62)))
        mirrored, grounded = rng.random() < 0.5, rng.random() < self.cfg.grounded_share
        prompt = self._prompt(row, rng, text)
        pair = self._is_known(row, bucket, size) and row.image_path is not None
        share = rng.random()
        if member is not None:
            render = True
        elif text:
            render = False
        else:
            render = bucket in self.rendered[number] and (not pair or share < self.cfg.manifests.rendered_share)
        draws = rng.uniform(self.cfg.manifests.min_strength, MAX_BOKEH_STRENGTH, size=self.group)
        if render:
            image = crop.of(load_picture(row.image_path))
            strength = 0.0 if member == 0 else float(draws[0 if member is None else member])
            depth = read_depth(row)  # at K = 0 too: a group reads the same files
            target = rendered(image[0], crop.of_depth(depth), [strength], focus_of(row, depth))
        else:
            target, strength = crop.of(load_picture(row.target_path)), self._strength(row, bucket, size)
            image = target if text else crop.of(load_picture(row.image_path))
        if mirrored:
            image, target = image.flip(-1), target.flip(-1)
        sample = {"image": image[0], "target": target[0], "strength": torch.tensor(strength), "seed": seed}
        return {**sample, **prompt, "grounded": grounded and member is not None}

    def _prompt(self, row: ManifestRow, rng: np.random.Generator, text: bool) -> dict[str, torch.Tensor]:
        chosen, dropped = rng.random(), rng.random() < self.cfg.prompts.caption_dropout
        if self.prompts is None:
            return {}
        if row.captions and not dropped:
            return self.prompts.look_up(row.captions[int(chosen * len(row.captions))])
        return self.prompts.look_up("" if text else None)

    def looks(self, count: int, size_px: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The first photos (B, 3, H, W), cut square, for sample grids; offsets are not known for all rows."""
        rows = [row for row in self.rows if row.image_path is not None][:count]
        rows = rows or self.rows[:count]
        paths = [row.image_path or row.target_path for row in rows]
        crops = [centre_crop(picture_size(path), (size_px, size_px)) for path in paths]
        return torch.cat([c.of(load_picture(p)) for c, p in zip(crops, paths, strict=True)]), None


# ---------------------------------------------------------------------- Stage-2


class RowStacks:
    """Stage-2 batches from manifests: photo, stack, K, depth in metres, and intrinsics where every row has them.

    Args:
        cfg: of the run.
    """

    def __init__(self, cfg: Stage2Config) -> None:
        self.cfg = cfg
        rows = [row for row in load_rows(cfg.manifests) if row.depth_path is not None]
        if not rows:
            raise InputError("manifests have no row with a depth; wanted depth to learn from.")
        for row in rows:
            self._check_kind(row, rows[0])
        good, left_out = sorted_out(rows, checked(rows, self._check), "altogether")
        self.rows = [row for row, _ in good]
        if not self.rows:
            raise InputError(f"manifests have no row to learn from ({left_out}); wanted at least one.")
        lacking = [row.row_id for row in self.rows if row.intrinsics is None]
        self.has_intrinsics, self.without_intrinsics = not lacking, f"row {lacking[0]}" if lacking else None

    def _check_kind(self, row: ManifestRow, first: ManifestRow) -> None:
        """Refuses manifests of another kind than the configuration is for."""
        if row.depth_unit == "relative_disparity":
            raise InputError(f"row {row.row_id} has relative depth; wanted metric depth for Stage-2.")
        if self.cfg.stack == "stage1" and not row.stack:
            raise InputError(f"row {row.row_id} has no stack; wanted one, see train.stacks.")
        if self.cfg.stack == "renderer" and not can_be_rendered(row):
            raise InputError(f"row {row.row_id} has no focus; wanted s1 or a foreground mask for stack renderer.")
        strengths, wanted = self._strengths(row), self.cfg.augment.frames
        counts = {len(self._strengths(other)) for other in (row, first)}
        if wanted is None and len(counts) > 1:
            raise InputError(f"row {row.row_id} has {len(strengths)} frames; wanted equally many, or augment.frames.")
        if wanted is not None and wanted > len(strengths):
            raise InputError(f"row {row.row_id} has {len(strengths)} frames; wanted {wanted}, as augment.frames says.")

    def _check(self, row: ManifestRow) -> None:
        """Reads a row's files: all that it states has to be right, used or not, so that controls draw equal rows."""
        cfg = self.cfg
        check_pictures(row)
        if self._smallest(row) > min(picture_size(row.image_path)):
            words = "K is above 30 after any square crop, wanted fewer frames (augment.frames) or smaller K"
            raise UnusableError(words, f"{words}: {self._strengths(row)}")
        with unusable("depth cannot be used"):
            depth = read_depth(row)
        if not ((depth >= cfg.min_depth_m) & (depth <= cfg.max_depth_m)).any():
            reason = f"no depth from {cfg.min_depth_m:g} to {cfg.max_depth_m:g} m"
            raise UnusableError(reason, f"{row.depth_path.name}: {np.nanmin(depth):g} to {np.nanmax(depth):g} m")
        if can_be_rendered(row):
            with unusable("the foreground mask cannot be used"):
                focus = focus_of(row, depth)
            ends = np.array([[np.nanmin(depth)], [np.nanmax(depth)]], np.float32)
            check_blur(ends.repeat(cfg.size_px, axis=1), max(cfg.strengths), focus)

    def _strengths(self, row: ManifestRow) -> list[float]:
        return [frame.bokeh_strength for frame in row.stack] or self.cfg.strengths

    def _smallest(self, row: ManifestRow) -> int:
        """Smallest side of a square crop in px at which enough frames of the row's stack stay in the trained range."""
        if not row.stack:
            return 1
        needed = self._strengths(row)[(self.cfg.augment.frames or len(row.stack)) - 1]
        return math.ceil(needed * picture_size(row.image_path)[1] / MAX_BOKEH_STRENGTH)

    def __call__(
        self, step: int, phase: PhaseConfig, numbers: np.ndarray, samples: int | None = None
    ) -> dict[str, Any]:
        """Draws a batch; as `PoolStacks` says, with intrinsics (B, 3, 3) in pixels where all rows have them."""

        def draw(number: int, attempt: int) -> dict[str, torch.Tensor]:
            rng = _source(self.cfg.seed, step, number, attempt)
            return self._sample(self.rows[rng.integers(len(self.rows))], rng)

        drawn = [redrawn(partial(draw, int(number))) for number in numbers]
        batch = {name: torch.stack([sample[name] for sample in drawn]) for name in drawn[0]}
        return batch | {"lone": lone_samples(self.cfg, step, numbers)}

    def _sample(self, row: ManifestRow, rng: np.random.Generator | None) -> dict[str, torch.Tensor]:
        """One sample, with neither augmentation nor chance where there is no generator."""
        cfg, size = self.cfg, picture_size(row.image_path)
        depth = read_depth(row)
        crop, mirrored = self._crop(row, rng, depth), rng is not None and rng.random() < 0.5 and cfg.augment.mirror
        image = crop.of(load_picture(row.image_path))
        if cfg.stack == "renderer":
            strengths = cfg.strengths
            bokeh = rendered(image[0], crop.of_depth(depth), strengths, focus_of(row, depth))
        else:
            strengths = [crop.strength(k, size[1]) if row.stack else k for k in self._strengths(row)]
            kept = [i for i, k in enumerate(strengths) if k <= MAX_BOKEH_STRENGTH]
            strengths = [strengths[i] for i in kept]
            if cfg.stack == "stage1":
                bokeh = torch.cat([crop.of(load_picture(row.stack[i].image_path)) for i in kept])
            else:
                bokeh = image.expand(len(kept), -1, -1, -1)
        strength = torch.tensor(strengths, dtype=torch.float32)
        metres = torch.from_numpy(crop.of_depth(depth))[None]
        sample = {}
        if self.has_intrinsics:
            matrix = crop.intrinsics(row)
            if mirrored:
                matrix[0, 2] = cfg.size_px - matrix[0, 2]
            sample["intrinsics"] = matrix
        if mirrored:
            image, bokeh, metres = image.flip(-1), bokeh.flip(-1), metres.flip(-1)
        if rng is not None:
            matrix = colour_matrix(rng, cfg.augment)
            image, bokeh = recoloured(image, matrix[None]), recoloured(bokeh[None], matrix[None])[0]
            chosen = chosen_frames(len(bokeh), rng, cfg.augment)
            bokeh, strength = bokeh[chosen], told_strength(strength[chosen], rng, cfg.augment)
        valid = torch.isfinite(metres) & (metres >= cfg.min_depth_m) & (metres <= cfg.max_depth_m)
        return {
            **sample,
            "image": image[0],
            "bokeh": bokeh,
            "strength": strength,
            "depth_m": torch.where(valid, metres, 1.0),
            "valid": valid,
        }

    def _crop(self, row: ManifestRow, rng: np.random.Generator | None, depth: np.ndarray) -> Crop:
        size, wanted = picture_size(row.image_path), (self.cfg.size_px, self.cfg.size_px)
        if rng is None:
            return centre_crop(size, wanted)
        shorter = min(size)
        low = max(self._smallest(row), math.ceil(self.cfg.augment.crop * shorter))
        side = int(rng.integers(min(low, shorter), shorter + 1))
        top, left = int(rng.integers(size[0] - side + 1)), int(rng.integers(size[1] - side + 1))
        crop = Crop(top, left, side, side, wanted)
        seen = crop.of_depth(depth)
        if not ((seen >= self.cfg.min_depth_m) & (seen <= self.cfg.max_depth_m)).any():
            return self._crop(row, None, depth)  # a hole fills it: the middle of the photo, which may count nothing
        return crop

    def looks(self, count: int) -> dict[str, torch.Tensor]:
        """The first rows as a batch without augmentation, for sample grids."""
        samples = [self._sample(row, None) for row in self.rows[:count]]
        frames = min(len(sample["strength"]) for sample in samples)
        for sample in samples:
            sample["bokeh"], sample["strength"] = sample["bokeh"][:frames], sample["strength"][:frames]
        return {name: torch.stack([s[name] for s in samples]) for name in samples[0]}

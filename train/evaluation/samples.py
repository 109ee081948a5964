"""Where evaluated photos come from: a manifest, a folder of RGB-D pairs, or a pool of procedural scenes.

A source is a sequence of `Sample`s that are read one at a time. Depth is in metres with NaN where there is none; what
a file does not state stays None.
"""

from __future__ import annotations

import argparse
import csv
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as fn
from PIL import Image

from bokehdepth.camera import read_camera
from bokehdepth.errors import InputError
from bokehdepth.files.depth_maps import load_depth
from bokehdepth.files.photos import open_photo
from bokehdepth.manifest import SPLITS, CameraAnns, Intrinsics, ManifestRow, read_manifest
from bokehdepth.processing_bokehdepth import resize
from train import config
from train.config import PoolConfig, Stage1Config, Stage2Config
from train.data import ScenePool

# What PIL and NumPy raise on files that are cut short, damaged or dressed up.
_READ_ERRORS = (
    *(OSError, ValueError, EOFError, SyntaxError, TypeError, KeyError, IndexError),
    *(struct.error, zlib.error, zipfile.BadZipFile),
)


@dataclass(frozen=True)
class Frame:
    """A picture of known bokeh strength.

    Attributes:
        bokeh_strength: K at 512 px width.
        picture: float32 (H, W, 3) display values in [0, 1].
    """

    bokeh_strength: float
    picture: np.ndarray


@dataclass(frozen=True)
class Sample:
    """One photo and the truth about it.

    Attributes:
        sample_id: names its results.
        scene: its cluster in intervals and tests.
        photo: float32 (H, W, 3) display values in [0, 1].
        depth_m: float32 (H, W), NaN where there is no value; of its own size where the photo was resized.
        focus_distance_m: S1 of the targets.
        targets: true bokeh pictures at ascending K.
        stack: frames that came with the photo, at ascending K.
        intrinsics: (3, 3) pinhole matrix in pixels of the photo.
        mask: bool (H, W), the subject.
        dataset: where it is from.
    """

    sample_id: str
    scene: str
    photo: np.ndarray
    depth_m: np.ndarray | None = None
    focus_distance_m: float | None = None
    targets: tuple[Frame, ...] = ()
    stack: tuple[Frame, ...] = ()
    intrinsics: np.ndarray | None = None
    mask: np.ndarray | None = None
    dataset: str | None = None

    def depth_of_photo_m(self) -> np.ndarray | None:
        """The depth at the photo's size, (H, W), by the nearest value."""
        if self.depth_m is None or self.depth_m.shape == self.photo.shape[:2]:
            return self.depth_m
        depth = torch.from_numpy(self.depth_m)[None, None]
        return fn.interpolate(depth, self.photo.shape[:2], mode="nearest-exact")[0, 0].numpy()

    def offset_dpt(self) -> np.ndarray | None:
        """True |1/S1 - 1/S2| (H, W) of the photo, 1/m, NaN where depth has no value; None without depth or focus."""
        depth_m = self.depth_of_photo_m()
        if depth_m is None or self.focus_distance_m is None:
            return None
        return np.abs(1 / self.focus_distance_m - 1 / depth_m.astype(np.float64))


class Source(Sequence[Sample]):
    """Samples by number, with their ids and scenes at hand without reading them.

    Attributes:
        description: one phrase for a table's header.
        ids: of the samples.
        scenes: of the samples.
    """

    description: str
    ids: list[str]
    scenes: list[str]

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[Sample]:
        return (self[number] for number in range(len(self)))


def read_picture(path: Path) -> np.ndarray:
    """A picture as float32 (H, W, 3) in [0, 1]; InputError as `open_photo` says."""
    return np.asarray(open_photo(path).image, dtype=np.float32) / 255


def read_depth(path: Path, scale: float | None, unit: str = "m") -> np.ndarray:
    """Metres of a depth file, NaN where it has no value (0, negative, NaN or infinite).

    Args:
        path: an image of one channel (8, 16 or 32 bit), a `.npy`, or a `.npz` with `depth_m` or `depth`.
        scale: factor from the stored value to `unit`; None where the file states its own, as `load_depth` reads it.
        unit: m, or dpt for inverse metres.

    Returns:
        float32 (H, W).

    Raises:
        InputError: the file is no such depth map, or the unit is another.
    """
    if unit not in ("m", "dpt"):
        raise InputError(f"`depth_unit` must be m or dpt (relative disparity has no metres), got {unit!r}.")
    if scale is None:
        stored = load_depth(path, unit="m").astype(np.float64)
    else:
        stored = _stored_values(path) * scale
    with np.errstate(divide="ignore", invalid="ignore"):
        depth_m = 1 / stored if unit == "dpt" else stored
        has_value = np.isfinite(stored) & (stored > 0) & np.isfinite(depth_m)
    return np.where(has_value, depth_m, np.nan).astype(np.float32)


def _stored_values(path: Path) -> np.ndarray:
    try:
        if path.suffix.lower() == ".npy":
            array = np.load(path, allow_pickle=False)
        elif path.suffix.lower() == ".npz":
            with np.load(path, allow_pickle=False) as file:
                array = file["depth_m" if "depth_m" in file.files else "depth"]
        else:
            with Image.open(path) as image:
                array = np.asarray(image)
    except _READ_ERRORS as error:
        raise InputError(f"`depth` must be a depth map, got {path.name!r}, which cannot be read ({error}).") from error
    if array.ndim != 2 or array.dtype.kind not in "uif":
        raise InputError(
            f"`depth` must be numbers of one channel (H, W), got {array.dtype} {array.shape} of {path.name!r}."
        )
    return array.astype(np.float64)


def rows_of_rgbd(folder: Path | str) -> list[ManifestRow]:
    """Rows of a folder of RGB-D pairs whose `index.csv` has id, rgb, depth, units_per_m and fx, fy, cx, cy.

    The scene of a pair is the folder of its photo: several frames of one recording are no independent scenes.

    Args:
        folder: with `index.csv`; its paths are relative to it.

    Returns:
        Rows with depth in metres and intrinsics, in the index's order.

    Raises:
        InputError: the index is missing, lacks a column, or names a file that is not there.
    """
    index = Path(folder) / "index.csv"
    if not index.is_file():
        raise InputError(f"`rgbd` must be a folder with an index.csv, got {str(folder)!r}.")
    rows = []
    with index.open(newline="", encoding="utf-8") as file:
        for number, line in enumerate(csv.DictReader(file), 2):
            try:
                photo, depth = (index.parent.absolute() / line[name] for name in ("rgb", "depth"))
                for path in (photo, depth):
                    if not path.is_file():
                        raise InputError(f"{path.name!r} is no file.")
                row = ManifestRow(
                    row_id=line["id"],
                    scene=Path(line["rgb"]).parent.as_posix(),
                    image_path=photo,
                    depth_path=depth,
                    depth_unit="m",
                    depth_scale=1 / float(line["units_per_m"]),
                    intrinsics=Intrinsics(*(float(line[name]) for name in ("fx", "fy", "cx", "cy"))),
                    dataset=Path(line["rgb"]).parent.as_posix(),
                    split="test",
                )
            except (KeyError, ValueError, ZeroDivisionError) as error:
                missing = "no column " if isinstance(error, KeyError) else ""
                raise InputError(
                    f"`rgbd` must have a right index.csv, got at line {number}: {missing}{error}"
                ) from error
            rows.append(row)
    if not rows:
        raise InputError(f"`rgbd` must have rows in its index.csv, got none in {str(folder)!r}.")
    return rows


class RowSource(Source):
    """Samples of manifest rows.

    Args:
        rows: with an all-in-focus photo each.
        description: for a table's header.

    Raises:
        InputError: a row has no all-in-focus photo.
    """

    def __init__(self, rows: Sequence[ManifestRow], description: str) -> None:
        for row in rows:
            if row.image_path is None:
                raise InputError(f"`input_image_path` must be in every row, got none in {row.row_id!r}.")
        self.rows, self.description = list(rows), description
        self.ids = [row.row_id for row in rows]
        self.scenes = [row.scene for row in rows]

    def __getitem__(self, number: int) -> Sample:
        """Reads one row's files; InputError where a picture or a depth map has another size than the photo."""
        row = self.rows[number]
        photo = read_picture(row.image_path)
        camera = row.camera_anns or CameraAnns()
        depth_m = None
        if row.depth_path is not None and row.depth_unit != "relative_disparity":
            depth_m = read_depth(row.depth_path, row.depth_scale, row.depth_unit)
        targets, stack = (), tuple(Frame(f.bokeh_strength, read_picture(f.image_path)) for f in row.stack)
        if row.target_path is not None:
            targets = (Frame(camera.bokeh_strength, read_picture(row.target_path)),)
        arrays = [("depth_map_path", depth_m)] if depth_m is not None else []
        mask = None
        if row.mask_path is not None:
            with Image.open(row.mask_path) as image:
                mask = np.asarray(image.convert("L")) > 127
            arrays.append(("fg_mask_path", mask))
        arrays += [("target_image_path", f.picture) for f in targets] + [("stack", f.picture) for f in stack]
        for key, array in arrays:
            if array.shape[:2] != photo.shape[:2]:
                raise InputError(
                    f"`{key}` must have the photo's {photo.shape[1]} x {photo.shape[0]} pixels, got "
                    f"{array.shape[1]} x {array.shape[0]} in row {row.row_id!r}."
                )
        pinhole = row.intrinsics
        matrix = None
        if pinhole is not None:
            matrix = np.array([[pinhole.fx, 0, pinhole.cx], [0, pinhole.fy, pinhole.cy], [0, 0, 1]])
        focus = camera.focus_distance_m
        return Sample(row.row_id, row.scene, photo, depth_m, focus, targets, stack, matrix, mask, row.dataset)


class PoolSource(Source):
    """Held-out scenes of a procedural pool; its renders are both the targets and the stack.

    Args:
        pool: as `train.data` rendered it.
        size_px: side of the pictures; None is the pool's own.
        split: train or held_out.
    """

    def __init__(self, pool: PoolConfig, size_px: int | None = None, split: str = "held_out") -> None:
        self.pool, self.size_px = ScenePool(pool, split), size_px or pool.size_px
        self.ids = [f"{number:05d}" for number in range(len(self.pool))]
        self.scenes = list(self.ids)
        self.description = f"{len(self.ids)} {split} procedural scenes of {self.size_px} px"

    def __getitem__(self, number: int) -> Sample:
        """One scene; the same arithmetic as training's batches, without augmentation."""
        batch = self.pool.batch(np.array([number]), self.size_px)
        pictures = torch.cat([batch["image"], batch["bokeh"][0]]).permute(0, 2, 3, 1).contiguous().numpy()
        strengths = batch["strength"][0].tolist()
        frames = tuple(Frame(k, picture) for k, picture in zip(strengths, pictures[1:], strict=True))
        focus = float(self.pool.tensors["focus_distance_m"][number])
        return Sample(
            self.ids[number], self.scenes[number], pictures[0], batch["depth_m"][0, 0].numpy(), focus, frames, frames
        )


class PhotoSource(Source):
    """Photos by their files, with the intrinsics that their EXIF states.

    Args:
        photos: path by the sample's id.
    """

    def __init__(self, photos: Mapping[str, Path]) -> None:
        self.photos, self.description = dict(photos), f"{len(photos)} photos"
        self.ids = self.scenes = list(photos)

    def __getitem__(self, number: int) -> Sample:
        """Reads one photo; InputError as `open_photo` says."""
        name = self.ids[number]
        photo = open_photo(self.photos[name])
        pixels = np.asarray(photo.image, dtype=np.float32) / 255
        return Sample(name, name, pixels, intrinsics=read_camera(photo).known_intrinsics)


class Prepared(Source):
    """Some samples of another source, with the photo at another size, or without the depths that do not count.

    The photo, its frames, mask and intrinsics are resized; the true depth keeps its own size, to which predictions are
    brought before they are scored.

    Args:
        source: the whole.
        longer_side_px: of the photo; None keeps its size.
        depth_range_m: smallest and largest depth that counts, both excluded; None keeps all.
        numbers: of the samples that are kept; None keeps all.

    Raises:
        InputError: one of them is no size or no range.
    """

    def __init__(
        self,
        source: Source,
        longer_side_px: int | None = None,
        depth_range_m: tuple[float, float] | None = None,
        numbers: Sequence[int] | None = None,
    ) -> None:
        if longer_side_px is not None and longer_side_px < 32:
            raise InputError(f"`longer_side_px` must be 32 or more, got {longer_side_px}.")
        if depth_range_m is not None and not 0 <= depth_range_m[0] < depth_range_m[1]:
            raise InputError(f"`depth_range_m` must be two ascending numbers, 0 or more, got {depth_range_m}.")
        self.source, self.longer_side_px, self.depth_range_m = source, longer_side_px, depth_range_m
        self.numbers = range(len(source)) if numbers is None else numbers
        self.ids = [source.ids[n] for n in self.numbers]
        self.scenes = [source.scenes[n] for n in self.numbers]
        self.description = source.description
        if len(self.numbers) < len(source):
            self.description = f"{len(self.numbers)} of {self.description}"
        if longer_side_px is not None:
            self.description += f", longer side {longer_side_px} px"
        if depth_range_m is not None:
            self.description += f", depth {depth_range_m[0]:g} to {depth_range_m[1]:g} m"

    def __getitem__(self, number: int) -> Sample:
        """Reads it from the whole and prepares it."""
        sample = self.source[self.numbers[number]]
        if self.depth_range_m is not None and sample.depth_m is not None:
            low, high = self.depth_range_m
            with np.errstate(invalid="ignore"):
                counts = (sample.depth_m > low) & (sample.depth_m < high)
            sample = replace(sample, depth_m=np.where(counts, sample.depth_m, np.float32(np.nan)))
        return sample if self.longer_side_px is None else self._resized(sample, self.longer_side_px)

    @staticmethod
    def _resized(sample: Sample, longer_side_px: int) -> Sample:
        height, width = sample.photo.shape[:2]
        scale = longer_side_px / max(height, width)
        size = (round(height * scale), round(width * scale))

        def at_size(picture: np.ndarray) -> np.ndarray:
            pixels = torch.from_numpy(np.ascontiguousarray(picture, dtype=np.float32)).permute(2, 0, 1)[None]
            return resize(pixels, *size)[0].permute(1, 2, 0).contiguous().numpy()

        def frames(kept: tuple[Frame, ...]) -> tuple[Frame, ...]:
            return tuple(Frame(frame.bokeh_strength, at_size(frame.picture)) for frame in kept)

        matrix, mask = sample.intrinsics, sample.mask
        if matrix is not None:
            matrix = matrix * np.array([[size[1] / width], [size[0] / height], [1.0]])
        if mask is not None:
            mask = at_size(np.repeat(mask[..., None], 3, axis=-1))[..., 0] > 0.5
        return replace(
            sample, photo=at_size(sample.photo), targets=frames(sample.targets), stack=frames(sample.stack),
            intrinsics=matrix, mask=mask,
        )  # fmt: skip


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that name a source; one of the first three is given."""
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument("--manifest", type=Path, metavar="FILE", help="rows of a JSONL manifest (bokehdepth.manifest)")
    group.add_argument("--rgbd", type=Path, metavar="FOLDER", help="RGB-D pairs with an index.csv")
    group.add_argument("--pool", type=Path, metavar="CONFIG", help="held-out scenes of the pool of a configuration")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change one value of CONFIG")
    parser.add_argument("--size", type=int, metavar="PX", help="side of a pool's pictures; its own where not given")
    parser.add_argument("--only", nargs="+", metavar="TEXT", help="only samples whose id begins with one of these")
    parser.add_argument("--dataset", nargs="+", metavar="NAME", help="only rows of these data sets")
    parser.add_argument("--split", nargs="+", choices=SPLITS, help="only rows of these splits")
    parser.add_argument("--limit", type=int, metavar="N", help="at most N samples, the first ones")
    parser.add_argument("--longer-side", type=int, metavar="PX", help="photos get this longer side before anything")
    parser.add_argument("--depth-range", type=float, nargs=2, metavar="M", help="only true depths between these count")


def pool_of(path: Path, changes: list[str]) -> PoolConfig:
    """The pool that a configuration of either stage names.

    Raises:
        InputError: it names none, or is the configuration of neither stage.
    """
    try:
        cfg = config.load(Stage1Config, path, changes)
    except ValueError as of_stage1:
        try:
            cfg = config.load(Stage2Config, path, changes)
        except ValueError as of_stage2:
            raise InputError(
                f"`pool` must be of one of the stages, got {path} ({of_stage1}; {of_stage2})."
            ) from of_stage2
    if cfg.pool is None:
        raise InputError(f"`pool` must be a configuration with a pool, got {path}.")
    return cfg.pool


def _chosen_rows(rows: list[ManifestRow], arguments: argparse.Namespace) -> list[ManifestRow]:
    """Rows of the data sets and splits that were asked for; InputError where one of them has none."""
    for key, names in (("dataset", arguments.dataset), ("split", arguments.split)):
        known = {getattr(row, key) for row in rows}
        for name in names or ():
            if name not in known:
                found = ", ".join(sorted(map(str, known)))
                raise InputError(f"`{key}` must be one of {found}, got {name!r}.")
        rows = [row for row in rows if not names or getattr(row, key) in names]
    return rows


def open_source(arguments: argparse.Namespace) -> Source:
    """The source that `add_source_arguments` were given for; InputError where nothing is left of it."""
    if arguments.pool is not None:
        if arguments.dataset or arguments.split:
            raise InputError("`dataset` and `split` must stay away from a pool, whose scenes have none, got one.")
        source: Source = PoolSource(pool_of(arguments.pool, arguments.set), arguments.size)
    else:
        rows = read_manifest(arguments.manifest) if arguments.manifest else rows_of_rgbd(arguments.rgbd)
        rows = _chosen_rows(rows, arguments)
        home = f"rows of {arguments.manifest.name}" if arguments.manifest else (
            f"RGB-D pairs of {arguments.rgbd.resolve().name}"
        )  # fmt: skip
        named = f" ({', '.join(arguments.dataset)})" if arguments.dataset else ""
        source = RowSource(rows, f"{len(rows)} {home}{named}")
    if arguments.limit is not None and arguments.limit < 1:
        raise InputError(f"`limit` must be 1 or more, got {arguments.limit}.")
    numbers = [n for n, name in enumerate(source.ids) if name.startswith(tuple(arguments.only or [""]))]
    if not numbers:
        raise InputError(f"`only` must be the beginning of an id, got {', '.join(arguments.only or [])}.")
    depth_range_m = tuple(arguments.depth_range) if arguments.depth_range else None
    return Prepared(source, arguments.longer_side, depth_range_m, numbers[: arguments.limit])

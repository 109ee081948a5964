"""Turns a folder of real photos with depth or subject masks into two manifests, to train on and to evaluate on.

`python -m datasets_scripts.real_photos RAW -o OUT` reads `RAW/index.csv`, one line a photo: `id`, `use` (train or
evaluate), `source`, `scene`, `rgb`, `depth`, `mask`, `depth_kind` (metric, relative disparity), `units_per_m`,
`fx fy cx cy w h` in px. It writes `OUT/train.jsonl` and `OUT/evaluate.jsonl` (`bokehdepth.manifest`) and beside them
the files that they name. Photos, masks and depth are copied as they are, but for NYU Depth V2, whose 8-bit steps are
taken out (`without_steps`). A line with neither depth nor mask is left out, as is a mask without a pixel of subject.

Relative disparity keeps what is unknown about it: of the sources that begin with `mvs_` one scale a picture, of the
others scale and shift. A run that was cut off goes on where it stopped; nothing is downloaded.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image, UnidentifiedImageError

from bokehdepth.errors import InputError, load_extra
from bokehdepth.files.atomic import remove_stale, write_file
from bokehdepth.manifest import Intrinsics, ManifestRow, write_manifest

STEPPED_SOURCE = "nyuv2_labeled"
"""Source whose depth has the steps of 8 bits: value = 2 * level + 1."""
FINENESS = 128
"""Parts into which a unit of that depth is divided when it is written again; 511 of them fit 16 bits."""
ROUNDS, DIAMETER_PX, SIGMA_VALUE, SIGMA_PX = 3, 7, 2.4, 3.0
MANIFESTS = {"train": "train", "evaluate": "test"}
"""Names of the manifests, and the split of their rows."""
_COLUMNS = ("id", "use", "source", "scene", "rgb", "depth", "mask", "depth_kind", "units_per_m", "fx", "fy", "cx",
            "cy", "w", "h")  # fmt: skip
_RECORD = "build.json"


def without_steps(values: np.ndarray) -> np.ndarray:
    """Depth of even steps as the smooth surface that was rounded to them.

    Three rounds of a bilateral filter; after each, a value stays in the step that it was in, so that rounding down to
    odd numbers gives the input back. A hole (0) stays a hole and is no neighbour of anything.

    Args:
        values: uint16 (H, W), odd, or 0 where depth is unknown.

    Returns:
        float32 (H, W) in units of the input.

    Raises:
        InputError: opencv is not installed, or the values are of another kind.
    """
    known = values > 0
    if values.dtype != np.uint16 or values.ndim != 2 or (values[known] % 2 == 0).any() or values.max() > 511:
        raise InputError("`values` must be odd numbers to 511, or 0, as uint16 (H, W), got others.")
    cv2 = load_extra("cv2", "train", "taking the steps out of depth")
    stored = values.astype(np.float32)
    # So far from every depth that the filter gives them no weight.
    stored[~known] = -1000.0
    smooth = stored
    for _ in range(ROUNDS):
        smooth = cv2.bilateralFilter(smooth, DIAMETER_PX, SIGMA_VALUE, SIGMA_PX)
        smooth = np.clip(smooth, stored - 1, stored + np.float32(0.999))
    return np.where(known, smooth, np.float32(0))


@dataclass(frozen=True)
class _Photo:
    """One line of the index.

    Attributes:
        line: its values by column.
        raw: folder of the index.
        output: folder of the manifests.
    """

    line: dict[str, str]
    raw: Path
    output: Path

    def _path(self, column: str) -> tuple[Path, Path]:
        """File of the raw folder, and the file written for it, under the same name."""
        name = PurePosixPath(self.line[column])
        own = {_RECORD, *(f"{use}.jsonl" for use in MANIFESTS)}
        if name.is_absolute() or not name.parts or ".." in name.parts or name.parts[0] in own:
            raise InputError(f"`{column}` must be a path inside the folder of index.csv, got {str(name)!r}.")
        return self.raw / name, self.output / name

    def _size(self, column: str, mode: tuple[str, ...]) -> None:
        """Checks a picture's size and mode by its header."""
        path, _ = self._path(column)
        wanted = (int(self.line["w"]), int(self.line["h"]))
        try:
            with Image.open(path) as image:
                size, found = image.size, image.mode
        except (OSError, UnidentifiedImageError) as error:
            raise InputError(f"`{column}` must be a picture, got {str(path)!r} ({error}).") from error
        if size != wanted or found not in mode:
            wanted_text, size_text = (" x ".join(map(str, sides)) for sides in (wanted, size))
            raise InputError(f"`{column}` must be {wanted_text} px of mode {mode[0]}, got {size_text} of {found}.")

    def _copy(self, column: str) -> Path:
        source, target = self._path(column)
        if not target.exists():
            write_file(target, lambda file: file.write(source.read_bytes()))
        return target

    def _depth(self) -> tuple[Path, str, float]:
        """Writes the depth; its path, unit and scale."""
        self._size("depth", ("I;16",))
        if self.line["depth_kind"].startswith("relative disparity"):
            return self._copy("depth"), "relative_disparity", 1 / 65535
        if self.line["depth_kind"] != "metric":
            raise InputError(f"`depth_kind` must be metric or relative disparity, got {self.line['depth_kind']!r}.")
        units_per_m = float(self.line["units_per_m"])
        if self.line["source"] != STEPPED_SOURCE:
            return self._copy("depth"), "m", 1 / units_per_m
        source, target = self._path("depth")
        if not target.exists():
            with Image.open(source) as image:
                smooth = without_steps(np.asarray(image))
            # Rounded down, so that no value leaves its step.
            fine = Image.fromarray(np.floor(smooth * FINENESS).astype(np.uint16))
            write_file(target, lambda file: fine.save(file, "PNG"))
        return target, "m", 1 / (units_per_m * FINENESS)

    def _has_subject(self) -> bool:
        with Image.open(self._path("mask")[0]) as image:
            return image.getextrema()[1] > 127

    def row(self) -> ManifestRow | None:
        """Writes the files of this photo; its row, or None where there is nothing to learn from or to score with.

        Raises:
            InputError: a value or file of the line is not as the module says.
        """
        line = self.line
        try:
            self._size("rgb", ("RGB", "L"))
            extra = {}
            if line["depth"]:
                path, unit, scale = self._depth()
                extra = {"depth_path": path, "depth_unit": unit, "depth_scale": scale}
            if line["mask"]:
                self._size("mask", ("L",))
                if self._has_subject():
                    extra["mask_path"] = self._copy("mask")
            if not extra:
                return None
            if line["fx"]:
                extra["intrinsics"] = Intrinsics(*(float(line[name]) for name in ("fx", "fy", "cx", "cy")))
            return ManifestRow(
                row_id=line["id"],
                scene=line["scene"],
                image_path=self._copy("rgb"),
                dataset=line["source"],
                split=MANIFESTS[line["use"]],
                **extra,
            )
        except (ValueError, OSError, ZeroDivisionError) as error:
            raise InputError(f"index.csv, {line['id']}: {error}") from error


def read_index(raw: Path) -> list[dict[str, str]]:
    """Lines of `RAW/index.csv`; InputError where it is missing, empty, lacks a column, or splits one scene."""
    path = raw / "index.csv"
    if not path.is_file():
        raise InputError(f"`RAW` must be a folder with index.csv, got {str(raw)!r}.")
    with path.open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    missing = [name for name in _COLUMNS if not lines or name not in lines[0]]
    if missing:
        raise InputError(f"`index.csv` must have lines with the columns {', '.join(_COLUMNS)}, got no {missing[0]}.")
    use_of: dict[str, str] = {}
    for line in lines:
        if line["use"] not in MANIFESTS:
            raise InputError(f"`use` must be one of {', '.join(MANIFESTS)}, got {line['use']!r} ({line['id']}).")
        if use_of.setdefault(line["scene"], line["use"]) != line["use"]:
            raise InputError(f"`scene` must be in one split alone, got {line['scene']!r} in both.")
    return lines


def _open_build(raw: Path, output: Path) -> None:
    """Makes the output folder, or goes on with one of the same index and the same smoothing."""
    record = {
        "index_sha256": hashlib.sha256((raw / "index.csv").read_bytes()).hexdigest(),
        "without_steps": [ROUNDS, DIAMETER_PX, SIGMA_VALUE, SIGMA_PX, FINENESS],
    }
    path = output / _RECORD
    remove_stale(output, recursive=True)
    if path.is_file():
        if json.loads(path.read_text()) != record:
            raise InputError(f"`--output` must be a new folder or one made from this index, got {str(output)!r}.")
        return
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"`--output` must be a new or empty folder, got {str(output)!r}.")
    write_file(path, lambda file: file.write(json.dumps(record, indent=2).encode()))


def build(raw: Path, output: Path, *, workers: int = 1) -> dict[str, list[ManifestRow]]:
    """Writes the manifests and their files, or what is missing of them.

    Args:
        raw: folder with `index.csv`.
        output: folder of the manifests; new, empty, or of a run of the same index.
        workers: threads; pictures are decoded, filtered and written outside of Python's lock.

    Returns:
        Rows by manifest, `train` and `evaluate`, those of photos that were left out not among them.

    Raises:
        InputError: in one sentence what is wrong.
    """
    lines = read_index(raw)
    tqdm = load_extra("tqdm", "data", "progress of the build").tqdm
    _open_build(raw, output)
    photos = [_Photo(line, raw, output) for line in lines]
    with ThreadPoolExecutor(workers) as executor:
        try:
            found = list(tqdm(executor.map(_Photo.row, photos), total=len(photos), unit="photo", desc="photos"))
        except BaseException:
            executor.shutdown(wait=False, cancel_futures=True)
            raise
    rows = {
        use: [row for line, row in zip(lines, found, strict=True) if line["use"] == use and row is not None]
        for use in MANIFESTS
    }
    for use, kept in rows.items():
        if kept:
            write_manifest(output / f"{use}.jsonl", kept, overwrite=True)
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; 0, or 2 after one sentence on what is wrong."""
    parser = argparse.ArgumentParser(prog="python -m datasets_scripts.real_photos", description=__doc__)
    parser.add_argument("raw", type=Path, metavar="RAW", help="folder with index.csv")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT", help="folder of the manifests")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="threads (all cores)")
    given = parser.parse_args(arguments)
    try:
        if given.workers < 1:
            raise InputError(f"`--workers` must be 1 or more, got {given.workers}.")
        rows = build(given.raw, given.output, workers=given.workers)
    except InputError as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)  # noqa: T201 - the command's own voice
        return 2
    for use, kept in rows.items():
        counts = ", ".join(f"{name} {count}" for name, count in sorted(Counter(r.dataset for r in kept).items()))
        print(f"{use}.jsonl: {len(kept)} photos; {counts}")  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())

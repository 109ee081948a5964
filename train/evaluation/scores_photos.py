"""Real photos with something marked: subjects by mask, faces by box, outdoor points by what is farther.

A subject counts by how much Stage-1 changed it, and the rest, at one K, each over what a uniform blur would change
there. Outdoor depth counts by its order and by whether far things are far. `look` makes a sheet to be looked at.
"""

from __future__ import annotations

import dataclasses
import glob
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image
from scipy.ndimage import distance_transform_edt

from bokehdepth.camera.lens import REFERENCE_WIDTH_PX
from bokehdepth.errors import InputError
from bokehdepth.files.pictures import contact_sheet, depth_preview
from train.evaluation.methods import BokehMethod, DepthMethod
from train.evaluation.methods.depth import Stage2
from train.evaluation.metrics_bokeh import relative_change, uniform_change
from train.evaluation.samples import PhotoSource, Prepared, Source
from train.evaluation.statistics import cluster_interval
from train.evaluation.tables import INTERVAL, cell, markdown, number, save_report

logger = logging.getLogger("train.evaluation")
LONGER_SIDE_PX = 512
"""Of photos whose depth is looked at."""


def find(folder: Path, name: str) -> Path:
    """The one file of a name without suffix; InputError where there is none, or more than one."""
    files = sorted(folder.glob(f"{name}.*"))
    if len(files) != 1:
        raise InputError(f"`photos` must have one file {name}.*, got {len(files)} in {str(folder)!r}.")
    return files[0]


def read_marks(path: Path) -> dict[str, Any]:
    """The marks of a YAML file by the photo's name; InputError where it cannot be read or has none."""
    try:
        marks = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise InputError(f"`marks` must be a YAML file of marks, got {str(path)!r}: {error}") from error
    if not isinstance(marks, dict) or not marks:
        raise InputError(f"`marks` must be photos with their marks, got {type(marks).__name__}.")
    return marks


def subject_and_rest(
    photo: np.ndarray,
    picture: np.ndarray,
    areas: tuple[np.ndarray, np.ndarray],
    bokeh_strength: float,
    offset_dpt: float,
) -> tuple[float, float] | None:
    """Change of the subject and of the rest, each over that of the uniform blur of an offset.

    Args:
        photo: float (H, W, 3) display values in [0, 1].
        picture: the same of the generated frame.
        areas: the subject and the rest, bool (H, W) each.
        bokeh_strength: K of the frame, above 0.
        offset_dpt: disparity offset of the uniform blur, whose radius is K * (width / 512) * offset.

    Returns:
        The two ratios; None where an area is empty or the uniform blur changes nothing in it.
    """
    reference = uniform_change(photo, bokeh_strength * photo.shape[1] / REFERENCE_WIDTH_PX * offset_dpt)
    changes = tuple(relative_change(photo, picture, area, reference) for area in areas)
    return None if None in changes else changes


def frame_of(method: BokehMethod, sample: Any, bokeh_strength: float) -> np.ndarray:
    """The method's picture of one sample at one K, in [0, 1]."""
    return np.clip(method.frames(sample, [bokeh_strength])[0], 0, 1)


# ---------------------------------------------------------------------- subjects

SUBJECT_BELOW, REST_ABOVE = 0.15, 0.3
SHARES = (0.05, 0.8)
BORDER_PX = 4
MASK_OFFSET_DPT = 0.5
_NAMED = 3


def regions(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What surely is the subject and what surely is not, bool (H, W) each: farther than `BORDER_PX` from its outline.

    Args:
        mask: bool (H, W), neither empty nor full.
    """
    return distance_transform_edt(mask) > BORDER_PX, distance_transform_edt(~mask) > BORDER_PX


def score_subjects(method: BokehMethod, source: Source, bokeh_strength: float) -> tuple[list[dict[str, Any]], int]:
    """Both ratios of every photo whose mask covers one of `SHARES`, and how many photos do not count.

    A photo is right where the subject changes by less than `SUBJECT_BELOW` and the rest by more than `REST_ABOVE`.

    Args:
        method: makes the frames.
        source: photos with masks.
        bokeh_strength: K.

    Raises:
        InputError: a photo has no mask, or none counts.
    """
    method.prepare(source)
    rows, left_out = [], 0
    for count, sample in enumerate(source, 1):
        if sample.mask is None:
            raise InputError(f"`manifest` must have masks of all chosen rows, got none of {sample.sample_id!r}.")
        share, changes = float(sample.mask.mean()), None
        if SHARES[0] <= share <= SHARES[1]:
            frame = frame_of(method, sample, bokeh_strength)
            changes = subject_and_rest(sample.photo, frame, regions(sample.mask), bokeh_strength, MASK_OFFSET_DPT)
        if changes is None:
            left_out += 1
        else:
            subject, rest = changes
            rows.append(
                {
                    "sample": sample.sample_id,
                    "scene": sample.scene,
                    "dataset": sample.dataset or "-",
                    "mask_share": share,
                    "subject": subject,
                    "rest": rest,
                    "right": subject < SUBJECT_BELOW and rest > REST_ABOVE,
                }
            )
        if count % 50 == 0:
            logger.info("%d of %d", count, len(source))
    if not rows:
        raise InputError(f"`manifest` must have a mask that covers {SHARES[0]:.0%} to {SHARES[1]:.0%}, got none.")
    return rows, left_out


def subject_summary(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Share of photos that are right and means of both ratios with intervals over scenes, by data set and of all."""
    groups = {name: [row for row in rows if row["dataset"] == name] for name in sorted({r["dataset"] for r in rows})}
    if len(groups) > 1:
        groups["all"] = list(rows)
    result = {}
    for name, photos in groups.items():
        scenes = [row["scene"] for row in photos]
        entry: dict[str, Any] = {
            key: dataclasses.asdict(cluster_interval([float(row[key]) for row in photos], scenes))
            for key in ("right", "subject", "rest")
        }
        subject, rest = entry["subject"]["mean"], entry["rest"]["mean"]
        result[name] = entry | {"rest_over_subject": rest / subject if subject > 0 else None}
    return result


def subject_table(report: Mapping[str, Any], rows: Sequence[dict[str, Any]]) -> str:
    """The report as Markdown, with the best and the worst photos by name."""
    lines = [
        [name, str(entry["right"]["pictures"]), cell(entry["right"], ".1%"), cell(entry["subject"]),
         cell(entry["rest"]), number(entry["rest_over_subject"], ".1f")]
        for name, entry in report["rows"].items()
    ]  # fmt: skip
    header = ["photos of", "photos", f"subject < {SUBJECT_BELOW:g} and rest > {REST_ABOVE:g} ({INTERVAL})",
              f"change of the subject ({INTERVAL})", f"change of the rest ({INTERVAL})",
              "rest over subject"]  # fmt: skip
    title = (
        f"{report['source']}; {report['method']} of {report['weights']}, K = {report['bokeh_strength']:g}; changes "
        f"over those of a uniform blur; {report['left_out']} photos do not count."
    )
    ordered = sorted(rows, key=lambda row: (row["right"], row["rest"] - row["subject"]))

    def named(some: Sequence[dict[str, Any]]) -> str:
        return ", ".join(f"{r['sample']} ({r['subject']:.2f}, {r['rest']:.2f})" for r in some)

    ends = f"\n\nBest: {named(ordered[::-1][:_NAMED])}.\n\nWorst: {named(ordered[:_NAMED])}."
    return title + "\n\n" + markdown(header, lines) + ends


def score_masks(name: str, method: BokehMethod, source: Source, bokeh_strength: float, output: Path) -> str:
    """Scores photos with masks and saves `report.json`, `per_image.csv` and `table.md`; returns the table."""
    rows, left_out = score_subjects(method, source, bokeh_strength)
    report = {
        "source": source.description,
        "method": name,
        "weights": method.weights,
        "bokeh_strength": bokeh_strength,
        "left_out": left_out,
        "rows": subject_summary(rows),
    }
    text = subject_table(report, rows)
    save_report(output, report, rows, text)
    return text


# ---------------------------------------------------------------------- faces

SHARP_BELOW = 0.25
FACE_OFFSET_DPT = 1.0
_SHEET_PX = 320


def face_mask(boxes: Sequence[Sequence[float]], height: int, width: int) -> np.ndarray:
    """Pixels of the faces, bool (H, W), from left, top, right, bottom of each as shares of the photo."""
    mask = np.zeros((height, width), dtype=bool)
    for left, top, right, bottom in boxes:
        mask[round(top * height) : round(bottom * height), round(left * width) : round(right * width)] = True
    return mask


def as_picture(values: np.ndarray) -> Image.Image:
    """Display values (H, W, 3) as a picture."""
    return Image.fromarray(np.round(np.clip(values, 0, 1) * 255).astype(np.uint8))


def score_faces(
    photos: Path, marks: Mapping[str, Any], method: BokehMethod, bokeh_strength: float, sheet: Path
) -> str:
    """Counts the faces that changed by less than `SHARP_BELOW`, and writes a sheet of photos and results.

    Args:
        photos: folder that the names of the marks start from.
        marks: boxes of faces by the photo's name.
        method: makes the frames.
        bokeh_strength: K.
        sheet: picture to write: each photo beside its result.

    Returns:
        The table.

    Raises:
        InputError: a photo cannot be found or read.
    """
    source = PhotoSource({name: find(photos, name) for name in marks})
    method.prepare(source)
    lines, pictures, labels, sharp = [], [], [], 0
    for sample in source:
        mask = face_mask(marks[sample.sample_id], *sample.photo.shape[:2])
        frame = frame_of(method, sample, bokeh_strength)
        changes = subject_and_rest(sample.photo, frame, (mask, ~mask), bokeh_strength, FACE_OFFSET_DPT)
        if changes is None:
            raise InputError(f"`marks` must have faces and a rest with texture, got others of {sample.sample_id!r}.")
        face, rest = changes
        sharp += face < SHARP_BELOW
        verdict = "sharp" if face < SHARP_BELOW else "blurred"
        lines.append([sample.sample_id, f"{face:.2f}", f"{rest:.2f}", verdict])
        for picture, label in ((sample.photo, sample.sample_id), (frame, f"face {face:.2f}, rest {rest:.2f}")):
            image = as_picture(picture)
            image.thumbnail((_SHEET_PX, _SHEET_PX))
            square = Image.new("RGB", (_SHEET_PX, _SHEET_PX), "white")
            square.paste(image)
            pictures.append(square)
            labels.append(label)
    sheet.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(pictures, labels, columns=4).save(sheet)
    header = ["photo", "change of the face", "change of the rest", "the face is"]
    return f"K = {bokeh_strength:g}; {sharp} of {len(marks)} faces are sharp\n\n{markdown(header, lines)}"


# ---------------------------------------------------------------------- outdoors

FAR_M = 30.0
RULES = {"is_far": f"far beyond {FAR_M:g} m", "sky_farthest": "sky farthest", "ascending": "chains ascend"}
"""What `judge` says of a photo, and its column."""
_HALF_PX = 2
Point = Sequence[float]


def check_outdoor_marks(marks: Mapping[str, Any]) -> None:
    """InputError where marks are not sky, far and chains of points [x, y], shares of the photo, by its name."""

    def is_points(group: Any, least: int) -> bool:
        return isinstance(group, list) and len(group) >= least and all(map(is_point, group))

    def is_point(value: Any) -> bool:
        pair = isinstance(value, list) and len(value) == 2
        return pair and all(isinstance(share, int | float) and 0 <= share < 1 for share in value)

    for name, groups in marks.items():
        good = isinstance(groups, dict) and groups and set(groups) <= {"sky", "far", "chains"}
        good = good and all(is_points(groups[key], 1) for key in ("sky", "far") if key in groups)
        if not good or not all(is_points(chain, 2) for chain in groups.get("chains", [])):
            raise InputError(f"`marks` must be sky, far, chains of points [x, y] in [0, 1), got others of {name!r}.")


def depth_at(depth_m: np.ndarray, point: Point) -> float:
    """Median depth around a point, metres.

    Args:
        depth_m: float (H, W).
        point: x and y as shares of the picture.
    """
    x, y = (int(share * size) for share, size in zip(point, depth_m.shape[::-1], strict=True))
    around = depth_m[max(y - _HALF_PX, 0) : y + _HALF_PX + 1, max(x - _HALF_PX, 0) : x + _HALF_PX + 1]
    return float(np.median(around))


def judge(depth_m: np.ndarray, marks: Mapping[str, Any]) -> dict[str, Any]:
    """Metres at the marks of one photo, and whether each of the three rules holds; None where it has no such mark.

    Far points are beyond `FAR_M`, no other mark is farther than any of the sky, and every thing of a chain is farther
    than the one before.
    """
    sky = [depth_at(depth_m, point) for point in marks.get("sky", [])]
    far = [depth_at(depth_m, point) for point in marks.get("far", [])]
    chains = [[depth_at(depth_m, point) for point in chain] for chain in marks.get("chains", [])]
    steps = [pair for chain in chains for pair in zip(chain, chain[1:], strict=False)]
    others = far + [value for chain in chains for value in chain]
    return {
        "sky": sky,
        "far": far,
        "chains": chains,
        "is_far": min(far) > FAR_M if far else None,
        "sky_farthest": min(sky) >= max(others) if sky and others else None,
        "ascending": all(nearer < farther for nearer, farther in steps) if steps else None,
    }


def outdoor_table(judged: Mapping[str, dict[str, Any]]) -> str:
    """Every photo and the counts of the three rules, as Markdown."""

    def metres(values: Sequence[float]) -> str:
        return ", ".join(f"{value:.1f}" for value in values) or "-"

    lines = []
    for name, photo in judged.items():
        chains = "; ".join(metres(chain) for chain in photo["chains"]) or "-"
        verdicts = ({None: "-", True: "yes", False: "NO"}[photo[rule]] for rule in RULES)
        lines.append([name, metres(photo["sky"]), metres(photo["far"]), chains, *verdicts])
    known = [[photo[rule] for photo in judged.values() if photo[rule] is not None] for rule in RULES]
    counts = ["all", "", "", "", *(f"{sum(values)} of {len(values)}" for values in known)]
    return markdown(["photo", "sky m", "far m", "chains m", *RULES.values()], [*lines, counts])


def score_outdoors(photos: Path, marks: Mapping[str, Any], method: DepthMethod) -> str:
    """Judges a method's depth of every marked photo, with the camera of its EXIF where it states one.

    Args:
        photos: folder that the names of the marks start from.
        marks: by the photo's name without suffix.
        method: of metric depth.

    Returns:
        The table.

    Raises:
        InputError: a photo cannot be found or read, or the marks are wrong.
    """
    check_outdoor_marks(marks)
    source = Prepared(PhotoSource({name: find(photos, name) for name in marks}), LONGER_SIDE_PX)
    method.prepare(source)
    cameras, judged = 0, {}
    for sample in source:
        judged[sample.sample_id] = judge(method.depth(sample), marks[sample.sample_id])
        cameras += sample.intrinsics is not None
    title = f"{method.weights}; {len(marks)} photos, {cameras} with the camera of their EXIF"
    return f"{title}\n\n{outdoor_table(judged)}"


# ---------------------------------------------------------------------- sheets


def look(patterns: Sequence[str], method: Stage2, output: Path, colormap: str = "turbo_r") -> str:
    """Writes one sheet with each photo, its blurred frame and its depth, read from the model's own stack.

    Args:
        patterns: of the photos' paths.
        method: with a stack that Stage-1 makes.
        output: picture to write.
        colormap: of depth, as in `bokehdepth.files.pictures`.

    Returns:
        One line for each photo: its range of depth.

    Raises:
        InputError: a pattern finds nothing, or a photo cannot be read.
    """
    paths: list[Path] = []
    for pattern in patterns:
        matches = sorted(Path(name) for name in glob.glob(pattern))
        if not matches:
            raise InputError(f"`photos` must find files, got {pattern!r}.")
        paths += matches
    source = Prepared(PhotoSource({path.stem: path for path in paths}), LONGER_SIDE_PX)
    method.prepare(source)
    pictures, labels, lines = [], [], []
    for sample in source:
        frames, strengths = method.stack_of(sample)
        depth_m = method.depth_of_stack(sample, frames, strengths)
        low, middle, high = np.quantile(depth_m, (0.02, 0.5, 0.98))
        pictures += [as_picture(sample.photo), as_picture(frames[-1]), depth_preview(depth_m, colormap=colormap)]
        labels += [sample.sample_id, f"K = {strengths[-1]:g}", f"{low:.2f} to {high:.2f} m"]
        camera = "camera of its EXIF" if sample.intrinsics is not None else "no camera given"
        lines.append(f"{sample.sample_id}: {low:.2f}, {middle:.2f}, {high:.2f} m (2, 50, 98 %), {camera}")
    output.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(pictures, labels, columns=3).save(output)
    return "\n".join(lines)

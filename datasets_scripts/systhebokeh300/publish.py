"""What readers of SYSTHEBOKEH300 load: metadata.jsonl for image folders, manifest.jsonl for `train`, the data card."""

import hashlib
import json
from pathlib import Path
from typing import Any

from bokehdepth.errors import InputError
from bokehdepth.files.atomic import write_file
from bokehdepth.hub.cards import check_card, fill_card
from bokehdepth.manifest import CameraAnns, Intrinsics, ManifestRow, read_manifest, write_manifest
from datasets_scripts.systhebokeh300.scene import DEPTH_SCALE_M, JPEG_QUALITY, STRENGTHS, Settings, scene_files

MANIFEST = "manifest.jsonl"
_TEMPLATE = Path(__file__).resolve().parents[2] / "model_cards" / "systhebokeh300.md"
_TABLE = "metadata.jsonl"
_COLUMNS = (
    "id", "scene", "bokeh_strength", "f_number", "focus_disparity_dpt", "s", "depth_scale_m", "foreground_plane",
    "background_plane", "foreground_box_share", "foreground_alpha_share",
)  # fmt: skip
_LICENCES = {
    "apache-2.0": "Apache-2.0: everything in it was drawn and rendered by the project.",
    "cc-by-sa-4.0": "CC BY-SA 4.0, as the photographs it was built from, or was cut out of.",
    "unknown": "That of the pictures it was built from; whoever publishes this build states it here.",
}


def license_of(folders: list[Path]) -> str:
    """The Hub's name for the terms of a build from folders of pictures: what license.txt in or above them says.

    Args:
        folders: none where everything is drawn.

    Returns:
        ``apache-2.0`` for none, the folders' common licence, ``cc-by-sa-4.0`` if it is one of several, or ``unknown``.
    """
    names = set()
    for folder in folders:
        files = [path for path in (folder / "license.txt", folder.parent / "license.txt") if path.is_file()]
        names.add(files[0].read_text().strip() if files else "unknown")
    if "cc-by-sa-4.0" in names:
        return "cc-by-sa-4.0"
    return "apache-2.0" if not names else names.pop() if len(names) == 1 else "unknown"


def _records(folder: Path, settings: Settings) -> list[dict[str, Any]]:
    names = [name for index in range(settings.scenes) for name in scene_files(index)[3 + STRENGTHS :]]
    return [json.loads((folder / name).read_text()) for name in names]


def _table(folder: Path, settings: Settings) -> bytes:
    lines = []
    for record in _records(folder, settings):
        files = {"file_name": record["image"], "aif_file_name": record["aif"], "depth_file_name": record["depth"]}
        columns = {key: record[key] for key in _COLUMNS} | record["lens"] | {"disparity_path": record["disparity"]}
        lines.append(json.dumps(files | columns) + "\n")
    return "".join(lines).encode()


def _rows(folder: Path, settings: Settings) -> list[ManifestRow]:
    rows, root = [], folder.absolute()
    for record in _records(folder, settings):
        lens, size_px = record["lens"], settings.size_px
        focal_px = lens["focal_length_mm"] / lens["sensor_width_mm"] * size_px
        rows.append(
            ManifestRow(
                row_id=record["id"],
                scene=record["scene"],
                image_path=root / record["aif"],
                target_path=root / record["image"],
                depth_path=root / record["depth"],
                depth_unit="m",
                depth_scale=DEPTH_SCALE_M,
                strength_unit="metric",
                camera_anns=CameraAnns(bokeh_strength=record["bokeh_strength"], f_number=record["f_number"], **lens),
                intrinsics=Intrinsics(focal_px, focal_px, size_px / 2, size_px / 2),
                dataset="SYSTHEBOKEH300",
                split="test",
            )
        )
    return rows


def write_tables(folder: Path, settings: Settings) -> None:
    """Write metadata.jsonl and the manifest.

    Args:
        folder: of a build whose scenes are finished.
        settings: of the build.
    """
    table = _table(folder, settings)
    write_file(folder / _TABLE, lambda file: file.write(table), overwrite=True)
    write_manifest(folder / MANIFEST, _rows(folder, settings), overwrite=True)


def check_tables(folder: Path, settings: Settings) -> None:
    """Check that the tables say what the records say, and that there is a card.

    Args:
        folder: of a build.
        settings: of the build.

    Raises:
        InputError: In one sentence the first thing that is wrong.
    """
    path = folder / _TABLE
    if not path.is_file() or path.read_bytes() != _table(folder, settings):
        raise InputError(f"{_TABLE} is missing or says something else than the files of metadata/")
    if read_manifest(folder / MANIFEST) != _rows(folder, settings):
        raise InputError(f"{MANIFEST} says something else than the files of metadata/")
    if not (folder / "README.md").is_file():
        raise InputError("README.md is missing, wanted the data card")
    check_card((folder / "README.md").read_text(), "dataset")


def write_card(folder: Path, settings: Settings) -> None:
    """Fill the data card with the numbers of this build and write it as README.md.

    Args:
        folder: of a build whose scenes are finished.
        settings: of the build.

    Raises:
        InputError: If the template asks for something else.
    """
    records = _records(folder, settings)

    def span(key: str, form: str = "{:.3g}") -> str:
        values = [record[key] for record in records]
        return f"{form.format(min(values))} to {form.format(max(values))}"

    digest = hashlib.sha256()
    for name in (name for index in range(settings.scenes) for name in scene_files(index)):
        digest.update(hashlib.sha256((folder / name).read_bytes()).digest())
    origin = {
        kind: f"{len(files)} files of a folder, named with their SHA-256 in build.json"
        if files
        else "drawn by the project"
        for kind, files in (("foregrounds", settings.foregrounds), ("backgrounds", settings.backgrounds))
    }
    facts = origin | {
        "license": settings.license,
        "licence_text": _LICENCES.get(settings.license, f"{settings.license}, as the pictures it was built from."),
        "size_category": "n<1K" if len(records) < 1000 else "1K<n<10K",
        "scenes": str(settings.scenes),
        "images": str(len(records)),
        "size_px": str(settings.size_px),
        "seed": str(settings.seed),
        "rays": str(settings.rays),
        "version": settings.version,
        "strengths": span("bokeh_strength"),
        "f_numbers": span("f_number"),
        "focus": span("focus_disparity_dpt"),
        "boxes": span("foreground_box_share", "{:.0%}"),
        "alphas": span("foreground_alpha_share", "{:.0%}"),
        "jpeg_quality": str(JPEG_QUALITY),
        "depth_scale_m": f"{DEPTH_SCALE_M:g}",
        "digest": digest.hexdigest(),
    }
    card = fill_card(_TEMPLATE, facts)
    write_file(folder / "README.md", lambda file: file.write(card.encode()), overwrite=True)

"""What readers of SYSTHEBOKEH300 load: metadata.jsonl for image folders, Parquet shards, the data card, the Hub."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bokehdepth.cards import check_card, fill_card
from bokehdepth.errors import InputError
from bokehdepth.files.atomic import write_file
from bokehdepth.publishing import check_links
from datasets_scripts.scenes300 import DEPTH_SCALE_M, JPEG_QUALITY, STRENGTHS, Settings, scene_files

SCENES_PER_SHARD = 25
_TEMPLATE = Path(__file__).resolve().parents[1] / "model_cards" / "systhebokeh300.md"
_TABLE = "metadata.jsonl"


def _records(folder: Path, settings: Settings) -> Iterator[dict[str, Any]]:
    for index in range(settings.scenes):
        for name in scene_files(index)[3 + STRENGTHS :]:
            yield json.loads((folder / name).read_text())


def _row(record: dict[str, Any]) -> dict[str, Any]:
    """The columns that both forms share."""
    lens = record["lens"]
    return {
        "id": record["id"],
        "scene": record["scene"],
        "bokeh_strength": record["bokeh_strength"],
        "f_number": record["f_number"],
        "focus_disparity_dpt": record["focus_disparity_dpt"],
        "s": record["s"],
        "focal_length_mm": lens["focal_length_mm"],
        "sensor_width_mm": lens["sensor_width_mm"],
        "focus_distance_m": lens["focus_distance_m"],
        "depth_scale_m": record["depth_scale_m"],
        "foreground_plane": record["foreground_plane"],
        "background_plane": record["background_plane"],
        "foreground_box_share": record["foreground_box_share"],
        "foreground_alpha_share": record["foreground_alpha_share"],
    }


def _table_bytes(folder: Path, settings: Settings) -> bytes:
    lines = []
    for record in _records(folder, settings):
        files = {"file_name": record["image"], "aif_file_name": record["aif"], "depth_file_name": record["depth"]}
        lines.append(json.dumps(files | _row(record) | {"disparity_path": record["disparity"]}) + "\n")
    return "".join(lines).encode()


def _shard_names(settings: Settings) -> list[str]:
    count = -(-settings.scenes // SCENES_PER_SHARD)
    return [f"parquet/shard-{shard:05d}-of-{count:05d}.parquet" for shard in range(count)]


def write_tables(folder: Path, settings: Settings) -> None:
    """Write metadata.jsonl and those Parquet shards that are not there.

    Args:
        folder: of a build whose scenes are finished.
        settings: of the build.
    """
    from datasets import Dataset, Features, Image, List, Value

    table = _table_bytes(folder, settings)
    write_file(folder / _TABLE, lambda file: file.write(table), overwrite=True)
    pictures = {"image": "image", "aif": "aif", "depth": "depth"}
    features = {name: Image() for name in pictures} | {"id": Value("string"), "scene": Value("string")}
    records = list(_records(folder, settings))
    for key, value in _row(records[0]).items():
        if isinstance(value, list):
            features[key] = List(Value("float64"), length=len(value))
        elif key not in features:
            features[key] = Value("float64")
    step = SCENES_PER_SHARD * STRENGTHS
    for shard, name in enumerate(_shard_names(settings)):
        if (folder / name).is_file():
            continue
        rows = []
        for record in records[shard * step : (shard + 1) * step]:
            # Ready bytes: a 16-bit PNG that `datasets` encoded itself would become a TIFF eight times as large.
            files = {
                key: {"bytes": (folder / record[place]).read_bytes(), "path": None} for key, place in pictures.items()
            }
            rows.append(files | _row(record))
        columns = {key: [row[key] for row in rows] for key in features}
        dataset = Dataset.from_dict(columns, features=Features(features))
        write_file(folder / name, dataset.to_parquet)


def check_tables(folder: Path, settings: Settings) -> None:
    """Check that the tables say what the records say and hold the bytes of the files.

    Args:
        folder: of a build.
        settings: of the build.

    Raises:
        InputError: In one sentence the first thing that is wrong.
    """
    import pyarrow
    from pyarrow import parquet

    path = folder / _TABLE
    if not path.is_file() or path.read_bytes() != _table_bytes(folder, settings):
        raise InputError(f"{_TABLE} is missing or says something else than the files of metadata/")
    present = {f"parquet/{path.name}" for path in (folder / "parquet").glob("*")}
    if present != set(_shard_names(settings)):
        raise InputError(
            f"parquet/ holds {len(present)} files, wanted the {len(_shard_names(settings))} shards of the build"
        )
    records = _records(folder, settings)
    for name in _shard_names(settings):
        try:
            shard = parquet.ParquetFile(folder / name)
            batches = shard.iter_batches(batch_size=16)
            for row in (row for batch in batches for row in batch.to_pylist()):
                record = next(records, None)
                same = record is not None and all(row[key] == value for key, value in _row(record).items())
                for key in ("image", "aif", "depth") if same else ():
                    same = same and row[key]["bytes"] == (folder / record[key]).read_bytes()
                if not same:
                    raise InputError(f"{name} holds a row {row['id']!r} that is not that of the files")
        except (pyarrow.ArrowException, OSError, KeyError) as error:
            raise InputError(f"{name} cannot be read as a shard ({error})") from error
    if next(records, None) is not None:
        raise InputError("parquet/ lacks rows of the last scenes")
    if not (folder / "README.md").is_file():
        raise InputError("README.md is missing, wanted the data card")
    check_card((folder / "README.md").read_text(), "dataset")


def write_card(folder: Path, settings: Settings) -> None:
    """Fill the data card with the numbers of this build and write it as README.md.

    Args:
        folder: of a build whose tables are written.
        settings: of the build.

    Raises:
        InputError: If the template asks for something else.
    """
    records = list(_records(folder, settings))

    def span(key: str, form: str = "{:.3g}") -> str:
        values = [record[key] for record in records]
        return f"{form.format(min(values))} to {form.format(max(values))}"

    digest = hashlib.sha256()
    for index in range(settings.scenes):
        for name in scene_files(index):
            digest.update(hashlib.sha256((folder / name).read_bytes()).digest())
    origin = {
        kind: f"{len(files)} files of a folder, named with their SHA-256 in build.json"
        if files
        else "drawn by the project"
        for kind, files in (("foregrounds", settings.foregrounds), ("backgrounds", settings.backgrounds))
    }
    drawn = not (settings.foregrounds or settings.backgrounds)
    facts = {
        "license": "apache-2.0" if drawn else "unknown",
        "licence_text": "Apache-2.0: everything in it was drawn and rendered by the project."
        if drawn
        else "That of the pictures it was built from; whoever publishes this build states it here.",
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
        "foregrounds": origin["foregrounds"],
        "backgrounds": origin["backgrounds"],
        "shards": str(len(_shard_names(settings))),
        "shards_mb": f"{sum((folder / name).stat().st_size for name in _shard_names(settings)) / 1e6:.1f}",
        "jpeg_quality": str(JPEG_QUALITY),
        "depth_scale_m": f"{DEPTH_SCALE_M:g}",
        "digest": digest.hexdigest(),
    }
    card = fill_card(_TEMPLATE, facts)
    write_file(folder / "README.md", lambda file: file.write(card.encode()), overwrite=True)


def push_to_hub(folder: Path, repository: str, *, private: bool = False) -> str:
    """Upload a build as a data set repository, in one commit.

    Args:
        folder: of a checked build.
        repository: ``user/name``; made if it does not exist.
        private: whether a new repository is private.

    Returns:
        Address of the commit.

    Raises:
        InputError: If the Hub refuses, the name is none, or a link leaves the folder.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled

    check_links(folder)
    api = HfApi()
    try:
        api.create_repo(repository, repo_type="dataset", private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository,
            repo_type="dataset",
            folder_path=folder,
            ignore_patterns=["*.part", "*.part/*"],
            commit_message="SYSTHEBOKEH300",
        )
    except (
        HfHubHTTPError,
        HFValidationError,
        LocalTokenNotFoundError,
        OfflineModeIsEnabled,
        ConnectionError,
    ) as error:
        first = (str(error).splitlines() or [""])[0]
        raise InputError(f"--push-to-hub is {repository!r}, which the Hub did not take ({first})") from error
    return str(commit.commit_url)

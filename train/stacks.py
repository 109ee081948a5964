"""Stage-1's stacks for a whole data set, in as many processes as accelerate starts.

`accelerate launch -m train.stacks --model MODEL --manifest data/train.jsonl --output stacks`
writes `data/stacks/<shard>/<row>/bokeh_k10.png ...` and, when all is done, `data/stacks.jsonl`: the rows with stacks.

A stack appears whole or not at all, so a run that was cut off is started again and goes on; what is complete is
skipped. A photo that cannot be used is written to `failures_<process>.jsonl` and the run goes on.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import zlib
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from bokehdepth.errors import InputError
from bokehdepth.files.atomic import remove_stale, write_file
from bokehdepth.files.photos import open_photo
from bokehdepth.files.stacks import bokeh_file_name, save_stack
from bokehdepth.hub import load_pipeline, weights_record
from bokehdepth.manifest import ManifestRow, StackFrame, read_manifest, write_manifest
from bokehdepth.pipeline_bokehdepth import BokehDepthPipeline
from train import config, loop

logger = logging.getLogger("train.stacks")
ROWS_OF_A_SHARD = 1000
RECORD_NAME = "stacks.json"
_LONGEST_WAIT_H = 1000


def check_record(folder: Path, settings: dict[str, Any], main: bool) -> None:
    """Writes what a folder's stacks are made with, or refuses to mix them with others.

    Raises:
        InputError: the folder's stacks are made otherwise.
    """
    path = folder / RECORD_NAME
    if not path.exists():
        if main:
            folder.mkdir(parents=True, exist_ok=True)
            write_file(path, lambda file: file.write(json.dumps(settings, indent=2).encode()))
        return
    stored = json.loads(path.read_text())
    for name in sorted({*stored, *settings}):
        if stored.get(name) != settings.get(name):
            raise InputError(
                f"{name} is {settings.get(name)!r}, but the stacks in {folder} have {stored.get(name)!r}; wanted the "
                "same, or another output."
            )


def row_folder(folder: Path, number: int, row: ManifestRow) -> Path:
    """Where the stack of a row lies; shards keep folders at a size that file systems like."""
    return folder / f"{number // ROWS_OF_A_SHARD:05d}" / row.row_id


def make_row(
    pipeline: BokehDepthPipeline,
    row: ManifestRow,
    folder: Path,
    bokeh_strengths: Sequence[float],
    seed: int,
    **options: Any,
) -> None:
    """Makes and writes the stack of one row; its noise depends on the seed and the row's name alone.

    Args:
        pipeline: makes the stack.
        row: with a photo.
        folder: to write, which must not exist.
        bokeh_strengths: ascending K above 0.
        seed: of the run.
        **options: further arguments of `generate_stack`.

    Raises:
        InputError: the row has no photo that can be used, or its K are relative.
    """
    if row.image_path is None:
        raise InputError(f"row {row.row_id} has no input_image_path; wanted a photo.")
    if row.strength_unit == "relative":
        raise InputError(f"row {row.row_id} has relative K; wanted metric, as Stage-1's is.")
    photo = open_photo(row.image_path).image
    source = torch.Generator().manual_seed(zlib.crc32(f"{seed}/{row.row_id}".encode()))
    frames = pipeline.generate_stack(photo, bokeh_strengths, generator=source, **options).images
    save_stack(folder, frames, bokeh_strengths)


def stack_manifest(
    pipeline: BokehDepthPipeline,
    manifest: Path,
    name: str,
    bokeh_strengths: Sequence[float],
    settings: dict[str, Any],
    **options: Any,
) -> tuple[int, int]:
    """Makes the stacks of all rows of a manifest, and the manifest with them.

    Args:
        pipeline: makes the stacks.
        manifest: its rows.
        name: of the folder beside it that takes the stacks, and of the new manifest.
        bokeh_strengths: ascending K above 0.
        settings: what the stacks are made with, kept in the folder.
        **options: further arguments of `generate_stack`.

    Returns:
        Rows with a stack, and rows without because they failed.

    Raises:
        InputError: as `read_manifest` and `check_record` say, or every row failed.
    """
    state, rows = PartialState(), read_manifest(manifest)
    folder = manifest.parent / name
    if not name or Path(name).name != name or name == manifest.stem:
        raise InputError(f"output is {name!r}; wanted a plain name other than the manifest's.")
    check_record(folder, settings, state.is_main_process)
    if state.is_main_process:
        remove_stale(manifest.parent)
        remove_stale(folder, recursive=True)
    pending = [(n, row) for n, row in enumerate(rows) if not row_folder(folder, n, row).is_dir()]
    state.wait_for_everyone()  # before anyone finishes a row that another still counts
    failures = folder / f"failures_{state.process_index}.jsonl"
    failures.unlink(missing_ok=True)
    with state.split_between_processes(pending) as mine:
        for done, (number, row) in enumerate(mine, 1):
            try:
                make_row(pipeline, row, row_folder(folder, number, row), bokeh_strengths, settings["seed"], **options)
            except (ValueError, OSError, RuntimeError) as error:
                with failures.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"id": row.row_id, "error": str(error)}) + "\n")
                logger.warning("%s: %s", row.row_id, error)
            else:
                logger.info("%d of %d: %s", done, len(mine), row.row_id)
    state.wait_for_everyone()
    complete = [(n, row) for n, row in enumerate(rows) if row_folder(folder, n, row).is_dir()]
    if state.is_main_process and complete:
        with_stacks = [
            dataclasses.replace(
                row, strength_unit="metric", stack=_frames(row_folder(folder, n, row), bokeh_strengths)
            )
            for n, row in complete
        ]
        write_manifest(manifest.parent / f"{name}.jsonl", with_stacks, overwrite=True)
    state.wait_for_everyone()
    if not complete:
        raise InputError(f"manifest is {str(manifest)!r}, of which no row could be used; see {folder}.")
    return len(complete), len(rows) - len(complete)


def _frames(folder: Path, bokeh_strengths: Sequence[float]) -> tuple[StackFrame, ...]:
    return tuple(StackFrame(folder / bokeh_file_name(k), float(k)) for k in bokeh_strengths)


def main() -> None:
    """Generates Stage-1's stacks for the rows of a manifest."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--manifest", type=Path, required=True, help="JSONL of photos")
    parser.add_argument("--model", default="embedded", help="as in bokehdepth.hub")
    parser.add_argument("--output", required=True, help="name of a folder beside the manifest")
    parser.add_argument("--bokeh-strengths", type=float, nargs="+", default=[10.0, 20.0, 30.0], metavar="K")
    parser.add_argument("--steps", type=int, help="denoising steps; the model's own where not given")
    parser.add_argument("--size", type=int, help="side at work; the model's own where not given")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--timeout-h",
        type=float,
        default=48.0,
        metavar="HOURS",
        help="that a process waits for the slowest at the end",
    )
    arguments = parser.parse_args()
    loop.set_up_logging()
    if not 0 < arguments.timeout_h <= _LONGEST_WAIT_H:
        raise InputError(f"`--timeout-h` must be above 0 and at most {_LONGEST_WAIT_H}, got {arguments.timeout_h}.")
    state = PartialState(loop.without_accelerator(), timeout=timedelta(hours=arguments.timeout_h))
    pipeline = load_pipeline(arguments.model, device=state.device)
    pipeline.set_progress_bar_config(disable=True)
    steps = arguments.steps or pipeline.bokeh_adapter.config.num_inference_steps
    strengths = pipeline.check_bokeh_strengths(arguments.bokeh_strengths)
    area = arguments.size**2 if arguments.size else pipeline.bokeh_adapter.config.max_area
    settings = {
        "model": weights_record(arguments.model)["pipeline"],
        "steps": steps,
        "seed": arguments.seed,
        "bokeh_strengths": list(strengths),
        "area_px": area,
    }
    options = {"num_inference_steps": steps, "max_area": area}
    done, failed = stack_manifest(pipeline, arguments.manifest, arguments.output, strengths, settings, **options)
    logger.info("%d rows have stacks, %d failed", done, failed)


if __name__ == "__main__":
    with config.one_line_errors():
        main()

"""Stage-1's stacks for a whole data set, in as many processes as accelerate starts.

`accelerate launch -m train.stacks --model MODEL --manifest data/train.jsonl --output stacks`
writes `data/stacks/<shard>/<row>/bokeh_k10.png ...` and, when all is done, `data/stacks.jsonl`: the rows with stacks.
`python -m train.stacks --model MODEL --config train/configs/mini_stage1.yaml --output runs/pool_stage1`
writes a scene pool again, with Stage-1's frames in place of the rendered ones.

A stack or shard appears whole or not at all, so a run that was cut off is started again and goes on; what is complete
is skipped. A photo that cannot be used is written to `failures_<process>.jsonl` and the run goes on.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import zlib
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
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
from train.config import Stage1Config
from train.data import ScenePool, shard_path
from train.stage1 import MiniNetwork

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


def convert_shard(pipeline: BokehDepthPipeline, source: Path, target: Path, steps: int, size_px: int) -> None:
    """Writes one shard of a pool with generated frames, under a temporary name first.

    Args:
        pipeline: makes the stacks.
        source: shard with rendered frames.
        target: shard to write.
        steps: denoising steps.
        size_px: side of the pictures at work.
    """
    with np.load(source, allow_pickle=False) as shard:
        rows = dict(shard)
    for number, (photo, strengths) in enumerate(zip(rows["image"], rows["strength"], strict=True)):
        frames = pipeline.generate_stack(
            photo,
            [float(k) for k in strengths],
            num_inference_steps=steps,
            generator=torch.Generator().manual_seed(number),
            max_area=size_px**2,
            output_type="np",
        ).images
        rows["bokeh"][number] = np.round(frames * 255).astype(np.uint8)
    write_file(target, lambda file: np.savez(file, **rows))


@torch.no_grad()
def frames_of_pool(pipeline: BokehDepthPipeline, pool: ScenePool, count: int, batch: int = 64) -> torch.Tensor:
    """Frames of the embedded Stage-1 for the first scenes of a pool in memory, in one step, many scenes at once.

    Args:
        pipeline: with the embedded base, on the pool's device.
        pool: its photos and their K.
        count: how many scenes; all where it has fewer.
        batch: scenes at once.

    Returns:
        uint8 (count, F, H, W, 3).
    """
    network = MiniNetwork(pipeline.transformer, pipeline.bokeh_adapter, pipeline.vae).eval()
    frames = torch.empty_like(pool.tensors["bokeh"][: min(count, len(pool))])
    source = torch.Generator(pool.device).manual_seed(0)
    for begin in range(0, len(frames), batch):
        rows = np.arange(begin, min(begin + batch, len(frames)))
        scenes = pool.batch(rows, pool.pool.size_px)
        image = scenes["image"] * 2 - 1
        noise = torch.randn(image.shape, generator=source, device=image.device)
        sigma = torch.ones(len(rows), device=image.device)
        for index, strength in enumerate(scenes["strength"].T):
            clean, _ = network.predict(image, noise, sigma, strength)
            display = (clean / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
            frames[begin : begin + len(rows), index] = (display * 255).round().to(torch.uint8)
    return frames


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


def stack_pool(
    pipeline: BokehDepthPipeline, cfg: Stage1Config, output: str, settings: dict[str, Any], size_px: int, limit: int
) -> None:
    """Writes a pool's shards with generated frames, the held-out ones first.

    Args:
        pipeline: makes the stacks.
        cfg: names the pool.
        output: folder of the new shards.
        settings: what the stacks are made with, kept in the folder.
        size_px: side of the pictures at work.
        limit: at most so many shards of the training split, the last ones: those that a Stage-1 of fewer scenes has
            not seen.
    """
    state, new = PartialState(), dataclasses.replace(cfg.pool, folder=output)
    if state.is_main_process:
        remove_stale(output, recursive=True)
    check_record(Path(output), settings, state.is_main_process)
    pairs = []
    for split in ("held_out", "train"):
        count = next(n for n in itertools.count() if not shard_path(cfg.pool, split, n).exists())
        for index in range(max(0, count - limit) if split == "train" else 0, count):
            pairs.append((shard_path(cfg.pool, split, index), shard_path(new, split, index)))
    if not pairs:
        raise InputError(f"pool.folder is {cfg.pool.folder!r}, which has no shard; run train.data first.")
    pending = [pair for pair in pairs if not pair[1].exists()]
    state.wait_for_everyone()
    with state.split_between_processes(pending) as mine:
        for source, target in mine:
            convert_shard(pipeline, source, target, settings["steps"], size_px)
            logger.info("%s", target.name)
    state.wait_for_everyone()


def main() -> None:
    """Generates Stage-1's stacks for the rows of a manifest or the scenes of a pool."""
    parser = config.parser(main.__doc__, config_required=False)
    parser.add_argument("--manifest", type=Path, help="JSONL of photos, in place of a configuration's pool")
    parser.add_argument("--model", default="embedded", help="as in bokehdepth.hub")
    parser.add_argument("--output", required=True, help="folder of new shards, or name beside the manifest")
    parser.add_argument("--bokeh-strengths", type=float, nargs="+", default=[10.0, 20.0, 30.0], metavar="K")
    parser.add_argument("--shards", type=int, default=10**6, help="so many shards of a pool's training, the last ones")
    parser.add_argument("--steps", type=int, help="denoising steps; the model's own where not given")
    parser.add_argument("--size", type=int, help="side at work; the pool's or the model's own where not given")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--timeout-h",
        type=float,
        default=48.0,
        metavar="HOURS",
        help="that a process waits for the slowest at the end",
    )
    arguments = parser.parse_args()
    if (arguments.config is None) == (arguments.manifest is None):
        parser.error("wanted one of --config and --manifest")
    loop.set_up_logging()
    if not 0 < arguments.timeout_h <= _LONGEST_WAIT_H:
        raise InputError(f"`--timeout-h` must be above 0 and at most {_LONGEST_WAIT_H}, got {arguments.timeout_h}.")
    state = PartialState(loop.without_accelerator(), timeout=timedelta(hours=arguments.timeout_h))
    pipeline = load_pipeline(arguments.model, device=state.device)
    pipeline.set_progress_bar_config(disable=True)
    steps = arguments.steps or pipeline.bokeh_adapter.config.num_inference_steps
    settings = {"model": weights_record(arguments.model)["pipeline"], "steps": steps, "seed": arguments.seed}
    if arguments.manifest is None:
        cfg = config.load(Stage1Config, arguments.config, arguments.set)
        if cfg.pool is None:
            raise InputError(f"config is {arguments.config!r}, which has no pool; wanted one, or --manifest.")
        torch.set_num_threads(cfg.threads)
        size = arguments.size or cfg.pool.size_px
        stack_pool(pipeline, cfg, arguments.output, {**settings, "size_px": size}, size, arguments.shards)
        return
    strengths = pipeline.check_bokeh_strengths(arguments.bokeh_strengths)
    area = arguments.size**2 if arguments.size else pipeline.bokeh_adapter.config.max_area
    settings |= {"bokeh_strengths": list(strengths), "area_px": area}
    options = {"num_inference_steps": steps, "max_area": area}
    done, failed = stack_manifest(pipeline, arguments.manifest, arguments.output, strengths, settings, **options)
    logger.info("%d rows have stacks, %d failed", done, failed)


if __name__ == "__main__":
    with config.one_line_errors():
        main()

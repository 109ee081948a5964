"""Builds or goes on with SYSTHEBOKEH300, in several processes, and checks it."""

import multiprocessing
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from tqdm import tqdm

from bokehdepth.errors import InputError
from bokehdepth.files.atomic import remove_stale, staged, write_file
from datasets_scripts.systhebokeh300.publish import check_tables, write_card, write_tables
from datasets_scripts.systhebokeh300.scene import Folders, Settings, scene_files, write_scene
from datasets_scripts.systhebokeh300.validate import check_files, check_scene, read_settings


def _stop_with_parent() -> None:
    """End this worker when the process that started it is gone: a killed build leaves nothing running."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _in_processes(function: Callable, jobs: Sequence, workers: int, **bar: object) -> None:
    """Do all jobs behind a progress bar; the first one's error in their order ends it."""
    if workers == 1:
        for _ in tqdm(map(function, jobs), **bar):
            pass
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_stop_with_parent) as executor:
        try:
            for _ in tqdm(executor.map(function, jobs), **bar):
                pass
        except BaseException:
            executor.shutdown(wait=False, cancel_futures=True)
            raise


def _build_scene(job: tuple[Settings, int, Folders, Path]) -> None:
    settings, index, folders, output = job
    # Many processes put scenes into the one folder; a scene with all its files is a finished one.
    with staged(output, overwrite=True, at_once=False) as part:
        write_scene(settings, index, folders, part)


def _open_build(output: Path, settings: Settings) -> None:
    """Make the folder or go on with it; what a killed process left half-written is removed."""
    if output.exists() and not output.is_dir():
        raise InputError(f"--output must be a folder, got the file {str(output)!r}.")
    remove_stale(output, recursive=True)
    record = output / "build.json"
    if record.is_file():
        if record.read_text() != settings.to_json():
            raise InputError(
                "--output must be a new folder or that of a build with the same arguments and files, got "
                f"{str(output)!r}, which holds a build with other settings (build.json)."
            )
    elif output.exists() and any(output.iterdir()):
        raise InputError(f"--output must be a new or empty folder, got {str(output)!r}, which holds other files.")
    write_file(record, lambda file: file.write(settings.to_json().encode()), overwrite=True)


def build(output: Path, settings: Settings, *, folders: Folders = (None, None), workers: int = 1) -> None:
    """Build the data set, or what is missing of it.

    Args:
        output: its folder.
        settings: what it depends on.
        folders: of foregrounds and backgrounds, where ``settings`` names files.
        workers: processes.

    Raises:
        InputError: If the folder holds something else, a file cannot be used, or the result breaks a rule.
    """
    _open_build(output, settings)
    jobs = [
        (settings, index, folders, output)
        for index in range(settings.scenes)
        if not all((output / name).is_file() for name in scene_files(index))
    ]
    done = settings.scenes - len(jobs)
    _in_processes(_build_scene, jobs, workers, total=settings.scenes, initial=done, unit="scene", desc="scenes")
    write_tables(output, settings)
    write_card(output, settings)
    check(output, workers=workers)


def check(output: Path, *, workers: int = 1) -> None:
    """Check everything that was written against the rules of the data set.

    Args:
        output: folder of a build.
        workers: processes.

    Raises:
        InputError: In one sentence what is wrong.
    """
    settings = read_settings(output)
    check_files(output, settings)
    workers = workers if settings.scenes >= 8 else 1  # starting them takes longer
    _in_processes(partial(check_scene, output, settings), range(settings.scenes), workers, desc="checks", disable=None)
    check_tables(output, settings)

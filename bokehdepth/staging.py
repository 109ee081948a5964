"""Files that appear whole or not at all: one file, or all files of one photo together.

Everything is written under a temporary name (``.<hex>.part``) on the same file system and renamed when it is complete,
so a reader never meets half a file. A killed process can leave such a name behind, never a damaged file.
"""

import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from bokehdepth.errors import InputError


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(f"folder is {str(folder)!r}, where a file stands in the way, wanted a folder") from error


def _check_target(path: Path, overwrite: bool) -> None:
    if path.is_dir():
        raise InputError(f"path is {str(path)!r}, which is a folder, wanted the name of a file")
    if path.exists() and not overwrite:
        raise InputError(f"path is {str(path)!r}, which exists, wanted a new name or overwrite=True")


def write_file(path: Path | str, write: Callable[[BinaryIO], object], *, overwrite: bool = False) -> Path:
    """Write one file under a temporary name beside it and rename it when it is complete and on the disk.

    Args:
        path: File to write; its folder is made if it does not exist.
        write: Gets the open binary file. What it raises is passed on, and nothing of the file remains.
        overwrite: Whether an existing file is replaced.

    Returns:
        The path written.

    Raises:
        InputError: If ``path`` is a folder, a file stands where a folder is wanted, or the file exists and
            ``overwrite`` is not set.
    """
    path = Path(path)
    _check_target(path, overwrite)
    _make_folder(path.parent)
    part = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        with part.open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return path


def in_parallel(tasks: Sequence[Callable[[], object]]) -> None:
    """Run tasks that write files in threads: what compresses, copies and waits for the disk leaves Python free.

    Args:
        tasks: what is to be done, the longest first.

    Raises:
        Exception: the first task's that failed, when all have come to their end.
    """
    if not tasks:
        return
    with ThreadPoolExecutor(max_workers=min(len(tasks), os.cpu_count() or 1)) as pool:
        done = [pool.submit(task) for task in tasks]
    for one in done:
        one.result()


def _publish(staging: Path, folder: Path, overwrite: bool) -> None:
    """Move all files of ``staging`` into ``folder``; on a failure put back what stood there."""
    names = sorted(path.relative_to(staging) for path in staging.rglob("*") if not path.is_dir())
    for name in names:
        _check_target(folder / name, overwrite)
    replaced = staging / f".{secrets.token_hex(8)}.replaced"
    undo: list[tuple[Path, Path]] = []
    try:
        for index, name in enumerate(names):
            target = folder / name
            _make_folder(target.parent)
            if target.exists():
                replaced.mkdir(exist_ok=True)
                os.replace(target, replaced / str(index))
                undo.append((replaced / str(index), target))
            os.replace(staging / name, target)
            undo.append((target, staging / name))
    except BaseException:
        for source, destination in reversed(undo):
            os.replace(source, destination)
        raise


@contextmanager
def staged(folder: Path | str, *, names: Sequence[str] = (), overwrite: bool = False) -> Iterator[Path]:
    """Collect all files of one photo in a temporary folder and publish them together.

    The body writes into the folder that is yielded (sub-folders are allowed). When it ends well, the files appear in
    ``folder``: in one rename where ``folder`` did not exist, else one after the other, and those already moved are
    taken back if one fails. When it raises, nothing of it remains and ``folder`` is as before. Files of other names in
    ``folder`` are left alone.

    Args:
        folder: Where the files go; made if it does not exist.
        names: Files that the body is going to write, as far as known: one that exists is refused before any work.
        overwrite: Whether files of the same name are replaced.

    Yields:
        The temporary folder, on the same file system as ``folder``.

    Raises:
        InputError: If ``folder`` is a file, or if a file exists and ``overwrite`` is not set.
    """
    folder = Path(folder).resolve()
    if folder.exists() and not folder.is_dir():
        raise InputError(f"folder is {str(folder)!r}, which is a file, wanted a folder")
    for name in names:
        _check_target(folder / name, overwrite)
    _make_folder(folder.parent)
    # Inside a folder that exists, since that folder may be a file system of its own; beside one that does not.
    home = folder if folder.exists() else folder.parent
    staging = home / f".{secrets.token_hex(8)}.part"
    staging.mkdir()
    try:
        yield staging
        if folder.exists():
            _publish(staging, folder, overwrite)
        else:
            staging.rename(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)

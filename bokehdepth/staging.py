"""Files that appear whole or not at all: one file, or all files of one photo together.

Everything is written under a temporary name (``.<hex>.part``) on the same file system and renamed when it is complete,
so a reader never meets half a file. A killed process can leave such a name behind, never a damaged file.

Where an earlier result is replaced, the folder is made anew beside the old one, with what else lies in it, and the two
change places at once: whenever the process is killed, the folder holds the old result as a whole or the new one.
"""

import ctypes
import errno
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from bokehdepth.errors import InputError

_PART = re.compile(r"\.[0-9a-f]{16}\.part")
_NO_PLACE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.ENAMETOOLONG)
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # Linux, fcntl.h and stdio.h


@contextmanager
def _telling_the_place(target: Path, part: Path) -> Iterator[None]:
    """Name the target, not its temporary name, where the disk is full or may not be written to."""
    try:
        yield
    except OSError as error:
        is_here = error.filename is None or Path(os.fsdecode(error.filename)).is_relative_to(part)
        if not is_here or error.errno not in _NO_PLACE:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(target)) from error


def _make_folder(folder: Path) -> None:
    try:
        with _telling_the_place(folder, folder):
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
    with _telling_the_place(path, part):
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


def _link(source: str, target: str) -> None:
    """Give a file a second name, or copy it where the file system has no such thing."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)


def _exchange(one: Path, other: Path) -> bool:
    """Let two folders change places in one step; False where the system cannot."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, TypeError, AttributeError):  # not Linux, or a C library of before 2018
        return False
    names = os.fsencode(one), os.fsencode(other)
    return rename(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0


def _aside(folder: Path) -> Path:
    """Where an old folder stands for a moment on a system whose folders cannot change places in one step."""
    return folder.with_name(f".{folder.name}.replaced")


def _replace_folder(staging: Path, folder: Path, replaced: Sequence[str], overwrite: bool) -> None:
    """Put ``staging``, with all of ``folder`` that is not replaced, in the place of ``folder``."""

    def leave_out(at: str, names: list[str]) -> set[str]:
        new = staging / Path(at).relative_to(folder)
        made = {name for name in names if os.path.lexists(new / name) and not (new / name).is_dir()}
        return made | (set(replaced) | set(filter(_PART.fullmatch, names)) if new == staging else set())

    for path in staging.rglob("*"):
        if not path.is_dir():
            _check_target(folder / path.relative_to(staging), overwrite)
    shutil.copytree(folder, staging, symlinks=True, ignore=leave_out, copy_function=_link, dirs_exist_ok=True)
    if _exchange(staging, folder):
        return
    aside = _aside(folder)
    folder.rename(aside)
    try:
        staging.rename(folder)
    except BaseException:
        aside.rename(folder)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _recover(folder: Path) -> None:
    """Finish or undo a replacement that was cut short between its two steps."""
    aside = _aside(folder)
    if not aside.is_dir():
        return
    if folder.exists():
        shutil.rmtree(aside, ignore_errors=True)
    else:
        aside.rename(folder)


@contextmanager
def staged(
    folder: Path | str, *, names: Sequence[str] = (), overwrite: bool = False, replaced: Sequence[str] = ()
) -> Iterator[Path]:
    """Collect all files of one photo in a temporary folder and publish them together.

    The body writes into the folder that is yielded (sub-folders are allowed). When it ends well, the files appear in
    ``folder``: in one rename where ``folder`` did not exist, else one after the other, and those already moved are
    taken back if one fails. When it raises, nothing of it remains and ``folder`` is as before. Files of other names in
    ``folder`` are left alone.

    Args:
        folder: Where the files go; made if it does not exist.
        names: Files that the body is going to write, as far as known: one that exists is refused before any work.
        overwrite: Whether files of the same name are replaced.
        replaced: Files of an earlier result in ``folder`` that give way to this one, whatever their names: the old
            result is there as a whole until the new one is.

    Yields:
        The temporary folder, on the same file system as ``folder``.

    Raises:
        InputError: If ``folder`` is a file, or if a file exists and ``overwrite`` is not set.
        OSError: If the disk is full or may not be written to; it names ``folder``.
    """
    folder = Path(folder).resolve()
    _recover(folder)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"folder is {str(folder)!r}, which is a file, wanted a folder")
    for name in names:
        _check_target(folder / name, overwrite)
    _make_folder(folder.parent)
    as_a_whole = any(os.path.lexists(folder / name) for name in replaced)
    if os.path.ismount(folder) or not os.access(folder.parent, os.W_OK | os.X_OK):
        as_a_whole = False  # such a folder cannot change places with another
    # Inside a folder that exists, since that folder may be a file system of its own; beside one that does not.
    home = folder if folder.exists() and not as_a_whole else folder.parent
    staging = home / f".{secrets.token_hex(8)}.part"
    with _telling_the_place(folder, staging):
        staging.mkdir()
        try:
            yield staging
            if as_a_whole:
                _replace_folder(staging, folder, replaced, overwrite)
            elif folder.exists():
                stale = [folder / name for name in replaced if not os.path.lexists(staging / name)]
                _publish(staging, folder, overwrite)
                for path in stale:
                    path.unlink(missing_ok=True)
            else:
                staging.rename(folder)
        finally:
            shutil.rmtree(staging, ignore_errors=True)

"""Files that appear whole or not at all: one file, or all files of one result together.

Everything is written under a temporary name (``.<hex>.part``) on the same file system and put in its place when it is
complete, so neither a reader nor a killed process ever leaves or meets half a file. A folder is replaced as a whole:
the new one holds what stays of the old one (as hard links) and the two change places in one step where the system can
do that; elsewhere the old one stands aside for a moment (``.<hex>.aside.part``), and comes back if the process is
killed then. Where a folder cannot be replaced (it is a mount point, somebody works in it, or it has folders of others)
its files are moved in one by one from ``.<hex>.ready.part``, and whoever writes there next moves the rest.

Whoever holds a temporary name locks it, and the system lets go of the lock when that process ends, however it ends. So
what is not locked belongs to nobody, and the next run removes it.
"""

import contextlib
import errno
import functools
import os
import re
import secrets
import shutil
import stat
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from bokehdepth.errors import InputError

try:
    import fcntl
except ImportError:  # Windows, where nothing is locked, so nothing that is left is removed
    fcntl = None

_TEMPORARY = re.compile(r"\.[0-9a-f]{16}(\.aside|\.ready)?\.part")
_NO_PLACE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.ENAMETOOLONG)
_EXCHANGE = 2  # RENAME_EXCHANGE of Linux, RENAME_SWAP of macOS
_AT_FDCWD = -100


@contextmanager
def _telling_the_place(target: Path) -> Iterator[None]:
    """Name the target, not its temporary name, where the disk is full or may not be written to."""
    try:
        yield
    except OSError as error:
        at = None if error.filename is None else Path(os.fsdecode(error.filename))
        is_here = at is None or any(map(_TEMPORARY.fullmatch, at.parts))
        if not is_here or error.errno not in _NO_PLACE:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(target)) from error


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


# --- temporary names -------------------------------------------------------------------------------------------------


def _hold(path: Path, wait: bool = False) -> int | None:
    """A descriptor that locks a path for as long as it is open; None where another holds it or there are no locks."""
    if fcntl is None:
        return None
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        if os.path.samestat(os.fstat(descriptor), os.stat(path)):
            return descriptor
    except OSError:
        pass
    os.close(descriptor)
    return None


def _remove(path: Path) -> None:
    """Remove a file or a folder as far as this user may; one that is not there is fine."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


@contextmanager
def _temporary(home: Path, make: Callable[[Path], object], kind: str = "") -> Iterator[Path]:
    """A new temporary name in a folder, made and locked; removed at the end where it is still there."""
    while True:
        path = home / f".{secrets.token_hex(8)}{kind}.part"
        make(path)
        lock = _hold(path, wait=True)
        if path.exists():  # else another run took it for a dead one's before it was locked
            break
    try:
        yield path
    finally:
        _remove(path)
        if lock is not None:
            os.close(lock)


def _files(folder: Path) -> list[Path]:
    """Names of all files of a folder, relative to it, temporary ones left out."""
    names = []
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not _TEMPORARY.fullmatch(name)]
        inner = Path(place).relative_to(folder)
        links = [name for name in folders if (Path(place) / name).is_symlink()]
        names += [inner / name for name in (*files, *links) if not _TEMPORARY.fullmatch(name)]
    return sorted(names)


def _recover(path: Path) -> None:
    """Finish what a dead process had begun under a temporary name, then remove the name."""
    folder, kind = path.parent, _TEMPORARY.fullmatch(path.name)[1]
    try:
        if kind == ".aside":
            for old in path.iterdir():
                if not os.path.lexists(folder / old.name):
                    os.rename(old, folder / old.name)
        elif kind == ".ready":
            for name in _files(path):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                os.replace(path / name, folder / name)
    except OSError:  # it cannot be finished now, and is not lost
        return
    _remove(path)


def remove_stale(folder: Path | str, *, recursive: bool = False) -> None:
    """Remove temporary names that dead processes left in a folder, and finish what they had begun to put in place.

    Names of living processes stay. Only names that this module gives are looked at.

    Args:
        folder: where to look; one that does not exist is fine.
        recursive: look into its folders too.
    """
    for place, folders, files in os.walk(folder):
        for name in filter(_TEMPORARY.fullmatch, (*folders, *files)):
            path = Path(place, name)
            lock = _hold(path)
            if lock is not None:
                _recover(path)
                os.close(lock)
        folders[:] = [name for name in folders if recursive and not _TEMPORARY.fullmatch(name)]


@functools.lru_cache(maxsize=1024)
def _remove_stale_once(folder: Path) -> None:
    """Once for each process, since a folder of thousands of files would be read thousands of times."""
    remove_stale(folder)


# --- one file --------------------------------------------------------------------------------------------------------


def write_file(path: Path | str, write: Callable[[BinaryIO], object], *, overwrite: bool = False) -> Path:
    """Write one file under a temporary name beside it and rename it when it is complete and on the disk.

    In a temporary folder of `staged` it has its own name at once, since the folder is published as a whole.

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
    with _telling_the_place(path):
        if _TEMPORARY.fullmatch(path.parent.name):
            _write(path, write)
        else:
            _remove_stale_once(path.parent.absolute())
            with _temporary(path.parent, lambda part: part.touch(exist_ok=False)) as part:
                _write(part, write)
                os.replace(part, path)
    return path


def _write(path: Path, write: Callable[[BinaryIO], object]) -> None:
    try:
        with path.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        _remove(path)
        raise


def in_parallel(tasks: Sequence[Callable[[], object]]) -> None:
    """Run tasks that write files in threads, the longest first; then raise what the first of them raised, if any.

    What compresses, copies and waits for the disk leaves Python free.
    """
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        futures = [pool.submit(task) for task in tasks]
    for future in futures:
        future.result()


# --- folders ---------------------------------------------------------------------------------------------------------


def remove_folder(folder: Path | str) -> None:
    """Remove a folder so that it is there as a whole or not at all, whenever the process is killed."""
    folder = Path(folder)
    part = folder.with_name(f".{secrets.token_hex(8)}.part")
    os.rename(folder, part)
    _remove(part)


def _exchange(first: Path, second: Path) -> bool:
    """Let two folders change places in one step; False where the system cannot."""
    if os.name != "posix":
        return False
    import ctypes

    library = ctypes.CDLL(None, use_errno=True)
    names = os.fsencode(first), os.fsencode(second)
    try:
        if sys.platform == "darwin":
            return library.renamex_np(*names, _EXCHANGE) == 0
        return library.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _EXCHANGE) == 0
    except AttributeError:
        return False


def _move_late_files(old: Path, folder: Path, gone: Collection[str]) -> None:
    """Move what came into a folder while it was being replaced into the new one, as far as the system lets it."""
    with contextlib.suppress(OSError):  # the folder is replaced by now, and no failure may say that it is not
        for name in _files(old):
            if str(name) not in gone and not os.path.lexists(folder / name):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                os.rename(old / name, folder / name)


def replace_folder(source: Path | str, folder: Path | str, *, replaced: Collection[str] | None = None) -> None:
    """Put a folder in the place of another one as a whole, and remove that one.

    Args:
        source: complete folder, beside ``folder``.
        folder: folder to replace, or a name that is free.
        replaced: files of ``folder`` that go; others that ``source`` lacks are moved into the new one. None is all.

    Raises:
        OSError: the system does not let it; both are as before then.
    """
    source, folder = Path(source), Path(folder)
    if not folder.exists():
        os.rename(source, folder)
        return
    lock = _hold(folder)  # it becomes a temporary name, and is this process's to remove
    try:
        if _exchange(source, folder):
            if replaced is not None:
                _move_late_files(source, folder, replaced)
            _remove(source)
            return
        with _temporary(folder.parent, Path.mkdir, ".aside") as aside:
            old = aside / folder.name
            try:
                os.rename(folder, old)
                os.rename(source, folder)
            except BaseException:
                if old.exists() and not folder.exists():
                    os.rename(old, folder)
                raise
            if replaced is not None:
                _move_late_files(old, folder, replaced)
    finally:
        if lock is not None:
            os.close(lock)


def _carry_over(folder: Path, staging: Path, gone: Collection[str]) -> bool:
    """Link what stays of a folder into the one that is to replace it; False, and no link, where that cannot be."""
    linked = []
    try:
        for place, folders, files in os.walk(folder):
            inner = Path(place).relative_to(folder)
            folders[:] = [name for name in folders if Path(place, name) != staging]
            for name in folders:
                is_known = (staging / inner / name).is_dir() or (gone and not _TEMPORARY.fullmatch(name))
                if Path(place, name).is_symlink() or not is_known:
                    raise OSError("it has folders of others")
                (staging / inner / name).mkdir(exist_ok=True)
            for name in files:
                target = staging / inner / name
                if str(inner / name) not in gone and not os.path.lexists(target):
                    os.link(Path(place, name), target, follow_symlinks=False)
                    linked.append(target)
    except (OSError, NotImplementedError):
        for target in linked:
            target.unlink(missing_ok=True)
        return False
    return True


def _replace_whole(staging: Path, folder: Path, replaced: Collection[str] | None) -> bool:
    """Replace a folder by the one that was made for it; False, and both as before, where it cannot be replaced."""
    if staging.parent == folder:
        return False
    with contextlib.suppress(OSError):
        if Path.cwd().resolve().is_relative_to(folder):
            return False  # whoever works there would be left in a folder that is no more
    lock, tries = None, 10
    while lock is None and tries:  # one at a time; None: another has just replaced it, or there are no locks
        lock, tries = _hold(folder, wait=True), tries - 1
    try:
        if replaced is not None and not _carry_over(folder, staging, replaced):
            return False
        os.chmod(staging, stat.S_IMODE(folder.stat().st_mode))
        replace_folder(staging, folder, replaced=replaced)
    except OSError:
        return False
    finally:
        if lock is not None:
            os.close(lock)
    return True


def _move_in(staging: Path, folder: Path, replaced: Collection[str] | None) -> None:
    """Move all files of a folder into another one; on a failure put back what stood there."""
    names = _files(staging)
    ready = folder / f"{staging.name.removesuffix('.part')}.ready.part"
    os.rename(staging, ready)
    former = ready / staging.name
    undo: list[tuple[Path, Path]] = []
    try:
        for index, name in enumerate(names):
            target, old = folder / name, former / str(index)
            _make_folder(target.parent)
            if os.path.lexists(target):
                former.mkdir(exist_ok=True)
                try:
                    os.link(target, old, follow_symlinks=False)
                except (OSError, NotImplementedError):
                    os.replace(target, old)
                undo.append((old, target))
            os.replace(ready / name, target)
            undo.append((target, ready / name))
        for name in _files(folder):
            if name not in names and (replaced is None or str(name) in replaced):
                (folder / name).unlink()
    except BaseException:
        for source, destination in reversed(undo):
            os.replace(source, destination)
        raise
    finally:
        _remove(ready)


@contextmanager
def _staging_of(folder: Path, at_once: bool) -> Iterator[Path]:
    """A temporary folder beside a folder where that can be put in its place, else inside it."""
    while True:
        home = folder if folder.exists() else folder.parent
        with _temporary(home, Path.mkdir) as staging:
            if home == folder and at_once:
                beside = folder.with_name(staging.name)
                try:
                    os.rename(staging, beside)
                except FileNotFoundError:  # another process has just replaced the folder
                    continue
                except OSError:  # the folder is a file system of its own, or its parent may not be written to
                    beside = staging
                staging = beside
            try:
                yield staging
            finally:
                _remove(staging)
            return


@contextmanager
def staged(
    folder: Path | str,
    *,
    names: Sequence[str] = (),
    overwrite: bool = False,
    replaced: Collection[str] | None = (),
    at_once: bool = True,
) -> Iterator[Path]:
    """Collect all files of one result in a temporary folder and publish them together.

    The body writes into the folder that is yielded (sub-folders are allowed). When it ends well, the files appear in
    ``folder`` together, as the module says. When it raises, nothing of it remains and ``folder`` is as before. A
    temporary folder that another call yielded takes its files directly, since it is published as a whole.

    Args:
        folder: Where the files go; made if it does not exist.
        names: Files that the body is going to write, as far as known: one that exists is refused before any work.
        overwrite: Whether files of the same name are replaced.
        replaced: Files of an earlier result in ``folder`` that give way to this one, whatever the body writes; other
            files stay. None is all of them: the folder becomes what the body wrote.
        at_once: Whether ``folder`` is one result, which is replaced as a whole. Where many processes put files into
            one folder, each moves its own in, one by one, in the order of their names.

    Yields:
        The temporary folder, on the same file system as ``folder``.

    Raises:
        InputError: If ``folder`` is a file, or if a file exists and ``overwrite`` is not set.
        OSError: If the disk is full or may not be written to; it names ``folder``.
    """
    folder = Path(folder).resolve()
    for place in (folder.parent, folder):
        remove_stale(place)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"folder is {str(folder)!r}, which is a file, wanted a folder")
    for name in names:
        _check_target(folder / name, overwrite)
    if _TEMPORARY.fullmatch(folder.name) and folder.is_dir():
        yield folder
        return
    _make_folder(folder.parent)
    with _telling_the_place(folder), _staging_of(folder, at_once) as staging:
        yield staging
        if not folder.exists():
            try:
                staging.rename(folder)
                return
            except OSError:  # another process has made it meanwhile
                if not folder.is_dir():
                    raise
        for name in _files(staging):
            _check_target(folder / name, overwrite)
            if any(os.path.lexists(folder / parent) and not (folder / parent).is_dir() for parent in name.parents):
                _make_folder((folder / name).parent)  # which says what stands in the way
        if not (at_once and _replace_whole(staging, folder, replaced)):
            _move_in(staging, folder, replaced)

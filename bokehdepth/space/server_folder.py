"""What a server needs before anything large is imported: its folder, and threads that share their memory.

The folder is made for its user alone, gone with the server, and found by the next one if it was killed. All folders
of a user's servers lie in one, `bokehdepth-<user>`, beside a lock file each that the server holds while it lives. The
lock goes with the process, however that ends, so a folder whose lock is free has no server any more.
"""

from __future__ import annotations

import contextlib
import ctypes
import getpass
import os
import secrets
import shutil
from pathlib import Path

from filelock import FileLock, Timeout

from ..errors import InputError

_ARENA_MAX = -8  # M_ARENA_MAX of glibc's malloc.h


def share_memory() -> None:
    """Let all threads share two pools of memory, since a pool for each would keep what the others have freed."""
    limit = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if limit is not None:
        limit(_ARENA_MAX, 2)


class ServerFolder:
    """A new folder, locked; those of servers that are dead are removed on the way.

    Args:
        parent: folder that all servers of a machine may use, such as that of temporary files.

    Attributes:
        path: the folder, empty, mode 700.

    Raises:
        InputError: `parent` cannot be written to, or somebody else made this user's folder in it.
    """

    def __init__(self, parent: Path | str) -> None:
        home = Path(parent) / f"bokehdepth-{_user()}"
        try:
            home.mkdir(parents=True, exist_ok=True, mode=0o700)
            if home.is_symlink() or (hasattr(os, "getuid") and home.stat().st_uid != os.getuid()):
                raise InputError(f"folder {str(home)!r} must be this user's own, got another's; remove it.")
            home.chmod(0o700)
            with FileLock(home / "starting.lock", mode=0o600):
                _remove_dead(home)
                self.path = home / secrets.token_hex(8)
                self._lock = FileLock(self.path.with_suffix(".lock"), mode=0o600)
                self._lock.acquire()
                self.path.mkdir(mode=0o700)
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise InputError(f"folder {str(home)!r} must be writable for uploads, got: {reason}.") from error

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the folder and its lock."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.release()
        self.path.with_suffix(".lock").unlink(missing_ok=True)


def _user() -> str:
    return str(os.getuid()) if hasattr(os, "getuid") else getpass.getuser()


def _remove_dead(home: Path) -> None:
    """Remove folders whose lock is free or gone; `starting.lock` is held, so none is just being made."""
    locks = {path.with_suffix(".lock") for path in home.iterdir() if path.name != "starting.lock"}
    for path in locks:
        lock = FileLock(path, mode=0o600)
        with contextlib.suppress(Timeout):
            lock.acquire(timeout=0)
            try:
                shutil.rmtree(path.with_suffix(""), ignore_errors=True)
            finally:
                lock.release()
            path.unlink(missing_ok=True)

"""A server's folder: its user's alone, gone with it, and removed by the next server if it was killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bokehdepth.errors import InputError
from bokehdepth.space.server_folder import ServerFolder

ROOT = Path(__file__).resolve().parents[1]
SERVER = """
import sys, time
from bokehdepth.space.server_folder import ServerFolder
made = ServerFolder(sys.argv[1])
folder = made.path
(folder / "photo.jpg").write_bytes(b"somebody's")
print(folder, flush=True)
time.sleep(600)
"""


def start(parent: Path) -> tuple[subprocess.Popen, Path]:
    """A process that has a folder and a file in it."""
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(parent)], stdout=subprocess.PIPE, text=True, env=environ
    )
    return server, Path(server.stdout.readline().strip())


def test_what_a_killed_server_left_is_removed_and_a_living_ones_stays(tmp_path: Path) -> None:
    living, kept = start(tmp_path)
    killed, left = start(tmp_path)
    try:
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        assert (left / "photo.jpg").is_file() and (kept / "photo.jpg").is_file()
        with ServerFolder(tmp_path) as folder:
            assert not left.exists() and not left.with_suffix(".lock").exists()
            assert (kept / "photo.jpg").is_file()
            assert folder.is_dir() and folder.parent == kept.parent
        assert not folder.exists() and (kept / "photo.jpg").is_file()
    finally:
        living.kill()
        living.wait()
    ServerFolder(tmp_path).close()
    assert [path.name for path in kept.parent.iterdir()] == ["starting.lock"]


def test_a_folder_without_a_lock_has_no_server(tmp_path: Path) -> None:
    with ServerFolder(tmp_path) as folder:
        stray = folder.parent / "0123456789abcdef"
        stray.mkdir()
        (stray / "photo.jpg").touch()
        ServerFolder(tmp_path).close()
        assert not stray.exists() and folder.exists()


def test_nobody_else_looks_in(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    with ServerFolder(shared) as folder:
        assert folder.stat().st_mode & 0o077 == 0 and folder.parent.stat().st_mode & 0o077 == 0
    home = folder.parent
    (home / "starting.lock").unlink()
    home.rmdir()
    (tmp_path / "theirs").mkdir()
    home.symlink_to(tmp_path / "theirs")
    with pytest.raises(InputError, match="must be this user's own"):
        ServerFolder(shared)


def test_a_place_that_cannot_be_written_to_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"folder '.*' must be writable for uploads, got: "):
        ServerFolder(tmp_path / "file")

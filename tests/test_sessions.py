"""Files of visitors: kept apart, kept while they are used, gone afterwards."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bokehdepth.errors import InputError
from bokehdepth.space.sessions import NoRoomError, SessionFiles


def write(path: Path, size: int = 10) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(size))
    return path


def age(path: Path, seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets time pass; a file's change time cannot be set back."""
    assert path.exists()
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + seconds)


def all_files(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file()]


def test_a_session_uses_its_own_files_and_uploads_alone(tmp_path: Path) -> None:
    files = SessionFiles(tmp_path / "cache")
    mine = write(files.new_folder("a") / "depth.npz")
    upload = write(files.root / "0f" / "photo.jpg")
    files.admit("a", mine)
    files.admit("a", upload)
    files.admit("b", upload)
    for other in ("b", "c", None):
        with pytest.raises(InputError, match="depth.npz' is of another session"):
            files.admit(other, mine)
    files.new_folder("b")
    with pytest.raises(InputError, match="another session"):
        files.admit("b", files.root / "x" / ".." / mine.relative_to(files.root))
    outside = write(tmp_path / "secret.txt")
    link = files.root / "0f" / "link.jpg"
    link.symlink_to(outside)
    for path in (outside, link, files.root):
        with pytest.raises(InputError, match="was not uploaded here"):
            files.admit("a", path)
    with pytest.raises(InputError, match="no longer kept"):
        files.admit("a", files.root / "0f" / "gone.jpg")


def test_a_sessions_folder_cannot_be_guessed(tmp_path: Path) -> None:
    files = SessionFiles(tmp_path)
    one, other = files.new_folder("a"), files.new_folder("b")
    assert one.parent != other.parent and "a" != one.parent.name
    secret, another = (folder.parent.name.split("-", 2)[2] for folder in (one, other))  # it may hold dashes itself
    assert len(secret) == len(another) == 32 and secret != another  # 24 random bytes
    assert one.stat().st_mode & 0o077 == 0 and one.parent.stat().st_mode & 0o077 == 0
    assert SessionFiles(tmp_path / "new").root.stat().st_mode & 0o077 == 0
    assert files.new_folder("a").parent == one.parent
    assert files.new_folder(None).parent != files.new_folder(None).parent


def test_an_ended_session_is_removed_after_the_grace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = SessionFiles(tmp_path, grace_s=10)
    result, upload = write(files.new_folder("a") / "a.png"), write(tmp_path / "0f" / "photo.jpg")
    shared = write(tmp_path / "1f" / "shared.jpg")
    files.admit("a", upload)
    files.admit("a", shared)
    files.admit("b", shared)
    files.end("a")
    files.sweep()
    assert result.exists() and upload.exists()
    age(upload, 70, monkeypatch)
    files.sweep()
    assert all_files(tmp_path) == [shared]
    assert not upload.parent.exists()
    files.end("unknown")
    files.end("b")
    age(shared, 200, monkeypatch)
    files.sweep()
    files.sweep()
    assert not list(tmp_path.iterdir())


def test_a_session_that_comes_back_keeps_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = SessionFiles(tmp_path, grace_s=10, max_idle_s=100)
    result = write(files.new_folder("a") / "a.png")
    files.end("a")
    files.admit("a", result)
    age(result, 50, monkeypatch)
    files.sweep()
    assert result.exists()
    age(result, 101, monkeypatch)
    files.sweep()
    assert not result.exists()


def test_what_the_server_needs_itself_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = SessionFiles(tmp_path, grace_s=1)
    example = write(tmp_path / "0f" / "chelsea.png")
    files.admit("a", example)
    files.end("a")
    age(example, 100, monkeypatch)
    files.sweep(keep=[str(example)])
    assert example.exists()


def test_an_upload_that_just_came_again_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = SessionFiles(tmp_path, grace_s=10)
    upload = write(tmp_path / "0f" / "photo.jpg")
    files.admit("a", upload)
    files.end("a")
    real = time.time
    monkeypatch.setattr(files, "_grace_s", -1)  # the session is over, the file is new
    monkeypatch.setattr(time, "time", lambda: real() - 2)
    files.sweep()
    assert upload.exists()


def test_results_beyond_the_limits_go_oldest_first(tmp_path: Path) -> None:
    files = SessionFiles(tmp_path, keep_results=3, max_bytes=50)
    first, *rest = (write(files.new_folder("a") / "a.png") for _ in range(3))
    files.admit("a", first)  # used last
    write(files.new_folder("a") / "a.png")
    assert first.exists() and not rest[0].exists() and rest[1].exists()
    large = write(files.new_folder("b") / "b.png", 35)
    files.sweep()
    assert large.exists() and sum(path.stat().st_size for path in all_files(tmp_path)) <= 50
    assert not rest[1].exists()


def test_what_is_used_is_not_old_for_the_server(tmp_path: Path) -> None:
    files = SessionFiles(tmp_path)
    folder = files.new_folder("a")
    used, beside = write(folder / "result" / "depth.npz"), write(folder / "frame.jpg")
    for path in (used, beside):
        os.utime(path, (1, 1))
    files.admit("a", used)
    assert min(path.stat().st_mtime for path in (used, beside)) > time.time() - 60


def test_work_that_goes_on_after_the_end_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, neighbour = SessionFiles(tmp_path, grace_s=1), SessionFiles(tmp_path, grace_s=1)
    folder, theirs = files.new_folder("a"), write(neighbour.new_folder("a") / "theirs.png")
    files.end("a")
    age(folder, 10, monkeypatch)
    files.sweep()
    late = write(folder / "result" / "depth.npz")
    files.sweep()
    assert not late.exists() and all_files(tmp_path) == [theirs]


def test_what_nobody_used_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Aborted uploads after minutes; saved states of the page and what MCP brought after an hour."""
    files = SessionFiles(tmp_path)
    aborted, state = write(tmp_path / "tmpabc123"), write(tmp_path / "deep_links" / "x" / "state.json")
    brought, named = write(tmp_path / "0f" / "file.png"), write(tmp_path / "1f" / "tmp.png")
    used = write(tmp_path / "2f" / "photo.jpg")
    files.admit("a", used)
    files.sweep()
    assert set(all_files(tmp_path)) == {aborted, state, brought, named, used}
    age(aborted, 400, monkeypatch)
    files.admit("a", used)
    files.sweep()
    assert set(all_files(tmp_path)) == {state, brought, named, used}
    age(state, 3601, monkeypatch)
    files.admit("a", used)
    files.sweep()
    files.sweep()
    assert all_files(tmp_path) == [used]
    assert [path.name for path in tmp_path.iterdir()] == ["2f"]


def test_a_session_keeps_so_many_uploads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = SessionFiles(tmp_path, session_bytes=100, grace_s=10)
    first, second, third = (write(tmp_path / f"{number}f" / "photo.jpg", 40) for number in range(3))
    for path in (first, second, first, third):
        files.admit("a", path)
    files.admit("b", second)
    age(first, 20, monkeypatch)
    files.sweep()
    assert set(all_files(tmp_path)) == {first, second, third}  # another still uses it
    monkeypatch.setattr(files, "_grace_s", -1)
    files.end("b")
    files.sweep()
    assert set(all_files(tmp_path)) == {first, third}


def test_room_for_uploads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = SessionFiles(tmp_path, sender_bytes=2**20, upload_bytes=2 * 2**20, max_idle_s=100)
    files.check_room("a", 2**20)
    for _ in range(64):
        files.note_sent("a", 2**14 - 8192, files=1)  # each takes an entry of the disk beside its bytes
    with pytest.raises(NoRoomError, match="got 0 MB after 1 MB") as own:
        files.check_room("a", 1)
    assert own.value.is_own
    files.check_room("b", 2**20)
    files.note_sent("b", 2**20)
    with pytest.raises(NoRoomError, match="room for uploads is full") as all_full:
        files.check_room("c", 1)
    assert not all_full.value.is_own
    files.sweep()  # what was noted is not on the disk
    files.check_room("c", 2**20)
    upload = write(tmp_path / "0f" / "photo.jpg", 2 * 2**20)
    files.sweep()
    with pytest.raises(NoRoomError, match="room for uploads is full"):
        files.check_room("c", 1)
    age(upload, 3700, monkeypatch)
    files.sweep()
    files.check_room("a", 2**20)


def test_many_threads_at_once(tmp_path: Path) -> None:
    files = SessionFiles(tmp_path, keep_results=2)

    def visit(number: int) -> None:
        for _ in range(20):
            path = write(files.new_folder(str(number % 4)) / "a.png")
            files.sweep()
            if number < 4:
                files.admit(str(number), path) if path.exists() else None
        files.end(str(number % 4))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(visit, range(4)))
    assert len(all_files(tmp_path)) == 8
    files.close()
    assert not all_files(tmp_path)

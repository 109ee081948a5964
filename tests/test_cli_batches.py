"""Many photos in one command: pipes, closed streams, bad photos among good ones, equal names, earlier results."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from bokehdepth.cli import main
from bokehdepth.files import atomic
from bokehdepth.files.atomic import staged
from bokehdepth.files.stacks import save_stack
from bokehdepth.tasks.photo_job import folder_names, photo_paths
from bokehdepth.tasks.result_files import files_replaced

SIZE_PX = (64, 48)
FAST = ["--bokeh-strengths", "10", "--steps", "1", "--device", "cpu", "--threads", "1"]


def write_photo(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*SIZE_PX[::-1], 3), dtype=np.uint8)
    PIL.Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> list[str]:
    return [str(write_photo(tmp_path / f"{name}.png", seed)) for seed, name in enumerate("abc")]


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def shell(command: list[str], rest: str) -> subprocess.CompletedProcess:
    """The program as a shell starts it, with what follows its arguments."""
    line = f"{shlex.join([sys.executable, '-m', 'bokehdepth', *command])} {rest}"
    return subprocess.run(["bash", "-o", "pipefail", "-c", line], capture_output=True, text=True)


# --- pipes and streams -------------------------------------------------------------------------------------------


def test_a_reader_who_leaves_stops_no_photo(photos: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = shell(["stack", *photos, "-o", str(out), *FAST, "-q"], "| head -1")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{out / 'a'}\n", "")
    assert [names_in(out / name) for name in "abc"] == [["bokeh_k10.png", "stack.json"]] * 3


def test_a_process_without_streams_works_and_its_exit_code_tells(photos: list[str], tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_text("no picture")
    out = tmp_path / "out"
    done = shell(["stack", str(tmp_path / "bad.png"), *photos[:2], "-o", str(out), *FAST, "-v"], "<&- >&- 2>&-")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")  # of the bad photo alone
    assert names_in(out) == ["a", "b"]
    for name in "ab":
        json.loads((out / name / "stack.json").read_text())  # no library's words in a file that took a stream's number
        PIL.Image.open(out / name / "bokeh_k10.png").load()


@pytest.mark.parametrize("command", [["run", "--help"], ["optics", "a.png"], ["optics", "a.png", "--json"]])
def test_short_commands_end_quietly_too(photos: list[str], command: list[str]) -> None:
    command = [photos[0] if word == "a.png" else word for word in command]
    for rest in ("| true", ">&-", "2>&-"):
        done = shell(command, rest)
        assert (done.returncode, done.stderr) == (0, ""), rest
    assert shell(["optics", "missing.png"], "2>&1 >&- | true").returncode == 2
    assert shell(["draw"], "2>&-").returncode == 2


def test_a_full_disk_behind_stdout_is_one_sentence(photos: list[str], tmp_path: Path, monkeypatch, capfd) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("the system has no /dev/full")
    sentence = "bokehdepth: error: 'stdout' cannot be used: No space left on device.\n"
    with monkeypatch.context() as patch, open("/dev/full", "w") as full:
        patch.setattr(sys, "stdout", full)
        assert main(["stack", *photos, "-o", str(tmp_path / "out"), *FAST, "-q"]) == 1
    assert capfd.readouterr().err == sentence
    assert names_in(tmp_path / "out") == ["a", "b", "c"]
    done = shell(["optics", photos[0]], "> /dev/full")
    assert (done.returncode, done.stderr) == (1, sentence)


# --- one bad photo, and a disk that takes nothing ----------------------------------------------------------------


def test_bad_photos_are_left_out_and_the_exit_code_says_so(photos: list[str], tmp_path: Path, capsys) -> None:
    bad = tmp_path / "bad.png"
    bad.write_text("no picture")
    empty = tmp_path / "empty"
    empty.mkdir()
    given = [photos[0], str(bad), photos[1], str(tmp_path / "gone.jpg"), str(empty)]
    assert main(["stack", *given, "-o", str(tmp_path / "out"), *FAST, "-q", "--json"]) == 1
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert (document["done"], document["failed"]) == (2, 3)
    wrong = {Path(entry["photo"]).name for entry in document["photos"] if "error" in entry}
    assert wrong == {"bad.png", "gone.jpg", "empty"}
    assert names_in(tmp_path / "out") == ["a", "b"]
    lines = err.splitlines()
    assert len(lines) == 3 and all(line.startswith("bokehdepth: error: photo ") for line in lines)
    assert "is a folder without pictures" in lines[2]
    # What exists is left alone, what is new is done.
    assert main(["stack", *photos, "-o", str(tmp_path / "out"), *FAST, "-q"]) == 1
    out, err = capsys.readouterr()
    assert out == f"{tmp_path / 'out' / 'c'}\n" and err.count("holds an earlier result") == 2


def test_an_option_that_suits_no_photo_is_told_once(photos: list[str], tmp_path: Path, capsys) -> None:
    assert main(["run", *photos, "-o", str(tmp_path / "out"), "--bokeh-strengths", "31"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "got 31" in err


LIMITED = """
import numpy as np, resource, signal, sys
from bokehdepth.cli import main
from bokehdepth.rendering.refocus import render_from_depth
picture = np.zeros((48, 64, 3), np.float32)
render_from_depth(picture, np.full((48, 64), 2, np.float32), 9.0, 1.0)  # what is compiled is kept on the disk
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))  # as a full disk, which takes no more of a file
sys.exit(main(sys.argv[1:]))
"""


def test_a_disk_that_takes_no_more_is_one_sentence(photos: list[str], tmp_path: Path) -> None:
    out, depth = tmp_path / "out", tmp_path / "depth.npy"
    np.save(depth, np.full(SIZE_PX[::-1], 2.0))
    lens = ["--depth", str(depth), "--depth-unit", "m", "--focus-m", "1", "--bokeh-strength", "9"]
    command = [sys.executable, "-c", LIMITED, "render", photos[0], *lens, "-o", str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"bokehdepth: error: {str(out / 'a')!r} cannot be used: File too large.\n"
    assert names_in(out) == []


# --- names -------------------------------------------------------------------------------------------------------


def test_photos_of_equal_names_get_folders_of_their_own(tmp_path: Path, capsys) -> None:
    given = ["IMG_1.jpg", "IMG_1.png", "trip/img_1.jpg", "trip/b.png", "home/b.png", "c.png"]
    paths = [write_photo(tmp_path / name, seed) for seed, name in enumerate(given)]
    names = folder_names(paths)
    above = tmp_path.name
    assert names == [f"{above}_IMG_1_jpg", "IMG_1_png", "trip_img_1_jpg", "trip_b_png", "home_b_png", "c"]
    assert folder_names(paths[::-1]) == names[::-1]  # whatever the order
    assert folder_names(paths[:2]) == ["IMG_1_jpg", "IMG_1_png"]
    folder = tmp_path / "out"
    assert main(["stack", *map(str, paths), str(paths[0]), "-o", str(folder), *FAST, "-q"]) == 0
    assert capsys.readouterr().out.splitlines() == [str(folder / name) for name in names]
    assert names_in(folder) == sorted(names)
    for path, name in zip(paths, names, strict=True):
        assert json.loads((folder / name / "stack.json").read_text())["arguments"]["photo"] == str(path)


def test_names_are_told_apart_as_far_as_folders_can(tmp_path: Path) -> None:
    assert folder_names([Path("/a/x/p.png"), Path("/b/x/p.png")]) == ["a_x_p_png", "b_x_p_png"]
    assert folder_names([Path("/a/p.png"), Path("/a/p.jpg"), Path("/a/p_png.gif")]) == [
        "a_p_png",
        "p_jpg",
        "p_png_gif",
    ]
    assert folder_names([Path("/a/p"), Path("/b/p")]) == ["a_p", "b_p"]
    twins = folder_names([Path("/a/b_c.png"), Path("/a_b/c.png"), Path("/a_b/c.jpg")])
    assert len(set(twins)) == 3
    assert photo_paths([tmp_path / "a.png", tmp_path / "b" / ".." / "a.png"]) == [tmp_path / "a.png"]


# --- an earlier result -------------------------------------------------------------------------------------------


def test_fewer_strengths_replace_the_whole_earlier_result(photos: list[str], tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    run = ["run", photos[0], "-o", str(out), "--steps", "1", "--device", "cpu", "--threads", "1", "-q"]
    assert main([*run, "--bokeh-strengths", "10", "20", "30"]) == 0
    (out / "a" / "mine.txt").write_text("mine")
    (out / "a" / "sub").mkdir()
    (out / "a" / "sub" / "bokeh_k30.png").write_text("mine")
    capsys.readouterr()
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert main([*run, "--bokeh-strengths", "15"]) == 2
    err = capsys.readouterr().err
    assert "holds an earlier result (bokeh_k10.png exists), wanted another folder or leave to replace it (--ov" in err
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}

    assert main([*run, "--bokeh-strengths", "15", "--overwrite"]) == 0
    depth = ["depth.npz", "depth.png", "depth_preview.png"]
    assert names_in(out / "a") == sorted(["bokeh_k15.png", *depth, "mine.txt", "run.json", "sub"])
    assert names_in(out) == ["a"] and (out / "a" / "sub" / "bokeh_k30.png").read_text() == "mine"
    # A stack alone in its place: depth that was read from other frames does not stay beside it.
    assert main(["stack", *run[1:], "--bokeh-strengths", "5", "--overwrite"]) == 0
    assert names_in(out / "a") == ["bokeh_k5.png", "mine.txt", "stack.json", "sub"]


def test_depth_alone_leaves_the_frames_that_it_was_read_from(tmp_path: Path) -> None:
    def record(name: str, files: list[str]) -> None:
        for file in files:
            (tmp_path / file).write_text(file)
        (tmp_path / name).write_text(json.dumps({"files": [*files, name]}))

    depth = ["depth.npz", "depth.png", "depth_preview.png"]
    record("run.json", ["bokeh_k10.png", *depth])
    assert files_replaced(tmp_path, [*depth, "depth.json"]) == depth
    record("depth.json", [*depth, "confidence.png"])
    assert files_replaced(tmp_path, [*depth, "depth.json"]) == ["confidence.png", "depth.json", *depth]
    everything = sorted(["bokeh_k10.png", *depth, "confidence.png", "depth.json", "run.json"])
    assert files_replaced(tmp_path, ["bokeh_k5.png", "stack.json"]) == everything
    (tmp_path / "run.json").write_text('{"files": ["../mine.txt", "/etc/hosts", 3]}')
    (tmp_path / "depth.json").write_text("no json")
    assert files_replaced(tmp_path, ["bokeh_k5.png", "stack.json"]) == ["bokeh_k10.png"]


KILLED = """
import os, signal, sys
from pathlib import Path
from bokehdepth.files import atomic
folder, at, can_exchange = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "1"
if not can_exchange:
    atomic._exchange = lambda one, other: False  # as on a system without renameat2
count = 0
def before(event, arguments):
    global count
    if event in ("os.rename", "os.link", "os.mkdir", "os.remove", "os.rmdir", "ctypes.dlsym", "shutil.rmtree") or (
        event == "open" and isinstance(arguments[2], int) and arguments[2] & os.O_WRONLY
    ):
        count += 1
        if count == at:
            os.kill(os.getpid(), signal.SIGKILL)
with atomic.staged(folder, overwrite=True, replaced=["bokeh_k10.png", "bokeh_k20.png", "run.json"]) as part:
    sys.addaudithook(before)
    atomic.write_file(part / "bokeh_k10.png", lambda file: file.write(b"new"))
    atomic.write_file(part / "run.json", lambda file: file.write(b"new"))
"""


@pytest.mark.parametrize("can_exchange", [True, False])
def test_killed_at_any_moment_it_is_the_old_result_or_the_new_one(tmp_path: Path, can_exchange: bool) -> None:
    old = {
        "bokeh_k10.png": "old",
        "bokeh_k20.png": "old",
        "run.json": "old",
        "mine.txt": "mine",
        "sub/mine.txt": "mine",
    }
    new = {"bokeh_k10.png": "new", "run.json": "new", "mine.txt": "mine", "sub/mine.txt": "mine"}
    seen = []
    for at in range(1, 60):
        folder = tmp_path / str(at) / "photo"
        for name, text in old.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
        done = subprocess.run([sys.executable, "-c", KILLED, str(folder), str(at), str(int(can_exchange))])
        if not can_exchange:  # the next run puts right what was cut between two renames
            with staged(folder) as part:
                (part / "next.txt").write_text("next")
            (folder / "next.txt").unlink()
        found = {
            path.relative_to(folder).as_posix(): path.read_text()
            for path in folder.rglob("*")
            if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        }
        assert found in (old, new), at
        seen.append(found == new)
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL
    assert seen[0] is False and seen[-1] is True and seen == sorted(seen) and len(seen) > 10
    assert names_in(folder.parent) == ["photo"]


def test_a_folder_that_cannot_change_places_is_renewed_in_its_place(tmp_path: Path, monkeypatch) -> None:
    folder = tmp_path / "photo"
    frames = [PIL.Image.new("RGB", SIZE_PX)] * 2
    save_stack(folder, frames, [10, 20])
    monkeypatch.chdir(folder)  # who works there would be left in a folder that is no more
    inode = folder.stat().st_ino
    with staged(folder, overwrite=True, replaced=["bokeh_k10.png", "bokeh_k20.png"]) as part:
        (part / "bokeh_k10.png").write_text("new")
    assert names_in(folder) == ["bokeh_k10.png"] and (folder / "bokeh_k10.png").read_text() == "new"
    assert folder.stat().st_ino == inode
    assert atomic._exchange(folder, tmp_path / "nowhere") is False

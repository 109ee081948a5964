"""Work that is killed before each operation on a file: the old or the new as a whole, and the next run is right."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bokehdepth.files import atomic
from bokehdepth.files.atomic import remove_stale, staged, write_file

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forks of a process")
ROOT = Path(__file__).resolve().parents[1]


def killed_everywhere(name: str, folder: Path) -> dict:
    command = [sys.executable, str(ROOT / "tests" / "crash_points.py"), name, str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


# A folder that is not there; an old result; with a file of the user; with a folder of the user; the user works in it;
# a system that cannot let two folders change places.
@pytest.mark.parametrize("kind", ["fresh", "plain", "others", "folders", "inside", "aside"])
def test_a_result_is_the_old_or_the_new_at_every_point(tmp_path, kind):
    found = killed_everywhere(kind, tmp_path / "work")
    assert found["points"] > 15 and not found["wrong"]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "points"), [("training", 40), ("stacks", 28), ("dataset", 50), ("command", 24)])
def test_longer_work_is_whole_at_every_point(tmp_path, name, points):
    found = killed_everywhere(name, tmp_path / "work")
    assert found["points"] >= points and not found["wrong"]


# ---------------------------------------------------------------------- names of the living and of the dead

HOLDER = """
import sys, time
from bokehdepth.files.atomic import staged
with staged(sys.argv[1]) as part:
    (part / "a.txt").write_text("living")
    print(part, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that is writing into a folder, and its temporary folder."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "out")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    yield process, Path(process.stdout.readline().strip())
    process.kill()
    process.communicate()


@pytest.mark.skipif(atomic.fcntl is None, reason="no locks")
def test_only_names_of_dead_processes_are_removed(tmp_path, holder):
    process, part = holder
    remove_stale(tmp_path)
    with staged(tmp_path / "other") as place:
        (place / "b.txt").write_text("mine")
    assert (part / "a.txt").read_text() == "living"
    process.send_signal(signal.SIGKILL)
    process.wait()
    with staged(tmp_path / "other", overwrite=True) as place:
        (place / "b.txt").write_text("mine again")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["other"]


def test_a_new_file_removes_what_a_dead_process_left_beside_it(tmp_path):
    for name in (".0123456789abcdef.part", ".0123456789abcdef.notes", ".hidden.part"):
        (tmp_path / name).write_text("left")
    write_file(tmp_path / "new.txt", lambda file: file.write(b"new"))
    kept = {"new.txt", ".0123456789abcdef.notes", ".hidden.part"}
    assert {p.name for p in tmp_path.iterdir()} == kept  # names of others stay


def test_what_comes_into_a_folder_while_it_is_replaced_stays(tmp_path, monkeypatch):
    folder, exchange = tmp_path / "out", atomic._exchange
    folder.mkdir()

    def late(source, target):
        (target / "late.txt").write_text("late")
        return exchange(source, target)

    monkeypatch.setattr(atomic, "_exchange", late)
    with staged(folder) as place:
        (place / "a.txt").write_text("new")
    assert sorted(p.name for p in folder.iterdir()) == ["a.txt", "late.txt"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_folder_that_becomes_what_was_written_loses_the_rest(tmp_path, monkeypatch):
    for at_once in (True, False):
        folder = tmp_path / str(at_once)
        folder.mkdir(mode=0o700)
        (folder / "old.txt").write_text("old")
        with staged(folder, replaced=None, at_once=at_once) as place:
            (place / "new.txt").write_text("new")
        assert [p.name for p in folder.iterdir()] == ["new.txt"] and folder.stat().st_mode & 0o777 == 0o700


def test_many_processes_put_files_into_one_folder(tmp_path):
    code = (
        "import sys; from bokehdepth.files.atomic import staged\n"
        "for n in range(20):\n"
        "    with staged(sys.argv[1], overwrite=True, at_once=sys.argv[3] == '1') as p:\n"
        "        (p / f'{sys.argv[2]}_{n}').write_text('x')\n"
    )
    for at_once in "01":
        folder = tmp_path / at_once
        folder.mkdir()
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", code, str(folder)]
        started = [subprocess.Popen([*command, str(i), at_once], env=environment) for i in range(3)]
        assert [process.wait(60) for process in started] == [0, 0, 0]
        assert sorted(p.name for p in folder.iterdir()) == sorted(f"{i}_{n}" for i in range(3) for n in range(20))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["0", "1"]

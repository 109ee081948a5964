"""The page as a process of its own: what it leaves when it is told to stop, killed, or started again."""

from __future__ import annotations

import signal
import stat
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from gradio_client import Client, handle_file

from page_process import Server, abort_upload, call_mcp
from visits import write_photo


@pytest.fixture
def start(tmp_path: Path) -> Iterator:
    servers: list[Server] = []

    def one(folder: Path) -> Server:
        servers.append(Server(folder))
        return servers[-1]

    yield one
    for server in servers:
        server.__exit__()


def visit(server: Server, folder: Path) -> None:
    """A photo, a result, an upload that breaks off, and a photo by MCP as a data URL."""
    photo = write_photo(folder / "photo.jpg")
    client = Client(server.url, verbose=False, download_files=str(folder))
    client.predict(handle_file(photo), [9], None, None, None, 1, 0, api_name="/generate_bokeh_stack")

    abort_upload(server)
    assert "85 mm" in call_mcp(server, "read_photo", {"photo": photo})[0]


def test_a_server_that_is_told_to_stop_leaves_nothing(start, tmp_path: Path) -> None:
    folder, brought = tmp_path / "temporary", tmp_path / "brought"
    brought.mkdir()
    server = start(folder)
    visit(server, brought)
    (home,) = folder.glob("bokehdepth-*")
    served = [path for path in server.files() if "served" in path.parts]
    assert any(path.name == "photo.jpg" for path in served) and any(path.stem == "file" for path in served)
    assert any(path.name.startswith("tmp") for path in served) and any(path.name == "run.json" for path in served)
    assert all(home in path.parents for path in server.files()), server.files()  # MCP's photo too
    for path in (home, *(path for path in home.rglob("*") if path.is_dir())):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(timeout=60) == 128 + signal.SIGTERM, "".join(server.words)
    assert server.files() == []
    assert "Traceback" not in "".join(server.words)


def test_the_next_start_removes_what_a_killed_server_left(start, tmp_path: Path) -> None:
    folder, brought = tmp_path / "temporary", tmp_path / "brought"
    brought.mkdir()
    living, killed = start(folder), start(folder)
    photo = write_photo(brought / "photo.jpg")
    for server in (living, killed):
        with photo.open("rb") as file:
            uploaded = Path(httpx.post(f"{server.url}gradio_api/upload", files={"files": file}).json()[0])
        assert uploaded.is_file()
        if server is living:
            kept = uploaded
    killed.process.kill()
    killed.process.wait()
    assert uploaded.is_file()
    start(folder)
    assert not uploaded.exists() and kept.is_file()

"""The page as a process of its own: what it leaves when it is told to stop, killed, or started again."""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from gradio_client import Client, handle_file

from visits import write_photo

ROOT = Path(__file__).resolve().parents[1]


class Server:
    """`python app.py` with temporary folders of its own."""

    def __init__(self, folder: Path, port: int) -> None:
        environ = {name: value for name, value in os.environ.items() if name != "GRADIO_TEMP_DIR"}
        environ |= {"TMPDIR": str(folder), "PYTHONPATH": str(ROOT), "GRADIO_SERVER_PORT": str(port)}
        environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1", "NO_PROXY": "127.0.0.1"}
        command = [sys.executable, "app.py"]
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        self.process = subprocess.Popen(command, cwd=ROOT, env=environ, **streams)
        self.words: list[str] = []
        self.url = self._url()
        threading.Thread(target=lambda: self.words.extend(self.process.stdout), daemon=True).start()

    def _url(self) -> str:
        for line in self.process.stdout:
            self.words.append(line)
            if found := re.search(r"http://\S+:\d+", line):
                return f"{found[0]}/"
        raise AssertionError("".join(self.words))


@pytest.fixture
def start(tmp_path: Path) -> Iterator:
    servers: list[Server] = []

    def one(folder: Path) -> Server:
        folder.mkdir(exist_ok=True)
        port = 20_000 + (os.getpid() * 7 + len(servers)) % 20_000
        servers.append(Server(folder, port))
        return servers[-1]

    yield one
    for server in servers:
        server.process.kill()
        server.process.wait()


def visit(server: Server, folder: Path) -> None:
    """A photo, a result, an upload that breaks off, and a photo by MCP as a data URL."""
    photo = write_photo(folder / "photo.jpg")
    client = Client(server.url, verbose=False, download_files=str(folder))
    client.predict(handle_file(photo), [9], None, None, None, 1, 0, api_name="/generate_bokeh_stack")

    def broken() -> Iterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.jpg"\r\n\r\n'
        yield b"a" * 2**20
        raise ConnectionError

    headers = {"content-type": "multipart/form-data; boundary=b", "content-length": str(2**22)}
    with pytest.raises(ConnectionError):
        httpx.post(f"{server.url}gradio_api/upload", content=broken(), headers=headers)
    call_mcp(server, photo)


def call_mcp(server: Server, photo: Path) -> None:
    import asyncio
    import base64

    mcp = pytest.importorskip("mcp")
    streamable = pytest.importorskip("mcp.client.streamable_http")

    async def call() -> str:
        async with streamable.streamablehttp_client(f"{server.url}gradio_api/mcp/") as (read, write, _):
            async with mcp.ClientSession(read, write) as session:
                await session.initialize()
                data = base64.b64encode(photo.read_bytes()).decode()
                answer = await session.call_tool("read_photo", {"photo": f"data:image/jpeg;base64,{data}"})
                return " ".join(getattr(part, "text", "") for part in answer.content)

    assert "85 mm" in asyncio.run(call())


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"]


def test_a_server_that_is_told_to_stop_leaves_nothing(start, tmp_path: Path) -> None:
    folder, brought = tmp_path / "temporary", tmp_path / "brought"
    brought.mkdir()
    server = start(folder)
    visit(server, brought)
    (home,) = folder.glob("bokehdepth-*")
    served = [path for path in files(folder) if "served" in path.parts]
    assert any(path.name == "photo.jpg" for path in served) and any(path.stem == "file" for path in served)
    assert any(path.name.startswith("tmp") for path in served) and any(path.name == "run.json" for path in served)
    assert all(home in path.parents for path in files(folder)), files(folder)  # MCP's photo too
    for path in (home, *(path for path in home.rglob("*") if path.is_dir())):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(timeout=60) == 128 + signal.SIGTERM, "".join(server.words)
    assert files(folder) == []
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

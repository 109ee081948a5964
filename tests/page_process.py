"""The page as a process of its own, and what can be read of it from outside."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).resolve().parents[1]

# What `python app.py` does, with constants of the module set first, and without asking another host.
CHANGED = """
import json, os, signal, sys, tempfile
from pathlib import Path
from bokehdepth.space.server_folder import ServerFolder, share_memory
share_memory()
made = ServerFolder(tempfile.gettempdir())
os.environ["GRADIO_TEMP_DIR"] = str(made.path / "served")
import app, safehttpx
vars(app).update(json.loads(sys.argv[1]))
async def nowhere(_):
    return []
safehttpx.async_resolve_hostname_google = nowhere  # a public resolver, which no test asks
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
with made as folder:
    app.main(folder)
"""


class Server:
    """`python app.py` with a temporary folder of its own.

    Args:
        folder: for its temporary files.
        constants: replace those of the module.
        more: variables of its environment.
    """

    def __init__(
        self, folder: Path, constants: Mapping[str, float] | None = None, more: Mapping[str, str] | None = None
    ) -> None:
        folder.mkdir(exist_ok=True)
        environ = {name: value for name, value in os.environ.items() if name != "GRADIO_TEMP_DIR"}
        environ |= {"TMPDIR": str(folder), "PYTHONPATH": str(ROOT), "GRADIO_SERVER_PORT": str(_free_port())}
        environ |= {
            "GRADIO_ANALYTICS_ENABLED": "False",
            "HF_HUB_OFFLINE": "1",
            "NO_PROXY": "127.0.0.1",
            **(more or {}),
        }
        command = (
            [sys.executable, "app.py"] if constants is None else [sys.executable, "-c", CHANGED, json.dumps(constants)]
        )
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        self.folder = folder
        self.process = subprocess.Popen(command, cwd=ROOT, env=environ, **streams)
        self.words: list[str] = []
        self.url = self._url()
        threading.Thread(target=lambda: self.words.extend(self.process.stdout), daemon=True).start()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def _url(self) -> str:
        for line in self.process.stdout:
            self.words.append(line)
            if address := re.search(r"http://\S+:\d+", line):
                return f"{address[0]}/"
        raise AssertionError("".join(self.words))

    def status(self, name: str) -> int:
        """A number of `/proc/PID/status`: VmRSS and VmHWM in kB, Threads."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(rf"^{name}:\s+(\d+)", text, re.MULTILINE)[1])

    def cpu_s(self) -> float:
        """Seconds that all its threads have worked."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def upload(self, name: str, content: bytes) -> str:
        """Where the server keeps a file; JSON as its endpoints take it."""
        answer = httpx.post(f"{self.url}gradio_api/upload", files={"files": (name, content)}, timeout=60)
        assert answer.status_code == 200, answer.text
        return named(answer.json()[0])

    def ask(self, endpoint: str, *values: str) -> str:
        """What comes of a call with values as raw JSON: its events, or what refused it."""
        url, headers = f"{self.url}gradio_api/call/{endpoint}", {"content-type": "application/json"}
        event = httpx.post(url, content=f'{{"data": [{", ".join(values)}]}}', headers=headers, timeout=60)
        if event.status_code != 200:
            return event.text
        return httpx.get(f"{url}/{event.json()['event_id']}", timeout=120).text

    def refusal(self, endpoint: str, *values: str) -> str | None:
        """The one sentence that a call is refused with; None where it is answered."""
        answer = self.ask(endpoint, *values)
        if "event: complete" in answer:
            return None
        assert "event: error" in answer or answer.startswith("{"), answer[:500]
        said = json.loads(answer.rpartition("data: ")[2])
        sentence = said.get("error") or said.get("detail")
        assert isinstance(sentence, str) and 10 < len(sentence) < 650 and "\n" not in sentence, answer[:500]
        for word in ("Traceback", "upstream Gradio app", "pickle", str(self.folder)):
            assert word not in sentence, sentence
        return sentence

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def files(self) -> list[Path]:
        """What lies in its temporary folder, but for locks."""
        found = (Path(place, name) for place, _, names in os.walk(self.folder) for name in names)
        return [path for path in found if path.suffix != ".lock"]


def _free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]


def named(path: str) -> str:
    """A file as programs name it, JSON."""
    return json.dumps({"path": path, "meta": {"_type": "gradio.FileData"}})


@contextmanager
def bounded(server: Server, *, cpu_s: float = 3, memory_mb: int = 200) -> Iterator[None]:
    """Holds what the server does in a block to a time of work and to memory beyond what it has."""
    Path(f"/proc/{server.process.pid}/clear_refs").write_text("5")  # its peak counts from now on
    before_kb, before_s = server.status("VmRSS"), server.cpu_s()
    yield
    assert server.process.poll() is None, "the server has ended"
    taken_s, grown_mb = server.cpu_s() - before_s, (server.status("VmHWM") - before_kb) / 1024
    assert taken_s < cpu_s, f"{taken_s:.1f} s"
    assert grown_mb < memory_mb, f"{grown_mb:.0f} MB"


def abort_upload(server: Server, size: int = 2**20) -> None:
    """Sends a part of a file and hangs up."""

    def broken() -> Iterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.jpg"\r\n\r\n'
        yield b"a" * size
        raise ConnectionError

    headers = {"content-type": "multipart/form-data; boundary=b", "content-length": str(4 * size)}
    with pytest.raises(ConnectionError):
        httpx.post(f"{server.url}gradio_api/upload", content=broken(), headers=headers)


def call_mcp(server: Server, tool: str, *calls: dict[str, object]) -> list[str]:
    """What a tool of the page answers an assistant, one session; a path stands for the photo in it, as a data URL."""
    mcp = pytest.importorskip("mcp")
    streamable = pytest.importorskip("mcp.client.streamable_http")

    def sent(value: object) -> object:
        if not isinstance(value, Path):
            return value
        return f"data:image/jpeg;base64,{base64.b64encode(value.read_bytes()).decode()}"

    async def call() -> list[str]:
        answers = []
        async with streamable.streamablehttp_client(f"{server.url}gradio_api/mcp/") as (read, write, _):
            async with mcp.ClientSession(read, write) as session:
                await session.initialize()
                for arguments in calls:
                    answer = await session.call_tool(tool, {name: sent(value) for name, value in arguments.items()})
                    answers.append(" ".join(getattr(part, "text", "") for part in answer.content))
        return answers

    return asyncio.run(call())

"""The door of the page's server: closed routes, foreign host names, bodies without end, room for uploads."""

from __future__ import annotations

import asyncio
import base64
import json
import resource
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import tiny
from bokehdepth.space import gate
from bokehdepth.space.gate import gate_options
from visits import serve, write_photo


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory):
    with serve(tmp_path_factory.mktemp("cache"), tiny.pipeline()) as served:
        yield served


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photo(tmp_path_factory.mktemp("photos") / "photo.jpg")


def upload(demo, content: bytes, sender: str) -> httpx.Response:
    url = f"{demo.local_url}gradio_api/upload"
    return httpx.post(url, files={"files": ("photo.jpg", content)}, headers={"x-forwarded-for": sender})


def ask(demo, name: str, content: str) -> str:
    """Sends raw JSON, as any program may; the answer's events."""
    url = f"{demo.local_url}gradio_api/call/{name}"
    event = httpx.post(url, content=content, headers={"content-type": "application/json"}, timeout=30)
    if event.status_code != 200:
        return event.text
    return httpx.get(f"{url}/{event.json()['event_id']}", timeout=60).text


class Endless:
    """A body that counts what was taken of it."""

    def __init__(self, start: bytes, piece: bytes, pieces: int) -> None:
        self.start, self.piece, self.pieces, self.taken = start, piece, pieces, 0

    def __iter__(self) -> Iterator[bytes]:
        yield self.start
        for _ in range(self.pieces):
            self.taken += 1
            yield self.piece


def test_no_event_gets_round_the_queue(demo) -> None:
    answer = httpx.post(f"{demo.local_url}gradio_api/run/read_photo", json={"data": [None]})
    assert answer.status_code == 404


@pytest.mark.parametrize("path", ["", "gradio_api/info"])
def test_every_name_in_a_header_counts(demo, path: str) -> None:
    several = {"x-forwarded-host": "localhost, evil.example"}
    assert httpx.get(f"{demo.local_url}{path}", headers=several).status_code == 421


@pytest.mark.parametrize("host", ["localhost:7860", "127.0.0.1", "[::1]:7860", "LOCALHOST"])
def test_its_own_names(demo, host: str) -> None:
    assert httpx.get(f"{demo.local_url}config", headers={"host": host}).status_code == 200


def test_the_root_of_urls_is_nobodys_choice(demo) -> None:
    answer = httpx.get(f"{demo.local_url}config", headers={"x-gradio-server": "http://evil.example"})
    assert answer.json()["root"] == demo.local_url.rstrip("/")


def test_host_names_are_free_where_the_page_is_public() -> None:
    assert gate_options({"SPACE_ID": "a/b"}) == {"hosts": None, "behind_proxy": True}
    assert gate_options({"GRADIO_SERVER_NAME": "0.0.0.0"}) == {"hosts": None, "behind_proxy": False}
    assert gate_options({"GRADIO_SHARE": "True"})["hosts"] is None
    for environ in ({}, {"GRADIO_SERVER_NAME": "localhost"}):
        assert gate_options(environ) == {"hosts": gate.LOOPBACK, "behind_proxy": False}


@pytest.mark.parametrize(
    ("path", "limit"),
    [("gradio_api/queue/join", 2**20), ("gradio_api/call/x", 2**20), ("gradio_api/mcp/", 44 * 2**20)],
)
@pytest.mark.parametrize("is_told", [True, False])
def test_json_without_end_is_not_read(demo, path: str, limit: int, is_told: bool) -> None:
    body = Endless(b'{"data": ["', b"a" * 2**18, 1000)  # 250 MB
    headers = {"content-type": "application/json", "accept": "application/json, text/event-stream"}
    if is_told:
        headers["content-length"] = str(11 + 1000 * 2**18)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        answer = httpx.post(f"{demo.local_url}{path}", content=iter(body), headers=headers, timeout=60)
        assert answer.status_code == 413
        if "mcp" not in path or is_told:  # MCP's own library has a limit below ours
            assert answer.text == f"request must have at most {limit >> 20} MB."
    except httpx.WriteError:  # the connection was closed while there was more
        assert body.taken < 1000
    if "mcp" not in path or is_told:
        assert body.taken * 2**18 < limit + 16 * 2**20  # what the network's own buffers took
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 * 1024


def test_a_field_without_end_is_not_kept_in_memory(demo) -> None:
    start = b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\n'
    body = Endless(start, b"a" * 2**18, 1000)
    headers = {"content-type": "multipart/form-data; boundary=b", "x-forwarded-for": "10.0.0.3"}
    try:
        answer = httpx.post(f"{demo.local_url}gradio_api/upload", content=iter(body), headers=headers)
        assert (answer.status_code, answer.text) == (
            413, "upload must have at most 64 kB in fields that are no files."
        )  # fmt: skip
    except httpx.WriteError:
        pass
    assert body.taken < 64


def test_an_upload_has_a_number_of_files(demo) -> None:
    url = f"{demo.local_url}gradio_api/upload"
    files = [("files", (f"{number}.jpg", b"a")) for number in range(33)]
    headers = {"x-forwarded-for": "10.0.0.4"}
    assert len(httpx.post(url, files=files[:32], headers=headers).json()) == 32
    answer = httpx.post(url, files=files, headers=headers)
    assert (answer.status_code, answer.text) == (413, "upload must have at most 32 files.")


def test_uploads_have_room_each_and_in_all(demo, monkeypatch: pytest.MonkeyPatch) -> None:
    files = demo.session_files
    files.sweep()
    monkeypatch.setattr(files, "_sender_bytes", 3 * 2**20)
    monkeypatch.setattr(files, "_upload_bytes", files._uploaded + 5 * 2**20)
    assert upload(demo, b"a" * 2**21, "10.1.0.1").status_code == 200
    refused = upload(demo, b"b" * 2**21, "10.1.0.1")
    assert refused.status_code == 413
    assert refused.text.startswith("upload must leave the 3 MB that one visitor may send within an hour, got ")
    assert upload(demo, b"c" * 2**21, "10.1.0.2").status_code == 200
    refused = upload(demo, b"d" * 2**21, "10.1.0.3")
    assert refused.status_code == 503
    assert refused.text == "upload must wait, the server's room for uploads is full; try again in some minutes."
    monkeypatch.setattr(time, "time", lambda real=time.time: real() + 3700)
    monkeypatch.setattr(files, "_upload_bytes", 2**40)
    assert upload(demo, b"b" * 2**21, "10.1.0.1").status_code == 200


def test_small_files_take_room_too(demo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo.session_files, "_sender_bytes", 2**20)
    url, headers = f"{demo.local_url}gradio_api/upload", {"x-forwarded-for": "10.1.0.9"}
    files = [("files", (f"{number}.jpg", b"")) for number in range(32)]
    codes = [httpx.post(url, files=files, headers=headers).status_code for _ in range(6)]
    assert codes[:3] == [200] * 3 and codes[-1] == 413


def test_a_forged_sender_is_not_believed(demo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo.session_files, "_sender_bytes", 2**20)
    url = f"{demo.local_url}gradio_api/upload"
    codes = []
    for number in range(3):
        forged = {"x-forwarded-for": "10.1.0.8", "x-bokehdepth-sender": f"{'0' * 64} 10.2.0.{number}"}
        codes.append(httpx.post(url, files={"files": ("a.jpg", b"a" * 2**19)}, headers=forged).status_code)
    assert codes == [200, 413, 413] or codes == [200, 200, 413]


@pytest.mark.parametrize(
    ("addresses", "is_one"),
    [(("2001:db8::1", "2001:db8::ffff:1"), True), (("2001:db8::1", "2001:db8:0:1::1"), False)],
)
def test_a_network_of_addresses_is_one_sender(
    demo, monkeypatch: pytest.MonkeyPatch, addresses: tuple[str, str], is_one: bool
) -> None:
    files = demo.session_files
    monkeypatch.setattr(files, "_sent", {})
    monkeypatch.setattr(files, "_sender_bytes", 2**20)
    assert [upload(demo, b"a" * 600_000, address).status_code for address in addresses] == [
        200,
        413 if is_one else 200,
    ]


def test_what_is_quoted_is_short(demo, photo: Path) -> None:
    path = upload(demo, photo.read_bytes(), "10.5.0.1").json()[0]
    file = json.dumps({"path": path, "meta": {"_type": "gradio.FileData"}})
    many = json.dumps([12345] * 100_000)
    word = json.dumps("a" * 500_000)
    for name, data in (
        ("generate_bokeh_stack", f"{file}, {many}, null, null, null, 1, 0"),
        ("generate_bokeh_stack", f"{file}, null, {many}, null, null, 1, 0"),
        ("generate_bokeh_stack", f"{file}, [9], null, {word}, null, {word}, {word}"),
        ("estimate_depth", f"{file}, null, {many}, null, null, null, {word}"),
        ("estimate_depth", f"{file}, null, null, null, null, null, {word}"),
        ("refocus", f"{file}, null, {word}, {word}, {many}, {word}, null, 0, 0, 1, {word}"),
        ("refocus", f"{file}, {file}, null, null, 2, 9, null, 0, 0, 1, {word}"),
        ("read_photo", word), ("read_photo", many), ("read_photo", f'{{"path": {word}}}'),
        (f"x{'a' * 5000}", "1"),
    ):  # fmt: skip
        answer = ask(demo, name, f'{{"data": [{data}]}}')
        assert "event: complete" not in answer and len(answer) < 2000, (name, len(answer), answer[:300])


def test_what_mcp_asks_is_asked_for_its_caller(demo, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MCP's tools call the server from the server itself; the places in the queue are still those of who asked."""
    mcp = pytest.importorskip("mcp")
    streamable = pytest.importorskip("mcp.client.streamable_http")
    senders, push = [], demo._queue.push

    async def noting(**given: Any) -> tuple:
        senders.append(given["request"].scope[gate.SENDER])
        return await push(**given)

    monkeypatch.setattr(demo._queue, "push", noting)
    data = f"data:image/jpeg;base64,{base64.b64encode(photo.read_bytes()).decode()}"

    async def call(sender: str) -> str:
        headers = {"x-forwarded-for": sender}
        async with streamable.streamablehttp_client(f"{demo.local_url}gradio_api/mcp/", headers) as (read, write, _):
            async with mcp.ClientSession(read, write) as session:
                await session.initialize()
                answer = await session.call_tool("read_photo", {"photo": data})
                return " ".join(getattr(part, "text", "") for part in answer.content)

    for sender in ("10.7.0.1", "10.7.0.2"):
        asyncio.run(call(sender))
    assert senders == ["10.7.0.1", "10.7.0.2"]


def test_the_last_of_several_hosts_counts_too(demo) -> None:
    with socket.create_connection(("127.0.0.1", demo.server_port)) as line:
        line.sendall(b"GET /config HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Forwarded-Host: evil.example\r\n")
        line.sendall(b"X-Forwarded-Host: 127.0.0.1\r\nConnection: close\r\n\r\n")
        assert line.recv(100).startswith(b"HTTP/1.1 421")

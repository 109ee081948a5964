"""Probes of what one visitor may reach of another, of the server and of its network.

The page runs in its own process. The report of the first attacks (shared/research/security.md) counted 38 of 47 probes
of isolation refused and 80 of 80 of addresses (20, in 4 ways); here all of 131 and 88 are.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
from gradio_client import Client, handle_file
from hostile_photos import saved

from page_process import ROOT, Server, call_mcp, named

CLOSED = [
    ("GET", "monitoring"), ("GET", "monitoring/summary"), ("GET", "monitoring/x"),
    ("POST", "gradio_api/process_recording"), ("POST", "gradio_api/component_server"),
    ("GET", "gradio_api/deep_link?session_hash=a"), ("GET", "gradio_api/proxy=http://127.0.0.1:1/"),
    ("GET", "gradio_api/file=http://127.0.0.1:1/"), ("GET", "gradio_api/file=https://example.org/a.png"),
    ("GET", "gradio_api/runs"), ("GET", "gradio_api/run-history/buckets"), ("GET", "gradio_api/dev/reload"),
    ("POST", "gradio_api/vibe-edit"), ("GET", "gradio_api/vibe-code"), ("POST", "gradio_api/stream/x"),
    ("POST", "gradio_api/api/read_photo"), ("GET", "gradio_api/file/x"), ("POST", "login"), ("GET", "docs"),
    ("GET", "gradio_api/custom_component/a/b/c/d"), ("GET", "x"), ("GET", "gradio_api/queue/x"),
]  # fmt: skip
"""Routes of gradio that the page does not need."""

ENDPOINTS = {
    "read_photo": ["photo"],
    "generate_bokeh_stack": ["photo", "null", "null", "null", "null", "1", "0"],
    "estimate_depth": ["photo", "files", "null", "null", "null", "null", '"Network"'],
    "refocus": ["photo", "depth", "null", "null", "2", "9", "null", "0", "0", "1", "null"],
}
FILES = [
    (name, at)
    for name, given in ENDPOINTS.items()
    for at, one in enumerate(given)
    if one in ("photo", "files", "depth")
]
"""Every argument that takes a file."""


@pytest.fixture(scope="module")
def photo(page_server: Server) -> str:
    return page_server.upload("photo.jpg", saved("JPEG"))


@pytest.fixture(scope="module")
def theirs(page_server: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A result of another visitor, where it lies on the server."""
    folder = tmp_path_factory.mktemp("theirs")
    (folder / "photo.jpg").write_bytes(saved("JPEG"))
    client = Client(page_server.url, verbose=False, download_files=str(folder))
    client.predict(handle_file(folder / "photo.jpg"), [9], None, None, None, 1, 0, api_name="/generate_bokeh_stack")
    found = [path for path in page_server.files() if path.name == "bokeh_k9.png" or path.name.startswith("bokeh_")]
    return max(found, key=lambda path: path.stat().st_mtime)


def asked(page_server: Server, photo: str, endpoint: str, at: int, file: str) -> str | None:
    """The refusal of a call whose file at a place is this one, JSON."""
    values = [photo if one in ("photo", "depth") else "null" if one == "files" else one for one in ENDPOINTS[endpoint]]
    values[at] = f"[{file}]" if ENDPOINTS[endpoint][at] == "files" else file
    return page_server.refusal(endpoint, *values)


def test_there_are_as_many_as_there_were() -> None:
    probes = len(CLOSED) + len(FILES) * (1 + len(OUTSIDE)) + len(READ) + len(NAMES) + len(FOREIGN) + len(IDS)
    assert probes >= 47 and 4 * len(ADDRESSES) >= 80, (probes, 4 * len(ADDRESSES))


@pytest.mark.parametrize(("method", "path"), CLOSED)
def test_a_route_that_the_page_does_not_need_is_closed(page_server: Server, method: str, path: str) -> None:
    answer = httpx.request(method, f"{page_server.url}{path}")
    assert (answer.status_code, answer.text) == (404, "path is not served here.")


@pytest.mark.parametrize(("endpoint", "at"), FILES)
def test_a_file_of_another_session_is_of_no_use(
    page_server: Server, photo: str, theirs: Path, endpoint: str, at: int
) -> None:
    assert "is of another session" in asked(page_server, photo, endpoint, at, named(str(theirs)))


OUTSIDE = [
    "/etc/passwd", f"{ROOT}/app.py", "app.py", "../app.py", "/proc/self/environ", "~/.bashrc", "/dev/zero", "", "a\0b",
    "SERVED", "SERVED/../starting.lock", "SERVED/../../../../../etc/passwd",
]  # fmt: skip
"""Paths that no visitor has uploaded; SERVED is the server's own folder."""


@pytest.mark.parametrize("path", OUTSIDE, ids=repr)
@pytest.mark.parametrize(("endpoint", "at"), FILES)
def test_a_file_of_the_server_is_not_read(page_server: Server, photo: str, endpoint: str, at: int, path: str) -> None:
    served = str(Path(json.loads(photo)["path"]).parents[1])
    assert asked(page_server, photo, endpoint, at, named(path.replace("SERVED", served))) is not None


READ = ["/etc/passwd", f"{ROOT}/app.py", "app.py", "..%2f..%2fetc%2fpasswd", "%2e%2e/%2e%2e/etc/passwd",
        "/proc/self/environ", "SERVED", "SERVED/", "SERVED/../../starting.lock", "SERVED/session-",
        "SERVED/..%2f..%2f..%2f..%2fetc%2fpasswd"]  # fmt: skip


@pytest.mark.parametrize("path", READ)
def test_the_route_of_files_hands_out_none_of_the_servers(page_server: Server, photo: str, path: str) -> None:
    served = str(Path(json.loads(photo)["path"]).parents[1])
    answer = httpx.get(f"{page_server.url}gradio_api/file={path.replace('SERVED', served)}")
    assert answer.status_code in (403, 404) and "root:" not in answer.text, answer.text[:200]


NAMES = ["../../evil.py", "/etc/cron.d/evil", "..", ".", "C:\\evil.exe", "a" * 300, "x/../../evil", "\u202egpj.exe"]


@pytest.mark.parametrize("name", NAMES)
def test_the_name_of_an_upload_is_no_path(page_server: Server, name: str) -> None:
    served = {path.parent.parent for path in page_server.files() if path.name == "photo.jpg"}
    answer = httpx.post(f"{page_server.url}gradio_api/upload", files={"files": (name, b"evil")})
    assert answer.status_code < 500
    if answer.status_code == 200:
        path = Path(answer.json()[0])
        assert path.resolve().parent.parent in served and path.is_file()


FOREIGN = [
    (header, path)
    for header in ("host", "x-forwarded-host")
    for path in ("", "config", "gradio_api/mcp/", "gradio_api/queue/join")
]


@pytest.mark.parametrize(("header", "path"), FOREIGN)
def test_a_foreign_name_of_the_host_is_refused(page_server: Server, header: str, path: str) -> None:
    for method in ("GET", "POST", "OPTIONS"):
        foreign = {header: "evil.example:7860", "origin": "http://evil.example:7860"}
        answer = httpx.request(method, f"{page_server.url}{path}", headers=foreign)
        assert answer.status_code == 421 and "evil.example" not in str(answer.headers), method
        assert answer.text == "host must be 127.0.0.1 or ::1 or localhost, got 'evil.example'."


IDS = ["call/read_photo/0123456789abcdef", "call/read_photo/*", "call/read_photo/..%2f..%2fconfig",
       "upload_progress?upload_id=0123456789abcdef"]  # fmt: skip


@pytest.mark.parametrize("path", IDS)
def test_a_guessed_event_tells_nothing(page_server: Server, path: str) -> None:
    with httpx.stream("GET", f"{page_server.url}gradio_api/{path}", timeout=10) as answer:
        said = answer.read().decode() if answer.status_code != 200 else next(answer.iter_text(), "")
    assert "event: complete" not in said and '"path"' not in said and "components" not in said


# --------------------------------------------------------------------------- addresses inside the server's network


@pytest.fixture(scope="module")
def canary() -> Iterator[tuple[int, list[bytes]]]:
    """A server on loopback, and what reached it."""
    reached: list[bytes] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        while True:
            try:
                line, _ = listener.accept()
            except OSError:
                return
            with line:
                reached.append(line.recv(1000))
                line.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno")

    threading.Thread(target=answer, daemon=True).start()
    yield listener.getsockname()[1], reached
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


ADDRESSES = [
    "http://127.0.0.1:PORT/a.jpg", "http://localhost:PORT/a.jpg", "http://127.1:PORT/a.jpg", "http://0:PORT/a.jpg",
    "http://0.0.0.0:PORT/a.jpg", "http://2130706433:PORT/a.jpg", "http://0x7f000001:PORT/a.jpg",
    "http://017700000001:PORT/a.jpg", "http://[::1]:PORT/a.jpg", "http://[::ffff:127.0.0.1]:PORT/a.jpg",
    "http://[::ffff:7f00:1]:PORT/a.jpg", "http://a@127.0.0.1:PORT/a.jpg", "http://example.org#@127.0.0.1:PORT/a.jpg",
    "https://127.0.0.1:PORT/a.jpg", "http://①②⑦.⓪.⓪.①:PORT/a.jpg", "http://127。0。0。1:PORT/a.jpg",
    "http://169.254.169.254/latest/meta-data/", "http://10.0.0.1/a.jpg", "http://192.168.0.1/a.jpg",
    "file:///etc/passwd", "ftp://127.0.0.1:PORT/a.jpg", "gopher://127.0.0.1:PORT/_GET",
]  # fmt: skip


@pytest.mark.parametrize("address", ADDRESSES)
def test_an_address_inside_the_network_is_not_asked(page_server: Server, canary: tuple, address: str) -> None:
    port, reached = canary
    url = address.replace("PORT", str(port))
    field = json.dumps({"path": "a.jpg", "url": url, "meta": {"_type": "gradio.FileData"}})
    for file in (named(url), field):
        assert page_server.refusal("read_photo", file) is not None
    answer = httpx.get(f"{page_server.url}gradio_api/file={quote(url, safe=':/')}")
    assert answer.status_code in (403, 404) and "root:" not in answer.text
    assert not reached, reached


def test_an_assistant_cannot_name_such_an_address_either(page_server: Server, canary: tuple) -> None:
    port, reached = canary
    urls = [address.replace("PORT", str(port)) for address in ADDRESSES]
    for url, answer in zip(urls, call_mcp(page_server, "read_photo", *({"photo": url} for url in urls)), strict=True):
        assert "| Aperture |" not in answer and "root:" not in answer and "Traceback" not in answer, (url, answer)
    assert not reached, reached

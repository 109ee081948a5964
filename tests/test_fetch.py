"""Photos that are named by their address: whole and no larger than a photo, from hosts of the public internet."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from bokehdepth.errors import InputError
from bokehdepth.space import housekeeping
from bokehdepth.tasks.limits import PAGE

OWN = ["127.0.0.1"]
PHOTO = bytes(range(256)) * 100


class Host(BaseHTTPRequestHandler):
    """A host with a photo, endless and slow files, and redirects."""

    sent = 0

    def do_GET(self) -> None:  # noqa: N802 - the library's name
        name = self.path.rpartition("/")[2].partition("?")[0]
        if name in ("moved", "inside", "round", "missing"):
            target = {"moved": "/a/photo.jpg", "inside": f"http://localhost:{self.server.server_port}/photo.jpg"}
            self.send_response(404 if name == "missing" else 302)
            self.send_header("location", target.get(name, "/round"))
            self.end_headers()
            return
        self.send_response(200)
        self.end_headers()
        pieces = {"photo.jpg": 1, "endless": 10**6, "slow": 10**6}.get(name, 0)
        try:
            for _ in range(pieces):
                self.wfile.write(PHOTO)
                Host.sent += len(PHOTO)
                time.sleep(0.05 if name == "slow" else 0)
        except (BrokenPipeError, ConnectionResetError):
            pass

    def log_message(self, *_: object) -> None:
        """Keeps quiet."""


@pytest.fixture
def host() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Host) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        Host.sent = 0
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def fetch(url: str, folder: Path, trusted: list[str] = OWN) -> Path:
    return Path(asyncio.run(housekeeping.fetch(url, folder, trusted)))


@pytest.mark.parametrize("path", ["photo.jpg", "a/photo.jpg?b=1", "moved"])
def test_a_photo_is_fetched(host: str, tmp_path: Path, path: str) -> None:
    got = fetch(f"{host}/{path}", tmp_path)
    assert got.read_bytes() == PHOTO and got.parent.parent == tmp_path
    assert got.name == ("moved" if path == "moved" else "photo.jpg")
    assert fetch(f"{host}/{path}", tmp_path) != got  # never another visitor's, nor one that is half there
    assert got.parent.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("endless", "file must have at most 32 MB, got more"),
        ("missing", "file must be at its address, got status 404"),
        ("round", "file must be at its address within 5 redirects, got more"),
        ("inside", "file must be on a public host that answers within"),
    ],
)
def test_what_is_no_photo_is_one_sentence(host: str, tmp_path: Path, path: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        fetch(f"{host}/{path}", tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert Host.sent < 2 * PAGE.max_photo_bytes


def test_a_slow_host_is_not_waited_for(host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(housekeeping, "FETCH_S", 0.5)
    with pytest.raises(InputError, match=r"answers within 0.5 s, got none"):
        fetch(f"{host}/slow", tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1/a.jpg", "http://localhost/a.jpg", "http://[::1]/a.jpg", "http://169.254.169.254/latest",
     "http://10.0.0.1/", "http://0.0.0.0/", "http:///a.jpg", "http://a b/", "http://127.0.0.1:99999/"],
)  # fmt: skip
def test_hosts_inside_the_network_are_not_asked(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import safehttpx

    async def nowhere(_: str) -> list[str]:
        return []  # safehttpx asks a public resolver otherwise

    monkeypatch.setattr(safehttpx, "async_resolve_hostname_google", nowhere)
    with pytest.raises(InputError, match="file must be on a public host"):
        fetch(url, tmp_path, [])
    assert list(tmp_path.iterdir()) == []

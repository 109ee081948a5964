"""What stands between the network and the page's server: routes, host names and sizes, before anything is read.

An ASGI application around another one, which it guards. It stops reading at the limit, so that a body that is too
large is never in memory as a whole. No torch, no gradio.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
import secrets
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from typing import Any, NoReturn

from ..tasks.limits import PAGE
from .sessions import NoRoomError, SessionFiles

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

JSON_BYTES = 2**20
PHOTO_JSON_BYTES = 44 * 2**20
"""A photo of 33 MB in base64."""
UPLOAD_BYTES = (PAGE.max_frames + 2) * PAGE.max_photo_bytes
"""Of one request: a photo and its bracket."""
FIELD_BYTES = 64 * 1024
"""Of all fields of a form that are no files; they are held in memory."""
UPLOAD_FILES = 32

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})

SENDER = "bokehdepth.sender"
"""Key of a scope: the address that a request came from."""

_API = "/gradio_api/"
_UPLOAD = f"{_API}upload"
_MCP = f"{_API}mcp"
# What the page, gradio_client and MCP use of Gradio. All else (monitoring, recordings, deep links, direct calls of a
# component's functions, a proxy for other servers) is closed, also what a later Gradio adds.
_OPEN = re.compile(
    r"/(?:config/?|theme\.css|favicon\.ico|robots\.txt|manifest\.json|pwa_icon(?:/\d+)?|(?:static|assets|svelte)/.+)?"
    rf"|{_API}(?:info/?|openapi\.json|startup-events|theme\.css|app_id/?|login_check/?|upload|upload_progress|cancel|reset|"
    r"queue/(?:join|data|status)|(?:run|call)/.+|heartbeat/[^/]+|file=(?!\w\w+:/).+|mcp(?:/.*)?)",
    re.DOTALL,
)
_VOUCHED = b"x-bokehdepth-sender"


def gate_options(environ: Mapping[str, str]) -> dict[str, Any]:
    """What a `Gate` has to know of the place where its server runs, as its arguments.

    Args:
        environ: the environment: on a Space others' names are the rule; elsewhere Gradio listens on loopback unless it
            is told another address or to share the page.
    """
    is_space = "SPACE_ID" in environ
    is_local = environ.get("GRADIO_SERVER_NAME", "127.0.0.1") in LOOPBACK and "GRADIO_SHARE" not in environ
    return {"hosts": LOOPBACK if is_local and not is_space else None, "behind_proxy": is_space}


class _Refused(Exception):
    """A request ends with a status and a sentence."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class Gate:
    """Guards an ASGI application.

    Args:
        app: the application.
        files: whose room for uploads counts.
        hosts: names that a request may ask for; None for any.
        behind_proxy: whether the host's own proxy stands before the server, so that `X-Forwarded-For` says who asks.
            A visitor can forge it, and is then held by the limits for all together.
    """

    def __init__(
        self, app: Callable, *, files: SessionFiles, hosts: frozenset[str] | None = None, behind_proxy: bool = False
    ) -> None:
        self._app, self._files, self._hosts, self._behind_proxy = app, files, hosts, behind_proxy
        self._key = secrets.token_bytes(32)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, or answers it with one sentence."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        has_begun = left_early = False
        refusal: _Refused | None = None

        async def guarded_send(message: MutableMapping[str, Any]) -> None:
            nonlocal has_begun
            if refusal is None or has_begun:  # else the application answers a body that was cut
                has_begun = True
                await send(message)

        try:
            read = self._admit(scope, receive)
        except _Refused as error:
            await _answer(error, send)
            return

        async def guarded_receive() -> MutableMapping[str, Any]:
            nonlocal refusal, left_early
            if refusal is None:
                try:
                    message = await read()
                    left_early |= message["type"] == "http.disconnect" and not has_begun
                    return message
                except _Refused as error:
                    refusal = error
            return {"type": "http.disconnect"}

        try:
            await self._app(scope, guarded_receive, guarded_send)
        except Exception:
            if refusal is None and not left_early:  # a body that breaks off is no fault of the program
                raise
        if refusal is not None and not has_begun:
            await _answer(refusal, send)

    def _admit(self, scope: Scope, receive: Receive) -> Receive:
        """Checks what the headers say; returns what reads the body."""
        path, headers = scope["path"], dict(scope["headers"])
        if self._hosts is not None:
            self._check_hosts(scope["headers"])
        if not _OPEN.fullmatch(path):
            raise _Refused(404, "path is not served here.")
        sender = scope[SENDER] = self._sender(scope, headers)
        kept = [(name, value) for name, value in scope["headers"] if name not in (_VOUCHED, b"x-gradio-server")]
        is_mcp, is_upload = path == _MCP or path.startswith(f"{_MCP}/"), path == _UPLOAD
        if is_mcp:  # its tools ask the server itself, with these headers: say whom for
            kept.append((_VOUCHED, self._vouched(sender)))
        scope["headers"] = kept
        if scope["method"] in ("GET", "HEAD", "OPTIONS"):
            return receive
        limit = UPLOAD_BYTES if is_upload else PHOTO_JSON_BYTES if is_mcp else JSON_BYTES
        size = headers.get(b"content-length", b"0")
        size = int(size) if size.isdigit() and len(size) < 20 else 0
        if size > limit:
            _refuse_size(limit)
        counts = is_upload or is_mcp
        if counts:
            self._check_room(sender, size)
        form = _Form(headers.get(b"content-type", b"")) if is_upload else None
        total = 0

        async def read() -> MutableMapping[str, Any]:
            nonlocal total
            message = await receive()
            body = message.get("body", b"")
            total += len(body)
            if total > limit:
                _refuse_size(limit)
            if counts and body:
                self._files.note_sent(sender, len(body), form.feed(body) if form else 0)
                self._check_room(sender)
            return message

        return read

    def _check_hosts(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        said = [value for name, value in headers if name in (b"host", b"x-forwarded-host")]
        for part in b",".join(said).split(b","):
            host = part.strip().decode("latin-1").lower()
            host = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
            if host and host not in self._hosts:
                raise _Refused(421, f"host must be {' or '.join(sorted(self._hosts))}, got {host[:60]!r}.")

    def _check_room(self, sender: str, size: int = 0) -> None:
        try:
            self._files.check_room(sender, size)
        except NoRoomError as error:
            raise _Refused(413 if error.is_own else 503, str(error)) from error

    def _sender(self, scope: Scope, headers: dict[bytes, bytes]) -> str:
        vouched = headers.get(_VOUCHED, b"")
        address = vouched.partition(b" ")[2].decode("latin-1")
        if vouched and hmac.compare_digest(vouched, self._vouched(address)):
            return address
        forwarded = headers.get(b"x-forwarded-for", b"").decode("latin-1").split(",")[0].strip()
        address = forwarded[:64] if self._behind_proxy and forwarded else (scope.get("client") or ("",))[0]
        try:
            known = ipaddress.ip_address(address)
        except ValueError:
            return address
        # Whoever has one IPv6 address has the 2^64 of its network.
        return str(ipaddress.ip_network((known, 64), strict=False)) if known.version == 6 else address

    def _vouched(self, address: str) -> bytes:
        said = address.encode("latin-1", "replace")
        return hmac.new(self._key, said, hashlib.sha256).hexdigest().encode() + b" " + said


class _Form:
    """Follows a form as it comes, to count its files and what is in fields that are none."""

    def __init__(self, content_type: bytes) -> None:
        from python_multipart.multipart import MultipartParser, parse_options_header

        kind, options = parse_options_header(content_type)
        self._options = parse_options_header
        self._parser = None
        self._name, self._value, self._is_file = b"", b"", False
        self._field_bytes = self._files = 0
        if kind == b"multipart/form-data" and b"boundary" in options:  # else the application refuses it
            self._parser = MultipartParser(
                options[b"boundary"],
                {
                    "on_part_begin": self._begin,
                    "on_header_field": self._on_name,
                    "on_header_value": self._on_value,
                    "on_header_end": self._end_header,
                    "on_part_data": self._on_data,
                },
            )

    def feed(self, body: bytes) -> int:
        """Reads on; how many files began in it."""
        from python_multipart.exceptions import MultipartParseError

        before = self._files
        if self._parser is not None:
            try:
                self._parser.write(body)
            except MultipartParseError:  # the application's own parser says so
                self._parser = None
        return self._files - before

    def _begin(self) -> None:
        self._name, self._value, self._is_file = b"", b"", False

    def _on_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]
        self._count_field(end - start)

    def _on_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]
        self._count_field(end - start)

    def _end_header(self) -> None:
        if self._name.lower() == b"content-disposition" and b"filename" in self._options(self._value)[1]:
            self._is_file = True
            self._files += 1
            if self._files > UPLOAD_FILES:
                raise _Refused(413, f"upload must have at most {UPLOAD_FILES} files.")
        self._name = self._value = b""

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        if not self._is_file:
            self._count_field(end - start)

    def _count_field(self, size: int) -> None:
        self._field_bytes += size
        if self._field_bytes > FIELD_BYTES:
            raise _Refused(413, f"upload must have at most {FIELD_BYTES >> 10} kB in fields that are no files.")


def _refuse_size(limit: int) -> NoReturn:
    raise _Refused(413, f"request must have at most {limit >> 20} MB.")


async def _answer(refusal: _Refused, send: Send) -> None:
    """Answers with a sentence, and closes the connection, on which the rest of a body may still be coming."""
    body = str(refusal).encode()
    headers = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})

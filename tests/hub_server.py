"""A Hub on loopback for the real `huggingface_hub` client: repositories, commits, tags, access.

Every file goes with its commit, and every commit is kept, so that revisions and tags can be pinned.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

USER, OWNER_TOKEN, READ_TOKEN = "tester", "hf_owner", "hf_reader"
_ID = r"(?P<id>[\w.-]+/[\w.-]+)"
_KIND = r"(?P<kind>model|dataset|space)s"
_PREFIX = r"(?:(?P<kind>dataset|space)s/)?"


@dataclass
class Repository:
    """A repository with all its commits, names of files to their etags; tags are names of commits."""

    private: bool = False
    gated: bool = False
    readers: set[str] = field(default_factory=set)
    commits: dict[str, dict[str, str]] = field(default_factory=dict)
    history: list[str] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def head(self) -> str:
        return self.history[-1]

    def commit(self, files: dict[str, str]) -> str:
        sha = hashlib.sha1(json.dumps([len(self.history), sorted(files.items())]).encode()).hexdigest()
        self.commits[sha] = dict(files)
        self.history.append(sha)
        return sha


class HubServer:
    """The server; a context manager.

    `watch` is called with each request before it is answered; one that matches a pattern of `faults` gets its status.
    """

    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.contents: dict[str, bytes] = {}  # by etag
        self.faults: dict[str, int] = {}
        self.watch: Callable[[str], None] = lambda request: None
        self.lock = threading.RLock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> "HubServer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def environment(self, home: Path, token: str | None = OWNER_TOKEN) -> dict[str, str]:
        """Variables of a client process, to be set before it starts; `home` is its own cache."""
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_TOKEN": token or "",
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }

    def keep(self, content: bytes) -> str:
        """Stores a file's content; returns its etag."""
        etag = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        self.contents[etag] = content
        return etag

    def keep_folder(self, folder: Path) -> dict[str, str]:
        """Stores a folder; returns the files of a commit."""
        paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        return {path.relative_to(folder).as_posix(): self.keep(path.read_bytes()) for path in paths}

    def files(self, repo_id: str, kind: str = "model", revision: str | None = None) -> dict[str, str]:
        repository = self.repositories[kind, repo_id]
        return repository.commits[repository.tags[revision] if revision else repository.head]

    def read(self, repo_id: str, name: str, kind: str = "model", revision: str | None = None) -> bytes:
        return self.contents[self.files(repo_id, kind, revision)[name]]


class _Refusal(Exception):
    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code = status, code


_GONE = _Refusal(404, "Repository not found", "RepoNotFound")


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    # ------------------------------------------------------------------ frame

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        request = f"{self.command} {path}"
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            self.body = self._chunks()
        try:
            with self.hub.lock:
                self.hub.watch(request)
                for pattern, status in self.hub.faults.items():
                    if re.search(pattern, request):
                        raise _Refusal(status, "ordered by the test")
                self._route(path)
        except _Refusal as refusal:
            headers = {"X-Error-Message": str(refusal)}
            if refusal.code:
                headers["X-Error-Code"] = refusal.code
            self._send(json.dumps({"error": str(refusal)}).encode(), refusal.status, headers)

    do_GET = do_HEAD = do_POST = _answer

    def _chunks(self) -> bytes:
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _send(self, body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _send_json(self, value: Any) -> None:
        self._send(json.dumps(value).encode())

    # ------------------------------------------------------------------ access

    @property
    def token(self) -> str | None:
        kind, _, token = self.headers.get("Authorization", "").partition(" ")
        return token if kind.lower() == "bearer" and token else None

    def _want_writer(self) -> None:
        if self.token not in (OWNER_TOKEN, READ_TOKEN):
            raise _Refusal(401, "Invalid credentials in Authorization header")
        if self.token != OWNER_TOKEN:
            raise _Refusal(403, "this token has no write access")

    def _repository(self, kind: str, repo_id: str, content: bool = False) -> Repository:
        if self.token not in (None, OWNER_TOKEN, READ_TOKEN):
            raise _Refusal(401, "Invalid credentials in Authorization header")
        repository = self.hub.repositories.get((kind, repo_id))
        if repository is None or (repository.private and self.token != OWNER_TOKEN):
            if self.token is None:
                raise _Refusal(401, "Invalid username or password.", "RepoNotFound")
            raise _GONE
        if content and repository.gated and self.token not in repository.readers:
            raise _Refusal(401 if self.token is None else 403, f"Access to {repo_id} is restricted", "GatedRepo")
        return repository

    def _revision(self, repository: Repository, revision: str) -> str:
        sha = repository.head if revision == "main" else repository.tags.get(revision, revision)
        if sha not in repository.commits:
            raise _Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return sha

    # ------------------------------------------------------------------ routes

    def _route(self, path: str) -> None:
        for method, pattern, answer in _ROUTES:
            found = pattern.fullmatch(path)
            if found and self.command in method.split():
                answer(self, **{name: value for name, value in found.groupdict().items()})
                return
        raise _Refusal(404, f"no such route: {self.command} {path}")

    def _grant(self) -> None:
        """A licence is accepted, by a test that runs in another process."""
        self.hub.repositories["model", json.loads(self.body)["grant"]].readers.add(OWNER_TOKEN)
        self._send_json({})

    def _create(self) -> None:
        self._want_writer()
        order = json.loads(self.body)
        kind, repo_id = order.get("type") or "model", f"{order.get('organization') or USER}/{order['name']}"
        url = f"{self.hub.endpoint}/{'' if kind == 'model' else kind + 's/'}{repo_id}"
        if (kind, repo_id) in self.hub.repositories:
            self._send(json.dumps({"url": url, "error": "exists"}).encode(), 409)
            return
        private = order.get("visibility") == "private" or bool(order.get("private"))
        repository = self.hub.repositories[kind, repo_id] = Repository(private=private)
        repository.commit({".gitattributes": self.hub.keep(b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n")})
        self._send_json({"url": url, "id": repo_id})

    def _validate(self) -> None:
        self._send_json({"errors": [], "warnings": []})

    def _info(self, kind: str, id: str, revision: str | None = None) -> None:
        repository = self._repository(kind, id)
        sha = self._revision(repository, revision or "main")
        siblings = [{"rfilename": name} for name in sorted(repository.commits[sha])]
        about = {"id": id, "modelId": id, "sha": sha, "private": repository.private, "tags": [], "downloads": 0}
        gate = "auto" if repository.gated else False
        self._send_json({**about, "gated": gate, "disabled": False, "likes": 0, "siblings": siblings})

    def _refs(self, kind: str, id: str) -> None:
        repository = self._repository(kind, id)
        branches = [{"name": "main", "ref": "refs/heads/main", "targetCommit": repository.head}]
        tags = [{"name": n, "ref": f"refs/tags/{n}", "targetCommit": sha} for n, sha in repository.tags.items()]
        self._send_json({"branches": branches, "converts": [], "tags": tags})

    def _tree(self, kind: str, id: str, revision: str, folder: str | None = None) -> None:
        repository = self._repository(kind, id, content=True)
        files = repository.commits[self._revision(repository, revision)]
        prefix = f"{folder}/" if folder else ""
        entries = []
        for name, etag in sorted(files.items()):
            if name.startswith(prefix):
                size = len(self.hub.contents[etag])
                entries.append({"type": "file", "path": name, "size": size, "oid": etag})
        if not entries:
            raise _Refusal(404, f"{folder} does not exist", "EntryNotFound")
        self._send_json(entries)

    def _preupload(self, kind: str, id: str, revision: str) -> None:
        self._want_writer()
        files = json.loads(self.body)["files"]
        self._send_json(
            {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
        )

    def _commit(self, kind: str, id: str, revision: str) -> None:
        self._want_writer()
        repository = self._repository(kind, id)
        files = dict(repository.commits[self._revision(repository, revision)])
        for line in self.body.splitlines():
            item = json.loads(line)
            key, value = item["key"], item["value"]
            if key == "header" and value.get("parentCommit") not in (None, repository.head):
                raise _Refusal(412, "the branch has moved since")
            if key == "file":
                files[value["path"]] = self.hub.keep(base64.b64decode(value["content"]))
            elif key == "deletedFile":
                del files[value["path"]]
        sha = repository.commit(files)
        url = f"{self.hub.endpoint}/{'' if kind == 'model' else kind + 's/'}{id}/commit/{sha}"
        self._send_json({"success": True, "commitOid": sha, "commitUrl": url, "hookOutput": ""})

    def _tag(self, kind: str, id: str, revision: str) -> None:
        self._want_writer()
        repository, name = self._repository(kind, id), json.loads(self.body)["tag"]
        if name in repository.tags:
            raise _Refusal(409, f"tag {name} exists")
        repository.tags[name] = self._revision(repository, revision)
        self._send_json({})

    def _resolve(self, kind: str | None, id: str, revision: str, name: str) -> None:
        repository = self._repository(kind or "model", id, content=True)
        sha = self._revision(repository, revision)
        etag = repository.commits[sha].get(name)
        if etag is None:
            self._send(b"{}", 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": sha})
            return
        headers = {"X-Repo-Commit": sha, "ETag": f'"{etag}"', "Content-Type": "application/octet-stream"}
        self._send(self.hub.contents[etag], 200, headers)


def _routes(*routes: tuple[str, str, Any]) -> list[tuple[str, re.Pattern, Any]]:
    return [(method, re.compile(pattern), answer) for method, pattern, answer in routes]


_ROUTES = _routes(
    ("POST", "/_test", _Handler._grant),
    ("POST", "/api/repos/create", _Handler._create),
    ("POST", "/api/validate-yaml", _Handler._validate),
    ("GET", f"/api/{_KIND}/{_ID}", _Handler._info),
    ("GET", f"/api/{_KIND}/{_ID}/revision/(?P<revision>[^/]+)", _Handler._info),
    ("GET", f"/api/{_KIND}/{_ID}/refs", _Handler._refs),
    ("GET", f"/api/{_KIND}/{_ID}/tree/(?P<revision>[^/]+)(?:/(?P<folder>.+))?", _Handler._tree),
    ("POST", f"/api/{_KIND}/{_ID}/preupload/(?P<revision>[^/]+)", _Handler._preupload),
    ("POST", f"/api/{_KIND}/{_ID}/commit/(?P<revision>[^/]+)", _Handler._commit),
    ("POST", f"/api/{_KIND}/{_ID}/tag/(?P<revision>[^/]+)", _Handler._tag),
    ("GET HEAD", f"/{_PREFIX}{_ID}/resolve/(?P<revision>[^/]+)/(?P<name>.+)", _Handler._resolve),
)

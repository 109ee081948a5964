"""A Hub on loopback for the real `huggingface_hub` client: repositories, commits, LFS, Xet, access, faults.

Files above a size limit, or with a weight file's ending, go by LFS (or by Xet, whose store is then a local folder);
every commit is kept, so that revisions and tags can be pinned. Faults are orders of the test: the next requests that
match get a status, half a file, or wrong bytes.
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

import yaml

USER, OWNER_TOKEN, READ_TOKEN = "tester", "hf_owner", "hf_reader"
_ID = r"(?P<id>[\w.-]+/[\w.-]+)"
_KIND = r"(?P<kind>model|dataset|space)s"
_PREFIX = r"(?:(?P<kind>dataset|space)s/)?"


@dataclass(frozen=True)
class File:
    """One file of a commit."""

    size: int
    git_oid: str
    sha256: str | None = None  # of LFS files
    xet_hash: str | None = None

    @property
    def etag(self) -> str:
        return self.sha256 or self.git_oid


@dataclass
class Repository:
    """A repository with all its commits; tags and branches are names of commits."""

    private: bool = False
    gated: bool = False
    readers: set[str] = field(default_factory=set)
    commits: dict[str, dict[str, File]] = field(default_factory=dict)
    history: list[str] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def head(self) -> str:
        return self.history[-1]

    def commit(self, files: dict[str, File]) -> str:
        text = json.dumps([len(self.history), sorted((name, file.etag) for name, file in files.items())])
        sha = hashlib.sha1(text.encode()).hexdigest()
        self.commits[sha] = dict(files)
        self.history.append(sha)
        return sha

    def resolve(self, revision: str) -> str | None:
        if revision == "main":
            return self.head
        return self.tags.get(revision) or (revision if revision in self.commits else None)


@dataclass
class Fault:
    """What goes wrong with the next `times` requests of a method whose path matches."""

    method: str
    path: str
    action: str  # a status, "half" (the connection closes mid-file) or "wrong" (other bytes of the same size)
    times: int = 1


class HubServer:
    """The server; a context manager.

    Args:
        folder: for the Xet store.
        lfs_limit: bytes from which on a file goes by LFS whatever its name.

    `watch` is called with each request before it is answered.
    """

    def __init__(self, folder: Path, lfs_limit: int = 10_000_000) -> None:
        self.store = folder / "xet"
        self.store.mkdir(parents=True)
        self.lfs_limit = lfs_limit
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.contents: dict[str, bytes] = {}  # by etag
        self.xet_hashes: dict[str, tuple[str, int]] = {}  # by sha256
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self.watch: Callable[[str], None] = lambda request: None
        self.lock = threading.RLock()
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
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

    def environment(self, home: Path, token: str | None = OWNER_TOKEN, xet: bool = False) -> dict[str, str]:
        """Variables of a client process, to be set before it starts; `home` is its own cache."""
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_TOKEN": token or "",
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "0" if xet else "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }

    def know_xet(self, paths: list[Path]) -> None:
        """Learns the Xet hash of files that are going to be uploaded; the true Hub reads it from its store."""
        import hf_xet

        for path, info in zip(paths, hf_xet.hash_files([str(path) for path in paths]), strict=True):
            content = path.read_bytes()
            self.xet_hashes[hashlib.sha256(content).hexdigest()] = (info.hash, len(content))

    def keep(self, content: bytes, lfs: bool = False) -> File:
        """Stores a file's content, without an upload."""
        oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        file = File(len(content), oid, hashlib.sha256(content).hexdigest() if lfs else None)
        self.contents[file.etag] = content
        return file

    def files(self, repo_id: str, kind: str = "model", revision: str = "main") -> dict[str, File]:
        repository = self.repositories[kind, repo_id]
        return repository.commits[repository.resolve(revision)]

    def read(self, repo_id: str, name: str, kind: str = "model", revision: str = "main") -> bytes:
        return self.contents[self.files(repo_id, kind, revision)[name].etag]


def metadata_problem(content: str, kind: str) -> str | None:
    """What the metadata block of a card gets wrong by the Hub's documented rules, or None."""
    found = re.match(r"---\n(.*?)\n---\n", content, re.DOTALL)
    if not found:
        return None if kind != "space" else "no metadata"
    try:
        data = yaml.safe_load(found[1])
    except yaml.YAMLError as error:
        return f"no YAML: {error}"
    if not isinstance(data, dict):
        return "the metadata is no mapping"
    colours = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
    rules = {
        "license": lambda v: isinstance(v, str) and re.fullmatch(r"[a-z0-9.-]+", v),
        "license_link": lambda v: v == "LICENSE" or re.match(r"https?://", v),
        "base_model": lambda v: all(re.fullmatch(r"[\w.-]+/[\w.-]+", x) for x in ([v] if isinstance(v, str) else v)),
        "base_model_relation": lambda v: v in ("adapter", "merge", "quantized", "finetune"),
        "pipeline_tag": lambda v: v in ("image-to-image", "depth-estimation", "text-to-image"),
        "tags": lambda v: isinstance(v, list) and all(isinstance(x, str) for x in v),
        "datasets": lambda v: isinstance(v, list) and all(isinstance(x, str) for x in v),
        "sdk": lambda v: v in ("gradio", "docker", "static"),
        "colorFrom": lambda v: v in colours,
        "colorTo": lambda v: v in colours,
        "short_description": lambda v: len(v) <= 60,
        "python_version": lambda v: isinstance(v, str),
        "sdk_version": lambda v: isinstance(v, str),
        "model-index": lambda v: all("name" in entry and entry["results"] for entry in v),
    }
    if data.get("license") == "other" and "license_name" not in data:
        return "license is other without license_name"
    if kind == "space" and not {"title", "sdk", "app_file", "emoji", "colorFrom", "colorTo"} <= set(data):
        return "a Space wants title, sdk, app_file, emoji, colorFrom and colorTo"
    wrong = [name for name, rule in rules.items() if name in data and not rule(data[name])]
    return f"wrong {', '.join(wrong)}" if wrong else None


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
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            self.body = self._chunks()
        with self.hub.lock:
            self.hub.requests.append(f"{self.command} {path}")
            self.hub.watch(self.hub.requests[-1])
            self.fault = self._take_fault(path)
        try:
            if self.fault is not None and self.fault.isdigit():
                raise _Refusal(int(self.fault), f"ordered by the test ({self.fault})")
            with self.hub.lock:
                self._route(path)
        except _Refusal as refusal:
            headers = {"X-Error-Message": str(refusal)}
            if refusal.code:
                headers["X-Error-Code"] = refusal.code
            if refusal.status == 429:
                headers["Retry-After"] = "0"
            error = json.dumps({"error": str(refusal), "errors": [{"message": str(refusal)}]})
            self._send(error.encode(), refusal.status, headers)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _answer

    def _chunks(self) -> bytes:
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _take_fault(self, path: str) -> str | None:
        for fault in self.hub.faults:
            if fault.times and fault.method == self.command and re.search(fault.path, path):
                fault.times -= 1
                return fault.action
        return None

    def _send(self, body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.fault == "half":
            body = body[: len(body) // 2]
            self.close_connection = True
        elif self.fault == "wrong":
            body = bytes(255 - byte for byte in body[:64]) + body[64:]
        self.wfile.write(body)

    def _send_json(self, value: Any, headers: dict[str, str] | None = None) -> None:
        self._send(json.dumps(value).encode(), 200, headers)

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
        sha = repository.resolve(revision)
        if sha is None:
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

    def _control(self) -> None:
        """Orders of a test that runs in another process."""
        order = json.loads(self.body)
        if "faults" in order:
            self.hub.faults[:] = [Fault(**fault) for fault in order["faults"]]
        if "grant" in order:
            self.hub.repositories["model", order["grant"]].readers.add(OWNER_TOKEN)
        self._send_json({"requests": self.hub.requests})
        if order.get("stop"):
            self.close_connection = True
            threading.Thread(target=self.hub.stop, daemon=True).start()

    def _whoami(self) -> None:
        if self.token not in (OWNER_TOKEN, READ_TOKEN):
            raise _Refusal(401, "Invalid credentials in Authorization header")
        role = "write" if self.token == OWNER_TOKEN else "read"
        access = {"type": "access_token", "accessToken": {"displayName": "test", "role": role}}
        self._send_json({"type": "user", "name": USER, "orgs": [], "auth": access})

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
        order = json.loads(self.body)
        problem = metadata_problem(order["content"], order["repoType"])
        if problem:
            raise _Refusal(400, problem)
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
        for name, file in sorted(files.items()):
            if not name.startswith(prefix):
                continue
            entry = {"type": "file", "path": name, "size": file.size, "oid": file.git_oid}
            if file.sha256:
                entry["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": 134}
            if file.xet_hash:
                entry["xetHash"] = file.xet_hash
            entries.append(entry)
        if not entries:
            raise _Refusal(404, f"{folder} does not exist", "EntryNotFound")
        self._send_json(entries)

    def _preupload(self, kind: str, id: str, revision: str) -> None:
        self._want_writer()
        present = self._repository(kind, id).commits[self._revision(self._repository(kind, id), revision)]
        answer = []
        for file in json.loads(self.body)["files"]:
            large = file["size"] >= self.hub.lfs_limit or file["path"].endswith((".safetensors", ".parquet"))
            entry = {"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
            if file["path"] in present:
                entry["oid"] = present[file["path"]].etag
            answer.append(entry)
        self._send_json({"files": answer})

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
            elif key == "lfsFile":
                files[value["path"]] = self._large_file(value["oid"])
            elif key == "deletedFile":
                del files[value["path"]]
        sha = repository.commit(files)
        url = f"{self.hub.endpoint}/{'' if kind == 'model' else kind + 's/'}{id}/commit/{sha}"
        self._send_json({"success": True, "commitOid": sha, "commitUrl": url, "hookOutput": ""})

    def _large_file(self, sha256: str) -> File:
        pointer = hashlib.sha1(sha256.encode()).hexdigest()
        if sha256 in self.hub.contents:
            return File(len(self.hub.contents[sha256]), pointer, sha256)
        if sha256 not in self.hub.xet_hashes:
            raise _Refusal(400, f"LFS object {sha256} was not uploaded")
        xet_hash, size = self.hub.xet_hashes[sha256]
        return File(size, pointer, sha256, xet_hash)

    def _tag(self, kind: str, id: str, revision: str) -> None:
        self._want_writer()
        repository, name = self._repository(kind, id), json.loads(self.body)["tag"]
        if name in repository.tags:
            raise _Refusal(409, f"tag {name} exists")
        repository.tags[name] = self._revision(repository, revision)
        self._send_json({})

    def _lfs_batch(self, kind: str | None, id: str) -> None:
        self._want_writer()
        objects = []
        for one in json.loads(self.body)["objects"]:
            if one["oid"] not in self.hub.contents:
                upload = {"href": f"{self.hub.endpoint}/_lfs/{one['oid']}", "header": {}}
                one["actions"] = {"upload": upload, "verify": {"href": f"{self.hub.endpoint}/_lfs/verify"}}
            objects.append(one)
        self._send_json({"transfer": "basic", "objects": objects})

    def _lfs_put(self, oid: str) -> None:
        ordered, self.fault = self.fault, None  # the answer itself is sound
        if hashlib.sha256(self.body).hexdigest() != oid or ordered == "wrong":
            raise _Refusal(400, f"the checksum of the upload is not {oid}")
        self.hub.contents[oid] = self.body
        self._send(b"")

    def _lfs_verify(self) -> None:
        if json.loads(self.body)["oid"] not in self.hub.contents:
            raise _Refusal(404, "no such object")
        self._send_json({})

    def _xet_token(self, kind: str, id: str, way: str, revision: str) -> None:
        if way == "write":
            self._want_writer()
        self._repository(kind, id, content=True)
        url, until = f"local://{self.hub.store}", 4_000_000_000
        headers = {"X-Xet-Cas-Url": url, "X-Xet-Access-Token": "xet", "X-Xet-Token-Expiration": str(until)}
        self._send_json({"casUrl": url, "accessToken": "xet", "exp": until}, headers)

    def _resolve(self, kind: str | None, id: str, revision: str, name: str) -> None:
        kind = kind or "model"
        repository = self._repository(kind, id, content=True)
        sha = self._revision(repository, revision)
        file = repository.commits[sha].get(name)
        if file is None:
            self.fault = None
            self._send(b"{}", 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": sha})
            return
        headers = {"X-Repo-Commit": sha, "ETag": f'"{file.etag}"', "Content-Type": "application/octet-stream"}
        if file.sha256:
            headers |= {"X-Linked-Size": str(file.size), "X-Linked-Etag": f'"{file.sha256}"'}
        if file.xet_hash:
            route = f"{self.hub.endpoint}/api/{kind}s/{id}/xet-read-token/{sha}"
            headers |= {"X-Xet-Hash": file.xet_hash, "X-Xet-Refresh-Route": route}
            headers["Link"] = f'<{route}>; rel="xet-auth"'
        if self.command == "HEAD":
            self.send_response(200)
            for key, value in {**headers, "Content-Length": str(file.size)}.items():
                self.send_header(key, value)
            self.end_headers()
            return
        if file.etag not in self.hub.contents:
            raise _Refusal(400, "this file is served by Xet alone")
        content = self.hub.contents[file.etag]
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if span:
            first, last = int(span[1]), int(span[2] or len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            self._send(content[first : last + 1], 206, headers)
        else:
            self._send(content, 200, headers)


def _routes(*routes: tuple[str, str, Any]) -> list[tuple[str, re.Pattern, Any]]:
    return [(method, re.compile(pattern), answer) for method, pattern, answer in routes]


_ROUTES = _routes(
    ("POST", "/_test", _Handler._control),
    ("GET", "/api/whoami-v2", _Handler._whoami),
    ("POST", "/api/repos/create", _Handler._create),
    ("POST", "/api/validate-yaml", _Handler._validate),
    ("GET", f"/api/{_KIND}/{_ID}", _Handler._info),
    ("GET", f"/api/{_KIND}/{_ID}/revision/(?P<revision>[^/]+)", _Handler._info),
    ("GET", f"/api/{_KIND}/{_ID}/refs", _Handler._refs),
    ("GET", f"/api/{_KIND}/{_ID}/tree/(?P<revision>[^/]+)(?:/(?P<folder>.+))?", _Handler._tree),
    ("POST", f"/api/{_KIND}/{_ID}/preupload/(?P<revision>[^/]+)", _Handler._preupload),
    ("POST", f"/api/{_KIND}/{_ID}/commit/(?P<revision>[^/]+)", _Handler._commit),
    ("POST", f"/api/{_KIND}/{_ID}/tag/(?P<revision>[^/]+)", _Handler._tag),
    ("GET", f"/api/{_KIND}/{_ID}/xet-(?P<way>read|write)-token/(?P<revision>[^/]+)", _Handler._xet_token),
    ("POST", f"/{_PREFIX}{_ID}.git/info/lfs/objects/batch", _Handler._lfs_batch),
    ("PUT", "/_lfs/(?P<oid>[0-9a-f]{64})", _Handler._lfs_put),
    ("POST", "/_lfs/verify", _Handler._lfs_verify),
    ("GET HEAD", f"/{_PREFIX}{_ID}/resolve/(?P<revision>[^/]+)/(?P<name>.+)", _Handler._resolve),
)

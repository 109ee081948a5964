"""What a client meets when the Hub fails: one sentence, nothing damaged in the cache, success at the second try."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hub_server import READ_TOKEN, HubServer, Repository
from safetensors.numpy import save_file

from bokehdepth.publishing import PROJECT

REPOSITORY = "tester/model"
WEIGHTS = "part/model.safetensors"

# The pauses between the client's own retries are left out; everything else is the real client.
IMPATIENT = """
import types, time
from huggingface_hub.utils import _http
_http.time = types.SimpleNamespace(sleep=lambda s: None, time=time.time, monotonic=time.monotonic)
"""

DOWNLOAD = (
    IMPATIENT
    + """
import hashlib, json, os, sys, urllib.request
from pathlib import Path
from bokehdepth.loading_bokehdepth import fetch_repository

def order(**what):
    request = urllib.request.Request(os.environ["HF_ENDPOINT"] + "/_test", json.dumps(what).encode(), method="POST")
    urllib.request.urlopen(request).read()

results = []
for number, fault in enumerate(json.loads(sys.argv[1])):
    cache = Path(f"cache{number}").resolve()
    order(faults=[fault])
    try:
        fetch_repository("tester/model", cache_dir=str(cache))
        sentence = None
    except ValueError as error:
        sentence = str(error)
    left = {p.relative_to(cache).parts[-1]: hashlib.sha256(p.read_bytes()).hexdigest()
            for p in cache.rglob("snapshots/*/**/*") if p.is_file()}
    order(faults=[])
    folder = Path(fetch_repository("tester/model", cache_dir=str(cache)))
    again = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()}
    results.append({"sentence": sentence, "left": left, "again": again})
print(json.dumps(results))
"""
)

INFO, BODY = "/api/models/tester/model/revision", f"/resolve/.*{WEIGHTS}"
FAULTS = [
    ("GET", INFO, "401", "was refused (401: ordered by the test (401)); wanted a token with that right."),
    ("GET", INFO, "403", "was refused (403: ordered by the test (403)); wanted a token with that right."),
    ("GET", INFO, "404", "was refused by the Hub (404: ordered by the test (404))."),
    ("GET", INFO, "429", "was refused for now (429, too many requests); try again in a few minutes."),
    ("GET", INFO, "500", "met a failure of the Hub (500); nothing is wrong here, try again later."),
    ("GET", BODY, "401", "was refused (401: ordered by the test (401)); wanted a token with that right."),
    ("GET", BODY, "403", "was refused (403: ordered by the test (403)); wanted a token with that right."),
    ("GET", BODY, "404", "was refused by the Hub (404: ordered by the test (404))."),
    ("GET", BODY, "429", "was refused for now (429, too many requests); try again in a few minutes."),
    ("GET", BODY, "500", "met a failure of the Hub (500); nothing is wrong here, try again later."),
    ("GET", BODY, "half", "was cut off, since the Hub closed the connection in the middle of a file; try again."),
    ("GET", BODY, "wrong", f"arrived damaged (wrong checksum of {WEIGHTS}); nothing of it is kept, try again."),
    ("GET", "/resolve/.*model_index.json", "wrong", "arrived damaged (wrong checksum of model_index.json)"),
]


def run(code: str, folder: Path, environment: dict[str, str], *arguments: str) -> str:
    variables = {**os.environ, "PYTHONPATH": str(PROJECT), **environment}
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=variables)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    (folder / "part").mkdir()
    rng = np.random.default_rng(0)
    save_file({"weight": rng.standard_normal((200, 500)).astype(np.float32)}, folder / WEIGHTS)
    (folder / "model_index.json").write_text('{"_class_name": "X"}\n')
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A model\n")
    return folder


@pytest.fixture(scope="module")
def outcomes(model, tmp_path_factory):
    """All faults of downloads, in one client process."""
    home = tmp_path_factory.mktemp("download")
    with HubServer(home / "hub") as hub:
        repository = hub.repositories["model", REPOSITORY] = Repository()
        files = {}
        for path in model.rglob("*"):
            if path.is_file():
                files[path.relative_to(model).as_posix()] = hub.keep(path.read_bytes(), lfs=path.suffix != ".json")
        repository.commit(files)
        faults = [{"method": m, "path": p, "action": a, "times": 100} for m, p, a, _ in FAULTS]
        return json.loads(run(DOWNLOAD, home, hub.environment(home / "hf"), json.dumps(faults)))


@pytest.mark.parametrize("number", range(len(FAULTS)), ids=[f"{p.split('/')[1]}-{a}-{n}" for n, (_, p, a, _) in
                                                            enumerate(FAULTS)])  # fmt: skip
def test_a_failed_download_is_one_sentence_and_leaves_nothing_damaged(outcomes, model, number):
    import hashlib

    true = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in model.rglob("*") if p.is_file()}
    outcome = outcomes[number]
    assert outcome["sentence"].startswith(f"{REPOSITORY} {FAULTS[number][3]}")
    assert "\n" not in outcome["sentence"]
    assert outcome["left"].items() <= true.items()
    assert outcome["again"] == true


ABSENT = """
import json
from bokehdepth.loading_bokehdepth import HubError, fetch_repository
sentences = []
for name, options in (
    ("tester/none", {}), ("tester/model", {"revision": "v9"}), ("tester/private", {"token": False}),
    ("tester/model", {"token": "hf_expired"}), ("tester/gated", {}),
):
    try:
        fetch_repository(name, **options)
    except HubError as error:
        sentences.append(str(error))
print(json.dumps(sentences))
"""


def test_what_is_absent_or_closed_is_one_sentence(tmp_path):
    with HubServer(tmp_path / "hub") as hub:
        for name, options in (("model", {}), ("private", {"private": True}), ("gated", {"gated": True})):
            repository = hub.repositories["model", f"tester/{name}"] = Repository(**options)
            repository.commit({"model_index.json": hub.keep(b"{}")})
        sentences = json.loads(run(ABSENT, tmp_path, hub.environment(tmp_path / "hf")))
    assert sentences == [
        "tester/none is not on the Hub, or is private and the token does not read it (404).",
        "tester/model has no such revision on the Hub; wanted a branch, a tag or a commit of it.",
        "tester/private is not on the Hub, or is private and the token does not read it (401).",
        "tester/model was refused (401), since the token is not valid; log in again with `hf auth login`.",
        "tester/gated is gated; accept its licence on its Hub page and log in with a token that reads it.",
    ]


UPLOAD = (
    IMPATIENT
    + """
import json, sys
from pathlib import Path
from bokehdepth.errors import InputError
from bokehdepth.publishing import upload_folder
try:
    print(json.dumps(["done", upload_folder(Path(sys.argv[1]), "tester/model", **json.loads(sys.argv[2]))]))
except InputError as error:
    print(json.dumps(["refused", str(error)]))
"""
)


def upload(hub: HubServer, home: Path, folder: Path, *, token: str | None = "hf_owner", xet=False, **options):
    environment = hub.environment(home / "hf", token=token, xet=xet)
    return json.loads(run(UPLOAD, home, environment, str(folder), json.dumps(options)))


UPLOAD_FAULTS = [
    ("POST", "/repos/create", "401", "was refused (401"),
    ("POST", "/repos/create", "403", "was refused (403"),
    ("POST", "/preupload/", "404", "was refused by the Hub (404"),
    ("POST", "/preupload/", "429", "was refused for now (429, too many requests)"),
    ("POST", "/lfs/objects/batch", "500", "met a failure of the Hub (500)"),
    ("PUT", "/_lfs/", "500", "met a failure of the Hub (500)"),
    ("PUT", "/_lfs/", "wrong", "was refused by the Hub (400: the checksum of the upload is not"),
    ("POST", "/commit/", "500", "met a failure of the Hub (500)"),
    ("POST", "/commit/", "403", "was refused (403"),
]


@pytest.mark.parametrize(("method", "path", "action", "message"), UPLOAD_FAULTS)
def test_a_failed_upload_changes_nothing_and_the_second_succeeds(model, tmp_path, method, path, action, message):
    from hub_server import Fault

    with HubServer(tmp_path / "hub") as hub:
        hub.faults.append(Fault(method, path, action, times=100))
        kind, sentence = upload(hub, tmp_path, model, tag="v1")
        assert kind == "refused" and sentence.startswith(f"{REPOSITORY} {message}"), sentence
        assert sentence.endswith("The repository's content is unchanged.") and "\n" not in sentence
        repository = hub.repositories.get(("model", REPOSITORY))
        assert repository is None or (len(repository.history) == 1 and not repository.tags)
        hub.faults.clear()
        kind, commit = upload(hub, tmp_path, model, tag="v1")
        assert kind == "done"
        assert hub.repositories["model", REPOSITORY].tags == {"v1": commit}
        assert hub.read(REPOSITORY, WEIGHTS) == (model / WEIGHTS).read_bytes()


def test_a_token_that_cannot_write_is_one_sentence(model, tmp_path):
    with HubServer(tmp_path / "hub") as hub:
        assert upload(hub, tmp_path, model, token=None)[1].startswith("token is not there; wanted one with write acc")
        assert (
            upload(hub, tmp_path, model, token=READ_TOKEN)[1] == "token can only read; wanted one with write access."
        )
        sentence = upload(hub, tmp_path, model, token="hf_expired")[1]
        assert "the token is not valid; log in again" in sentence
        assert not hub.repositories


def test_an_interrupted_upload_is_resumed(model, tmp_path):
    """What arrived before the failure is not sent again."""
    from hub_server import Fault

    with HubServer(tmp_path / "hub") as hub:
        hub.faults.append(Fault("POST", "/commit/", "500", times=100))
        assert upload(hub, tmp_path, model)[0] == "refused"
        sent = sum(request.startswith("PUT") for request in hub.requests)
        hub.faults.clear()
        assert upload(hub, tmp_path, model)[0] == "done"
        assert sent == 1 and sum(request.startswith("PUT") for request in hub.requests) == 1


def test_one_commit_replaces_all_and_tags_are_kept(model, tmp_path):
    with HubServer(tmp_path / "hub") as hub:
        assert upload(hub, tmp_path, model, tag="v1", private=True)[0] == "done"
        repository = hub.repositories["model", REPOSITORY]
        assert repository.private and len(repository.history) == 2
        other = tmp_path / "other"
        other.mkdir()
        (other / "README.md").write_text("---\nlicense: mit\n---\n# Other\n")
        assert "has a tag v1 already" in upload(hub, tmp_path, other, tag="v1")[1]
        assert len(repository.history) == 2
        assert upload(hub, tmp_path, other, tag="v2")[0] == "done"
        assert set(hub.files(REPOSITORY)) == {".gitattributes", "README.md"}
        assert WEIGHTS in hub.files(REPOSITORY, revision="v1")
        repository.private = False
        assert "exists and is public" in upload(hub, tmp_path, model, private=True)[1]
        (other / "README.md").write_text("---\nlicense: other\n---\n# Other\n")
        assert "license is other without license_name" in upload(hub, tmp_path, other)[1]
        assert len(repository.history) == 3


def test_a_change_by_somebody_else_meanwhile_is_not_overwritten(model, tmp_path):
    with HubServer(tmp_path / "hub") as hub:
        assert upload(hub, tmp_path, model)[0] == "done"
        repository = hub.repositories["model", REPOSITORY]

        def interfere(request: str) -> None:
            if "/preupload/" in request and len(repository.history) == 2:
                repository.commit({"theirs.txt": hub.keep(b"theirs")})

        hub.watch = interfere
        other = tmp_path / "other"
        other.mkdir()
        (other / "README.md").write_text("---\nlicense: mit\n---\n# Other\n")
        kind, sentence = upload(hub, tmp_path, other)
        assert kind == "refused" and "412: the branch has moved since" in sentence
        assert set(hub.files(REPOSITORY)) == {"theirs.txt"}


@pytest.mark.parametrize("xet", [False, True])
def test_files_above_and_below_the_limit_go_their_ways(tmp_path, xet):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "small.json").write_bytes(b"x" * 999)
    (folder / "large.json").write_bytes(bytes(range(250)) * 5)
    with HubServer(tmp_path / "hub", lfs_limit=1000) as hub:
        hub.know_xet([folder / "large.json"] if xet else [])
        assert upload(hub, tmp_path, folder, xet=xet)[0] == "done"
        files = hub.files(REPOSITORY)
        assert files["small.json"].sha256 is None and files["large.json"].sha256 is not None
        assert (files["large.json"].xet_hash is not None) == xet
        assert any(request.startswith("PUT") for request in hub.requests) == (not xet)
        code = "from huggingface_hub import snapshot_download; print(snapshot_download('tester/model'))"
        got = Path(run(code, tmp_path, hub.environment(tmp_path / "other", xet=xet)))
        for name in ("small.json", "large.json"):
            assert (got / name).read_bytes() == (folder / name).read_bytes()

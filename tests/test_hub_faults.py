"""What a client meets when the Hub refuses: one sentence, and a repository as it was before."""

import json
import os
import subprocess
import sys

import pytest
from hub_server import READ_TOKEN, HubServer, Repository

from bokehdepth.hub.folder import PROJECT

REPOSITORY = "tester/model"


def run(code: str, folder, environment: dict[str, str], *arguments: str):
    variables = {**os.environ, "PYTHONPATH": str(PROJECT), **environment}
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=variables)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "weights.bin").write_bytes(bytes(range(256)) * 40)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A model\n")
    return folder


@pytest.fixture
def other(tmp_path):
    folder = tmp_path / "other"
    folder.mkdir()
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# Other\n")
    return folder


@pytest.fixture
def hub():
    with HubServer() as server:
        yield server


FETCH = """
import json
from bokehdepth.loading_bokehdepth import HubError, fetch_repository
sentences = []
for name, options in (
    ("tester/none", {}), ("tester/model", {"revision": "v9"}), ("tester/private", {"token": False}),
    ("tester/model", {"token": "hf_expired"}), ("tester/gated", {}), ("tester/broken", {}), ("no name", {}),
    ("tester/model", {"local_files_only": True}),
):
    try:
        fetch_repository(name, **options)
    except HubError as error:
        sentences.append(str(error))
print(json.dumps(sentences))
"""


def test_what_cannot_be_fetched_is_one_sentence(hub, tmp_path):
    for name, options in (("model", {}), ("private", {"private": True}), ("gated", {"gated": True}), ("broken", {})):
        repository = hub.repositories["model", f"tester/{name}"] = Repository(**options)
        repository.commit({"model_index.json": hub.keep(b"{}")})
    hub.faults["broken/resolve"] = 403
    sentences = run(FETCH, tmp_path, hub.environment(tmp_path / "hf"))
    starts = [
        "tester/none was refused by the Hub (404 Client Error",
        "tester/model was refused by the Hub (404 Client Error",
        "tester/private was refused by the Hub (401 Client Error",
        "tester/model was refused by the Hub (",
        "tester/gated is gated; accept its licence on its Hub page and log in with a token that reads it.",
        "tester/broken was refused by the Hub (403 Forbidden: ordered by the test",
        "no name was not fetched (Repo id must",
        "tester/model is not complete in the cache and the Hub is out of reach; load it once with a connection.",
    ]
    assert len(sentences) == len(starts)
    for sentence, start in zip(sentences, starts, strict=True):
        assert sentence.startswith(start) and "\n" not in sentence, sentence


UPLOAD = """
import json, sys
from pathlib import Path
from bokehdepth.errors import InputError
from bokehdepth.hub.publish import upload_folder
try:
    print(json.dumps(["done", upload_folder(Path(sys.argv[1]), "tester/model", **json.loads(sys.argv[2]))]))
except InputError as error:
    print(json.dumps(["refused", str(error)]))
"""


def upload(hub, folder, token="hf_owner", **options):
    environment = hub.environment(folder.parent / "hf", token=token)
    return run(UPLOAD, folder.parent, environment, str(folder), json.dumps(options))


@pytest.mark.parametrize("request_", ["POST .*/repos/create", "POST .*/preupload/", "POST .*/commit/"])
def test_a_failed_upload_changes_nothing_and_the_second_succeeds(hub, model, request_):
    hub.faults[request_] = 403
    kind, sentence = upload(hub, model, tag="v1")
    assert kind == "refused" and sentence.startswith(f"{REPOSITORY} was refused by the Hub (403"), sentence
    assert sentence.endswith("The repository's content is unchanged.") and "\n" not in sentence
    repository = hub.repositories.get(("model", REPOSITORY))
    assert repository is None or (len(repository.history) == 1 and not repository.tags)
    hub.faults.clear()
    kind, commit = upload(hub, model, tag="v1")
    assert kind == "done"
    assert hub.repositories["model", REPOSITORY].tags == {"v1": commit}
    assert hub.read(REPOSITORY, "weights.bin") == (model / "weights.bin").read_bytes()


def test_a_tag_that_fails_is_said(hub, model):
    hub.faults["POST .*/tag/"] = 403
    kind, sentence = upload(hub, model, tag="v1")
    repository = hub.repositories["model", REPOSITORY]
    assert kind == "refused" and len(repository.history) == 2
    assert sentence.endswith(f"content is published as {repository.head[:8]}, its tag v1 is not.")


@pytest.mark.parametrize("token", [None, READ_TOKEN, "hf_expired"])
def test_a_token_that_cannot_write_is_one_sentence(hub, model, token):
    kind, sentence = upload(hub, model, token=token)
    assert kind == "refused" and "\n" not in sentence and sentence.endswith("content is unchanged.")
    assert not hub.repositories


def test_one_commit_replaces_all_and_tags_are_kept(hub, model, other):
    assert upload(hub, model, tag="v1", private=True)[0] == "done"
    repository = hub.repositories["model", REPOSITORY]
    assert repository.private and len(repository.history) == 2
    assert upload(hub, other, tag="v1") == ["refused", f"`tag` must be a new one of {REPOSITORY}, got v1."]
    assert len(repository.history) == 2
    assert upload(hub, other, tag="v2")[0] == "done"
    assert set(hub.files(REPOSITORY)) == {".gitattributes", "README.md"}
    assert "weights.bin" in hub.files(REPOSITORY, revision="v1")
    repository.private = False
    assert "must be private or new" in upload(hub, model, private=True)[1]
    assert len(repository.history) == 3


def test_a_change_by_somebody_else_meanwhile_is_not_overwritten(hub, model, other):
    assert upload(hub, model)[0] == "done"
    repository = hub.repositories["model", REPOSITORY]

    def interfere(request: str) -> None:
        if "/preupload/" in request and len(repository.history) == 2:
            repository.commit({"theirs.txt": hub.keep(b"theirs")})

    hub.watch = interfere
    kind, sentence = upload(hub, other)
    assert kind == "refused" and "412" in sentence
    assert set(hub.files(REPOSITORY)) == {"theirs.txt"}

"""The way of a folder to the Hub: all of it in one commit, or nothing."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..loading_bokehdepth import explain_hub_error
from .folder import PROJECT, TAG, fill_folder


@dataclass(frozen=True)
class Publication:
    """What was published, or would be.

    Args:
        repository: `user/name`.
        repo_type: "model", "dataset" or "space".
        files: name and size in bytes of each file, by name.
        tag: that the commit got, if any.
        commit: its hash; None of a dry run.
    """

    repository: str
    repo_type: str
    files: tuple[tuple[str, int], ...]
    tag: str | None
    commit: str | None


def list_files(folder: Path) -> tuple[tuple[str, int], ...]:
    """Names every file of a folder with its size in bytes."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return tuple((path.relative_to(folder).as_posix(), path.stat().st_size) for path in paths)


def upload_folder(
    folder: Path,
    repository: str,
    *,
    repo_type: str = "model",
    private: bool = False,
    tag: str | None = None,
    token: str | None = None,
) -> str:
    """Uploads a folder as the whole content of a repository: one commit, in which files that are no more are deleted.

    Args:
        folder: to upload.
        repository: `user/name`; created where it does not exist.
        repo_type: "model", "dataset" or "space".
        private: create it as private; one that exists and is public is refused.
        tag: name for the commit; refused where it exists.
        token: None takes the client's own.

    Returns:
        The commit's hash.

    Raises:
        InputError: the Hub refuses; unless the sentence speaks of the tag, the repository's content is unchanged.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = HfApi(token=token)
    where: dict[str, Any] = {"repo_id": repository, "repo_type": repo_type}
    step = "content is unchanged"
    try:
        sdk = {"space_sdk": "gradio"} if repo_type == "space" else {}
        api.create_repo(**where, private=private or None, exist_ok=True, **sdk)
        info = api.repo_info(**where)
        if private and not info.private:
            raise InputError(f"{repository} must be private or new with `private`, got a public one.")
        if tag in {ref.name for ref in api.list_repo_refs(**where).tags}:
            raise InputError(f"`tag` must be a new one of {repository}, got {tag}.")
        files = [name for name, _ in list_files(folder)]
        gone = {sibling.rfilename for sibling in info.siblings or []} - {*files, ".gitattributes"}
        # The client's `upload_folder` makes several commits where an upload takes more than a few minutes.
        operations = [CommitOperationAdd(name, folder / name) for name in files]
        operations += [CommitOperationDelete(name) for name in sorted(gone)]
        message = f"Publish {tag}" if tag else "Publish"
        commit = api.create_commit(**where, operations=operations, commit_message=message, parent_commit=info.sha).oid
        if tag is not None:
            step = f"content is published as {commit[:8]}, its tag {tag} is not"
            api.create_tag(**where, tag=tag, revision=commit)
    except InputError:
        raise
    except Exception as error:
        said = explain_hub_error(error, repository) or f"{repository} was not published ({error})."
        raise InputError(f"{' '.join(said.split())} The repository's {step}.") from error
    return commit


def publish(
    kind: str,
    model: str | Path | None,
    repository: str,
    *,
    facts: str | Path | None = None,
    private: bool = False,
    tag: str | None = None,
    token: str | None = None,
    dry_run: bool = False,
    project: Path = PROJECT,
) -> Publication:
    """Builds the folder of a repository and uploads it.

    Args:
        kind: as in `folder.build_folder`.
        model: likewise.
        repository: `user/name`.
        facts: as in `folder.build_folder`.
        private: as in `upload_folder`.
        tag: name for the commit; None takes `v` and the version that the facts state, of a model.
        token: as in `upload_folder`.
        dry_run: build and check the folder, ask the Hub nothing.
        project: as in `folder.build_folder`.

    Returns:
        What was published, or would be.

    Raises:
        InputError: something is missing, or the Hub refuses.
    """
    if tag is not None and not TAG.fullmatch(tag):
        raise InputError(f"tag is {tag!r}; wanted a version such as v0.1.0.")
    repo_type = kind if kind in ("dataset", "space") else "model"
    with tempfile.TemporaryDirectory(prefix="bokehdepth-publish-") as home:
        folder = Path(home)
        version = fill_folder(kind, model, folder, repository, facts, project)
        if tag is None and version is not None:
            tag = f"v{version.removeprefix('v')}"
        commit = None
        if not dry_run:
            options: dict[str, Any] = {"private": private, "tag": tag, "token": token}
            commit = upload_folder(folder, repository, repo_type=repo_type, **options)
        return Publication(repository, repo_type, list_files(folder), tag, commit)

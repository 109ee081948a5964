"""The files that the release is made of, and the commits at which they are loaded: the one place where both stand."""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import InputError
from .loading_bokehdepth import fetch_repository


@dataclass(frozen=True)
class Source:
    """A file of a repository on the Hub."""

    repo_id: str
    filename: str


BASE_MODEL = "black-forest-labs/FLUX.1-Kontext-dev"
BASE_CONFIG = "transformer/config.json"
"""The file of the base that is asked for first: its gate is met before anything large is fetched."""
ADAPTER = Source("fogradio/BokehDepth", "bokeh_lora.bin")
DEPTH_MODELS: Mapping[str, Source] = types.MappingProxyType(
    {
        "unidepth": Source("fogradio/BokehDepth", "UDv2_dsfa_release.pth"),
        "depth_anything": Source("fogradio/BokehDepth", "DAV2_dsfa_release.pth"),
    }
)

REVISIONS: Mapping[str, str | None] = types.MappingProxyType(
    {BASE_MODEL: None, "fogradio/BokehDepth": None},
)
"""Commit of each repository. None is not pinned: the newest is loaded, and said to be. `bokehdepth convert --audit` of
a file in the Hub's cache prints what belongs here; no commit may stand here that nobody has audited."""


def parse_revisions(text: str) -> dict[str, str]:
    """Read commits as the command line takes them.

    Args:
        text: ``REPOSITORY@COMMIT``, several of them with commas between.

    Returns:
        Commit, tag or branch by repository.

    Raises:
        InputError: A part is not of this form, or names a repository twice.
    """
    revisions: dict[str, str] = {}
    for part in text.split(","):
        repo_id, found, revision = part.strip().partition("@")
        if not (found and repo_id and revision) or repo_id in revisions:
            raise InputError(
                f"revision is {text!r}; wanted REPOSITORY@COMMIT of each of {' and '.join(REVISIONS)} that is pinned, "
                "with a comma between."
            )
        revisions[repo_id] = revision
    return revisions


def cached_source(path: Path) -> tuple[str, str] | None:
    """Repository and commit that a file in the Hub's cache is of; None of any other file."""
    parts = path.absolute().parts
    for repository, snapshots, commit in zip(parts, parts[1:], parts[2:], strict=False):
        if repository.startswith("models--") and snapshots == "snapshots":
            return repository.removeprefix("models--").replace("--", "/", 1), commit
    return None


def unpinned(found: Mapping[str, str], wanted: Mapping[str, str]) -> str | None:
    """Say which repositories were loaded at whatever was their newest commit.

    Args:
        found: Commit that each repository was loaded at.
        wanted: Revision that was asked for, by repository.

    Returns:
        A sentence; None where every repository was pinned.
    """
    loose = [f"{repo_id}@{commit}" for repo_id, commit in found.items() if repo_id not in wanted]
    if not loose:
        return None
    return f"not pinned, the newest was loaded; for the same weights again ask for revision {','.join(loose)}."


def fetch_file(source: Source, revision: str | None = None, **options: Any) -> tuple[Path, str]:
    """Fetch one file of a repository.

    Args:
        source: The file.
        revision: Commit, tag or branch; None is the main branch.
        **options: For `huggingface_hub.snapshot_download`: ``token``, ``cache_dir``, ``local_files_only``.

    Returns:
        The file, and the commit that it came from, by which the same file is found again.

    Raises:
        HubError: The Hub does not give it.
        InputError: The repository has no such file at that commit.
    """
    folder = Path(fetch_repository(source.repo_id, revision=revision, allow_patterns=[source.filename], **options))
    if not (folder / source.filename).is_file():
        raise InputError(f"{source.repo_id} has no file {source.filename} at {folder.name}; wanted another revision.")
    return folder / source.filename, folder.name

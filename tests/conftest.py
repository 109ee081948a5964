"""Shared fixtures. No test may reach a Hub except those that start one on loopback."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Folder of real test photos, beside the checkout or named by BOKEHDEPTH_DATA; skips where there is none."""
    root = Path(os.environ.get("BOKEHDEPTH_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    if not root.is_dir():
        pytest.skip(f"no real test data at {root}; set BOKEHDEPTH_DATA to its folder")
    return root


@pytest.fixture(scope="session")
def parity_root(data_root: Path) -> Path:
    """Folder of the released code's numbers, beside the test photos; skips where there is none."""
    root = data_root.parent / "parity"
    if not root.is_dir():
        pytest.skip(f"no parity arrays at {root}")
    return root


@pytest.fixture(scope="session")
def page_server(tmp_path_factory: pytest.TempPathFactory):
    """The page in a process of its own, one for all attacks, with what is loaded at the first use."""
    from hostile_photos import saved

    from page_process import Server

    with Server(tmp_path_factory.mktemp("page"), {}) as server:
        photo = server.upload("photo.jpg", saved("JPEG"))
        server.ask("read_photo", photo)
        server.ask("generate_bokeh_stack", photo, "[9]", "null", "null", "null", "1", "0")
        yield server

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

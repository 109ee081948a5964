"""Hostile photos and depth files, posted to the page in its own process.

Each is refused with one sentence or read as what it is; the work and the memory that it takes are bounded. The report
of the first attacks (shared/research/security.md) counted 35 of 38 photos and 15 of 22 depth files that did no harm;
here all of 71 photos and 55 depth files do none.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hostile_depths import DEPTHS
from hostile_photos import PHOTOS, saved
from test_depth_maps import hostile_archives

from page_process import Server, bounded

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc")
PHOTO_BYTES = saved("JPEG")


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return hostile_archives(tmp_path_factory.mktemp("archives"))


def test_there_are_as_many_as_there_were(archives: dict[str, Path]) -> None:
    assert len(PHOTOS) >= 38 and len(DEPTHS) + len(archives) >= 22


@pytest.mark.parametrize("name", PHOTOS, ids=re.escape)
def test_a_hostile_photo(page_server: Server, name: str) -> None:
    words, make = PHOTOS[name]
    path = page_server.upload(name, make())
    with bounded(page_server):
        answer = page_server.ask("read_photo", path)
        if words is None:
            assert "event: complete" in answer and "alert(1)" not in answer and "\\u001b" not in answer, answer
            return
    sentence = page_server.refusal("read_photo", path)
    assert words in sentence and "<" not in sentence.split("(")[0] and "\x1b" not in sentence, sentence


def test_a_photo_beyond_the_limit_of_bytes_is_not_taken(page_server: Server) -> None:
    with bounded(page_server):
        with pytest.raises(AssertionError, match="larger|exceed|at most|size"):
            page_server.upload("large.jpg", bytes(33 * 2**20))


def depth_refusal(page_server: Server, depth: str) -> str | None:
    photo = page_server.upload("photo.jpg", PHOTO_BYTES)
    with bounded(page_server):
        return page_server.refusal("refocus", photo, depth, "null", "null", "2", "9", "null", "0", "0", "1", '"m"')


@pytest.mark.parametrize("name", DEPTHS)
def test_a_hostile_depth_file(page_server: Server, name: str) -> None:
    sentence = depth_refusal(page_server, page_server.upload(name, DEPTHS[name]()))
    assert sentence is not None and "depth" in sentence or name in sentence, sentence


def test_hostile_depth_archives(page_server: Server, archives: dict[str, Path]) -> None:
    for name, path in archives.items():
        sentence = depth_refusal(page_server, page_server.upload(path.name, path.read_bytes()))
        assert sentence is not None, name  # 2 x 2 pixels are never the photo's


def test_the_page_is_still_there(page_server: Server) -> None:
    assert "event: complete" in page_server.ask("read_photo", page_server.upload("photo.jpg", PHOTO_BYTES))

"""Arguments that no page would send, as raw JSON to the endpoints of the page in its own process.

Each is refused with one sentence, or taken as what it means; work and memory are bounded. The report of the first
attacks (shared/research/security.md) counted 88 of 94 that did no harm, and the last one ended the server; here all of
430 do none.
"""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import numpy as np
import PIL.Image
import PIL.ImageFilter
import pytest
from hostile_photos import picture, png, saved

from bokehdepth.files.depth_maps import save_depth_npz
from page_process import Server, bounded

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc")

NOT_FINITE = ["NaN", "Infinity", "-Infinity", "1e999"]
NO_NUMBER = ['"x"', '"nan"', "[1]", "[[1]]", "{}", "true", "false", '"1; rm -rf /"', '"' + "9" * 400 + '"']
HUGE = ["1" + "0" * 400, "-1" + "0" * 400, "1" + "0" * 4000, "18446744073709551616", "1e308"]
NUMBER = [*NOT_FINITE, *NO_NUMBER, *HUGE, "-1"]
WHOLE = [*NUMBER, "1.5", "1e-300"]
LISTS = ["5", '"9"', "{}", '{"a": 1}', "true", '["x"]', "[null]", "[[1]]", "[true]", "[NaN]", "[-Infinity]",
         "[1e999]", "[1" + "0" * 400 + "]", "[1e-300]", "[5e-324, 10]", "[-1]", "[1, 2, 3, 4, 5, 6, 7]",
         "[" + "9, " * 20_000 + "9]"]  # fmt: skip
FILES = ["5", '"x"', "{}", '{"path": 5}', '{"path": null}', '{"path": ["a"]}', "[]", "true", '"../../etc/passwd"']

PLACES = {
    "generate_bokeh_stack": (
        ["PHOTO", "[9]", "null", "null", "null", "1", "0"],
        {0: [*FILES, "null"], 1: ["[31]", "[9, 9]", *LISTS], 2: ["[0.01]", "[2, 2]", *LISTS], 3: ["0", *NUMBER],
         4: ["0", *NUMBER], 5: ["0", "51", *WHOLE], 6: WHOLE},
    ),
    "estimate_depth": (
        ["PHOTO", "[FRAME]", "[9]", "null", "null", "null", '"Network"'],
        {0: [*FILES, "null"], 1: ["[5]", '["x"]', "[FRAME, FRAME]", "[PHOTO]", "[" + "FRAME, " * 6 + "FRAME]"],
         2: ["[31]", *LISTS], 3: LISTS, 4: ["0", *NUMBER], 5: ["0", *NUMBER],
         6: ["5", "null", '"network"', '"x"', "[]", '"Measured blur"']},
    ),
    "refocus": (
        ["PHOTO", "DEPTH", "null", "null", "2", "9", "null", "0", "0", "1", "null"],
        {0: [*FILES, "null"], 1: [*FILES, "null", "PHOTO"], 2: ["3", *NUMBER], 3: ["3", *NUMBER],
         4: ["0", "null", *NUMBER], 5: ["120.1", "200", "null", *NUMBER], 6: ["0", "2", *NUMBER],
         7: ["1", "2", "33", "null", *WHOLE],
         8: ["null", *NOT_FINITE, *NO_NUMBER, *HUGE[:3]], 9: ["null", "0", "0.1", "5", *NUMBER],
         10: ["5", '"feet"', '"0m"', '"-1m"', '"nan m"', '"1/0m"', "[]", '"' + "9" * 400 + 'm"']},
    ),
}  # fmt: skip
"""Of each endpoint: arguments that it takes, and for each place what it does not."""

CASES = [(name, at, one) for name, (_, wrong) in PLACES.items() for at, values in wrong.items() for one in values]
FOCUS = [("refocus", 4), ("generate_bokeh_stack", 4), ("estimate_depth", 5)]
RIGHT = {(*place, value) for place in FOCUS for value in ("Infinity", "1e999", "1e308", "18446744073709551616")}
"""A distance has no bound, and may be infinity; nothing else of all this has a meaning."""


@pytest.fixture(scope="module")
def files(page_server: Server, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A photo and its depth on the server, as JSON."""
    depth_m = np.full((64, 96), 2, np.float32)
    path = tmp_path_factory.mktemp("depth") / "depth.npz"
    save_depth_npz(path, depth_m, focal_length_px=90.0, bokeh_strengths=[])
    photo = page_server.upload("photo.jpg", saved("JPEG"))
    frame = page_server.upload("frame.png", saved("PNG", picture().filter(PIL.ImageFilter.GaussianBlur(3))))
    return {"FRAME": frame, "PHOTO": photo, "DEPTH": page_server.upload("depth.npz", path.read_bytes())}


def values(files: dict[str, str], given: list[str], at: int | None = None, value: str = "") -> list[str]:
    text = "\n".join(value if place == at else one for place, one in enumerate(given))
    for name, file in files.items():
        text = text.replace(name, file)
    return text.split("\n")


def test_there_are_as_many_as_there_were() -> None:
    assert len(CASES) >= 94


@pytest.mark.parametrize("name", PLACES)
def test_what_is_changed_below_is_right_itself(page_server: Server, files: dict[str, str], name: str) -> None:
    assert page_server.refusal(name, *values(files, PLACES[name][0])) is None


@pytest.mark.parametrize(("name", "at"), sorted({(name, at) for name, at, _ in CASES}))
def test_wrong_arguments(page_server: Server, files: dict[str, str], name: str, at: int) -> None:
    for _, _, value in (case for case in CASES if case[:2] == (name, at)):
        with bounded(page_server):
            sentence = page_server.refusal(name, *values(files, PLACES[name][0], at, value))
        assert (sentence is None) == ((name, at, value) in RIGHT), (value[:80], sentence)


@pytest.mark.parametrize("count", [0, 1, 6, 8, 1000])
def test_a_wrong_number_of_arguments(page_server: Server, files: dict[str, str], count: int) -> None:
    given = values(files, [*PLACES["generate_bokeh_stack"][0], *["null"] * 1000][:count])
    with bounded(page_server):
        page_server.ask("generate_bokeh_stack", *given)  # gradio's own, which fills in what lacks
    assert page_server.refusal("read_photo", files["PHOTO"]) is None


@pytest.mark.parametrize(
    "body", ["", "[]", "{", '{"data": 5}', "[" * 100_000, '{"data": [' + "[" * 50_000, "null", "\0"]
)
def test_a_body_that_is_no_request(page_server: Server, body: str) -> None:
    headers = {"content-type": "application/json"}
    with bounded(page_server):
        answer = httpx.post(f"{page_server.url}gradio_api/call/read_photo", content=body, headers=headers, timeout=60)
    assert 400 <= answer.status_code < 500 and len(answer.text) < 2000, answer.text[:300]


def test_the_four_that_ended_or_held_the_server(page_server: Server, tmp_path: Path) -> None:
    """The thin strip, the zip bomb, K 200 through five blades; the TIFF of 100,000 pages is among the photos."""
    side_px = 512
    depth = tmp_path / "depth.npz"
    save_depth_npz(depth, np.full((side_px, side_px), 2, np.float32), focal_length_px=90.0, bokeh_strengths=[])
    bomb = tmp_path / "bomb.npz"
    np.savez_compressed(bomb, depth_m=np.zeros((2**14, 2**15), np.float32), extra=np.zeros(2**20))
    assert bomb.stat().st_size > 2 * 10**6
    strip, photo = (page_server.upload("photo.png", png(*size)) for size in ((480_000, 32), (side_px, side_px)))
    maps = [page_server.upload("depth.npz", path.read_bytes()) for path in (depth, bomb)]
    lens = ["null", "null", "2", "200", "null", "5", "0", "4", "null"]
    for name, given, words in (
        ("generate_bokeh_stack", [strip, "[30]", "null", "null", "null", "1", "0"], "times the other"),
        ("refocus", [photo, maps[1], "null", "null", "2", "9", "null", "0", "0", "1", "null"], "wanted the photo's"),
        ("refocus", [photo, maps[0], *lens], "at most 120"),
    ):
        with bounded(page_server, cpu_s=1, memory_mb=50):
            assert words in page_server.refusal(name, *given), json.dumps(given)[:100]

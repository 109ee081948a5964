"""A thousand mixed requests to the page in its own process: nothing grows after the first hundred."""

from __future__ import annotations

import time
from pathlib import Path

import httpx
import numpy as np
import PIL.Image
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

from page_process import Server, abort_upload, call_mcp
from visits import depth_of, write_photo

pytestmark = [pytest.mark.soak, pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc")]
SIDE_PX = 128
ROUNDS, VISITS, REQUESTS = 10, 10, 10
# What is kept for minutes and hours is kept for seconds here, so that it is gone within a round.
CONSTANTS = {"GRACE_S": 1, "SWEEP_S": 0.5, "DELETE_AFTER_S": 5}


def visit(server: Server, number: int, folder: Path) -> None:
    """Ten requests of one visitor, with a photo that nobody else has."""
    pixels = np.random.default_rng(number).integers(0, 256, (SIDE_PX, SIDE_PX, 3), dtype=np.uint8)
    photo, broken = folder / "photo.png", folder / "broken.jpg"
    PIL.Image.fromarray(pixels).save(photo)
    broken.write_bytes(photo.read_bytes()[: 3000 + number])
    jpeg = write_photo(folder / "photo.jpg", (SIDE_PX, SIDE_PX), f_mm=40 + number)
    client = Client(server.url, verbose=False, download_files=str(folder / "downloads"))
    client.predict(handle_file(jpeg), api_name="/read_photo")
    with pytest.raises(AppError, match="photo"):
        client.predict(handle_file(broken), api_name="/read_photo")
    frames, _ = client.predict(handle_file(photo), [9, 20], None, None, None, 1, 0, api_name="/generate_bokeh_stack")
    npz = depth_of(client, photo, frames)[0]
    scene = (handle_file(photo), handle_file(npz), None, None, 2)
    client.predict(*scene, 9, None, 5, 0, 1, api_name="/refocus")
    with pytest.raises(AppError, match="at most 120"):
        client.predict(*scene, 200, None, 0, 0, 1, api_name="/refocus")
    client.close()
    upload = f"{server.url}gradio_api/upload"
    assert httpx.post(upload, data={"a": "x" * 100_000}, files={"files": b"x"}).status_code == 413
    abort_upload(server)
    assert f"{40 + number} mm" in call_mcp(server, "read_photo", {"photo": jpeg})[0]
    assert httpx.get(f"{server.url}monitoring/summary").status_code == 404


def test_a_thousand_requests_leave_all_flat(tmp_path: Path) -> None:
    memory_kb, descriptors, threads, files = [], [], [], []
    brought = tmp_path / "brought"
    brought.mkdir()
    with Server(tmp_path / "temporary", CONSTANTS) as server:
        for number in range(ROUNDS):
            for turn in range(VISITS):
                visit(server, VISITS * number + turn, brought)
            time.sleep(3)  # two sweeps and what a session is kept
            memory_kb.append(server.status("VmRSS"))
            descriptors.append(server.descriptors())
            threads.append(server.status("Threads"))
            files.append(len(server.files()))
    sizes = f"memory {memory_kb} kB, descriptors {descriptors}, threads {threads}, files {files}"
    half = ROUNDS // 2
    assert max(memory_kb[half:]) < 1.02 * max(memory_kb[1 : half + 1]), sizes
    assert memory_kb[-1] - memory_kb[0] < 150_000, sizes  # what is loaded and compiled at its first use
    for counts in (descriptors, threads, files):
        assert max(counts[half:]) <= max(counts[:half]) + 2, sizes

"""Seconds that another visitor waits while one posts 50 heavy requests: `python tests/benchmarks/greedy_visitor.py`.

Prints one line of JSON. The order of the work, which is what must not change, is in `tests/test_fairness.py`.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

import httpx

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hostile_photos import picture, saved

from page_process import Server

HEAVY = "[5, 10, 15, 20, 25, 30], null, null, null, 50, 0"
BLUR = ("[10, 20, 30]", "null", "null", "null", "null", "0")


def seconds(server: Server, endpoint: str, *values: str) -> float:
    """How long an answer takes."""
    started = time.perf_counter()
    answer = server.ask(endpoint, *values)
    assert "event: complete" in answer, answer
    return round(time.perf_counter() - started, 2)


def main() -> None:
    """Measures it, alone and beside the greedy one."""
    with tempfile.TemporaryDirectory() as folder, Server(Path(folder), {}) as server:
        photo = server.upload("photo.jpg", saved("JPEG", picture((512, 384))))
        seconds(server, "generate_bokeh_stack", photo, *BLUR)  # what is loaded and compiled once
        times_s = {"read_alone": seconds(server, "read_photo", photo)}
        times_s["blur_alone"] = seconds(server, "generate_bokeh_stack", photo, *BLUR)
        headers = {"x-forwarded-for": "10.0.0.1", "content-type": "application/json"}
        with httpx.Client(headers=headers, timeout=60) as greedy:
            url = f"{server.url}gradio_api/call/generate_bokeh_stack"
            answers = [greedy.post(url, content=f'{{"data": [{photo}, {HEAVY}]}}') for _ in range(50)]
            taken = [answer.json()["event_id"] for answer in answers if answer.status_code == 200]
            waits = [greedy.send(greedy.build_request("GET", f"{url}/{event}"), stream=True) for event in taken]
            times_s["read"] = seconds(server, "read_photo", photo)
            times_s["blur"] = seconds(server, "generate_bokeh_stack", photo, *BLUR)
            for wait in waits:
                wait.close()
    sys.stdout.write(json.dumps({"let_in": len(taken), "refused": 50 - len(taken), "seconds": times_s}) + "\n")


if __name__ == "__main__":
    main()

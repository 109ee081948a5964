"""``bokehdepth visit``: a served page as a visitor meets it, timed in a browser. No torch."""

from __future__ import annotations

import argparse
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .options import add_talk_options, whole_number
from .talk import EXIT_DONE, EXIT_FAILED, logger, say, write_json

_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_WAIT_MS = 300_000
_STEPS = {
    "ready_s": "photo read, controls filled in",
    "first_picture_s": "first blurred pictures",
    "depth_s": "depth in metres",
    "files_s": "files ready to download",
}


def add_visit(commands: Any) -> None:
    """Add ``visit`` to the commands of a parser."""
    parser = commands.add_parser(
        "visit",
        help="open a served page in a browser, upload a photo, and time what a visitor waits for",
        description="Uploads PHOTO to the page at URL in Chromium, presses the button, and reports seconds from the "
        "upload to the first blurred pictures, to depth and to the files. The page may run here or on the Hub.",
        epilog="Example: bokehdepth visit http://127.0.0.1:7860 photo.jpg --repeats 5",
    )
    parser.set_defaults(handler=_visit)
    parser.add_argument("url", metavar="URL", help="address of the page")
    parser.add_argument("photo", metavar="PHOTO", type=Path, help="the photo that is uploaded")
    parser.add_argument("--repeats", metavar="N", type=whole_number(1), default=3, help="visits (default: 3)")
    add_talk_options(parser)


def _visit(arguments: argparse.Namespace) -> int:
    """Visit the page several times; the median of each step is told, and what the browser complained of."""
    from ..errors import InputError
    from ..extras import load_extra
    from ..files.photos import open_photo

    open_photo(arguments.photo)
    if not arguments.url.startswith(("http://", "https://")):
        raise InputError(f"URL is {arguments.url!r}, wanted an address with http:// or https://.")
    browser = next(filter(None, map(shutil.which, _BROWSERS)), None)
    if browser is None:
        raise InputError(f"no browser is installed, wanted one of {', '.join(_BROWSERS)}.")
    driver = load_extra("playwright.sync_api", "visit", "a visit")
    visits: list[dict[str, float]] = []
    faults: list[str] = []
    with driver.sync_playwright() as playwright:
        # Without a sandbox of its own the browser also runs as root, as in a container; it opens the one page named.
        chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        for _ in range(arguments.repeats):
            page = chromium.new_page()
            page.set_default_timeout(_WAIT_MS)
            page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
            page.on("pageerror", lambda error: faults.append(str(error)))
            try:
                visits.append(_time_visit(page, arguments.url, arguments.photo, InputError))
            except driver.Error as error:
                raise InputError(f"URL {arguments.url!r} did not answer as the page does: {error}") from error
            page.close()
        chromium.close()
    median_s = {name: round(statistics.median(visit[name] for visit in visits), 2) for name in _STEPS}
    if arguments.json:
        write_json({"command": "visit", "url": arguments.url, "visits": len(visits), **median_s, "faults": faults})
    else:
        for name, words in _STEPS.items():
            say(f"{median_s[name]:7.2f} s  {words}")
    for fault in faults:
        logger.error("the browser reports: %s", fault)
    return EXIT_FAILED if faults else EXIT_DONE


def _time_visit(page: Any, url: str, photo: Path, refusal: Callable[[str], Exception]) -> dict[str, float]:
    """Seconds from the upload to each step of one visit."""
    page.goto(url)
    upload = page.locator("input[type=file]").first
    upload.wait_for(state="attached")
    started = time.perf_counter()
    seconds = {}

    def wait(name: str, shown: Any) -> None:
        """Wait for what is shown, or for a refusal, which is passed on."""
        refused = page.locator(".toast-body.error")
        shown.or_(refused).first.wait_for()
        if refused.count():
            raise refusal(f"the page refuses the photo: {' '.join(refused.first.inner_text().split())}")
        seconds[name] = time.perf_counter() - started

    upload.set_input_files(str(photo))
    wait("ready_s", page.get_by_text("On this camera, f-number = strength"))
    page.get_by_role("button", name="Blur and measure").click()
    wait("first_picture_s", page.locator(".picture img:visible"))
    page.get_by_role("tab", name="Depth").click()
    wait("depth_s", page.locator(".pick img:visible"))
    wait("files_s", page.get_by_text("Nearest"))
    return seconds

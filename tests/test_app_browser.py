"""The Space's page as a person uses it, in Debian's chromium, at desktop and phone width; and its MCP tools."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import time
import zipfile
from pathlib import Path

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import httpx
import numpy as np
import PIL.Image
import pytest
from gradio import processing_utils
from gradio_client import Client, handle_file

import app
from bokehdepth import hub
from bokehdepth.space.examples import example_photos
from bokehdepth.space.page import KIND_INFO
from bokehdepth.space.serving import F_STOPS
from visits import serve

ARGUMENTS = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]  # WebGL without a GPU
WIDTHS_PX = {"desktop": (1280, 1000), "phone": (390, 844)}


@pytest.fixture(scope="module")
def photo() -> Path:
    return example_photos()[-2]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory, photo: Path):
    arguments = hub.EMBEDDED, [str(photo)], tmp_path_factory.mktemp("examples")
    with serve(tmp_path_factory.mktemp("cache"), hub.load_pipeline(), *arguments) as served:
        yield served


@pytest.fixture
def browser():
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        yield started
        started.close()


def read_download(kind: str, path: Path) -> None:
    """Opens a downloaded file with something that is not what wrote it, where that is installed."""
    if kind == "ZIP":
        with zipfile.ZipFile(path) as files:
            assert files.testzip() is None
            assert {"depth.npz", "depth.png", "run.json"} <= set(files.namelist())
    elif kind == "16-bit PNG":
        with PIL.Image.open(path) as picture:
            assert picture.mode == "I;16" and picture.size == (900, 600) and float(picture.text["depth_scale_m"]) > 0
    elif kind == "NPZ":
        assert np.load(path)["depth_m"].shape == (600, 900)
    elif kind == "JSON":
        assert json.loads(path.read_text())["camera"]["focal_length_mm"]["source"] == "read"
    elif kind == "EXR":
        reader = pytest.importorskip("OpenEXR")
        with reader.File(str(path)) as file:
            assert file.channels()["Z"].pixels.shape == (600, 900)
    else:
        trimesh = pytest.importorskip("trimesh")
        assert len(trimesh.load(path, force="mesh" if kind == "GLB" else None).vertices) > 10_000


@pytest.mark.parametrize("width", WIDTHS_PX)
def test_a_visit_from_upload_to_downloads(demo, browser, photo: Path, tmp_path: Path, width: str) -> None:
    size = dict(zip(("width", "height"), WIDTHS_PX[width], strict=True))
    page = browser.new_page(viewport=size, accept_downloads=True)
    page.set_default_timeout(120_000)
    faults: list[str] = []
    page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.goto(demo.local_url)
    page.set_input_files("input[type=file] >> nth=0", str(photo))
    # The EXIF names a full-frame lens, so the page sets the blur by f-number.
    page.get_by_text("Aperture f/").first.wait_for()
    page.get_by_text(re.compile("On this camera, f-number = strength")).wait_for()
    # One step of the slider is a third of a stop; the strength follows on the server, the f-number at once.
    widest = float(re.search(r"f/([\d.]+)", page.locator(".block.stop-label:visible").inner_text())[1])
    page.get_by_label("range slider for From wide open to narrow").first.focus()
    page.keyboard.press("ArrowRight")
    narrower = F_STOPS[F_STOPS.index(widest) + 1]
    page.locator(".block.stop-label:visible", has_text=f"Aperture f/{narrower:g}").wait_for()
    page.get_by_text(re.compile(rf"f/{narrower:.2g} = [\d.]+")).wait_for()
    page.get_by_role("button", name="Blur and measure").click()
    frame = page.locator(".picture img:visible").first
    frame.wait_for()

    first = frame.get_attribute("src")
    scrubber = page.get_by_label("range slider for From sharp to most blurred")
    scrubber.focus()
    page.keyboard.press("Home")
    page.wait_for_function("(old) => document.querySelector('.picture img').src !== old", arg=first)
    assert page.locator(".readout:visible").first.inner_text().strip() == "sharp"

    page.get_by_role("tab", name="Depth").click()
    page.get_by_text(re.compile("Nearest .* farthest")).wait_for()
    shown = page.locator(".pick img:visible").first
    shown.wait_for()
    box = shown.bounding_box()
    for share in (0.2, 0.6):
        page.locator(".pick img:visible").first.click(position={"x": box["width"] * share, "y": box["height"] * 0.6})
        words = page.locator(".readout:visible").first
        page.wait_for_function(
            "(wanted) => [...document.querySelectorAll('.readout')].some((e) => e.innerText.includes(wanted))",
            arg="from each other" if share > 0.5 else "away",
        )
    assert re.match(r"[\d.]+ m and [\d.]+ m away, [\d.]+ m from each other\. Nearest", words.inner_text())

    page.get_by_role("button", name="Show in 3D").click()
    page.locator("canvas").wait_for()

    page.get_by_role("tab", name="Refocus").click()
    page.locator(".pick img:visible").first.wait_for()
    box = page.locator(".pick img:visible").first.bounding_box()
    page.locator(".pick img:visible").first.click(position={"x": box["width"] / 2, "y": box["height"] * 0.6})
    sharp = page.get_by_text(re.compile(r"Sharp at [\d.]+ m; strength 20"))
    sharp.wait_for()

    page.get_by_role("tab", name="Downloads").click()
    for kind in ("ZIP", "16-bit PNG", "NPZ", "JSON", "EXR", "PLY", "GLB"):
        button = page.get_by_role("button", name=re.compile(rf"\({kind}\)"))
        page.wait_for_function(
            "(kind) => [...document.querySelectorAll('button')]"
            ".some((b) => b.innerText.includes(`(${kind})`) && !b.disabled)",
            arg=kind,
        )
        with page.expect_download() as waiting:
            button.click()
        path = tmp_path / waiting.value.suggested_filename
        waiting.value.save_as(path)
        read_download(kind, path)
    wide = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
    assert wide <= 0  # nothing to scroll sideways
    # Where there is no graphics card the 3D viewer says that it takes WebGL in place of WebGPU.
    assert [fault for fault in faults if "WebGPU" not in fault] == []
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_small_print_can_be_read(demo, browser, scheme: str) -> None:
    """Contrast of 4.5 to 1 (WCAG 2.2, 1.4.3) of hints, notes and the footer's links, on a phone."""
    size = dict(zip(("width", "height"), WIDTHS_PX["phone"], strict=True))
    page = browser.new_page(viewport=size, color_scheme=scheme)
    page.goto(demo.local_url)
    page.get_by_text(KIND_INFO).wait_for()

    def luminance(colour: str) -> float:
        shares = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
        return sum(weight * share for weight, share in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    behind = luminance(page.evaluate("() => getComputedStyle(document.body).backgroundColor"))
    for name in (".info-text", ".note p", "footer button:visible"):
        colour = page.locator(name).first.evaluate("element => getComputedStyle(element).color")
        light, dark = sorted((behind, luminance(colour)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (name, colour)
    assert page.locator("footer .divider:visible").count() == 0  # nothing stands before the one link of a phone
    page.close()


def test_an_example_is_shown_with_its_results(demo, browser) -> None:
    page = browser.new_page()
    page.set_default_timeout(120_000)
    page.goto(demo.local_url)
    page.locator(".gallery-item").first.click()
    page.get_by_text("strength 30", exact=True).first.wait_for()
    page.get_by_role("tab", name="Depth").click()
    page.get_by_text(re.compile("Nearest .* farthest")).wait_for()
    page.close()


def test_an_mcp_client_calls_every_tool(demo, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Gradio fetches no address of the machine itself, which is right on the Space and in the way on loopback.
    monkeypatch.setattr(processing_utils, "PUBLIC_HOSTNAME_WHITELIST", ["127.0.0.1"])
    mcp = pytest.importorskip("mcp")
    streamable = pytest.importorskip("mcp.client.streamable_http")
    with photo.open("rb") as file:
        uploaded = httpx.post(f"{demo.local_url}gradio_api/upload", files={"files": file}).json()[0]
    url = f"{demo.local_url}gradio_api/file={uploaded}"

    async def visit() -> dict[str, str]:
        async with streamable.streamablehttp_client(f"{demo.local_url}gradio_api/mcp/") as (read, write, _):
            async with mcp.ClientSession(read, write) as session:
                await session.initialize()
                tools = {tool.name: tool for tool in (await session.list_tools()).tools}
                assert "bokeh_strengths" in str(tools["generate_bokeh_stack"].inputSchema)
                schemas = str([tool.inputSchema for tool in tools.values()])
                assert "new_folder" not in schemas and "request" not in schemas
                assert set(tools) == {"read_photo", "generate_bokeh_stack", "estimate_depth", "refocus"}
                assert "blurred versions of a photo" in tools["generate_bokeh_stack"].description
                answers = {}

                async def call(name: str, **given: object) -> str:
                    answer = await session.call_tool(name, given)
                    text = " ".join(getattr(part, "text", "") for part in answer.content)
                    assert not answer.isError, text
                    answers[name] = text
                    return text

                await call("read_photo", photo=url)
                await call("generate_bokeh_stack", photo=url, bokeh_strengths=[10, 20], steps=1)
                text = await call("estimate_depth", photo=url)
                depth = re.search(r"http\S+?depth\.npz", text)[0]
                await call("refocus", photo=url, depth=depth, x_px=450, y_px=300, bokeh_strength=20)
                return answers

    answers = asyncio.run(visit())
    assert "| Aperture | f/16 | read |" in answers["read_photo"]
    assert "bokeh_k20.png" in answers["generate_bokeh_stack"]
    assert "refocus_k20" in answers["refocus"]


def test_an_abandoned_upload_and_an_ended_session_leave_nothing(
    tmp_path: Path, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"

    def wait_for_nothing() -> None:
        until = time.monotonic() + 20
        while list(cache.iterdir()):
            assert time.monotonic() < until, list(cache.rglob("*"))
            time.sleep(0.1)

    with serve(cache, hub.load_pipeline(), DELETE_AFTER_S=2, GRACE_S=1, SWEEP_S=0.2) as served:
        with photo.open("rb") as file:
            uploaded = httpx.post(f"{served.local_url}gradio_api/upload", files={"files": file}).json()[0]
        assert Path(uploaded).is_file()
        wait_for_nothing()
        monkeypatch.setattr(served.session_files, "_max_idle_s", 3600)  # from here on the session's end alone cleans
        client = Client(served.local_url, verbose=False, download_files=str(tmp_path / "downloads"))
        client.predict(handle_file(photo), [9], None, None, None, 1, 0, api_name="/generate_bokeh_stack")
        assert list(cache.glob("session-*/*/result/bokeh_k9.png"))
        client.close()
        wait_for_nothing()


def test_nothing_outside_the_cache_is_served(demo) -> None:
    for path in ("/etc/passwd", app.__file__, str(hub.EMBEDDED_FOLDER / "README.md"), hub.__file__):
        assert httpx.get(f"{demo.local_url}gradio_api/file={path}").status_code in (403, 404), path

"""The Space: a photo in, a bokeh stack and a depth map in metres out, in a browser, by API and by MCP.

`python app.py` serves the page; `BOKEHDEPTH_MODEL` names another model than the embedded one, a folder or a Hub
repository. All numbers are computed by the library: the page asks, shows and hands out files. Nothing of a visitor is
kept in the program: an event gets the photo and the depth that it works on as files of that visitor.
"""

import spaces  # isort: skip  (ZeroGPU patches torch, so it comes before everything that imports torch)

import html
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial, wraps
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import numpy as np
import PIL.Image
import torch
from gradio.components.api_component import Api
from gradio.data_classes import ListFiles

from bokehdepth import hub, io, serving, viewing
from bokehdepth.camera import Camera
from bokehdepth.endpoints import model_endpoints, read_photo, refocus
from bokehdepth.errors import InputError
from bokehdepth.examples import bundled_photos, write_example_scenes
from bokehdepth.imaging import Photo
from bokehdepth.jobs import Job, run_job
from bokehdepth.pipeline_bokehdepth import BokehDepthPipeline
from bokehdepth.rendering.aperture import Aperture
from bokehdepth.results import DEPTH_NAMES, write_results
from bokehdepth.serving import DEFAULT_STRENGTHS, F_NUMBER, F_STOPS, MAX_STEPS, METHODS, STRENGTH, STRENGTHS

MAX_QUEUE = 12
DELETE_AFTER_S = 3600
PREVIEW_SIDE_PX = 1600
"""Longest side of what the page shows; the downloads have the photo's own size."""

REFOCUS_SIDE_PX = 1024
"""Longest side of a refocused preview, which follows a click within a second or so."""

BLADES = {"Round": 0, "5 blades": 5, "6 blades": 6, "7 blades": 7, "8 blades": 8, "9 blades": 9}
NO_PHOTO = "Read from the photo once there is one."

INTRO = """# BokehDepth
One photo in. Out come the same photo with a blurred background, as from a wide-open lens, and its depth in metres."""
EMBEDDED_NOTE = """**Small demonstration model.** It runs without a graphics card and shows the idea; its blur and \
its metres are rough. With full weights the same page blurs with FLUX and reads depth with a full-size network."""
LIMITS_NOTE = f"""Photos up to {serving.MAX_PHOTO_PX // 10**6} megapixels and {serving.MAX_PHOTO_BYTES // 2**20} MB. \
Your files are shown to nobody else and deleted within two hours."""
BRACKET_HINT = """Photos from a tripod, same focus, wider apertures than the photo above: they take the place of \
generated frames. Their f-numbers are read from EXIF."""
DEPTH_HINT = "Click a point to read its distance, and a second one to measure between them."
REFOCUS_HINT = "Click what should be sharp; everything nearer and farther is blurred by its depth."
WRITING = "The files are being written; then a click reads the distance."

CSS = """
.gradio-container {max-width: min(1240px, 100vw) !important; margin: 0 auto !important; box-sizing: border-box}
.gradio-container .main {max-width: 100% !important; box-sizing: border-box}
.note, .note table {font-size: var(--text-sm); width: 100%}
.note, .note p {color: var(--body-text-color-subdued)}
.note th, .note td {padding: 4px 8px !important; border-color: var(--border-color-primary) !important}
.readout p {font-size: var(--text-md)}
.picture img {max-height: 560px; object-fit: contain}
.pick img {cursor: crosshair}
.frames .grid-wrap {min-height: 0 !important; height: auto !important}
.frames .caption-label {font-size: 11px !important; max-width: 100% !important; padding: 1px 5px !important}
.frames .grid-container {grid-template-columns: repeat(4, minmax(0, 1fr)) !important}
@media (max-width: 640px) {
    .gradio-container, .gradio-container .main {padding: 4px !important}
    .tab-container button {padding: 0 8px !important; font-size: var(--text-sm) !important}
}
"""

# The page holds the frames already, so moving through them asks the server nothing.
SHOW_FRAME_JS = """(at, frames) => frames?.length
    ? [frames[at].image, frames[at].caption, [frames[0].image, frames[at].image]] : [null, '', null]"""


@contextmanager
def _refusals() -> Iterator[None]:
    """Shows the library's sentence on input that it refuses; wraps checks alone, so that faults stay faults."""
    try:
        yield
    except InputError as error:  # its sentence can quote a file name or EXIF, and the page draws messages as HTML
        raise gr.Error(html.escape(str(error), quote=False), print_exception=False) from error


def _refusing(endpoint: Callable[..., Iterator]) -> Callable[..., Iterator]:
    """The endpoint with refusals shown; its name and words, which are those of the MCP tool, stay."""

    @wraps(endpoint)
    def shown(*args: Any) -> Iterator:
        with _refusals():
            yield from endpoint(*args)

    return shown


def _plain(component: gr.components.Component) -> Any:
    """The component with uploads as they are: Gradio's own reading shows its paths, or leaves an empty file behind."""
    component.preprocess = lambda sent: (
        [f.path for f in sent.root] if isinstance(sent, ListFiles) else sent and sent.path
    )
    return component


def _scratch() -> tempfile.TemporaryDirectory:
    """A folder for one event. Gradio copies what is yielded into its cache, which `delete_cache` empties, in time."""
    return tempfile.TemporaryDirectory(prefix="bokehdepth-")


def _show_stack(photo: Photo, images: Sequence[PIL.Image.Image], captions: Sequence[str]) -> tuple:
    """What the page shows of a stack: all frames, and the last of them large and beside the photo."""
    pictures = [viewing.shrunk_image(picture, PREVIEW_SIDE_PX) for picture in (photo.image, *images)]
    names = ["sharp", *captions]
    last = len(images)
    scrubber = gr.Slider(value=last, maximum=max(last, 1))
    return list(zip(pictures, names, strict=True)), pictures[-1], scrubber, names[-1], (pictures[0], pictures[-1])


def _show_depth(folder: Path, colormap: str, near_bright: bool) -> tuple:
    """What the page shows of a depth map in a result's folder, and its files."""
    depth = io.load_depth_npz(folder / DEPTH_NAMES[0])
    view = _depth_view(depth, colormap, near_bright, [])
    archive = shutil.make_archive(str(folder.parent / f"{folder.name}-zip" / "bokehdepth"), "zip", folder)
    npz, png, _ = (str(folder / name) for name in DEPTH_NAMES)
    return *view, [], archive, png, npz, str(folder / "run.json")


def _depth_view(depth: io.DepthFile, colormap: str, near_bright: bool, points: Sequence) -> tuple:
    with _refusals():
        picture = viewing.depth_view(
            depth.depth_m,
            colormap=colormap,
            near_bright=near_bright,
            max_side_px=PREVIEW_SIDE_PX,
            points_px=points,
        )
        words = viewing.describe_depth(depth.depth_m, depth.focal_length_px, points)
    return picture, words


@wraps(read_photo)
def _read_photo(photo: str | None) -> tuple:
    with _refusals():
        return read_photo(photo)


def _fill_fields(photo: str | None) -> tuple:
    """Camera table, lens fields, kind and both choices for a new photo; empty ones without a photo."""
    if photo is None:
        return NO_PHOTO, None, None, *(gr.skip() for _ in range(3))
    with _refusals():
        *camera, kind, f_numbers = read_photo(photo)
    return *camera, kind, *_choices(kind, f_numbers)


def _choices(kind: str, f_numbers: Sequence[float] | None = None) -> tuple:
    by_lens = {"visible": kind == F_NUMBER} | ({} if f_numbers is None else {"value": f_numbers})
    return gr.CheckboxGroup(visible=kind == STRENGTH), gr.CheckboxGroup(**by_lens)


def _describe(photo: str | None, kind: str, strengths: list, f_numbers: list, *lens: float | None) -> str:
    if photo is None:
        return ""
    try:
        camera = serving.read_lens(serving.open_upload(photo), *lens)
        values = strengths if kind == STRENGTH else f_numbers
        return serving.describe_strengths(camera, serving.frame_strengths(camera, kind, values)[0])
    except ValueError as error:
        return f"⚠️ {html.escape(str(error), quote=False)}"  # while a visitor chooses a line is enough


def _repaint(npz: str | None, colormap: str, near_bright: bool, points: list) -> tuple:
    if npz is None:
        return gr.skip(), gr.skip()
    with _refusals():
        depth = serving.open_depth(npz)
    return _depth_view(depth, colormap, near_bright, points)


def _pick_depth(npz: str | None, colormap: str, near_bright: bool, points: list, event: gr.SelectData) -> tuple:
    if npz is None:  # its files are being written
        return gr.skip(), gr.skip(), gr.skip()
    with _refusals():
        depth = serving.open_depth(npz)
        point = viewing.photo_point(event.index, depth.depth_m.shape[::-1], PREVIEW_SIDE_PX)
    if point is None:
        return gr.skip(), gr.skip(), gr.skip()
    points = [*points[-1:], point] if len(points) < 2 else [point]
    return *_depth_view(depth, colormap, near_bright, points), points


def _lens_choice(kind: str, strength: float, f_number: float, blades: str, turn: float, squeeze: float) -> dict:
    blur = {"bokeh_strength": strength} if kind == STRENGTH else {"f_number": f_number}
    return blur | {"aperture": Aperture(BLADES[blades], turn, squeeze)}


def _refocus(photo: str | None, npz: str | None, focus: dict[str, Any], lens: Sequence, side_px: int | None) -> Any:
    with _refusals():
        opened, depth = serving.open_upload(photo), serving.open_depth(npz)
        return viewing.refocus(opened, depth.depth_m, **focus, **_lens_choice(*lens), max_side_px=side_px), opened


def _refocus_page(photo: str | None, npz: str | None, point: list | None, focus_m: float | None, *lens: Any) -> tuple:
    """Renders the preview; what was clicked last is marked, until a distance is typed."""
    if point is None and focus_m is None:
        return gr.skip(), gr.skip(), gr.skip()
    focus = {"focus_distance_m": focus_m} if point is None else {"focus_at_px": tuple(point)}
    done, opened = _refocus(photo, npz, focus, lens, REFOCUS_SIDE_PX)
    shown = done.image if point is None else viewing.marked(done.image, [point], opened.image.size)
    return shown, round(done.focus_distance_m, 3), serving.describe_refocused(done)


def _pick_focus(
    photo: str | None, npz: str | None, by: str, strength: float, stop: float, blades: str, turn: float,
    squeeze: float, event: gr.SelectData,
) -> tuple:  # fmt: skip
    with _refusals():
        size_px = serving.open_upload(photo).image.size
    point = viewing.photo_point(event.index, size_px, REFOCUS_SIDE_PX)
    return *_refocus_page(photo, npz, point, None, by, strength, stop, blades, turn, squeeze), point


def _refocus_file(photo: str | None, npz: str | None, point: list | None, focus_m: float | None, *lens: Any) -> Any:
    with _refusals():
        if point is None and focus_m is None:
            raise InputError("There is no focus yet; click the picture or enter a distance first.")
    focus = {"focus_distance_m": focus_m} if point is None else {"focus_at_px": tuple(point)}
    with _scratch() as folder:
        path = serving.write_refocused(folder, _refocus(photo, npz, focus, lens, None)[0])
        yield gr.DownloadButton(value=path, interactive=True)


def _export(photo: str | None, npz: str | None) -> Iterator[tuple]:
    """EXR, PLY and GLB of the depth."""
    with _refusals():
        opened, depth = serving.open_upload(photo), serving.open_depth(npz)
    with _scratch() as folder:
        with _refusals():
            files = [str(path) for path in serving.write_exports(folder, opened, depth)]
        yield tuple(gr.DownloadButton(value=path, interactive=True) for path in files)


def _handlers(pipeline: BokehDepthPipeline, model: str, examples: Sequence[str], cache: Path) -> SimpleNamespace:
    """What needs the models, for one pipeline that is read and never changed."""
    weights = hub.weights_record(model)
    check = partial(serving.check_run, pipeline)
    usual_steps = pipeline.config.default_num_inference_steps
    area_px = pipeline.config.default_processing_area_px

    def stack_duration_s(image: PIL.Image.Image, strengths: Sequence[float], steps: int, *_: Any) -> int:
        return serving.gpu_duration_s(len(strengths), steps, area_px, image.width * image.height)

    @spaces.GPU(duration=stack_duration_s)
    def make_stack(
        image: PIL.Image.Image, strengths: Sequence[float], steps: int, seed: int, progress: gr.Progress | None = None
    ) -> list[PIL.Image.Image]:
        def report(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            if progress is not None:
                progress((index + 1, steps), desc=f"Blurring {len(strengths)} frames", unit="steps")
            return tensors

        noise = torch.Generator().manual_seed(seed)
        return pipeline.generate_stack(image, strengths, steps, generator=noise, callback_on_step_end=report).images

    @spaces.GPU(duration=30)
    def read_depth(image: PIL.Image.Image, frames: Sequence, strengths: Sequence[float], matrix: np.ndarray) -> Any:
        return pipeline.estimate_depth(image, frames, strengths, intrinsics=matrix).depth_m

    @spaces.GPU(duration=60)
    def run_bracket(job: Job, arguments: dict[str, Any]) -> None:
        with _refusals():  # a bracket that cannot be measured shows in its pixels alone
            run_job(pipeline, job, arguments=arguments, weights=weights)

    def write(folder: Path, opened: Photo, camera: Camera, strengths: Sequence[float], **rest: Any) -> None:
        arguments = {"photo": opened.path.name, **rest.pop("arguments")}
        given = {"photo": opened, "camera": camera, "bokeh_strengths": strengths, "weights": weights}
        write_results(folder, arguments=arguments, **given, **rest)

    def bokeh_depth(
        photo: str | None,
        kind: str,
        strengths: list,
        f_numbers: list,
        focal_length_35mm: float | None,
        focus_distance_m: float | None,
        steps: int,
        seed: int,
        bracket: list[str] | None,
        method: str,
        colormap: str,
        near_bright: bool,
        keep_in: Path | None = None,
        progress: gr.Progress = gr.Progress(),  # noqa: B008  (how Gradio is told to pass one)
    ) -> Iterator[tuple]:
        with _scratch() as scratch:
            folder = Path(scratch) / "result"
            if bracket:
                lens = {"focal_length_35mm": focal_length_35mm, "focus_distance_m": focus_distance_m}
                with _refusals():
                    opened, job = serving.plan_bracket(photo, folder, bracket, method, None, **lens)
                images = [serving.open_upload(str(path)).image for path in job.frame_paths]
                captions = [f"f/{n:g}" for n in job.f_numbers or ()] or [
                    f"strength {k:.3g}" for k in job.bokeh_strengths
                ]
                yield *_show_stack(opened, images, captions), *[gr.skip()] * 7, gr.skip()
                run_bracket(job, {"photo": opened.path.name, "method": method})
            else:
                with _refusals():
                    opened = serving.open_upload(photo)
                    camera = serving.read_lens(opened, focal_length_35mm, focus_distance_m)
                    chosen = strengths if kind == STRENGTH else f_numbers
                    values, captions = serving.frame_strengths(camera, kind, chosen)
                    check(opened, values, steps)
                progress(0, desc="Starting")
                start_s = time.perf_counter()
                images = make_stack(opened.image, values, steps, seed, progress)
                stack_s = time.perf_counter() - start_s
                shown = _show_stack(opened, images, captions)
                yield *shown, *[gr.skip()] * 7, gr.skip()
                progress((steps, steps), desc="Measuring depth", unit="steps")
                start_s = time.perf_counter()
                depth_m = read_depth(opened.image, images, values, camera.intrinsics)
                timings_s = {"stack": stack_s, "depth": time.perf_counter() - start_s}
                seen = io.DepthFile(depth_m, camera.focal_length_px.value, np.ndarray(0))
                picture, _ = _depth_view(seen, colormap, near_bright, [])
                yield *[gr.skip()] * 5, picture, WRITING, *[gr.skip()] * 6
                arguments = {"kind": kind, "frames": chosen, "num_inference_steps": steps}
                rest = {"images": images, "depth_m": depth_m, "arguments": arguments, "seed": seed}
                write(folder, opened, camera, values, **rest, timings_s=timings_s)
            start = viewing.shrunk_image(opened.image, REFOCUS_SIDE_PX)
            yield *[gr.skip()] * 5, *_show_depth(folder, colormap, near_bright), start
            if keep_in is not None and not keep_in.exists():
                shutil.copytree(folder, keep_in)

    def show_example(index: int, colormap: str, near_bright: bool, progress: gr.Progress = gr.Progress()) -> Any:  # noqa: B008
        """Shows an example, computed the first time that anybody asks for it."""
        photo, kept = examples[index], cache / str(index)
        if not kept.exists():
            usual = (photo, STRENGTH, [*DEFAULT_STRENGTHS], [], None, None, usual_steps, 0, None, METHODS[0])
            for parts in bokeh_depth(*usual, colormap, near_bright, keep_in=kept, progress=progress):
                yield photo, *parts
            return
        opened = serving.open_upload(photo)
        images, _ = io.load_stack([kept / io.bokeh_file_name(k) for k in DEFAULT_STRENGTHS])
        stack = _show_stack(opened, images, [f"strength {k:g}" for k in DEFAULT_STRENGTHS])
        with _scratch() as scratch:
            folder = Path(shutil.copytree(kept, Path(scratch) / "result"))
            start = viewing.shrunk_image(opened.image, REFOCUS_SIDE_PX)
            yield photo, *stack, *_show_depth(folder, colormap, near_bright), start

    generate, estimate = model_endpoints(make_stack, run_bracket, check, write, usual_steps)
    endpoints = {"generate_bokeh_stack": _refusing(generate), "estimate_depth": _refusing(estimate)}
    return SimpleNamespace(bokeh_depth=bokeh_depth, show_example=show_example, **endpoints)


def build_demo(
    pipeline: BokehDepthPipeline, model: str = hub.EMBEDDED, examples: Sequence[str] = (), cache: Path = Path()
) -> gr.Blocks:
    """Builds the page.

    Args:
        pipeline: with its base, ready to run.
        model: its name, for run records; the embedded one is announced as what it is.
        examples: photos that are offered.
        cache: folder of this process alone, in which the results of examples are kept.

    Returns:
        The page with its queue set up, to be launched with `launch_options`.
    """
    do = _handlers(pipeline, model, examples, cache)
    private = {"api_visibility": "private"}
    light = {"concurrency_limit": 2, "concurrency_id": "light"}
    hidden = private | {"show_progress": "hidden"}
    picture = {"interactive": False, "buttons": ["fullscreen"], "elem_classes": "picture"}

    with gr.Blocks(title="BokehDepth", analytics_enabled=False, delete_cache=(DELETE_AFTER_S,) * 2) as demo:
        gr.Markdown(INTRO)
        if model == hub.EMBEDDED:
            gr.Markdown(EMBEDDED_NOTE, elem_classes="note")
        points, focus_point = gr.State([]), gr.State(None)
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                sources = ["upload", "clipboard", "webcam"]
                photo = _plain(gr.Image(label="Photo", image_mode=None, sources=sources, height=300, buttons=[]))
                offered = None
                if examples:
                    offered = gr.Dataset(
                        components=[photo], samples=[[path] for path in examples], type="index",
                        label="Or try one of these", samples_per_page=len(examples),
                    )  # fmt: skip
                about = "Strength: 30 is the most. f-number: the aperture of your lens, smaller blurs more."
                kind = gr.Radio([STRENGTH, F_NUMBER], value=STRENGTH, label="Set the blur by", info=about)
                usual = [*DEFAULT_STRENGTHS]
                named = [(f"{k:g}", k) for k in STRENGTHS]
                strengths = gr.CheckboxGroup(named, value=usual, label="Strength of each frame")
                named = [(f"f/{n:g}", n) for n in F_STOPS]
                f_numbers = gr.CheckboxGroup(named, value=[], label="f-number of each frame", visible=False)
                readout = gr.Markdown(elem_classes="note")
                run = gr.Button("Blur and measure", variant="primary", size="lg")
                with gr.Accordion("Camera", open=False):
                    camera_table = gr.Markdown(NO_PHOTO, elem_classes="note")
                    with gr.Row():
                        lens = [
                            gr.Number(None, label="35 mm equivalent (mm)", min_width=120),
                            gr.Number(None, label="Focus distance (m)", min_width=120),
                        ]
                with gr.Accordion("Bring your own bracket", open=False):
                    gr.Markdown(BRACKET_HINT, elem_classes="note")
                    bracket = _plain(gr.File(label="Wider frames", file_count="multiple", height=140))
                    about = "Measured blur needs no network, and a scene that lies behind the focus."
                    method = gr.Radio([*METHODS], value=METHODS[0], label="Depth by", info=about)
                with gr.Accordion("More", open=False):
                    about = "More take longer; the default suits the model."
                    steps = gr.Slider(
                        1, MAX_STEPS, pipeline.config.default_num_inference_steps, step=1, label="Steps", info=about
                    )
                    about = "The same seed repeats the result."
                    seed = gr.Number(0, label="Seed", info=about, precision=0, minimum=0, maximum=2**31 - 1)
                gr.Markdown(LIMITS_NOTE, elem_classes="note")
            with gr.Column(scale=3, min_width=300):
                with gr.Tab("Bokeh"):
                    frame = gr.Image(label="Frame", **picture)
                    scrubber = gr.Slider(0, 3, 0, step=1, label="From sharp to most blurred", buttons=[])
                    caption = gr.Markdown(elem_classes="readout")
                    gallery = gr.Gallery(
                        label="All frames", columns=4, height="auto", object_fit="cover", elem_classes="frames",
                        allow_preview=False, interactive=False, buttons=[],
                    )  # fmt: skip
                    with gr.Accordion("Compare with the photo", open=True):
                        compare = gr.ImageSlider(label="Sharp | blurred", max_height=520, **picture)
                with gr.Tab("Depth"):
                    crosshair = picture | {"elem_classes": ["picture", "pick"]}
                    depth = gr.Image(label="Depth in metres", format="png", **crosshair)
                    depth_words = gr.Markdown(elem_classes="readout")
                    gr.Markdown(DEPTH_HINT, elem_classes="note")
                    with gr.Row():
                        colormap = gr.Radio([*viewing.COLORMAPS], value="Magma", label="Colours")
                        near_bright = gr.Checkbox(True, label="Near is bright")
                    view_3d = gr.Button("Show in 3D")
                    relief = gr.Model3D(label="Relief in space", height=380, interactive=False)
                with gr.Tab("Refocus"):
                    refocused = gr.Image(label="Refocused", **crosshair)
                    refocus_words = gr.Markdown(elem_classes="readout")
                    gr.Markdown(REFOCUS_HINT, elem_classes="note")
                    with gr.Row():
                        focus_m = gr.Number(None, label="Focus distance (m)", min_width=120)
                        by = gr.Radio([STRENGTH, F_NUMBER], value=STRENGTH, label="Blur by", min_width=160)
                        strength = gr.Slider(0, 60, 20, step=1, label="Strength", min_width=160, buttons=[])
                        f_stop = gr.Dropdown(
                            [(f"f/{n:g}", n) for n in F_STOPS], value=1.4, label="f-number", visible=False
                        )
                    with gr.Row():
                        blades = gr.Dropdown([*BLADES], value="Round", label="Aperture", min_width=120)
                        turn = gr.Slider(0, 90, 0, step=1, label="Turned by (degrees)", min_width=120, buttons=[])
                        squeeze = gr.Slider(0.5, 2, 1, step=0.05, label="Stretch", min_width=120, buttons=[])
                    again = gr.Button("Render")
                with gr.Tab("Downloads"):
                    with gr.Row():
                        names = ("All files (ZIP)", "Depth (16-bit PNG)", "Depth (NPZ)", "Run record (JSON)")
                        files = [gr.DownloadButton(name, size="md", min_width=150) for name in names]
                    gr.Markdown("For compositing and 3D programs, made when you ask for them.", elem_classes="note")
                    make = gr.Button("Make EXR, PLY and GLB")
                    with gr.Row():
                        names = ("Depth (EXR)", "Points (PLY)", "Relief (GLB)")
                        extra = [
                            gr.DownloadButton(name, size="md", min_width=150, interactive=False) for name in names
                        ]
                    make_full = gr.Button("Make the refocused picture at full size")
                    full = gr.DownloadButton("Refocused (PNG)", size="md", interactive=False)

        stack = [gallery, frame, scrubber, caption, compare]
        results = [*stack, depth, depth_words, points, *files, refocused]
        stale = [relief, *extra, full, focus_m, focus_point, refocus_words]
        blank = [None, None, gr.skip(), "", None, None, "", [], *[None] * 5]
        settings = [photo, kind, strengths, f_numbers, *lens]
        fields = [camera_table, *lens, kind, strengths, f_numbers]
        look, npz = [colormap, near_bright], _plain(files[2])

        def clear_stale() -> list:
            off = (gr.DownloadButton(value=None, interactive=False) for _ in range(4))
            return [None, *off, None, None, ""]

        for event in (photo.input, photo.clear):
            event(lambda: [*blank, *clear_stale()], None, [*results, *stale], queue=False, **hidden)
        photo.change(_fill_fields, photo, fields, **light, **hidden)
        kind.input(_choices, kind, [strengths, f_numbers], **light, **hidden)
        changes = [component.change for component in settings]
        gr.on(changes, _describe, settings, readout, trigger_mode="always_last", **light, **hidden)
        inputs = [*settings, steps, seed, bracket, method, *look]
        busy = {"show_progress_on": [frame, depth], "concurrency_id": "models", "concurrency_limit": 1}
        run.click(do.bokeh_depth, inputs, results, **busy, **private)
        run.click(clear_stale, None, stale, queue=False, **hidden)
        if offered is not None:
            offered.click(do.show_example, [offered, *look], [photo, *results], **busy, **private)
            offered.click(clear_stale, None, stale, queue=False, **hidden)
        scrubber.input(None, [scrubber, gallery], [frame, caption, compare], js=SHOW_FRAME_JS, **hidden)
        for control in look:
            control.input(_repaint, [npz, *look, points], [depth, depth_words], **light, **hidden)
        depth.select(_pick_depth, [npz, *look, points], [depth, depth_words, points], **light, **hidden)
        choice = [by, strength, f_stop, blades, turn, squeeze]
        shown = [refocused, focus_m, refocus_words]
        given = [photo, npz, focus_point, focus_m, *choice]
        render = {"concurrency_limit": 2, "concurrency_id": "render", "trigger_mode": "always_last"}
        refocused.select(_pick_focus, [photo, npz, *choice], [*shown, focus_point], **render, **private)
        focus_m.input(lambda: None, None, focus_point, queue=False, **hidden)
        by.input(
            lambda kind: (gr.Slider(visible=kind == STRENGTH), gr.Dropdown(visible=kind == F_NUMBER)),
            by, [strength, f_stop], queue=False, **hidden,
        )  # fmt: skip
        again_when = [again.click, focus_m.submit, by.input, f_stop.input, blades.input]
        again_when += [slider.release for slider in (strength, turn, squeeze)]
        gr.on(again_when, _refocus_page, given, shown, **render, **private)
        made = gr.on([view_3d.click, make.click], _export, [photo, npz], extra, **light, **private)
        # Gradio 6.31 drops a model that comes while its viewer is fetched: the first fetches, the second shows.
        for show in ("(file) => file", "() => null", "(file) => file"):
            made = made.success(None, extra[2], relief, js=show, **hidden)
        make_full.click(_refocus_file, given, full, **light, **private)
        _add_endpoints(do, light, busy)
    return demo.queue(default_concurrency_limit=1, max_size=MAX_QUEUE)


def _add_endpoints(do: SimpleNamespace, light: dict, busy: dict) -> None:
    """The endpoints for programs; their names are those of the MCP tools."""

    def number(name: str, value: float | None = None) -> gr.Number:
        return gr.Number(value, label=name)

    def numbers(name: str) -> Api:
        return Api(None, {"type": "array", "items": {"type": "number"}, "description": "numbers, or null"}, name)

    def file(name: str, file_count: str = "single") -> gr.File:
        return _plain(gr.File(label=name, file_count=file_count))

    models = {name: busy[name] for name in ("concurrency_id", "concurrency_limit")}
    lens = "focal_length_35mm", "focus_distance_m"
    with gr.Row(visible=False):
        table, fitting = gr.Markdown(label="table"), gr.JSON(label="f_numbers")
        values = [number(name) for name in lens]
        outputs = [table, *values, gr.Textbox(label="set_by"), fitting]
        gr.Button().click(_read_photo, file("photo"), outputs, api_name="read_photo", **light)
        inputs = [file("photo"), numbers("bokeh_strengths"), numbers("f_numbers"), *(number(name) for name in lens)]
        inputs += [number("steps"), number("seed", 0)]
        outputs = [gr.File(label="frames", file_count="multiple"), gr.File(label="run_record")]
        gr.Button().click(do.generate_bokeh_stack, inputs, outputs, api_name="generate_bokeh_stack", **models)
        inputs = [
            file("photo"),
            file("frames", "multiple"),
            numbers("bokeh_strengths"),
            numbers("f_numbers"),
            *(number(name) for name in lens),
        ]
        inputs += [gr.Radio([*METHODS], value=METHODS[0], label="method")]
        outputs = [gr.File(label=name) for name in ("depth_npz", "depth_png", "depth_picture")]
        outputs += [gr.Textbox(label="summary")]
        gr.Button().click(do.estimate_depth, inputs, outputs, api_name="estimate_depth", **models)
        inputs = [file("photo"), file("depth")]
        inputs += [number(name) for name in ("x_px", "y_px", "focus_distance_m", "bokeh_strength", "f_number")]
        inputs += [gr.Number(0, label="blades", precision=0), number("rotation_deg", 0), number("squeeze", 1)]
        outputs = [gr.File(label="picture"), gr.JSON(label="lens")]
        gr.Button().click(_refusing(refocus), inputs, outputs, api_name="refocus", **light)


def launch_options() -> dict[str, Any]:
    """Arguments of `launch` beside the address: looks, limits, fonts that no other host has to send, MCP."""
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    return {
        "theme": gr.themes.Default(primary_hue="stone", neutral_hue="stone", **fonts),
        "css": CSS,
        "max_file_size": serving.MAX_PHOTO_BYTES,
        "footer_links": ["api", "settings"],
        "run_history": False,
        "ssr_mode": False,
        "mcp_server": find_spec("mcp") is not None,
    }


def main() -> None:
    """Loads the model and serves the page."""
    model = os.environ.get("BOKEHDEPTH_MODEL", hub.EMBEDDED)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pipeline = hub.load_pipeline(model, device=device)
    pipeline.set_progress_bar_config(disable=True)
    with _scratch() as folder:
        offered = [str(path) for path in (*bundled_photos(), *write_example_scenes(folder))]
        build_demo(pipeline, model, offered, Path(folder)).launch(**launch_options())


if __name__ == "__main__":
    main()

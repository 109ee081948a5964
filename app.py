"""The Space: a photo in, a bokeh stack and a depth map in metres out, in a browser, by API and by MCP.

`python app.py` serves the page; `BOKEHDEPTH_MODEL` names another model than the embedded one, a folder or a Hub
repository, `BOKEHDEPTH_CONTENT_FILTER` another classifier that its frames have to pass. The library computes all
numbers; the page asks, shows, hands out files and keeps nothing: an event works on files of that visitor's session.
"""

import spaces  # isort: skip  (ZeroGPU patches torch, so it comes before everything that imports torch)

import html
import inspect
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial, wraps
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from bokehdepth.space.server_folder import ServerFolder, share_memory

if __name__ == "__main__":  # before torch starts threads; Gradio reads where files go when it is imported
    share_memory()
    FOLDER = ServerFolder(os.environ.get("GRADIO_TEMP_DIR") or tempfile.gettempdir())
    os.environ["GRADIO_TEMP_DIR"] = str(FOLDER.path / "served")

import gradio as gr
import PIL.Image
import torch
from gradio.components.api_component import Api
from gradio.context import LocalContext
from gradio.data_classes import ListFiles
from gradio.utils import get_upload_folder

from bokehdepth import hub
from bokehdepth.camera import lens as optics
from bokehdepth.camera.f_numbers import lens_assumptions
from bokehdepth.errors import InputError
from bokehdepth.files.atomic import staged
from bokehdepth.files.depth_maps import save_depth_npz
from bokehdepth.files.photos import Photo
from bokehdepth.files.stacks import bokeh_file_name, load_stack
from bokehdepth.pipeline_bokehdepth import BokehDepthPipeline
from bokehdepth.processing_bokehdepth import BokehStackOutput
from bokehdepth.space import content_filter, gate, housekeeping, page, previews, serving, sessions, viewing
from bokehdepth.space.endpoints import model_endpoints, read_photo, refocus
from bokehdepth.space.examples import example_photos
from bokehdepth.space.fairness import FairQueue, Room, Turns
from bokehdepth.space.serving import DEFAULT_STRENGTHS, F_NUMBER, F_STOPS, METHODS, STRENGTH, STRENGTHS
from bokehdepth.tasks.limits import PAGE
from bokehdepth.tasks.photo_job import Job, predicted_focal_px, run_job
from bokehdepth.tasks.result_files import DEPTH_NAMES

ROOMS = {"models": Room(24, 8, 3), "render": Room(24, 8, 4)}
AT_ONCE = {"light": 3, "render": 2, "models": 2}
LIGHT_ROOM = Room(128, 48, 16)
SWEEP_S, GRACE_S, DELETE_AFTER_S, MAX_SESSIONS_IN_MEMORY = 30, 120, 3600, 200


class _File(str):
    """Path of a file that a visitor named; `_for_visitors` checks that it is the visitor's."""


@contextmanager
def _refusals() -> Iterator[None]:
    """Shows the library's sentence on input that it refuses; other errors are faults of the program and stay such."""
    try:
        yield
    except InputError as error:  # its sentence can quote a file name or EXIF, and the page draws messages as HTML
        raise gr.Error(html.escape(str(error), quote=False), print_exception=False) from error


def _for_visitors(files: sessions.SessionFiles, handler: Callable) -> Callable:
    """The handler as an event of one visitor.

    Files of another session are refused, `new_folder` makes folders in the visitor's own, and what the library refuses
    is shown. Name, words and arguments, which are those of the MCP tool, stay.
    """
    own = inspect.signature(handler).parameters

    def call(request: gr.Request, args: Sequence) -> Any:
        for path in (path for arg in args for path in (arg if isinstance(arg, list) else [arg])):
            if isinstance(path, _File):
                files.admit(request.session_hash, path)
        extra = {"new_folder": partial(files.new_folder, request.session_hash)} if "new_folder" in own else {}
        return handler(*args, **extra)

    if inspect.isgeneratorfunction(handler):

        @wraps(handler)
        def visit(request: gr.Request, *args: Any) -> Iterator:
            with _refusals():
                yield from call(request, args)
    else:

        @wraps(handler)
        def visit(request: gr.Request, *args: Any) -> Any:
            with _refusals():
                return call(request, args)

    # Gradio reads from the signature what to pass beside the inputs: the request, a click, a progress bar.
    request = inspect.Parameter("request", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=gr.Request)
    visit.__signature__ = inspect.Signature([request, *(p for name, p in own.items() if name != "new_folder")])
    visit.__annotations__ = {"request": gr.Request} | handler.__annotations__
    return visit


def _plain(component: gr.components.Component) -> Any:
    """The component with uploads as they are: Gradio's own reading shows its paths, or leaves an empty file behind."""
    component.preprocess = lambda sent: (
        [_File(f.path) for f in sent.root] if isinstance(sent, ListFiles) else sent and _File(sent.path)
    )
    return component


def _show_stack(folder: Path, photo: Photo, images: Sequence[PIL.Image.Image], captions: Sequence[str]) -> tuple:
    """What the page shows of a stack: all frames, and the last of them large and beside the photo."""
    pictures = previews.write_frames(folder, [photo.image, *images])
    names = ["sharp", *captions]
    last = len(images)
    scrubber = gr.Slider(value=last, maximum=max(last, 1))
    return list(zip(pictures, names, strict=True)), pictures[-1], scrubber, names[-1], (pictures[0], pictures[-1])


def _fill_fields(photo: str | None) -> tuple:
    """Lens fields, kind and both choices for a new photo; empty ones without a photo."""
    if photo is None:
        return *[None] * len(serving.LENS_FIELDS), *(gr.skip() for _ in range(4))
    camera = serving.read_lens(serving.open_upload(photo))
    kind = serving.default_kind(camera)
    fits = serving.default_f_numbers(camera)
    at = F_STOPS.index(fits[0]) if fits else len(F_STOPS) - 1
    return *serving.lens_fields(camera), kind, *_choices(kind), at


def _choices(kind: str) -> tuple:
    return gr.CheckboxGroup(visible=kind == STRENGTH), gr.Group(visible=kind == F_NUMBER)


def _repaint(npz: str | None, colormap: str, near_bright: bool, points: list, *, new_folder: Callable) -> tuple:
    if npz is None:
        return gr.skip(), gr.skip()
    return previews.write_depth_view(new_folder(), serving.open_depth(npz), colormap, near_bright, points)


def _pick_depth(
    npz: str | None, colormap: str, near_bright: bool, points: list, event: gr.SelectData, *, new_folder: Callable
) -> tuple:
    depth = npz and serving.open_depth(npz)  # none while its files are being written
    point = depth and viewing.photo_point(event.index, depth.depth_m.shape[::-1], previews.SHOWN_SIDE_PX)
    if point is None:
        return gr.skip(), gr.skip(), gr.skip()
    points = [*points[-1:], point] if len(points) < 2 else [point]
    return *previews.write_depth_view(new_folder(), depth, colormap, near_bright, points), points


def _refocus_page(
    photo: str | None, npz: str | None, point: list | None, focus_m: float | None, *lens: Any, new_folder: Callable
) -> tuple:
    """Renders the preview; what was clicked last is marked, until a distance is typed."""
    if point is None and focus_m is None:
        return gr.skip(), gr.skip(), gr.skip()
    plan = serving.plan_refocused(photo, npz, serving.chosen_focus(point, focus_m), *lens)
    picture = plan.render(previews.REFOCUSED_SIDE_PX)
    shown = picture if point is None else viewing.marked(picture, [point], plan.photo.image.size)
    path = previews.write_preview(new_folder(), "refocused", shown, previews.REFOCUSED_SIDE_PX)
    return path, round(plan.focus_distance_m, 3), serving.describe_refocusing(plan)


def _pick_focus(
    photo: str | None, npz: str | None, by: str, strength: float, at: int, blades: str, turn: float, squeeze: float,
    f_number: float | None, focal_mm: float | None, sensor_mm: float | None, focus_m: float | None,
    event: gr.SelectData, *, new_folder: Callable,
) -> tuple:  # fmt: skip
    point = viewing.photo_point(event.index, serving.open_upload(photo).image.size, previews.REFOCUSED_SIDE_PX)
    lens = by, strength, at, blades, turn, squeeze, f_number, focal_mm, sensor_mm, focus_m
    return *_refocus_page(photo, npz, point, None, *lens, new_folder=new_folder), point


def _refocus_file(
    photo: str | None, npz: str | None, point: list | None, focus_m: float | None, *lens: Any, new_folder: Callable
) -> Any:
    plan = serving.plan_refocused(photo, npz, serving.chosen_focus(point, focus_m), *lens)
    return gr.DownloadButton(value=str(plan.save(new_folder(), plan.render())), interactive=True)


def _export(photo: str | None, npz: str | None, *, new_folder: Callable) -> tuple:
    """EXR, PLY and GLB of the depth."""
    opened, depth = serving.open_upload(photo), serving.open_depth(npz)
    files = serving.write_exports(new_folder(), opened, depth)
    return tuple(gr.DownloadButton(value=str(path), interactive=True) for path in files)


def _handlers(
    pipeline: BokehDepthPipeline, model: str, examples: Sequence[str], cache: Path, screened: Callable = list,
    has_left: Callable[[str | None], bool] = lambda event_id: False,
) -> SimpleNamespace:  # fmt: skip
    """What needs the models, for one pipeline that is read and never changed."""
    turns = Turns()
    weights = hub.weights_record(model) | getattr(screened, "weights", {})
    check, write = partial(serving.check_run, pipeline), partial(serving.write_run, weights)
    suited = pipeline.bokeh_adapter.config
    usual_steps, area_px = suited.num_inference_steps, suited.max_area

    def stack_duration_s(image: PIL.Image.Image, strengths: Sequence[float], steps: int, *_: Any) -> int:
        return serving.gpu_duration_s(len(strengths), steps, area_px, image.width * image.height)

    @turns.taking
    @spaces.GPU(duration=stack_duration_s)
    def make_stack(
        image: PIL.Image.Image, strengths: Sequence[float], steps: int, seed: int, progress: gr.Progress | None = None
    ) -> BokehStackOutput:
        def report(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            if progress is not None:
                progress((index + 1, steps), desc=f"Blurring {len(strengths)} frames", unit="steps")
            if has_left(LocalContext.event_id.get(None)):
                raise InputError("The visitor has left.")
            turns.offer()
            return tensors

        noise = torch.Generator().manual_seed(seed)
        options = {"generator": noise, "callback_on_step_end": report, "for_depth": True}
        with _refusals():  # as in run_bracket
            made = pipeline.generate_stack(image, strengths, steps, **options)
            made.images = screened(made.images)
        return made

    @turns.taking
    @spaces.GPU(duration=30)
    def read_depth(image: PIL.Image.Image, made: BokehStackOutput, matrix: Any) -> tuple:
        found = pipeline.estimate_depth(image, made, intrinsics=matrix)
        return found.depth_m, predicted_focal_px(found, matrix)

    @partial(turns.taking, needs=lambda job, arguments: bool(job.components))  # the others leave the models alone
    @spaces.GPU(duration=60)
    def run_bracket(job: Job, arguments: dict[str, Any]) -> None:
        with _refusals():  # out of ZeroGPU's own process only Gradio's error comes with its sentence
            run_job(pipeline, job, arguments=arguments, weights=weights)

    def describe(photo: str | None, kind: str, strengths: list, at: int, frames: int, steps: int, *lens: Any) -> tuple:
        words, table, values = serving.describe_choice(photo, kind, strengths, at, frames, lens)
        if values and os.environ.get("SPACES_ZERO_GPU"):
            image = serving.open_upload(photo).image
            words += f" This asks for {stack_duration_s(image, values, steps)} s of your GPU time."
        return words, table or page.NO_PHOTO

    def bokeh_depth(
        photo: str | None, kind: str, strengths: list, at: int, frames: int, steps: int, f_number: float | None,
        focal_length_mm: float | None, sensor_width_mm: float | None, focus_distance_m: float | None, seed: int,
        bracket: list[str] | None, method: str, colormap: str, near_bright: bool,
        progress: gr.Progress = gr.Progress(),  # noqa: B008  (how Gradio is told to pass one)
        *, new_folder: Callable, keep_in: Path | None = None,
    ) -> Iterator[tuple]:  # fmt: skip
        """Yields the stack as soon as it is there, then the depth, ready to be clicked, then all files."""
        scratch = new_folder()
        folder = scratch / "result"
        lens = f_number, focal_length_mm, sensor_width_mm, focus_distance_m
        opened = serving.open_upload(photo)
        if bracket:
            changed = serving.changed_lens(opened, lens)
            _, job = serving.plan_bracket(photo, folder, bracket, method, None, **changed)
            for sentence in job.warnings:
                gr.Warning(html.escape(f"{sentence[0].upper()}{sentence[1:]}.", quote=False))
            images = [serving.open_upload(str(path)).image for path in job.frame_paths]
            captions = [f"f/{n:g}" for n in job.f_numbers or ()] or [f"strength {k:.3g}" for k in job.bokeh_strengths]
            yield *_show_stack(scratch, opened, images, captions), *[gr.skip()] * 8
            run_bracket(job, {"photo": opened.path.name, "method": method})
            yield *[gr.skip()] * 5, *previews.write_result(folder, opened, colormap, near_bright)
        else:
            camera = serving.read_lens(opened, lens)
            chosen = serving.chosen_frames(kind, strengths, at, frames)
            values, captions = serving.frame_strengths(camera, kind, chosen)
            steps, seed = check(opened, values, steps, seed)
            if kind == F_NUMBER:
                for sentence in lens_assumptions(camera):
                    gr.Warning(html.escape(sentence, quote=False))
            progress(0, desc="Starting")
            start_s = time.perf_counter()
            made = make_stack(opened.image, values, steps, seed, progress)
            images = made.images
            stack_s = time.perf_counter() - start_s
            yield *_show_stack(scratch, opened, images, captions), *[gr.skip()] * 8
            progress((steps, steps), desc="Measuring depth", unit="steps")
            start_s = time.perf_counter()
            depth_m, focal_px = read_depth(opened.image, made, camera.known_intrinsics)
            timings_s = {"stack": stack_s, "depth": time.perf_counter() - start_s}
            known = {"focal_length_px": focal_px or camera.focal_length_px.value, "bokeh_strengths": values}
            npz = save_depth_npz(scratch / DEPTH_NAMES[0], depth_m, **known)
            *view, start = previews.write_depth(npz, opened, colormap, near_bright)
            yield *[gr.skip()] * 5, *view, *[gr.skip()] * 2, str(npz), gr.skip(), start
            arguments = {"kind": kind, "frames": chosen, "num_inference_steps": steps}
            rest = {"images": images, "depth_m": depth_m, "arguments": arguments, "seed": seed}
            write(folder, opened, camera, values, **rest, focal_length_px=focal_px, timings_s=timings_s)
            # Pictures once more, since Gradio forgets those of a tab that was not open yet.
            yield *[gr.skip()] * 5, view[0], *[gr.skip()] * 2, *previews.pack_result(folder), start
        if keep_in is not None and not keep_in.exists():
            with staged(keep_in) as staging:
                shutil.copytree(folder, staging, dirs_exist_ok=True)

    def show_example(
        index: int, colormap: str, near_bright: bool, progress: gr.Progress = gr.Progress(),  # noqa: B008
        *, new_folder: Callable,
    ) -> Iterator[tuple]:  # fmt: skip
        """Shows an example, computed the first time that anybody asks for it."""
        scratch, index = new_folder(), optics.check_whole_number(index, "example", 0, len(examples) - 1)
        photo, kept = shutil.copy(examples[index], scratch), cache / str(index)
        if not kept.exists():
            args = photo, STRENGTH, [*DEFAULT_STRENGTHS], 0, 1, usual_steps, *[None] * 4, 0, None, METHODS[0]
            for parts in bokeh_depth(*args, colormap, near_bright, progress, new_folder=lambda: scratch, keep_in=kept):
                yield photo, *parts
            return
        opened = serving.open_upload(photo)
        images, _ = load_stack([kept / bokeh_file_name(k) for k in DEFAULT_STRENGTHS])
        stack = _show_stack(scratch, opened, images, [f"strength {k:g}" for k in DEFAULT_STRENGTHS])
        folder = Path(shutil.copytree(kept, scratch / "result"))
        yield photo, *stack, *previews.write_result(folder, opened, colormap, near_bright)

    generate, estimate = model_endpoints(make_stack, run_bracket, check, write, usual_steps)
    endpoints = {"generate_bokeh_stack": generate, "estimate_depth": estimate}
    return SimpleNamespace(bokeh_depth=bokeh_depth, show_example=show_example, describe=describe, **endpoints)


def build_demo(
    pipeline: BokehDepthPipeline, model: str = hub.EMBEDDED, examples: Sequence[str] = (), cache: Path = Path(),
    screened: Callable = list,
) -> gr.Blocks:  # fmt: skip
    """Builds the page.

    Args:
        pipeline: with its base, ready to run.
        model: its name, for run records; the embedded one is announced as what it is.
        examples: photos that are offered.
        cache: folder of this process alone, in which the results of examples are kept.
        screened: returns the generated frames that it is given, or refuses to (`load_content_filter`).

    Returns:
        The page with its queue set up, to be launched with `launch_options`.
    """
    demo = gr.Blocks(title="BokehDepth", analytics_enabled=False, delete_cache=(GRACE_S, DELETE_AFTER_S))
    do = _handlers(pipeline, model, examples, cache, screened, lambda event_id: demo.fair_queue.has_left(event_id))
    files = sessions.SessionFiles(get_upload_folder(), grace_s=GRACE_S, max_idle_s=DELETE_AFTER_S)
    mine = partial(_for_visitors, files)
    private = {"api_visibility": "private"}
    light, render, models = ({"concurrency_id": name, "concurrency_limit": most} for name, most in AT_ONCE.items())
    hidden = private | {"show_progress": "hidden"}
    picture = {"interactive": False, "buttons": ["fullscreen"], "elem_classes": "picture"}

    with demo:
        demo.session_files = files
        gr.Markdown(page.INTRO)
        if model == hub.EMBEDDED:
            gr.Markdown(page.EMBEDDED_NOTE, elem_classes="note")
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
                kinds = [STRENGTH, F_NUMBER]
                kind = gr.Radio(kinds, value=STRENGTH, label="Set the blur by", info=page.KIND_INFO)
                named = [(f"{k:g}", k) for k in STRENGTHS]
                strengths = gr.CheckboxGroup(named, value=[*DEFAULT_STRENGTHS], label="Strength of each frame")
                with gr.Group(visible=False) as by_lens:
                    at = _stops()
                    most, about = serving.MAX_STOP_FRAMES, page.FRAMES_INFO
                    frames = gr.Slider(1, most, 3, step=1, label="Frames", info=about, buttons=[])
                readout = gr.Markdown(elem_classes="note")
                run = gr.Button("Blur and measure", variant="primary", size="lg")
                with gr.Accordion("Camera", open=False):
                    camera_table = gr.Markdown(page.NO_PHOTO, elem_classes="note")
                    with gr.Row():
                        named = "f-number", "Focal length (mm)", "Sensor width (mm)", "Focus distance (m)"
                        lens = [gr.Number(None, label=name, min_width=150) for name in named]
                with gr.Accordion("Bring your own bracket", open=False):
                    gr.Markdown(page.BRACKET_HINT, elem_classes="note")
                    bracket = _plain(gr.File(label="Wider frames", file_count="multiple", height=140))
                    method = gr.Radio([*METHODS], value=METHODS[0], label="Depth by", info=page.METHOD_INFO)
                with gr.Accordion("More", open=False):
                    usual = pipeline.bokeh_adapter.config.num_inference_steps
                    steps = gr.Slider(1, PAGE.max_steps, usual, step=1, label="Steps", info=page.STEPS_INFO)
                    seed = gr.Number(0, label="Seed", info=page.SEED_INFO)
                    new_seed = gr.Button("New seed", size="sm")
                gr.Markdown(page.LIMITS_NOTE, elem_classes="note")
                if os.environ.get("SPACE_ID"):
                    gr.DuplicateButton("Duplicate this Space")
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
                    gr.Markdown(page.DEPTH_HINT, elem_classes="note")
                    with gr.Row():
                        colormap = gr.Radio([*viewing.COLORMAPS], value="Magma", label="Colours")
                        near_bright = gr.Checkbox(True, label="Near is bright")
                    view_3d = gr.Button("Show in 3D")
                    relief = gr.Model3D(label="Relief in space", height=380, interactive=False)
                with gr.Tab("Refocus"):
                    refocused = gr.Image(label="Refocused", **crosshair)
                    refocus_words = gr.Markdown(elem_classes="readout")
                    gr.Markdown(page.REFOCUS_HINT, elem_classes="note")
                    with gr.Row():
                        focus_m = gr.Number(None, label="Focus distance (m)", min_width=120)
                        by = gr.Radio(kinds, value=STRENGTH, label="Blur by", min_width=160)
                        strength = gr.Slider(0, 60, 20, step=1, label="Strength", min_width=160, buttons=[])
                    with gr.Group(visible=False) as by_stop:
                        f_stop = _stops()
                    with gr.Row():
                        blades = gr.Dropdown([*serving.BLADES], value="Round", label="Aperture shape", min_width=120)
                        turn = gr.Slider(0, 90, 0, step=1, label="Turned by (degrees)", min_width=120, buttons=[])
                        squeeze = gr.Slider(0.5, 2, 1, step=0.05, label="Stretch", min_width=120, buttons=[])
                    again = gr.Button("Render")
                with gr.Tab("Downloads"):
                    with gr.Row():
                        names = ("All files (ZIP)", "Depth (16-bit PNG)", "Depth (NPZ)", "Run record (JSON)")
                        files_out = [gr.DownloadButton(name, size="md", min_width=220) for name in names]
                    gr.Markdown("For compositing and 3D programs, made when you ask for them.", elem_classes="note")
                    make = gr.Button("Make EXR, PLY and GLB")
                    with gr.Row():
                        names = ("Depth (EXR)", "Points (PLY)", "Relief (GLB)")
                        off = {"size": "md", "min_width": 150, "interactive": False}
                        extra = [gr.DownloadButton(name, **off) for name in names]
                    make_full = gr.Button("Make the refocused picture at full size")
                    full = gr.DownloadButton("Refocused (PNG)", size="md", interactive=False)

        results = [gallery, frame, scrubber, caption, compare, depth, depth_words, points, *files_out, refocused]
        stale = [relief, *extra, full, focus_m, focus_point, refocus_words]
        blank = [None, None, gr.skip(), "", None, None, "", [], *[None] * 5]
        settings = [photo, kind, strengths, at, frames, steps, *lens]
        look, npz = [colormap, near_bright], _plain(files_out[2])

        def clear_stale() -> list:
            off = (gr.DownloadButton(value=None, interactive=False) for _ in range(4))
            return [None, *off, None, None, ""]

        for event in (photo.input, photo.clear):
            event(lambda: [*blank, *clear_stale()], None, [*results, *stale], queue=False, **hidden)
        photo.change(mine(_fill_fields), photo, [*lens, kind, strengths, by_lens, at], **light, **hidden)
        kind.input(_choices, kind, [strengths, by_lens], **light, **hidden)
        changes = [component.change for component in settings]
        told = [readout, camera_table]
        gr.on(changes, mine(do.describe), settings, told, trigger_mode="always_last", **light, **hidden)
        new_seed.click(None, None, seed, js=page.NEW_SEED_JS, **hidden)
        busy = models | {"show_progress_on": [frame, depth]}
        run.click(mine(do.bokeh_depth), [*settings, seed, bracket, method, *look], results, **busy, **private)
        run.click(clear_stale, None, stale, queue=False, **hidden)
        if offered is not None:
            offered.click(mine(do.show_example), [offered, *look], [photo, *results], **busy, **private)
            offered.click(clear_stale, None, stale, queue=False, **hidden)
        scrubber.input(None, [scrubber, gallery], [frame, caption, compare], js=page.SHOW_FRAME_JS, **hidden)
        for control in look:
            control.input(mine(_repaint), [npz, *look, points], [depth, depth_words], **light, **hidden)
        depth.select(mine(_pick_depth), [npz, *look, points], [depth, depth_words, points], **light, **hidden)
        choice = [by, strength, f_stop, blades, turn, squeeze, *lens]
        shown = [refocused, focus_m, refocus_words]
        given = [photo, npz, focus_point, focus_m, *choice]
        last = render | {"trigger_mode": "always_last"}
        refocused.select(mine(_pick_focus), [photo, npz, *choice], [*shown, focus_point], **last, **private)
        focus_m.input(lambda: None, None, focus_point, queue=False, **hidden)
        by.input(
            lambda kind: (gr.Slider(visible=kind == STRENGTH), gr.Group(visible=kind == F_NUMBER)),
            by, [strength, by_stop], queue=False, **hidden,
        )  # fmt: skip
        again_when = [again.click, focus_m.submit, by.input, blades.input]
        again_when += [slider.release for slider in (strength, f_stop, turn, squeeze)]
        gr.on(again_when, mine(_refocus_page), given, shown, **last, **private)
        made = gr.on([view_3d.click, make.click], mine(_export), [photo, npz], extra, **render, **private)
        # Gradio 6.31 drops a model that comes while its viewer is fetched: the first fetches, the second shows.
        for show in ("(file) => file", "() => null", "(file) => file"):
            made = made.success(None, extra[2], relief, js=show, **hidden)
        make_full.click(mine(_refocus_file), given, full, **render, **private)

        async def leave(request: gr.Request) -> None:
            files.end(request.session_hash)
            await demo._queue.clean_events(session_hash=request.session_hash)

        demo.unload(leave)
        _add_endpoints(mine, do, light, render, models)
    demo.queue(default_concurrency_limit=1, max_size=None, api_open=False)
    demo.fair_queue = FairQueue(demo._queue, ROOMS, LIGHT_ROOM)
    demo.fair_queue.attach()
    housekeeping.speak_plainly(demo, gr.Error)
    return demo


def _stops() -> gr.Slider:
    """An aperture slider over thirds of a stop, which are even on a logarithmic scale, with the f-number beside it."""
    label = gr.Markdown(page.stop_label(0), elem_classes="stop-label")
    slider = gr.Slider(
        0, len(F_STOPS) - 1, 0, step=1, label="From wide open to narrow", elem_classes="stops", buttons=[]
    )
    slider.change(None, slider, label, js=page.SHOW_STOP_JS, api_visibility="private", show_progress="hidden")
    return slider


def _add_endpoints(mine: Callable, do: SimpleNamespace, light: dict, render: dict, models: dict) -> None:
    """The endpoints for programs; their names are those of the MCP tools."""

    def number(name: str, value: float | None = None) -> gr.Number:
        return gr.Number(value, label=name)

    def numbers(name: str) -> Api:
        return Api(None, {"type": "array", "items": {"type": "number"}, "description": "numbers, or null"}, name)

    def file(name: str, file_count: str = "single") -> gr.File:
        return _plain(gr.File(label=name, file_count=file_count))

    lens = "focal_length_35mm", "focus_distance_m"
    with gr.Row(visible=False):
        table, fitting = gr.Markdown(label="table"), gr.JSON(label="f_numbers")
        values = [number(name) for name in lens]
        outputs = [table, *values, gr.Textbox(label="set_by"), fitting]
        gr.Button().click(mine(read_photo), file("photo"), outputs, api_name="read_photo", **light)
        inputs = [file("photo"), numbers("bokeh_strengths"), numbers("f_numbers"), *(number(name) for name in lens)]
        inputs += [number("steps"), number("seed", 0)]
        outputs = [gr.File(label="frames", file_count="multiple"), gr.File(label="run_record")]
        stack = mine(do.generate_bokeh_stack)
        gr.Button().click(stack, inputs, outputs, api_name="generate_bokeh_stack", **models)
        inputs = [file("photo"), file("frames", "multiple"), numbers("bokeh_strengths"), numbers("f_numbers")]
        inputs += [*(number(name) for name in lens), gr.Radio([*METHODS], value=METHODS[0], label="method")]
        outputs = [gr.File(label=name) for name in ("depth_npz", "depth_png", "depth_picture")]
        outputs += [gr.Textbox(label="summary")]
        gr.Button().click(mine(do.estimate_depth), inputs, outputs, api_name="estimate_depth", **models)
        inputs = [file("photo"), file("depth")]
        inputs += [number(name) for name in ("x_px", "y_px", "focus_distance_m", "bokeh_strength", "f_number")]
        inputs += [*map(number, ("blades", "rotation_deg", "squeeze"), (0, 0, 1)), gr.Textbox(label="depth_unit")]
        outputs = [gr.File(label="picture"), gr.JSON(label="lens")]
        gr.Button().click(mine(refocus), inputs, outputs, api_name="refocus", **render)


async def _fetch(url: str, cache_dir: str) -> str:
    with _refusals():
        return await housekeeping.fetch(url, cache_dir, gr.processing_utils.PUBLIC_HOSTNAME_WHITELIST)


def launch_options(demo: gr.Blocks) -> dict[str, Any]:
    """Arguments of `launch` beside the address: looks, limits, cleaning, fonts that no other host has to send, MCP."""
    guard = partial(gate.Gate, files=demo.session_files, **gate.gate_options(os.environ))
    gr.processing_utils.async_ssrf_protected_download = _fetch  # Gradio's own has no limit on size or time
    life = {"demo": demo, "guard": guard, "sweep_s": SWEEP_S, "grace_s": GRACE_S}
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    return {
        "theme": gr.themes.Default(primary_hue="stone", neutral_hue="stone", **fonts),
        "css": page.CSS,
        "max_file_size": PAGE.max_photo_bytes,
        "state_session_capacity": MAX_SESSIONS_IN_MEMORY,
        "app_kwargs": {"lifespan": partial(housekeeping.open_house, **life)},
        "enable_monitoring": False,
        "footer_links": ["api", "settings"],
        "run_history": False,
        "ssr_mode": False,
        "mcp_server": find_spec("mcp") is not None,
    }


def main(folder: Path) -> None:
    """Loads the model and serves the page; what the server needs lies in a folder that goes with it."""
    model = os.environ.get("BOKEHDEPTH_MODEL", hub.EMBEDDED)
    try:
        pipeline = hub.load_pipeline(model, device="cuda" if torch.cuda.is_available() else "cpu")
        classifier = os.environ.get("BOKEHDEPTH_CONTENT_FILTER", content_filter.CLASSIFIER)
        screened = content_filter.load_content_filter(pipeline, classifier)
    except InputError as error:  # such as a gated base without a token: said on the page, not in a log alone
        with gr.Blocks(title="BokehDepth", analytics_enabled=False) as demo:
            gr.Markdown(f"# BokehDepth\nThe model {model!r} cannot be loaded. {html.escape(str(error))}")
        demo.launch()
        return
    pipeline.set_progress_bar_config(disable=True)
    demo = build_demo(pipeline, model, [*map(str, example_photos())], folder, screened)
    try:
        demo.launch(**launch_options(demo))
    finally:
        demo.close(verbose=False)


if __name__ == "__main__":
    os.umask(0o077)  # uploads are Gradio's to write
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with FOLDER as folder:
        main(folder)

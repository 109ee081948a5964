"""The Space: a photo in, a bokeh stack and a depth map in metres out, in a browser.

`python app.py` serves the page; `BOKEHDEPTH_MODEL` names another model than the embedded one, a folder or a Hub
repository. All numbers are computed by the library: the page asks, shows and hands out files.
"""

import spaces  # isort: skip  (ZeroGPU patches torch, so it comes before everything that imports torch)

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import PIL.Image
import torch
from gradio import FileData

from bokehdepth import hub, optics
from bokehdepth.apertures import STANDARD_F_NUMBERS, smallest_f_number, strengths_from_f_numbers
from bokehdepth.camera import Camera, Value, read_camera
from bokehdepth.errors import InputError
from bokehdepth.imaging import Photo, open_photo
from bokehdepth.pipeline_bokehdepth import BokehDepthPipeline
from bokehdepth.results import DEPTH_NAMES, write_results

MAX_PHOTO_PX = 16_000_000
MAX_PHOTO_BYTES = 32 * 1024 * 1024
"""Together they keep a run under 3 GB and two minutes on the two cores of a free Space; phones take 12 megapixels."""

MAX_STEPS = 50
MAX_QUEUE = 12
DELETE_AFTER_S = 3600
PREVIEW_SIDE_PX = 1600
"""Longest side of what the page shows; the downloads have the photo's own size."""

STRENGTH, F_NUMBER = "Strength", "f-number"
DEFAULT_STRENGTHS = (10.0, 20.0, 30.0)
F_STOPS = [stop for stop in STANDARD_F_NUMBERS if stop >= 1.4]
"""Wider lenses are rare."""

WEAK_STRENGTH = 2.0
"""Below it the widest frame differs from the photo by a pixel or so."""

EXAMPLES = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")
NO_PHOTO = "Read from the photo once there is one."

INTRO = """# BokehDepth
One photo in; the same photo with a blurred background, as from a lens opened wider, and its depth in metres out."""
EMBEDDED_NOTE = """**This is a small demonstration model.** It ships with the code, runs without a graphics card and \
shows the idea; its blur and its metres are rough. With full weights the same page generates blur with FLUX and reads \
depth with a full-size network."""
LIMITS_NOTE = f"""Photos up to {MAX_PHOTO_PX // 10**6} megapixels and {MAX_PHOTO_BYTES // 2**20} MB. Your files are \
shown to nobody else and deleted within two hours."""

CSS = """
.gradio-container {max-width: 1180px !important; margin: 0 auto !important}
.note, .note table {font-size: var(--text-sm); width: 100%}
.note th, .note td {padding: 4px 8px !important; border-color: var(--border-color-primary) !important}
.picture img {max-height: 460px; object-fit: contain}
.legend img {padding-top: 34px}
.frames .grid-wrap {min-height: 0 !important; height: auto !important}
.frames .grid-container {grid-template-columns: repeat(4, minmax(0, 1fr)) !important}
.caption-label {font-size: 10px !important; max-width: 100% !important; padding: 1px 4px !important}
"""

# The page holds the frames already, so moving through them asks the server nothing.
SHOW_FRAME_JS = "(at, frames) => frames?.length ? [frames[at].image, frames[at].caption] : [null, '']"
SHOW_ALL_JS = """(frames) => {
    const last = frames.length - 1;
    return [last, frames[last].image, frames[last].caption, [frames[0].image, frames[last].image]];
}"""
CLEAR_JS = "() => [null, null, null, null, null, null, null, null, '']"


@contextmanager
def _refusals() -> Iterator[None]:
    """Shows the library's sentence on input that it refuses; wraps checks alone, so that faults stay faults."""
    try:
        yield
    except ValueError as error:
        raise gr.Error(str(error), print_exception=False) from error


def _open_upload(path: str | None) -> Photo:
    """Opens an uploaded file; InputError where there is none or it is no photo within the limits."""
    if path is None:
        raise InputError("There is no photo yet; choose one first.")
    return open_photo(path, max_pixels=MAX_PHOTO_PX, max_file_bytes=MAX_PHOTO_BYTES)


def _field(value: Value) -> float | None:
    """A camera value as its field on the page shows it; None, an empty field, for infinity."""
    return None if value.value == float("inf") else round(value.value, 2)


def _read_lens(photo: Photo, focal_length_35mm: float | None, focus_distance_m: float | None) -> Camera:
    """The photo's camera, with the two fields of the page where the visitor changed them."""
    camera = read_camera(photo)
    entered = {"focal_length_35mm": focal_length_35mm, "focus_distance_m": focus_distance_m}
    given = {name: x for name, x in entered.items() if x is not None and x != _field(getattr(camera, name))}
    return read_camera(photo, **given) if given else camera


def _default_frames(camera: Camera | None, kind: str) -> list[float]:
    """Three strengths, or three f-numbers that fit, wide open first: engraved ones unless the lens is too long."""
    if kind == STRENGTH:
        return [*DEFAULT_STRENGTHS]
    widest = 0.0 if camera is None else smallest_f_number(camera)
    engraved = [f_number for f_number in F_STOPS if f_number >= widest][:5:2]
    return engraved if len(engraved) == 3 else [widest, 2 * widest, 4 * widest]


def _strengths(camera: Camera, kind: str, frames: Sequence[float | None]) -> tuple[tuple[float, ...], list[str]]:
    """Ascending K of the three frames and what the page calls them; InputError where one is empty or out of range."""
    if None in frames:
        raise InputError(f"frame {frames.index(None) + 1} has no {kind.lower()}; fill in all three.")
    if kind == F_NUMBER:
        strengths, f_numbers = strengths_from_f_numbers(camera, frames, "the series")
        return strengths, [f"f/{n:g}" for n in f_numbers]
    for index, strength in enumerate(frames, start=1):
        optics.check_number(strength, f"strength of frame {index}")  # 0 is the photo, which the page shows anyway
        optics.check_bokeh_strength(strength, f"strength of frame {index}")
    return tuple(sorted(frames)), [f"strength {k:.3g}" for k in sorted(frames)]


def _describe_strengths(camera: Camera, strengths: Sequence[float]) -> str:
    """Each K beside its f-number on this camera, and a hint where the blur will hardly show."""
    pairs = " · ".join(f"{k:.3g} = f/{camera.f_number_for(k):.2g}" for k in strengths)
    weak = " So small a lens keeps nearly everything sharp; choose strengths for a blur that shows."
    return f"On this camera, strength {pairs}.{weak if max(strengths) < WEAK_STRENGTH else ''}"


def _describe_camera(photo: Photo, camera: Camera) -> str:
    """A Markdown table of the lens settings and their origin, and sentences on what was assumed or changed."""
    rows = (
        ("Aperture", camera.f_number, "f/{:.2g}"),
        ("Focal length", camera.focal_length_mm, "{:.3g} mm"),
        ("35 mm equivalent", camera.focal_length_35mm, "{:.3g} mm"),
        ("Sensor width", camera.sensor_width_mm, "{:.3g} mm"),
        ("Focus distance", camera.focus_distance_m, "{:.3g} m"),
    )
    table = [f"| {name} | {form.format(value.value)} | {value.source} |" for name, value, form in rows]
    notes = [f"{note[0].upper()}{note[1:].rstrip('.')}." for note in (*photo.notes, *camera.notes)]
    if any(value.source == "assumed" for _, value, _ in rows):
        notes.insert(0, "What is *assumed* is not in the photo: correct it below if you know better.")
    return "\n".join(["| Setting | Value | Origin |", "|---|---|---|", *table, "", " ".join(notes)])


def gpu_duration_s(frames: int, steps: int, working_px: int, photo_px: int) -> int:
    """Seconds to reserve on a shared GPU: 0.3 s per frame and step at 512 x 512 px, restoring the photo, and a start.

    Args:
        frames: of the stack.
        steps: of denoising.
        working_px: pixels that the network works on, per frame.
        photo_px: pixels of the photo.
    """
    return 15 + round(frames * (0.3 * steps * working_px / 512**2 + photo_px / 4e6))


def _preview(image: PIL.Image.Image) -> PIL.Image.Image:
    """A copy small enough for the page."""
    small = image.copy()
    small.thumbnail((PREVIEW_SIDE_PX, PREVIEW_SIDE_PX))
    return small


def _example_photos() -> list[str]:
    """Paths of the photos that scikit-image bundles; none where it is not installed."""
    package = find_spec("skimage")
    folder = Path() if package is None else Path(package.origin).parent / "data"
    return [str(folder / name) for name in EXAMPLES if (folder / name).is_file()]


def _upload_path(payload: FileData | None) -> str | None:
    """The uploaded file as it is: Gradio's own reading answers a damaged one with its temporary path."""
    return None if payload is None else payload.path


def _handlers(pipeline: BokehDepthPipeline, model: str) -> tuple[Callable[..., Any], ...]:
    """What the page's events call, for one pipeline that is read and never changed."""
    weights = hub.weights_record(model)

    def duration_s(image: PIL.Image.Image, strengths: Sequence[float], steps: int, *_: Any) -> int:
        area_px = pipeline.config.default_processing_area_px
        return gpu_duration_s(len(strengths), steps, area_px, image.width * image.height)

    @spaces.GPU(duration=duration_s)
    def run_models(
        image: PIL.Image.Image,
        strengths: Sequence[float],
        steps: int,
        seed: int,
        intrinsics: np.ndarray,
        progress: gr.Progress,
    ) -> tuple[list[PIL.Image.Image], np.ndarray, dict[str, float]]:
        def report(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            progress((index + 1, steps + 1), desc="Blurring", unit="steps")
            return tensors

        start_s = time.perf_counter()
        noise = torch.Generator().manual_seed(seed)
        stack = pipeline.generate_stack(image, strengths, steps, generator=noise, callback_on_step_end=report)
        middle_s = time.perf_counter()
        progress((steps, steps + 1), desc="Measuring depth", unit="steps")
        depth = pipeline.estimate_depth(image, stack.images, strengths, intrinsics=intrinsics)
        return stack.images, depth.depth_m, {"stack": middle_s - start_s, "depth": time.perf_counter() - middle_s}

    def read_photo(photo: str | None, kind: str) -> tuple:
        """Reads the camera settings that a photo carries and proposes three frames that fit them.

        Args:
            photo: the photo, with its EXIF.
            kind: what the proposed frames are, "Strength" or "f-number".

        Returns:
            A table of the settings, each read, derived or assumed; 35 mm equivalent focal length in mm; focus distance
            in metres (empty for infinity); the three frames.
        """
        if photo is None:
            return NO_PHOTO, None, None, *(gr.skip() for _ in DEFAULT_STRENGTHS)
        with _refusals():
            opened = _open_upload(photo)
            camera = read_camera(opened)
        fields = _field(camera.focal_length_35mm), _field(camera.focus_distance_m)
        return _describe_camera(opened, camera), *fields, *_default_frames(camera, kind)

    def choose_kind(photo: str | None, kind: str, *lens: float | None) -> list[float]:
        with _refusals():
            camera = None if photo is None else _read_lens(_open_upload(photo), *lens)
        return _default_frames(camera, kind)

    def describe(photo: str | None, kind: str, *fields: float | None) -> str:
        if photo is None:
            return ""
        try:
            camera = _read_lens(_open_upload(photo), *fields[3:])
            return _describe_strengths(camera, _strengths(camera, kind, fields[:3])[0])
        except InputError as error:
            return f"⚠️ {error}"  # while a visitor types a line is enough; the button refuses

    def bokeh_depth(
        photo: str | None,
        kind: str,
        frame_1: float | None,
        frame_2: float | None,
        frame_3: float | None,
        focal_length_35mm: float | None,
        focus_distance_m: float | None,
        steps: int,
        seed: int,
        progress: gr.Progress = gr.Progress(),  # noqa: B008  (how Gradio is told to pass one)
    ) -> Iterator[tuple]:
        """Makes three blurred versions of a photo and reads its depth in metres.

        Args:
            photo: the photo, with its EXIF.
            kind: what the frames are, "Strength" or "f-number".
            frame_1: strength above 0 and within the model's range, or f-number.
            frame_2: another one.
            frame_3: another one.
            focal_length_35mm: 35 mm equivalent focal length in mm; empty takes the photo's.
            focus_distance_m: in metres; empty takes the photo's.
            steps: of denoising.
            seed: of the noise; the same seed repeats the result.
            progress: given by Gradio.

        Returns:
            Previews of the sharp photo and the frames, from least to most blur; preview of the depth with its legend
            in metres; a ZIP of all files, the frames at full size among them; depth as a 16-bit PNG with its scale;
            depth as NPZ; the run record.
        """
        frames = (frame_1, frame_2, frame_3)
        with _refusals():
            opened = _open_upload(photo)
            camera = _read_lens(opened, focal_length_35mm, focus_distance_m)
            strengths, captions = _strengths(camera, kind, frames)
            pipeline.check_inputs(opened.image, strengths, num_inference_steps=steps)
        progress(0, desc="Starting")
        images, depth_m, timings_s = run_models(opened.image, strengths, steps, seed, camera.intrinsics, progress)

        pictures = zip([opened.image, *images], ["sharp", *captions], strict=True)
        gallery = [(_preview(picture), caption) for picture, caption in pictures]
        # Gradio copies what is yielded into its own cache, which `delete_cache` empties, before it resumes here.
        with tempfile.TemporaryDirectory(prefix="bokehdepth-") as scratch:
            folder = Path(scratch) / "result"
            write_results(
                folder,
                photo=opened,
                camera=camera,
                bokeh_strengths=strengths,
                images=images,
                depth_m=depth_m,
                arguments={"photo": opened.path.name, "kind": kind, "frames": frames, "num_inference_steps": steps},
                seed=seed,
                weights=weights,
                timings_s=timings_s,
            )
            archive = shutil.make_archive(str(Path(scratch) / "bokehdepth"), "zip", folder)
            npz, png, legend = (folder / name for name in DEPTH_NAMES)
            with PIL.Image.open(legend) as picture:
                depth_picture = _preview(picture)
            yield gallery, depth_picture, archive, *map(str, (png, npz, folder / "run.json"))

    return read_photo, choose_kind, describe, bokeh_depth


def build_demo(pipeline: BokehDepthPipeline, model: str = hub.EMBEDDED) -> gr.Blocks:
    """Builds the page.

    Args:
        pipeline: with its base, ready to run.
        model: its name, for run records; the embedded one is announced as what it is.

    Returns:
        The page with its queue set up, to be launched with `launch_options`.
    """
    read_photo, choose_kind, describe, bokeh_depth = _handlers(pipeline, model)
    private = {"api_visibility": "private", "show_progress": "hidden"}
    light = {"show_progress": "hidden", "concurrency_limit": 2, "concurrency_id": "light"}
    quiet = {"interactive": False, "buttons": ["fullscreen"], "elem_classes": "picture"}

    with gr.Blocks(title="BokehDepth", analytics_enabled=False, delete_cache=(DELETE_AFTER_S,) * 2) as demo:
        gr.Markdown(INTRO)
        if model == hub.EMBEDDED:
            gr.Markdown(EMBEDDED_NOTE, elem_classes="note")
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                sources = ["upload", "clipboard", "webcam"]
                photo = gr.Image(
                    label="Photo", type="filepath", image_mode=None, sources=sources, height=300, buttons=[]
                )
                photo.preprocess = _upload_path
                examples = [[path] for path in _example_photos()]
                if examples:
                    gr.Examples(examples, photo, label="Or try one of these")
                about = "Strength: 0 is sharp, 30 the most. f-number: the aperture of your lens, smaller blurs more."
                kind = gr.Radio([STRENGTH, F_NUMBER], value=STRENGTH, label="Set the blur by", info=about)
                with gr.Row():
                    frames = [
                        gr.Number(value, label=f"Frame {index}", min_width=80)
                        for index, value in enumerate(DEFAULT_STRENGTHS, start=1)
                    ]
                strengths_line = gr.Markdown(elem_classes="note")
                run = gr.Button("Blur and measure", variant="primary")
                with gr.Accordion("Camera", open=False):
                    camera_table = gr.Markdown(NO_PHOTO, elem_classes="note")
                    with gr.Row():
                        lens = [
                            gr.Number(None, label="35 mm equivalent (mm)", min_width=120),
                            gr.Number(None, label="Focus distance (m)", min_width=120),
                        ]
                with gr.Accordion("More", open=False):
                    about = "More take longer; the default suits the model."
                    usual = pipeline.config.default_num_inference_steps
                    steps = gr.Slider(1, MAX_STEPS, usual, step=1, label="Steps", info=about)
                    about = "The same seed repeats the result."
                    seed = gr.Number(0, label="Seed", info=about, precision=0, minimum=0, maximum=2**31 - 1)
                gr.Markdown(LIMITS_NOTE, elem_classes="note")
            with gr.Column(scale=3, min_width=300):
                with gr.Tab("Blur"):
                    frame = gr.Image(label="Frame", **quiet)
                    scrubber = gr.Slider(
                        0, len(DEFAULT_STRENGTHS), 0, step=1, label="From sharp to most blurred", buttons=[]
                    )
                    caption = gr.Markdown(elem_classes="note")
                    gallery = gr.Gallery(
                        label="All frames",
                        columns=4,
                        height="auto",
                        object_fit="cover",
                        elem_classes="frames",
                        allow_preview=False,
                        interactive=False,
                        buttons=[],
                    )
                with gr.Tab("Before and after"):
                    before_after = gr.ImageSlider(label="Sharp | most blurred", max_height=520, **quiet)
                with gr.Tab("Depth"):
                    depth = gr.Image(
                        label="Depth in metres", format="png", **quiet | {"elem_classes": "picture legend"}
                    )
                with gr.Row():
                    names = ("All files (ZIP)", "Depth (PNG)", "Depth (NPZ)", "Run record")
                    files = [gr.DownloadButton(name, size="md", min_width=140) for name in names]

        settings = [photo, kind, *frames, *lens]
        proposed = [camera_table, *lens, *frames]
        photo.change(read_photo, [photo, kind], proposed, api_name="read_camera", **light)
        results = [gallery, depth, *files, frame, before_after, caption]
        photo.change(None, None, results, js=CLEAR_JS, **private)
        kind.input(choose_kind, [photo, kind, *lens], frames, api_visibility="private", **light)
        changes = [component.change for component in settings]
        gr.on(
            changes,
            describe,
            settings,
            strengths_line,
            api_visibility="private",
            trigger_mode="always_last",
            **light,
        )
        done = run.click(bokeh_depth, [*settings, steps, seed], results[:6], show_progress_on=[frame, depth])
        done.success(None, gallery, [scrubber, frame, caption, before_after], js=SHOW_ALL_JS, **private)
        scrubber.input(None, [scrubber, gallery], [frame, caption], js=SHOW_FRAME_JS, **private)
    return demo.queue(default_concurrency_limit=1, max_size=MAX_QUEUE)


def launch_options() -> dict[str, Any]:
    """Arguments of `launch` beside the address: looks, limits, fonts that no other host has to send."""
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    return {
        "theme": gr.themes.Default(primary_hue="stone", neutral_hue="stone", **fonts),
        "css": CSS,
        "max_file_size": MAX_PHOTO_BYTES,
        "footer_links": ["api", "settings"],
        "run_history": False,
        "ssr_mode": False,
    }


def main() -> None:
    """Loads the model and serves the page."""
    model = os.environ.get("BOKEHDEPTH_MODEL", hub.EMBEDDED)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pipeline = hub.load_pipeline(model, device=device)
    pipeline.set_progress_bar_config(disable=True)
    build_demo(pipeline, model).launch(**launch_options())


if __name__ == "__main__":
    main()

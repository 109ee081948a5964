"""The Space's page served on loopback for a test, and what its visitors bring."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import gradio as gr
import numpy as np
import piexif
import PIL.Image
import pytest
from gradio_client import Client, handle_file

import app
from bokehdepth.pipeline_bokehdepth import BokehDepthPipeline

SIZE_PX = (96, 64)


@contextmanager
def serve(cache: Path, pipeline: BokehDepthPipeline, *arguments: object, **constants: float) -> Iterator[gr.Blocks]:
    """The page with a cache of its own; `constants` replace those of the app while it is served."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(cache))
        patch.setenv("NO_PROXY", "127.0.0.1")
        for name, value in constants.items():
            patch.setattr(app, name, value)
        pipeline.set_progress_bar_config(disable=True)
        demo = app.build_demo(pipeline, *arguments)
        options = app.launch_options(demo)
        demo.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, **options)
        try:
            yield demo
        finally:
            demo.close()


def write_photo(path: Path, size_px: tuple[int, int] = SIZE_PX, *, orientation: int = 1, f_mm: int = 85) -> Path:
    """A JPEG of coloured noise over a gradient, with the EXIF of a full-frame camera focused at 1.5 m."""
    rng = np.random.default_rng(0)
    ramp = np.linspace(0, 160, size_px[0])[None, :, None]
    pixels = (ramp + rng.uniform(0, 90, (size_px[1], size_px[0], 3))).astype(np.uint8)
    exif = {
        "0th": {piexif.ImageIFD.Orientation: orientation},
        "Exif": {
            piexif.ExifIFD.FNumber: (4, 1),
            piexif.ExifIFD.FocalLength: (f_mm, 1),
            piexif.ExifIFD.FocalLengthIn35mmFilm: f_mm,
            piexif.ExifIFD.SubjectDistance: (3, 2),
        },
    }
    PIL.Image.fromarray(pixels).save(path, quality=95, exif=piexif.dump(exif))
    return path


def depth_of(client: Client, photo: Path, frames: list, **rest) -> tuple:
    given = {"bokeh_strengths": None, "f_numbers": None, "focal_length_35mm": None, "focus_distance_m": None}
    files = [handle_file(path) for path in frames]
    given |= {"method": "Network"} | rest
    return client.predict(photo=handle_file(photo), frames=files, **given, api_name="/estimate_depth")

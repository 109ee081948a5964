"""``bokehdepth render``: a photo and its depth through another aperture and focus. No model, no torch."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from .options import add_lens_options, add_talk_options
from .talk import EXIT_DONE, logger, write_json


def add_render(commands: Any) -> None:
    """Add ``render`` to the commands of a parser."""
    parser = commands.add_parser(
        "render",
        help="refocus a photo by its depth map: any aperture, any focus",
        description="Renders a sharp photo through a lens, with occlusion, from any metric depth map of its size. "
        "Writes OUT/<name of the photo>/refocus_k20_2.4m.png and a record of the same name (.json).",
        epilog="Example: bokehdepth render cat.jpg --depth out/cat/depth.npz --focus-at 310,240 --f-number 1.4 -o out",
    )
    parser.set_defaults(handler=_render)
    parser.add_argument("photo", metavar="PHOTO", type=Path, help="the sharp photo")
    parser.add_argument(
        "--depth",
        metavar="FILE",
        type=Path,
        required=True,
        help="depth map in metres, of the photo's size: depth.npz or depth.png of this program, or any .npy (H, W)",
    )
    parser.add_argument("-o", "--output", metavar="OUT", type=Path, required=True, help="folder of the results")
    focus = parser.add_mutually_exclusive_group(required=True)
    focus.add_argument(
        "--focus-at", metavar="X,Y", type=_point, help="focus on what is at this pixel of the upright photo"
    )
    add_lens_options(parser, focus)
    blur = parser.add_mutually_exclusive_group(required=True)
    blur.add_argument(
        "--f-number", metavar="N", type=float, help="aperture; K follows from the photo's focal length and sensor"
    )
    blur.add_argument(
        "--bokeh-strength", metavar="K", type=float, help="blur radius in px per dioptre (1/m) at 512 px width"
    )
    parser.add_argument(
        "--blades", metavar="N", type=int, default=0, help="aperture with N straight blades (default: a round one)"
    )
    parser.add_argument("--rotation", metavar="DEG", type=float, default=0.0, help="turns the aperture (default: 0)")
    parser.add_argument(
        "--squeeze", metavar="R", type=float, default=1.0, help="height over width of the blur, 2 for anamorphic"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace results that exist")
    add_talk_options(parser)


def _point(text: str) -> tuple[float, float]:
    try:
        x, y = map(float, text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no point X,Y in pixels") from None
    return x, y


def _render(arguments: argparse.Namespace) -> int:
    """Check everything, render, and write the picture and its record, both or none."""
    import numpy as np
    from PIL import Image

    from .. import io
    from ..camera import read_camera
    from ..imaging import open_photo
    from ..optics import check_number
    from ..rendering.aperture import Aperture
    from ..rendering.refocus import check_depth_for, focus_distance_at, render_from_depth
    from ..results import check_folder
    from ..staging import staged

    photo = open_photo(arguments.photo)
    aperture = Aperture(arguments.blades, arguments.rotation, arguments.squeeze)
    image = np.asarray(photo.image, dtype=np.float32) / 255
    depth_m = check_depth_for(io.load_depth(arguments.depth), image)
    focus_m = arguments.focus_distance
    if focus_m is None:
        focus_m = focus_distance_at(depth_m, *arguments.focus_at)
    camera = read_camera(
        photo,
        focal_length_mm=arguments.focal_length,
        focal_length_35mm=arguments.focal_length_35mm,
        focus_distance_m=focus_m,
    )
    if arguments.f_number is not None:
        strength = float(f"{camera.bokeh_strength(check_number(arguments.f_number, 'f_number')):.4g}")
    else:
        strength = check_number(arguments.bokeh_strength, "bokeh_strength", zero=True)
    stem = f"refocus_k{strength:.6g}_{focus_m:.4g}m"
    names = [f"{stem}.png", f"{stem}.json"]
    folder = arguments.output / arguments.photo.stem
    check_folder(folder, names, overwrite=arguments.overwrite)
    assumed = [] if arguments.f_number is None else [s for s in camera.assumptions() if not s.startswith("f_number ")]
    for sentence in assumed:
        logger.warning("photo %r: %s", arguments.photo.name, sentence)

    started = time.perf_counter()
    rendered = render_from_depth(image, depth_m, strength, focus_m, aperture=aperture)
    timings_s = {"render": round(time.perf_counter() - started, 3)}
    left_out = ("handler", "json", "verbose", "quiet")
    record = io.run_record(
        arguments={name: value for name, value in vars(arguments).items() if name not in left_out},
        seed=None,
        weights={},
        camera=camera.record(),
        bokeh_strengths=[strength],
        sizes_px={"photo": photo.image.size},
        timings_s=timings_s,
        assumptions=assumed,
        photo_notes=photo.notes,
    )
    record["files"] = names
    with staged(folder, names=names, overwrite=arguments.overwrite) as staging:
        text = {"bokeh_strength": f"{strength:g}", "focus_distance_m": f"{focus_m:g}", "source": "rendered from depth"}
        picture = Image.fromarray(np.round(rendered * 255).astype(np.uint8))
        io.save_image(staging / names[0], picture, metadata=text, ai_generated=False)
        io.save_json(staging / names[1], record)
    if arguments.json:
        done = {"photo": arguments.photo, "files": [folder / name for name in names], "bokeh_strength": strength}
        write_json({"command": "render", **done, "focus_distance_m": focus_m, "timings_s": timings_s})
    else:
        sys.stdout.write(f"{folder / names[0]}\n")
    return EXIT_DONE

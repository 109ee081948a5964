"""``bokehdepth render``: a photo and its depth through another aperture and focus. No model, no torch."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from .options import add_lens_options, add_talk_options
from .talk import EXIT_DONE, logger, say, write_json


def add_render(commands: Any) -> None:
    """Add ``render`` to the commands of a parser."""
    from ..files.depth_maps import UNIT_WORDS

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
        help="depth map of the photo's size: a file of this program, or NPY, NPZ, 16-bit PNG, TIFF, PFM or EXR (with "
        "the library OpenEXR) of another one, with --depth-unit; 0 and NaN are pixels without depth, "
        "infinity is the sky",
    )
    parser.add_argument(
        "--depth-unit",
        metavar="UNIT",
        help=f"unit of a depth file that does not state it: {UNIT_WORDS}",
    )
    parser.add_argument(
        "--fill-depth",
        action="store_true",
        help="give pixels without depth that of the nearest pixel that has one (default: they are refused)",
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

    from ..camera.f_numbers import lens_assumptions
    from ..errors import InputError
    from ..files.atomic import staged
    from ..files.depth_maps import fill_unknown, load_depth
    from ..files.photos import open_photo
    from ..files.run_record import run_record, save_json
    from ..rendering.aperture import Aperture
    from ..tasks.refocus_job import plan_refocusing
    from ..tasks.result_files import check_folder

    photo = open_photo(arguments.photo)
    depth_m = load_depth(arguments.depth, unit=arguments.depth_unit, size_px=photo.image.size)
    unknown = int(np.isnan(depth_m).sum())
    if unknown and not arguments.fill_depth:
        raise InputError(f"file {arguments.depth.name!r} has {unknown} pixels without depth, wanted --fill-depth.")
    plan = plan_refocusing(
        photo,
        fill_unknown(depth_m),
        focus_distance_m=arguments.focus_distance,
        focus_at_px=arguments.focus_at,
        bokeh_strength=arguments.bokeh_strength,
        f_number=arguments.f_number,
        focal_length_mm=arguments.focal_length,
        focal_length_35mm=arguments.focal_length_35mm,
        aperture=Aperture(arguments.blades, arguments.rotation, arguments.squeeze),
    )
    names = [f"{plan.stem}.png", f"{plan.stem}.json"]
    folder = arguments.output / arguments.photo.stem
    check_folder(folder, names, overwrite=arguments.overwrite)
    assumed = [] if arguments.f_number is None else lens_assumptions(plan.camera)
    if unknown:
        assumed.append(f"{unknown} pixels without depth took that of the nearest pixel that has one.")
    for sentence in assumed:
        logger.warning("photo %r: %s", arguments.photo.name, sentence)

    started = time.perf_counter()
    picture = plan.render()
    timings_s = {"render": round(time.perf_counter() - started, 3)}
    left_out = ("handler", "json", "verbose", "quiet")
    record = run_record(
        arguments={name: value for name, value in vars(arguments).items() if name not in left_out},
        seed=None,
        weights={},
        camera=plan.camera.record(),
        bokeh_strengths=[plan.bokeh_strength],
        sizes_px={"photo": photo.image.size},
        timings_s=timings_s,
        assumptions=assumed,
        photo_notes=photo.notes,
    )
    record["files"] = names
    replaced = names if arguments.overwrite else ()
    with staged(folder, names=names, overwrite=arguments.overwrite, replaced=replaced) as staging:
        plan.save(staging, picture)
        save_json(staging / names[1], record)
    if arguments.json:
        done = {"photo": arguments.photo, "files": [folder / name for name in names]}
        done |= {"bokeh_strength": plan.bokeh_strength, "focus_distance_m": plan.focus_distance_m}
        write_json({"command": "render", **done, "timings_s": timings_s})
    else:
        say(str(folder / names[0]))
    return EXIT_DONE

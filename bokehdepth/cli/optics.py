"""``bokehdepth optics``: what each aperture does to a photo. No torch."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .options import add_lens_options, add_talk_options
from .talk import EXIT_DONE, say, write_json

if TYPE_CHECKING:
    from ..camera.f_numbers import ApertureRow


def add_optics(commands: Any) -> None:
    """Add ``optics`` to the commands of a parser."""
    optics = commands.add_parser(
        "optics",
        help="table of f-number, bokeh strength K, background blur and depth of field of a photo",
        description="What each aperture does to a photo at its focus, from its EXIF. Loads no model.",
        epilog="Example: bokehdepth optics portrait.jpg --focus-distance 1.8",
    )
    optics.add_argument("photo", metavar="PHOTO", type=Path, help="the photo")
    optics.set_defaults(handler=_optics)
    add_lens_options(optics)
    add_talk_options(optics)


def _optics(arguments: argparse.Namespace) -> int:
    """Print what each aperture does to a photo."""
    from ..camera import read_camera
    from ..camera.f_numbers import STANDARD_F_NUMBERS, acceptable_coc_mm, aperture_table, smallest_f_number
    from ..files.photos import open_photo

    photo = open_photo(arguments.photo)
    camera = read_camera(
        photo,
        focal_length_mm=arguments.focal_length,
        focal_length_35mm=arguments.focal_length_35mm,
        focus_distance_m=arguments.focus_distance,
    )
    own = None if camera.f_number.source == "assumed" else camera.f_number.value
    rows = aperture_table(camera, sorted({*STANDARD_F_NUMBERS, *(() if own is None else (own,))}))
    widest, coc_mm = smallest_f_number(camera), acceptable_coc_mm(camera)
    if arguments.json:
        write_json(
            {
                "photo": arguments.photo,
                "photo_notes": photo.notes,
                "camera": camera.to_dict(),
                "acceptable_coc_mm": coc_mm,
                "smallest_f_number": widest,
                "apertures": rows,
            }
        )
        return EXIT_DONE
    lines = [f"{arguments.photo}: {camera.image_width_px} x {camera.image_height_px} px"]
    for name, value in camera.to_dict().items():
        if isinstance(value, dict):
            number = value["value"] if isinstance(value["value"], str) else f"{value['value']:.4g}"
            lines.append(f"  {name:<18} {number:>9}  {value['source']:<8}  {value['note']}")
    lines += [f"  note: {note}" for note in (*photo.notes, *camera.notes)]
    lines += ["", *_table_lines(rows, own), ""]
    lines.append(f"Blur is that of a point at infinity. Sharp means a blur disk under {coc_mm:.3g} mm on the sensor.")
    if not all(row.fits for row in rows):
        lines.append(f"* K is above 30, the trained range; the nearest f-number that fits is f/{widest:g}.")
    say("\n".join(lines))
    return EXIT_DONE


def _table_lines(rows: Sequence[ApertureRow], own_f_number: float | None) -> list[str]:
    head = ("f-number", "K", "radius px", "diameter px", "diameter mm", "sharp from m", "to m")
    lines = ["".join(f"{title:>13}" for title in head)]
    for row in rows:
        cells = (
            f"f/{row.f_number:.4g}",
            f"{row.bokeh_strength:.3f}{' ' if row.fits else '*'}",
            f"{row.background_radius_px:.2f}",
            f"{row.background_coc_px:.2f}",
            f"{row.background_coc_mm:.4f}",
            f"{row.near_m:.3g}",
            f"{row.far_m:.3g}",
        )
        mark = "  this photo" if row.f_number == own_f_number else ""
        lines.append("".join(f"{cell:>13}" for cell in cells) + mark)
    return lines

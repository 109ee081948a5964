"""``bokehdepth bench``: measurements beside rivals, in one run on this machine."""

from __future__ import annotations

import argparse
from typing import Any

from .options import add_talk_options, device_name, whole_number
from .talk import EXIT_DONE, EXIT_FAILED, say, write_json


def add_bench(commands: Any) -> None:
    """Add ``bench`` and what it can measure to the commands of a parser."""
    bench = commands.add_parser(
        "bench",
        help="measure speed and accuracy beside rivals, in one run",
        description="Measurements in one process and one run, all contenders in turn. Ends with code 1 if a fast "
        "variant differs from the exact one by more than it may.",
    )
    kinds = bench.add_subparsers(dest="kind", metavar="WHAT", required=True)
    render = kinds.add_parser(
        "render",
        help="defocus renderers: span scatter, brute force, FFT and OpenCV per layer",
        description="Pixels a second of defocus renderers on one core, on a procedural scene.",
    )
    render.set_defaults(handler=_render)
    render.add_argument("--sizes", metavar="PX", nargs="+", type=whole_number(32), default=[512, 1024])
    render.add_argument("--mean-radii", metavar="PX", nargs="+", type=float, default=[3.4, 10.0, 21.0])
    render.add_argument("--repeats", metavar="N", type=whole_number(1), default=3, help="rounds (default: 3)")
    render.add_argument(
        "--device", type=device_name, default="cpu", help="of the torch renderer (default: %(default)s)"
    )
    add_talk_options(render)
    scenes = kinds.add_parser(
        "scenes",
        help="procedural scenes a second, made and rendered",
        description="Procedural scenes a second on one core: made, and rendered at K = 10, 20 and 30.",
    )
    scenes.set_defaults(handler=_scenes)
    scenes.add_argument("--sizes", metavar="PX", nargs="+", type=whole_number(32), default=[128, 256])
    scenes.add_argument("--scenes", metavar="N", type=whole_number(1), default=24, help="how many (default: 24)")
    scenes.add_argument("--device", type=device_name, default="cpu", help="of the batches (default: %(default)s)")
    add_talk_options(scenes)

    sweep = kinds.add_parser(
        "sweep",
        help="depth from rendered bokeh sweeps with noise, beside constant guesses",
        description="Error of depth from a bokeh sweep (Eq. 28, 34) in textured and flat areas and at occlusion "
        "borders, for several noises and K, both estimators. Takes minutes.",
    )
    sweep.set_defaults(handler=_sweep)
    sweep.add_argument("--size", metavar="PX", type=whole_number(32), default=256, help="default: %(default)s")
    sweep.add_argument("--scenes", metavar="N", type=whole_number(1), default=6, help="of each kind (default: 6)")
    sweep.add_argument("--noises", metavar="S", nargs="+", type=float, default=[0.0, 0.01, 0.03])
    add_talk_options(sweep)

    stage1 = _stage(
        kinds,
        "stage1",
        "a bokeh stack, beside FLUX.1-Kontext called the documented way",
        "Time, work and memory of a bokeh stack with random weights: Kontext, the released procedure, and each saving "
        "of ours with the difference that it makes.",
    )
    stage1.add_argument("--frames", metavar="F", type=whole_number(2), default=3, help="K of a stack (default: 3)")
    stage1.add_argument("--steps", metavar="N", type=whole_number(2), default=6, help="default: %(default)s")
    stage1.add_argument("--compile", action="store_true", help="also compiled blocks, a minute more for each shape")
    stage2 = _stage(
        kinds,
        "stage2",
        "depth from a stack, beside Depth Anything on the photo alone",
        "Time, work and memory of depth from photo and stack with random weights, and of the step across frames.",
    )
    stage2.add_argument("--frames", metavar="F", type=whole_number(2), default=4, help="photo included (default: 4)")
    pipeline = _stage(
        kinds,
        "pipeline",
        "both stages and the embedded model",
        "Time, work and memory of a photo to stack and depth, with random weights and with the embedded model; a load "
        "from a folder beside the counted bytes.",
        true_size=False,
    )
    pipeline.add_argument("--frames", metavar="F", type=whole_number(2), default=3, help="K of a stack (default: 3)")
    pipeline.add_argument("--steps", metavar="N", type=whole_number(2), default=4, help="default: %(default)s")
    training = _stage(
        kinds,
        "training",
        "a step of adapter training, with and without each saving",
        "Time and peak memory of a step of adapter training with random weights.",
    )
    training.add_argument("--batch", metavar="B", type=whole_number(1), default=2, help="photos (default: 2)")
    training.add_argument("--count", action="store_true", help="count memory as on a GPU, run nothing")


_SIZES_PX = {"stage1": 160, "stage2": 196, "pipeline": 128, "training": 160}


def _stage(kinds: Any, name: str, what: str, description: str, true_size: bool = True) -> argparse.ArgumentParser:
    """A bench of networks: its handler takes every option that its ``run`` has."""
    parser = kinds.add_parser(name, help=what, description=description)
    parser.set_defaults(handler=_networks, bench=name)
    parser.add_argument(
        "--size", metavar="PX", type=whole_number(1), default=_SIZES_PX[name], help="default: %(default)s"
    )
    parser.add_argument("--repeats", metavar="N", type=whole_number(1), default=3, help="rounds (default: 3)")
    parser.add_argument("--device", type=device_name, default="cpu", help="default: %(default)s")
    if true_size:
        parser.add_argument("--true-size", action="store_true", help="FLUX.1-Kontext and ViT-L at their own size")
    add_talk_options(parser)
    return parser


def _networks(arguments: argparse.Namespace) -> int:
    from importlib import import_module

    from ..benchmarks import gates

    bench = import_module(f"..benchmarks.{arguments.bench}", __package__)
    options = {"size": "size_px", "compile": "compiled"}
    known = ("size", "frames", "steps", "batch", "repeats", "device", "true_size", "compile", "count")
    given = {options.get(name, name): getattr(arguments, name) for name in known if hasattr(arguments, name)}
    result = bench.run(**given)
    if arguments.json:
        write_json(result)
    else:
        say(bench.as_text(result))
    return EXIT_DONE if gates.passed(result) else EXIT_FAILED


def _sweep(arguments: argparse.Namespace) -> int:
    from ..benchmarks import sweep

    result = sweep.run(arguments.noises, scenes=arguments.scenes, size_px=arguments.size)
    if arguments.json:
        write_json(result)
    else:
        say(sweep.as_text(result))
    return EXIT_DONE


def _scenes(arguments: argparse.Namespace) -> int:
    from ..benchmarks import scenes

    result = scenes.run(arguments.sizes, arguments.scenes, arguments.device)
    if arguments.json:
        write_json(result)
    else:
        say(scenes.as_text(result))
    return EXIT_DONE


def _render(arguments: argparse.Namespace) -> int:
    from ..benchmarks import render

    result = render.run(arguments.sizes, arguments.mean_radii, arguments.repeats, device=arguments.device)
    if arguments.json:
        write_json(result)
    else:
        say(render.as_text(result))
    return EXIT_DONE if all(gate["passed"] for gate in result["gates"]) else EXIT_FAILED

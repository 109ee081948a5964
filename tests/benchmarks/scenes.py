"""Procedural scenes a second on one core, made and rendered at three K: `python tests/benchmarks/scenes.py`."""

import argparse
from collections.abc import Sequence

import torch

from bokehdepth.camera.lens import DEFAULT_BOKEH_STRENGTHS
from datasets_scripts.scenes.generator import SceneGenerator
from measure import Contender, seconds


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 256], metavar="PX")
    parser.add_argument("--scenes", type=int, default=24, help="how many (default: 24)")
    options = parser.parse_args(arguments)
    for size_px in options.sizes:
        generator = SceneGenerator((size_px, size_px), seed=0)
        made = [generator.generate(index) for index in range(options.scenes)]
        contenders = {
            "made": Contender(lambda generator=generator: [generator.generate(i) for i in range(options.scenes)]),
            "rendered": Contender(lambda made=made: [s.render(k) for s in made for k in DEFAULT_BOKEH_STRENGTHS]),
        }
        taken = seconds(contenders, 1, torch.device("cpu"))
        both = options.scenes / sum(taken.values())
        rates = ", ".join(f"{name} {options.scenes / value:.3g}/s" for name, value in taken.items())
        print(f"{size_px} px: {rates}, both {both:.3g}/s")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

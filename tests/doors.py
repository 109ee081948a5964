"""The ways that strangers load a published folder."""

import os
import subprocess
import sys
from pathlib import Path

import torch

REMOTE = """
import sys, numpy as np, torch
from diffusers import DiffusionPipeline
from PIL import Image
pipe = DiffusionPipeline.from_pretrained(sys.argv[1], trust_remote_code=True)
assert not any(name == "bokehdepth" or name.startswith("bokehdepth.") for name in sys.modules), "package in use"
image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 80, 3), dtype=np.uint8))
out = pipe(image, (10, 20), generator=torch.Generator().manual_seed(0))
pipe.save_pretrained(sys.argv[2] + "/again")
np.savez(sys.argv[2] + "/out.npz", depth=out.depth_m, frames=np.stack([np.asarray(f) for f in out.images]))
"""


def run_remote_door(folder: Path, output: Path) -> None:
    """Loads a folder by `DiffusionPipeline` and its own code alone, runs it, saves it to `output/again`."""
    run = subprocess.run(
        [sys.executable, "-c", REMOTE, str(folder), str(output)],
        cwd=output,
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "HF_HOME": str(output / "hf"),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": str(torch.get_num_threads()),  # sums round by how they are divided among threads
        },
    )
    assert run.returncode == 0, run.stderr[-3000:]

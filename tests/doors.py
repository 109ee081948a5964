"""The ways that strangers load a published folder, each in a process with an environment of its own."""

import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import torch
from PIL import Image

# What every client process starts with. `keep` writes an output where the test compares it.
PRELUDE = """
import json, sys, urllib.request, numpy as np, torch
from pathlib import Path
from PIL import Image

photo = Image.open("photo.png").convert("RGB")

def call(pipe):
    pipe.set_progress_bar_config(disable=True)
    torch.manual_seed(0)
    return pipe(photo, bokeh_strengths=(10, 20))

def keep(name, out):
    frames = np.stack([np.asarray(frame) for frame in out.images])
    np.savez(f"{name}.npz", depth=out.depth_m, frames=frames)

def order(**what):
    import os
    request = urllib.request.Request(os.environ["HF_ENDPOINT"] + "/_test", json.dumps(what).encode(), method="POST")
    return json.loads(urllib.request.urlopen(request).read())
"""

NO_PACKAGE = """
import importlib.util
assert importlib.util.find_spec("bokehdepth") is None, "the package can be imported"
"""

REMOTE = """
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained(sys.argv[1], trust_remote_code=True)
keep("out", call(pipe))
pipe.save_pretrained("again")
"""


def write_photo(folder: Path) -> Image.Image:
    """The photo that all doors are tried with, as `photo.png` and `photo.jpg` in their folder."""
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 80, 3), dtype=np.uint8))
    photo.save(folder / "photo.png")
    photo.save(folder / "photo.jpg", quality=95)
    return photo


def site_without_package(folder: Path) -> Path:
    """A folder with links to everything that is installed but this package."""
    site = folder / "site"
    if not site.is_dir():
        site.mkdir()
        for path in Path(sysconfig.get_paths()["purelib"]).iterdir():
            if not path.name.startswith(("bokehdepth", "__editable__", "__pycache__")) and path.suffix != ".pth":
                (site / path.name).symlink_to(path)
    return site


def run_client(
    code: str, folder: Path, environment: dict[str, str], *arguments: str, package: bool = True
) -> subprocess.CompletedProcess:
    """Runs code behind `PRELUDE` in a folder; without the package it cannot be imported there at all."""
    variables = {
        **os.environ,
        "OMP_NUM_THREADS": str(torch.get_num_threads()),  # sums round by how they are divided among threads
        "PYTHONDONTWRITEBYTECODE": "1",
        **environment,
    }
    command = [sys.executable, "-c", PRELUDE + code]
    if not package:
        # Without the site module no .pth file of an editable installation is read.
        variables["PYTHONPATH"] = str(site_without_package(folder))
        command = [sys.executable, "-S", "-c", NO_PACKAGE + PRELUDE + code]
    run = subprocess.run([*command, *arguments], cwd=folder, capture_output=True, text=True, env=variables)
    assert run.returncode == 0, f"{run.stdout[-1000:]}\n{run.stderr[-4000:]}"
    return run


def run_remote_door(folder: Path, output: Path) -> None:
    """Loads a folder by `DiffusionPipeline` and its own code alone, runs it, saves it to `output/again`."""
    write_photo(output)
    environment = {"HF_HOME": str(output / "hf"), "HF_HUB_OFFLINE": "1"}
    run_client(REMOTE, output, environment, str(folder), package=False)


def call_local(pipe, photo: Image.Image):
    """What `call` of the prelude does, in this process."""
    pipe.set_progress_bar_config(disable=True)
    torch.manual_seed(0)
    return pipe(photo, bokeh_strengths=(10, 20))


def assert_same_bits(file: Path, wanted) -> None:
    """Compares an output that a client kept with one of this process."""
    with np.load(file) as out:
        assert np.array_equal(out["depth"], wanted.depth_m), file.stem
        assert np.array_equal(out["frames"], np.stack([np.asarray(frame) for frame in wanted.images])), file.stem


def examples(text: str, language: str = "python") -> list[str]:
    """The code blocks of a card or README."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)

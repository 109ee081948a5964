"""What processes wait for each other: true runs of two processes (gloo)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import waiting_runs
from PIL import Image

import tiny
from bokehdepth.manifest import CameraAnns, ManifestRow, read_manifest, write_manifest

pytestmark = pytest.mark.filterwarnings("ignore")
ROOT = Path(__file__).resolve().parents[1]


def started(what, folder):
    # accelerate starts several processes by this flag; that they are on CPUs (gloo) the project sees by itself.
    launch = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1")
    options = ("--mixed_precision", "no", "--dynamo_backend", "no")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, *launch, *options, "tests/waiting_runs.py", what, str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]


def manifest(folder, name, captions=((), ())):
    """A manifest of as many photos as there are lists of captions."""
    made = []
    for number, texts in enumerate(captions):
        colours = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(colours).resize((64, 64)).save(folder / f"p{number}.png")
        made.append(ManifestRow(row_id=f"p{number}", scene=f"p{number}", image_path=folder / f"p{number}.png",
                                target_path=folder / f"p{number}.png", strength_unit="metric", captions=texts,
                                camera_anns=CameraAnns(bokeh_strength=10.0)))  # fmt: skip
    write_manifest(folder / name, made)


def test_nobody_waits_while_one_process_does_the_work_of_all(tmp_path):
    """One process alone takes longer for pool or captions than another may wait here; the halves take less."""
    alone_s = waiting_runs.ITEMS * waiting_runs.ITEM_S
    assert alone_s > waiting_runs.WAIT_S > 1.1 * alone_s / 2
    tiny.kontext().save_pretrained(tmp_path / "kontext")
    texts = tuple(f"scene {n}" for n in range(waiting_runs.ITEMS - 2))  # and the constant and the empty prompt
    manifest(tmp_path, "captions.jsonl", (texts[:3], texts[3:]))
    started("wait", tmp_path)
    first, second = (json.loads((tmp_path / f"{n}.json").read_text()) for n in range(2))
    assert first["encoded"] == second["encoded"] == waiting_runs.ITEMS
    assert len(list((tmp_path / "pool").glob("*.npz"))) == waiting_runs.ITEMS
    # loop.timeout_s is what the process group works with: who waits longer gives up.
    assert first["limit"] == second["limit"] == waiting_runs.WAIT_S
    assert waiting_runs.WAIT_S - 1 < second["gave_up_s"] < waiting_runs.WAIT_S + 3


def test_stacks_wait_for_the_slowest_process(tmp_path):
    """The rows are divided beforehand, so the first to be done waits as long as the others differ from it."""
    manifest(tmp_path, "photos.jsonl")
    started("stacks", tmp_path)
    found = [json.loads((tmp_path / f"{n}.json").read_text()) for n in range(2)]
    assert found == [{"limit": 48 * 3600, "made": ["p0"]}, {"limit": 48 * 3600, "made": ["p1"]}]
    assert [len(row.stack) for row in read_manifest(tmp_path / "stacks.jsonl")] == [2, 2]

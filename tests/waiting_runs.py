"""What the tests of waiting start on two processes, with tiny networks of the true classes.

`accelerate launch ... tests/waiting_runs.py wait FOLDER`: what one process could do while another waits.
`accelerate launch ... tests/waiting_runs.py stacks FOLDER`: stacks of a manifest.
"""

import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
WAIT_S, ITEM_S, ITEMS = 6.0, 1.25, 8


def wait(folder: str) -> None:
    """Renders a pool and encodes captions, each in more time than a process may wait if one did all of it.

    Then the first process is late by more than that. What came of it is written to `<process>.json`.
    """
    import torch
    from diffusers import FluxKontextPipeline

    from train import data, loop, stage1
    from train.config import ManifestConfig, Stage1Config, load

    def slowed(call):
        def slow(*arguments, **options):
            time.sleep(ITEM_S)
            return call(*arguments, **options)

        return slow

    data.render_shard = slowed(data.render_shard)
    FluxKontextPipeline.encode_prompt = slowed(FluxKontextPipeline.encode_prompt)
    shards = [f"pool.scenes={ITEMS - 1}", "pool.held_out_scenes=1", "pool.shard=1", "pool.size_px=32"]
    changes = [f"pool.folder={folder}/pool", *shards, f"loop.timeout_s={WAIT_S}"]
    cfg = load(Stage1Config, ROOT / "train/configs/stage1_debug.yaml", [*changes, f"prompts.cache={folder}/prompts"])
    process = int(os.environ["RANK"])
    # Starting up takes two processes of a busy machine unequally long, which is not what is tested.
    Path(folder, f"{process}.ready").touch()
    while not all(Path(folder, f"{n}.ready").exists() for n in range(2)):
        time.sleep(0.05)
    accelerator = loop.start(cfg)
    group = torch.distributed.distributed_c10d._get_default_group()
    limit = group._get_backend(torch.device("cpu")).options._timeout.total_seconds()
    data.fill_pool(cfg.pool, process, 2, accelerator.wait_for_everyone)
    captioned = replace(
        cfg,
        pool=None,
        manifests=ManifestConfig([f"{folder}/captions.jsonl"], renders=1),
        base=replace(cfg.base, path=f"{folder}/kontext", transformer={}, autoencoder={}),
        prompts=replace(cfg.prompts, tokens=8),
    )
    prompts = stage1.prepare_prompts(captioned, accelerator)
    encoded = len(list(prompts.folder.glob("*.safetensors")))
    began, gave_up = time.monotonic(), None
    if process == 0:
        time.sleep(WAIT_S + 3)
    else:
        try:
            accelerator.wait_for_everyone()
        except RuntimeError:
            gave_up = time.monotonic() - began
    Path(folder, f"{process}.json").write_text(json.dumps({"limit": limit, "encoded": encoded, "gave_up_s": gave_up}))
    os._exit(0)  # the group is broken on purpose: no goodbye


def stacks(folder: str) -> None:
    """Stacks of a manifest by the embedded model.

    Writes how long the process group would wait, and the rows that this process made, to `<process>.json`.
    """
    import torch

    from train import stacks

    made, make_row = [], stacks.make_row

    def noted(pipeline, row, *arguments, **options):
        made.append(row.row_id)
        make_row(pipeline, row, *arguments, **options)

    stacks.make_row = noted
    sys.argv = ["stacks", "--manifest", f"{folder}/photos.jsonl", "--output", "stacks", "--size", "64",
                "--bokeh-strengths", "5", "15"]  # fmt: skip
    stacks.main()
    group = torch.distributed.distributed_c10d._get_default_group()
    limit = group._get_backend(torch.device("cpu")).options._timeout.total_seconds()
    Path(folder, f"{os.environ['RANK']}.json").write_text(json.dumps({"limit": limit, "made": made}))


if __name__ == "__main__":
    {"wait": wait, "stacks": stacks}[sys.argv[1]](sys.argv[2])

"""What the training tests start in processes of their own, with tiny networks of the true classes.

`python tests/train_runs.py kill FOLDER`: all trainers, each killed by SIGKILL while it writes its second checkpoint.
`accelerate launch ... tests/train_runs.py pair FOLDER`: all trainers, four steps.
"""

import json
import os
import signal
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CLIP = 0.005
sys.path.insert(0, str(ROOT))


TRANSFORMER = {
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "axes_dims_rope": [4, 6, 6],
    "joint_attention_dim": 8,
    "pooled_projection_dim": 8,
    "width_factor": 0.25,
    "depth_factor": 0.25,
    "decoder_channels": [8, 8, 8, 8],
}
DEPTH_MODEL = {"width_factor": 0.25, "depth_factor": 0.25, "decoder_channels": [8, 8, 8, 8], "guide_channels": 8,
               "dsfa_num_heads": 2, "area_px": 32 * 64}  # fmt: skip


def draw_photos(folder: Path) -> Path:
    """A manifest of six drawn photographs: depth with holes, one without scale, one without a camera; masks."""
    import numpy as np
    from PIL import Image

    from bokehdepth.manifest import Intrinsics, ManifestRow, write_manifest

    rng, rows = np.random.default_rng(0), []
    for number in range(6):
        name, size = folder / f"photo{number}", (64, 96) if number % 2 else (96, 64)
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(name.with_suffix(".png"))
        row = {"row_id": name.name, "scene": name.name, "image_path": name.with_suffix(".png"), "split": "train"}
        if number < 4:
            steps = (1000 + 900 * np.linspace(0, 1, size[0])[:, None] + rng.integers(0, 50, size)).astype(np.uint16)
            steps[:10] = 0
            Image.fromarray(steps).save(folder / f"depth{number}.png")
            unit = "relative_disparity" if number == 2 else "m"
            row |= {"depth_path": folder / f"depth{number}.png", "depth_unit": unit, "depth_scale": 1e-3}
            row |= {"dataset": "rooms"} | ({} if number == 1 else {"intrinsics": Intrinsics(80.0, 80.0, 32.0, 32.0)})
        else:
            mask = np.zeros(size, np.uint8)
            mask[size[0] // 4 :, size[1] // 4 : -size[1] // 4] = 255
            Image.fromarray(mask).save(folder / f"mask{number}.png")
            row |= {"mask_path": folder / f"mask{number}.png", "dataset": "people_ccp"}
        rows.append(ManifestRow(**row))
    write_manifest(folder / "photos.jsonl", rows)
    return folder / "photos.jsonl"


def save_depth_model(folder: Path) -> Path:
    """A tiny depth model on EfficientNet-Lite with random weights."""
    import torch

    from bokehdepth import BokehDepthEfficientNetConfig, BokehDepthEfficientNetForDepthEstimation

    torch.manual_seed(0)
    BokehDepthEfficientNetForDepthEstimation(BokehDepthEfficientNetConfig(**DEPTH_MODEL)).save_pretrained(folder)
    return folder


def configs(folder, batch_factor: int = 1, **loop):
    """The trainers on a shared pool, small enough for many runs, by name.

    one is Stage-1 on a Flux base; two Stage-2 with holes in its truth, samples without a stack and every term of its
    loss. photos1 and photos2 are the embedded model on photographs and scenes, where `folder/photos` has been drawn.
    """
    from train.config import Stage1Config, Stage2Config, load

    def changed(kind, name, *changes):
        scenes = (f"pool.folder={folder}/pool", "pool.seed=9")  # every scene of this seed has something near
        cfg = load(kind, ROOT / f"train/configs/{name}_debug.yaml", [*scenes, *changes])
        optimizer = replace(cfg.optimizer, warmup=2, name="sgd", grad_clip=CLIP)
        settings = {"log_every": 1, "save_every": 2, "sample_every": 0, "keep": 2, **loop}
        return replace(cfg, optimizer=optimizer, loop=replace(cfg.loop, **settings))

    one = changed(Stage1Config, "stage1", f"output={folder}/one", "prompts.strength_dropout=0.3", "grounded_share=0.5")
    phases = [replace(one.phases[0], steps=4, batch=4 * batch_factor, learning_rate=1.0)]
    one = replace(one, phases=phases)
    two = changed(Stage2Config, "stage2", f"output={folder}/two", "max_depth_m=2.5", "relative_weight=0.3",
                  "lone_share=0.4")  # fmt: skip
    two = replace(two, steps=4, batch=2 * batch_factor, learning_rate=0.1)
    cfgs = {"one": one, "two": two}
    photos = f"photos={json.dumps({'files': [f'{folder}/photos/photos.jsonl'], 'scene_share': 0.3})}"
    phase = {"size_px": 32, "width_px": 64, "batch": 2 * batch_factor, "steps": 4, "learning_rate": 0.05}
    common = (photos, "pool.renders=0", f"pool.folder={folder}/scenes", f"phases={json.dumps([phase])}")
    cfgs["photos1"] = changed(
        Stage1Config, "stage1", f"output={folder}/photos1", f"base={json.dumps({'transformer': TRANSFORMER})}",
        "adapter.query_key_lora=false", "text_to_image=0", "picture_share=0.25",
        f"depth_model={folder}/photos/model", *common,
    )  # fmt: skip
    cfgs["photos2"] = changed(
        Stage2Config, "stage2", f"output={folder}/photos2", f"base={json.dumps({'model': DEPTH_MODEL})}",
        "base.imagenet=false", "lone_share=0.4", *common,
    )  # fmt: skip
    return cfgs


@contextmanager
def in_float64():
    """Every network and batch in float64, in which no ReLU turns over by rounding: what differs is the arithmetic."""
    import torch

    from train import loop, stage1, stage2

    def cast(value):
        return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value

    def send(data, device):
        return {name: cast(value) for name, value in to_device(data, device).items()}

    to_device, build, model = loop.send_to_device, stage1.build_network, stage2.build_model
    changes = [
        (torch.Tensor, "float", torch.Tensor.double),
        (loop, "send_to_device", send),
        (stage1, "build_network", lambda *arguments: (build(*arguments)[0].double(), None)),
        (stage2, "build_model", lambda *arguments: model(*arguments).double()),
    ]
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in changes]
    for place in changes:
        setattr(*place)
    try:
        yield
    finally:
        for place in before:
            setattr(*place)


def run(name, cfg, resume=None) -> None:
    """A trainer by its name in `configs`."""
    from train import stage1, stage2

    (stage1 if name in ("one", "photos1") else stage2).run(cfg, resume)


def kill(folder: str) -> None:
    """All trainers in processes that share one start; each ends itself as `kill -9` would."""
    cfgs, children = configs(folder), []
    import train.stage1
    import train.stage2  # noqa: F401 - before the fork, for all

    mine, *others = cfgs
    for name in others:
        child = os.fork()
        if not child:
            mine, children = name, []
            break
        children.append(child)
    rename = os.rename

    def rename_or_die(source, target):
        if Path(target).name == "step_00000004":
            for child in children:
                os.waitpid(child, 0)
            os.kill(os.getpid(), signal.SIGKILL)
        rename(source, target)

    os.rename = rename_or_die
    run(mine, cfgs[mine])


def pair(folder: str) -> None:
    """All trainers on as many processes as accelerate started."""
    for name, cfg in configs(folder, accumulation=2).items():
        with in_float64():
            run(name, cfg)


def shares(process: int, folder: str) -> None:
    """Writes what one of two processes knows of five rows, and which of them it has read itself."""
    import torch

    from bokehdepth.manifest import ManifestRow
    from train import row_checks

    torch.distributed.init_process_group("gloo", f"file://{folder}/meet", rank=process, world_size=2)
    mine = []

    def check(row):
        mine.append(row.row_id)
        if row.row_id == "r3":
            raise row_checks.UnusableError("odd", "r3 is odd")
        return row.row_id

    results = row_checks.checked([ManifestRow(f"r{n}", "s", image_path=Path("x")) for n in range(5)], check)
    Path(folder, f"{process}.json").write_text(json.dumps([sorted(mine), [str(result) for result in results]]))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    {"kill": kill, "pair": pair}[sys.argv[1]](sys.argv[2])

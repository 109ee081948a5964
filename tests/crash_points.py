"""Kills work before every single operation on a file, and says what it left and what the next run made of it.

`python tests/crash_points.py NAME FOLDER` prints one line of JSON. The work is loaded once; each try is a fork of the
process, so that hundreds of them cost little more than the work itself.
"""

import ctypes
import hashlib
import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

# Operations that change what is on the disk, and where their paths and folder descriptors stand in the event.
CHANGES = {
    "os.rename": ((0, 2), (1, 3)),
    "os.link": ((0, 2), (1, 3)),
    "os.symlink": ((1, 2),),
    "os.mkdir": ((0, 2),),
    "os.rmdir": ((0, 1),),
    "os.remove": ((0, 1),),
    "os.chmod": ((0, 2),),
    "os.truncate": ((0, None),),
}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def kill_before(number: int, root: Path) -> None:
    """From here on this process ends itself, as `kill -9` would, before the n-th change of a file below a folder."""
    left = number

    def placed(path, descriptor) -> bool:
        if isinstance(path, int):
            path = os.readlink(f"/proc/self/fd/{path}")
        path = os.fsdecode(path)
        if isinstance(descriptor, int) and descriptor >= 0:
            path = os.path.join(os.readlink(f"/proc/self/fd/{descriptor}"), path)
        return os.path.abspath(path).startswith(str(root))

    def look(event, arguments) -> None:
        nonlocal left
        if event == "open":
            is_change = bool((arguments[2] or 0) & WRITING) and placed(arguments[0], None)
        elif event == "ctypes.dlsym":  # the exchange of two folders, which Python's own events do not show
            is_change = arguments[1] in ("renameat2", "renamex_np")
        else:
            places = CHANGES.get(event, ())
            is_change = any(placed(arguments[p], None if d is None else arguments[d]) for p, d in places)
        if is_change:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(look)


@dataclass
class Work:
    """What is killed.

    Args:
        prepare: makes a folder as it is before the work.
        act: does the work in it.
        after_kill: sentences on what is wrong in a folder whose work was killed.
        after_run: sentences on what is wrong where the work was done again.
        every: only every n-th point.
    """

    prepare: Callable[[Path], object]
    act: Callable[[Path], object]
    after_kill: Callable[[Path], list[str]]
    after_run: Callable[[Path], list[str]]
    every: int = 1


def forked(act: Callable[[], object]) -> int:
    """Does something in a copy of this process; its exit status, or minus the signal that ended it."""
    child = os.fork()
    if not child:
        status = 1
        try:
            act()
            status = 0
        finally:
            if status:
                traceback.print_exc()
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_everywhere(work: Work, folder: Path) -> dict:
    """Every point of a piece of work: how many there are, and what went wrong at which."""
    wrong, points, first = [], 0, 1
    while True:
        root = folder / str(first)
        work.prepare(root)
        number, first = first, first + work.every

        def killed(root=root, number=number) -> None:
            kill_before(number, root)
            work.act(root)

        status = forked(killed)
        if status == 0:
            return {"points": points, "wrong": wrong + [f"unkilled: {text}" for text in work.after_run(root)]}
        points += 1
        if status != -signal.SIGKILL:
            wrong.append(f"{number}: ended with {status}")
            continue
        wrong += [f"{number}, killed: {text}" for text in work.after_kill(root)]
        if forked(lambda root=root: work.act(root)) != 0:
            wrong.append(f"{number}: the next run failed")
        wrong += [f"{number}, next run: {text}" for text in work.after_run(root)]
        shutil.rmtree(root)


def contents(folder: Path, without: tuple[str, ...] = ()) -> dict[str, str]:
    """Checksums of all files by name, but for temporary ones and those of some names."""
    names = {p.relative_to(folder): p for p in folder.rglob("*") if p.is_file() and p.name not in without}
    kept = {n.as_posix(): p for n, p in names.items() if not any(part.startswith(".") for part in n.parts)}
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in kept.items()}


def litter(root: Path) -> list[str]:
    """Temporary names that are left."""
    return [f"{path.relative_to(root)} is left" for path in root.rglob(".*")]


# ---------------------------------------------------------------------- one photo's result


def _results(kind: str, folder: Path) -> Work:
    import numpy as np
    from PIL import Image

    from bokehdepth.camera import read_camera
    from bokehdepth.files import atomic
    from bokehdepth.files.photos import open_photo
    from bokehdepth.tasks.result_files import write_results

    if kind == "aside":
        atomic._exchange = lambda first, second: False
    source = folder / "photo.png"
    folder.mkdir(exist_ok=True)
    Image.new("RGB", (48, 32), (90, 120, 60)).save(source)
    photo = open_photo(source)

    def write(place: Path, seed: int) -> None:
        rng = np.random.default_rng(seed)
        frames = [Image.fromarray(rng.integers(0, 255, (32, 48, 3), dtype=np.uint8)) for _ in range(2)]
        write_results(
            place, photo=photo, camera=read_camera(photo), bokeh_strengths=(10.0, 20.0), images=frames,
            depth_m=rng.uniform(1, 9, (32, 48)).astype(np.float32), arguments={"seed": seed}, seed=seed, weights={},
            timings_s={}, overwrite=True,
        )  # fmt: skip

    def state(place: Path) -> tuple:
        seed = json.loads((place / "run.json").read_text())["seed"] if (place / "run.json").exists() else None
        return seed, contents(place, ("run.json",))

    write(folder / "old", 1)
    write(folder / "new", 2)
    old, new = state(folder / "old"), state(folder / "new")
    others = {"notes.txt": "mine"} if kind in ("others", "folders", "aside") else {}
    others |= {"mine/notes.txt": "mine"} if kind == "folders" else {}

    def prepare(root: Path) -> None:
        root.mkdir()
        if kind == "fresh":
            return
        shutil.copytree(folder / "old", root / "out")
        for name, text in others.items():
            (root / "out" / name).parent.mkdir(exist_ok=True)
            (root / "out" / name).write_text(text)

    def act(root: Path) -> None:
        if kind == "inside":
            os.chdir(root / "out")
        write(root / "out", 2)

    def found(root: Path, *wanted) -> list[str]:
        place = root / "out"
        if not place.exists():
            return [] if None in wanted else ["the result is gone"]
        have = state(place)
        lost = [name for name, text in others.items() if have[1].pop(name, None) is None]
        wrong = [f"{name} is gone" for name in lost]
        if have not in wanted:
            wrong.append(f"neither old nor new: {have[0]} {sorted(have[1])}")
        return wrong

    def after_kill(root: Path) -> list[str]:
        if kind in ("folders", "inside"):  # moved in one by one: no file is missing, and the next run completes it
            names = set(contents(root / "out"))
            return [f"{name} is gone" for name in {*old[1], "run.json", *others} - names]
        return found(root, old, new, *([None] if kind in ("fresh", "aside") else []))

    return Work(prepare, act, after_kill, lambda root: [*found(root, new), *litter(root)])


# ---------------------------------------------------------------------- stacks and data set


def _stacks(folder: Path) -> Work:
    import torch
    from PIL import Image

    from bokehdepth.files.stacks import load_stack
    from bokehdepth.hub import load_pipeline
    from bokehdepth.manifest import ManifestRow, read_manifest, write_manifest
    from train.stacks import stack_manifest

    torch.set_num_threads(1)
    pipeline = load_pipeline()
    pipeline.set_progress_bar_config(disable=True)

    def prepare(root: Path) -> None:
        root.mkdir(parents=True)
        for number in range(2):
            Image.linear_gradient("L").resize((64, 64 + 16 * number)).convert("RGB").save(root / f"{number}.png")
        write_manifest(root / "photos.jsonl", [ManifestRow(str(n), "s", image_path=root / f"{n}.png") for n in (0, 1)])

    def act(root: Path) -> None:
        stack_manifest(pipeline, root / "photos.jsonl", "stacks", [10.0, 20.0], {"seed": 0}, max_area=64**2)

    whole = folder / "whole"
    prepare(whole)
    act(whole)
    wanted = contents(whole)

    def check(root: Path) -> list[str]:
        have = contents(root)
        wrong = [f"{name} differs" for name, digest in have.items() if wanted.get(name) != digest]
        for row in (root / "stacks/00000").glob("[!.]*"):
            if len(list(row.iterdir())) != 2:
                wrong.append(f"{row.name} is a part of a stack")
        if (root / "stacks.jsonl").exists():
            wrong += ["a stack is gone" for row in read_manifest(root / "stacks.jsonl")
                      if len(load_stack([frame.image_path for frame in row.stack])[0]) != 2]  # fmt: skip
        return wrong

    def complete(root: Path) -> list[str]:
        return [*(["not what an unbroken run writes"] if contents(root) != wanted else []), *litter(root)]

    return Work(prepare, act, check, complete)


def _dataset(folder: Path) -> Work:
    from datasets_scripts.systhebokeh300.build import build, check
    from datasets_scripts.systhebokeh300.scene import Settings

    settings = Settings(1, 3, 64, 4)
    whole = folder / "whole" / "data"
    build(whole, settings)
    wanted = contents(whole)

    def act(root: Path) -> None:
        build(root / "data", settings)

    def after_kill(root: Path) -> list[str]:
        have = contents(root / "data")
        wrong = [f"{name} differs" for name, digest in have.items() if wanted.get(name) != digest]
        if "README.md" in have and forked(lambda: check(root / "data")):
            wrong.append("a build with its card is not complete")
        return wrong

    def complete(root: Path) -> list[str]:
        same = contents(root / "data") == wanted
        return [*([] if same else ["not what an unbroken run writes"]), *litter(root)]

    return Work(lambda root: root.mkdir(parents=True), act, after_kill, complete)


# ---------------------------------------------------------------------- training


def _training(folder: Path) -> Work:
    import torch
    from safetensors.torch import load_file, save_file

    from train import config, loop
    from train.losses import SummedNetwork

    class Line(SummedNetwork):
        def __init__(self) -> None:
            super().__init__()
            self.slope = torch.nn.Parameter(torch.ones(3))

        def counts(self, batch):
            return {"samples": torch.tensor(float(len(batch["x"])))}

        def sums(self, batch):
            return {**self.counts(batch), "square": (self.slope * batch["x"] - 2).square().mean(1).sum()}

        def terms(self, sums):
            return {"loss": sums["square"] / sums["samples"]}

    changes = ["loop.save_every=1", "loop.log_every=1", "loop.keep=1", "loop.trackers=[]", "loop.sample_every=0"]
    path = Path(config.__file__).parent / "configs" / "mini_stage1.yaml"

    def act(root: Path) -> None:
        cfg = config.load(config.Stage1Config, str(path), ["threads=1", *changes, f"output={root}/run"])
        accelerator = loop.start(cfg)
        network = Line()

        def export(place: Path) -> None:
            save_file({"slope": network.slope.detach()}, place / "model.safetensors")
            (place / "part").mkdir()
            (place / "part" / "config.json").write_text(json.dumps({"slope": network.slope.tolist()}))

        def draw(step, phase, numbers, samples):
            rng = torch.Generator().manual_seed(step)
            return {"x": torch.rand(len(numbers), 3, generator=rng)}

        stage = loop.Stage(network, draw, [config.PhaseConfig(64, 2, 2, 0.1)], export)
        loop.fit(cfg, accelerator, stage, "latest")

    act(folder / "whole")
    final = load_file(folder / "whole/run/model/model.safetensors")["slope"]

    def model(root: Path) -> list[str]:
        place = root / "run/model"
        if not place.exists():
            return []
        have = sorted(contents(place))
        if have != ["model.safetensors", "part/config.json", "training.json"]:
            return [f"the model is {have}"]
        slope = load_file(place / "model.safetensors")["slope"]
        step = json.loads((place / "training.json").read_text())["step"]
        alike = slope.tolist() == json.loads((place / "part/config.json").read_text())["slope"]
        return [] if alike and (step == 2) == torch.equal(slope, final) else ["the model is of two steps"]

    def after_kill(root: Path) -> list[str]:
        broken = [p.name for p in (root / "run/checkpoints").glob("step_*") if not (p / "state.json").is_file()]
        return [*model(root), *(f"{name} is a part of a checkpoint" for name in broken)]

    def complete(root: Path) -> list[str]:
        steps = [json.loads(line)["step"] for line in (root / "run/log.jsonl").read_text().splitlines()]
        wrong = [] if (root / "run/model").exists() and steps == [1, 2] else [f"model or log is missing: {steps}"]
        if not wrong and json.loads((root / "run/model/training.json").read_text())["step"] != 2:
            wrong.append("the model is not of the last step")
        return [*wrong, *model(root), *litter(root)]

    return Work(lambda root: root.mkdir(parents=True), act, after_kill, complete)


# ---------------------------------------------------------------------- the whole command


def _command(folder: Path) -> Work:
    from PIL import Image

    import bokehdepth.hub
    import bokehdepth.pipeline_bokehdepth  # noqa: F401 - once for all tries
    from bokehdepth.cli import main

    folder.mkdir(exist_ok=True)
    photo = folder / "photo.png"

    def call(place: Path, strengths: tuple[str, ...], *more: str) -> None:
        import torch

        torch.set_num_threads(1)
        command = ["run", str(photo), "-o", str(place), "--bokeh-strengths", *strengths, "--seed", "1", *more]
        if main(command):
            raise SystemExit("the command failed")

    Image.linear_gradient("L").resize((96, 64)).convert("RGB").save(photo)
    call(folder / "old", ("5", "10"))
    Image.linear_gradient("L").resize((96, 64)).transpose(Image.Transpose.ROTATE_180).convert("RGB").save(photo)
    call(folder / "new", ("5", "10"))
    old, new = (contents(folder / name, ("run.json",)) for name in ("old", "new"))

    def prepare(root: Path) -> None:
        root.mkdir()
        shutil.copytree(folder / "old", root / "out")

    def act(root: Path) -> None:
        call(root / "out", ("5", "10"), "--overwrite")

    def after_kill(root: Path) -> list[str]:
        have = contents(root / "out", ("run.json",))
        return [] if have in (old, new) else [f"neither old nor new: {sorted(have)}"]

    def complete(root: Path) -> list[str]:
        have = contents(root / "out", ("run.json",))
        return [*([] if have == new and old != new else ["not the new result"]), *litter(root)]

    return Work(prepare, act, after_kill, complete)


if __name__ == "__main__":
    name, folder = sys.argv[1], Path(sys.argv[2]).resolve()
    ctypes.CDLL(None)  # loaded before the tries, in which only the exchange itself counts
    makers = {"stacks": _stacks, "dataset": _dataset, "training": _training, "command": _command}
    work = makers[name](folder) if name in makers else _results(name, folder)
    sys.stdout.write(json.dumps(kill_everywhere(work, folder)) + "\n")

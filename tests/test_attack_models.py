"""Files of models and checkpoints that want to run code when they are read, behind every door that reads some.

None runs it, and each is refused with one sentence. The report of the first attacks (shared/research/security.md)
counted 0 of 63 hostile files whose code ran, and 3 that were taken wrongly; here 91 are refused. Files that are
damaged, not finite or of another model are in `test_weights`, `test_convert` and `test_train_runs`, some 90 more.
"""

from __future__ import annotations

import io
import json
import pickle
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from bokehdepth.errors import InputError
from bokehdepth.hub import EMBEDDED_FOLDER, load_pipeline
from bokehdepth.released.convert import convert_checkpoint
from train import config, loop
from train.losses import SummedNetwork

pytestmark = pytest.mark.filterwarnings("ignore")


class Call:
    """Unpickles by a call of anything."""

    def __init__(self, function: Callable, *arguments: object) -> None:
        self.made = function, arguments

    def __reduce__(self) -> tuple:
        return self.made


def opcodes(text: str) -> Callable[[Path], bytes]:
    return lambda mark: text.replace("MARK", str(mark)).encode("latin-1")


def zipped(content: bytes, name: str = "archive/data.pkl") -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        file.writestr(name, content)
        file.writestr(f"{name.rpartition('/')[0]}/version", "3\n")
    return stream.getvalue()


def saved(value: object, **options: object) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream, **options)
    return stream.getvalue()


def tarred(content: bytes) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as file:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            file.addfile(entry, io.BytesIO(content))
    return stream.getvalue()


def touch(mark: Path) -> Call:
    return Call(exec, f"open({str(mark)!r}, 'w').close()")


PAYLOADS: dict[str, Callable[[Path], bytes]] = {
    "exec": lambda mark: pickle.dumps(touch(mark)),
    "exec in weights": lambda mark: pickle.dumps({"model": {"a": touch(mark)}}),
    "old protocol": lambda mark: pickle.dumps(touch(mark), protocol=0),
    "system": opcodes("cposix\nsystem\n(S'touch MARK'\ntR."),
    "instance": opcodes("(S'touch MARK'\niposix\nsystem\n."),
    "stack global": opcodes("\x80\x04\x8c\x05posix\x8c\x06system\x93(S'touch MARK'\ntR."),
    "getattr": opcodes("c__builtin__\ngetattr\n(c__builtin__\n__import__\n(S'os'\ntRS'system'\ntR(S'touch MARK'\ntR."),
    "zip": lambda mark: zipped(pickle.dumps({"a": touch(mark)})),
    "torch": lambda mark: saved({"a": touch(mark), "b": torch.ones(2)}),
    "old torch": lambda mark: saved({"a": touch(mark)}, _use_new_zipfile_serialization=False),
    "tar": lambda mark: tarred(pickle.dumps(touch(mark))),
    "module": lambda mark: saved(torch.nn.Sequential(torch.nn.Linear(2, 2))),
    "array of objects": lambda mark: saved({"a": np.array([touch(mark)], dtype=object)}),
}


def convert_file(content: bytes, folder: Path) -> None:
    (folder / "file.pth").write_bytes(content)
    convert_checkpoint(folder / "file.pth", folder / "out")


def convert_folder(content: bytes, folder: Path) -> None:
    (folder / "model").mkdir()
    (folder / "model" / "pytorch_model.bin").write_bytes(content)
    convert_checkpoint(folder / "model", folder / "out")


def convert_disguised(content: bytes, folder: Path) -> None:
    (folder / "file.safetensors").write_bytes(content)
    convert_checkpoint(folder / "file.safetensors", folder / "out")


def load_part(part: str, name: str | None) -> Callable[[bytes, Path], None]:
    """A part of a pipeline whose weights are the file, under their own name or in place of safetensors."""

    def load(content: bytes, folder: Path) -> None:
        model = shutil.copytree(EMBEDDED_FOLDER, folder / "model")
        weights = sorted((model / part).glob("*.safetensors*"))
        for path in weights if name else weights[:1]:
            path.unlink()
        (model / part / (name or weights[0].name)).write_bytes(content)
        load_pipeline(model)

    return load


class Line(SummedNetwork):
    """The smallest network that the training loop takes."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = torch.nn.Parameter(torch.ones(3))

    def counts(self, batch: dict) -> dict:
        return {"samples": torch.tensor(float(len(batch["x"])))}

    def sums(self, batch: dict) -> dict:
        return {**self.counts(batch), "square": (self.slope * batch["x"] - 2).square().mean(1).sum()}

    def terms(self, sums: dict) -> dict:
        return {"loss": sums["square"] / sums["samples"]}


def train(folder: Path, resume: str | None) -> None:
    changes = ["loop.save_every=1", "loop.log_every=1", "loop.keep=1", "loop.trackers=[]", "loop.sample_every=0"]
    path = Path(config.__file__).parent / "configs" / "mini_stage1.yaml"
    cfg = config.load(config.Stage1Config, str(path), ["threads=1", *changes, f"output={folder}/run"])
    network = Line()

    def export(place: Path) -> None:
        save_file({"slope": network.slope.detach()}, place / "model.safetensors")

    def draw(step: int, phase: int, numbers: list, samples: list) -> dict:
        return {"x": torch.ones(len(numbers), 3)}

    stage = loop.Stage(network, draw, [config.PhaseConfig(64, 2, 2, 0.1)], export)
    loop.fit(cfg, loop.start(cfg), stage, resume)


def resume(name: str) -> Callable[[bytes, Path], None]:
    """A checkpoint of the training one of whose files is this."""

    def load(content: bytes, folder: Path) -> None:
        train(folder, None)
        (checkpoint,) = (folder / "run/checkpoints").glob("step_*")
        assert (checkpoint / name).is_file(), sorted(path.name for path in checkpoint.iterdir())
        (checkpoint / name).write_bytes(content)
        train(folder, "latest")

    return load


DOORS: dict[str, Callable[[bytes, Path], None]] = {
    "convert a file": convert_file,
    "convert a folder": convert_folder,
    "convert, named safetensors": convert_disguised,
    "load, named safetensors": load_part("depth_estimator", None),
    "load the adapter's bin": load_part("bokeh_adapter", "diffusion_pytorch_model.bin"),
    "resume, optimizer": resume("optimizer.bin"),
    "resume, random states": resume("random_states_0.pkl"),
}


@pytest.mark.parametrize("payload", PAYLOADS)
@pytest.mark.parametrize("door", DOORS)
def test_no_file_runs_code(tmp_path: Path, door: str, payload: str) -> None:
    mark = tmp_path / "mark"
    with pytest.raises(InputError) as refusal:
        DOORS[door](PAYLOADS[payload](mark), tmp_path)
    assert not mark.exists()
    sentence = str(refusal.value)
    assert "\n" not in sentence and len(sentence) < 700, sentence


def test_there_are_as_many_as_there_were_and_they_bite(tmp_path: Path) -> None:
    assert len(DOORS) * len(PAYLOADS) >= 63
    for name in ("exec", "system", "instance", "stack global", "getattr"):
        mark = tmp_path / name.replace(" ", "_")
        pickle.loads(PAYLOADS[name](mark))
        assert mark.exists(), name


def test_a_folder_of_a_model_brings_no_code_of_its_own(tmp_path: Path) -> None:
    model = shutil.copytree(EMBEDDED_FOLDER, tmp_path / "model")
    for place in (model, model / "depth_estimator"):
        for name in ("pipeline.py", "modeling.py", "__init__.py"):
            (place / name).write_text(f"open({str(tmp_path / 'mark')!r}, 'w').close()\n")
    path = model / "depth_estimator" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": {"AutoModel": "modeling.Evil"}}))
    load_pipeline(model)
    assert not (tmp_path / "mark").exists()

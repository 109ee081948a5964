"""A pipeline on UniDepthV2, whose code is three files: saved, published, and loaded by every door."""

import ast
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import released_layouts as layouts
import torch
import yaml
from hub_server import HubServer, Repository
from PIL import Image
from transformers import pipeline as transformers_pipeline

import tiny
from bokehdepth import BokehDepthPipeline
from bokehdepth.hub import EMBEDDED_FOLDER
from bokehdepth.hub import folder as hub_folder
from bokehdepth.hub.folder import PACKAGE, PROJECT, joined_source
from bokehdepth.released.convert import convert_state
from doors import assert_same_bits, call_local, run_client, write_photo

MODEL, DEPTH, OTHER = "tester/unidepth", "tester/unidepth-dsfa", "tester/other"
CODE = ("modeling_bokehdepth", "modeling_unidepth_parts", "modeling_bokehdepth_unidepth")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Sums round by how threads share them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def facts_file(path, **metadata):
    facts = yaml.safe_load((EMBEDDED_FOLDER / "card.yaml").read_text())
    facts["metadata"] |= {"license": "cc-by-nc-4.0", **metadata}
    path.write_text(yaml.safe_dump(facts))
    return path


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A saved pipeline, the facts of its cards, and its repository as another release would write it."""
    folder = tmp_path_factory.mktemp("unidepth")
    write_photo(folder)
    model, _ = convert_state(layouts.filled(layouts.unidepth(64, 12, 32, 4, side=3), seed=2), dsfa_num_heads=4)
    model.config.pixels_min, model.config.pixels_max = 2000, 6000
    tiny.pipeline(depth_estimator=model).save_pretrained(folder / "saved")
    model.save_pretrained(folder / "alone")
    facts_file(folder / "pipeline.yaml")
    facts_file(folder / "depth.yaml", library_name="transformers", pipeline_tag="depth-estimation")
    package = shutil.copytree(PACKAGE, folder / "package", ignore=shutil.ignore_patterns("__pycache__"))
    # Two files that the depth model imports, one of which other models import too.
    for name, old, new in (
        ("modeling_unidepth_parts.py", "focal_px = raw[:, :2].exp() *", "focal_px = 3 * raw[:, :2].exp() *"),
        ("modeling_bokehdepth.py", "x = x * (1 + scale.tanh()) + shift", "x = x * (1 - scale.tanh()) - shift"),
    ):
        text = (package / name).read_text()
        assert old in text
        (package / name).write_text(text.replace(old, new))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hub_folder, "PACKAGE", package)
        hub_folder.build_folder(
            "pipeline", folder / "saved", folder / "other", repository=OTHER, facts=folder / "pipeline.yaml"
        )
    return folder


@pytest.fixture(scope="module")
def wanted(home):
    return call_local(BokehDepthPipeline.from_pretrained(home / "saved"), Image.open(home / "photo.png"))


@pytest.fixture(scope="module")
def hub(home):
    with HubServer() as server:
        environment = server.environment(home / "owner")
        for kind, repository in (("pipeline", MODEL), ("depth", DEPTH)):
            command = [sys.executable, "-m", "bokehdepth", "publish", str(home / "saved"), "--kind", kind,
                       "--repo", repository, "--facts", str(home / f"{kind}.yaml")]  # fmt: skip
            run = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, env=environment)
            assert run.returncode == 0, run.stderr
        other = server.repositories["model", OTHER] = Repository()
        other.commit(server.keep_folder(home / "other"))
        yield server


WITHOUT_PACKAGE = """
from diffusers import DiffusionPipeline
from transformers import AutoModelForDepthEstimation, pipeline
load = lambda name: DiffusionPipeline.from_pretrained(name, trust_remote_code=True)
keep("saved", call(load(sys.argv[1])))
remote = load("tester/unidepth")
keep("remote", call(remote))
keep("other", call(load("tester/other")))
keep("remote_again", call(remote))
remote.save_pretrained("again")

model = AutoModelForDepthEstimation.from_pretrained("tester/unidepth-dsfa", trust_remote_code=True)
inside = AutoModelForDepthEstimation.from_pretrained(
    "tester/unidepth", subfolder="depth_estimator", trust_remote_code=True
)
pixels = torch.linspace(-1, 1, 3 * 42 * 56).reshape(1, 3, 42, 56)
stack, strengths = torch.stack([pixels, pixels / 2], dim=1), torch.tensor([[0.0, 1.5]])
alone = AutoModelForDepthEstimation.from_pretrained(sys.argv[1].replace("saved", "alone"), trust_remote_code=True)
task = pipeline("depth-estimation", model="tester/unidepth-dsfa", trust_remote_code=True)
with torch.no_grad():
    depth, *others = (m(stack, strengths).predicted_depth for m in (model, inside, alone))
    assert all(torch.equal(depth, other) for other in others)
    np.savez("depth.npz", model=depth.numpy(), task=task("photo.jpg")["predicted_depth"].numpy())
assert all(type(m).__module__.startswith("transformers_modules.") for m in (model, inside, alone))
"""

WITH_PACKAGE = """
from bokehdepth import BokehDepthPipeline, BokehDepthUniDepthForDepthEstimation
pipe = BokehDepthPipeline.from_pretrained("tester/unidepth")
assert type(pipe.depth_estimator) is BokehDepthUniDepthForDepthEstimation
keep("package", call(pipe))
"""


@pytest.fixture(scope="module")
def strangers(hub, home):
    """One process without the package, and its own cache, through all doors that need none."""
    folder = home / "strangers"
    folder.mkdir()
    write_photo(folder)
    run_client(WITHOUT_PACKAGE, folder, hub.environment(folder / "hf"), str(home / "saved"), package=False)
    return folder


def test_published_code_is_one_file_with_all_that_it_imports(hub):
    index = json.loads(hub.read(MODEL, "model_index.json"))
    assert index["depth_estimator"][0] == CODE[-1]
    code = hub.read(DEPTH, f"{CODE[-1]}.py").decode()
    for place in ("", "depth_estimator/"):
        assert hub.read(MODEL, f"{place}{CODE[-1]}.py").decode() == code
    names = set(hub.files(MODEL)) | set(hub.files(DEPTH))
    assert not any(name in path for path in names for name in ("modeling_bokehdepth.py", "modeling_unidepth_parts"))
    assert "from ." not in code
    # Not a line of the three is missing or changed, but for the imports of one another and the docstrings of two.
    found, imports = ast.parse(code), (ast.Import, ast.ImportFrom)
    body = [ast.unparse(node) for node in found.body]
    for name in CODE:
        tree = ast.parse((PACKAGE / f"{name}.py").read_text())
        for node in tree.body[1:]:
            assert (ast.unparse(node) in body) != bool(getattr(node, "level", 0)), ast.unparse(node)[:80]
        docstring = ast.get_docstring(tree)
    assert ast.get_docstring(found) == docstring
    assert [isinstance(node, imports) for node in found.body[1:]] == sorted(
        (isinstance(node, imports) for node in found.body[1:]), reverse=True
    )
    processor = json.loads(hub.read(DEPTH, "preprocessor_config.json"))
    assert processor["size"] == {"height": 42, "width": 42}  # 42 * 42 to 2.5 * 42 * 42 px lie around the range


def test_files_that_define_the_same_name_are_not_joined(tmp_path):
    (tmp_path / "a.py").write_text('"""A."""\n\nimport os\n\n\ndef f():\n    return os\n')
    (tmp_path / "b.py").write_text('"""B."""\n\nimport os\n\nfrom .a import f\n\ng = f  # kept\n')
    wanted = '"""B."""\n\nimport os\n\n\ndef f():\n    return os\n\n\ng = f  # kept\n'
    assert joined_source(tmp_path / "b.py").startswith(wanted)
    (tmp_path / "c.py").write_text("from .a import f\n\n\nclass f:\n    pass\n")
    with pytest.raises(ValueError, match="c.py and a.py both define f"):
        joined_source(tmp_path / "c.py")
    (tmp_path / "d.py").write_text("from .a import f as h\n")
    with pytest.raises(ValueError, match="wanted names as they are"):
        joined_source(tmp_path / "d.py")


def test_each_remote_door_gives_the_local_bits(strangers, wanted):
    for door in ("saved", "remote", "remote_again"):
        assert_same_bits(strangers / f"{door}.npz", wanted)
    again = BokehDepthPipeline.from_pretrained(strangers / "again")
    assert np.array_equal(call_local(again, Image.open(strangers / "photo.png")).depth_m, wanted.depth_m)


def test_a_repository_of_other_code_runs_its_own(strangers, wanted):
    with np.load(strangers / "other.npz") as out:
        assert np.array_equal(out["frames"], np.stack([np.asarray(frame) for frame in wanted.images]))
        assert np.abs(out["depth"] / wanted.depth_m - 1).mean() > 0.01


@torch.no_grad()
def test_depth_model_alone_and_its_task_give_the_local_bits(strangers, home, tmp_path):
    model = BokehDepthPipeline.from_pretrained(home / "saved").depth_estimator
    pixels = torch.linspace(-1, 1, 3 * 42 * 56).reshape(1, 3, 42, 56)
    stack, strengths = torch.stack([pixels, pixels / 2], dim=1), torch.tensor([[0.0, 1.5]])
    folder = hub_folder.build_folder(
        "depth", home / "saved" / "depth_estimator", tmp_path / "depth", repository=DEPTH, facts=home / "depth.yaml"
    )
    task = transformers_pipeline("depth-estimation", model=str(folder))
    with np.load(strangers / "depth.npz") as out:
        assert np.array_equal(out["model"], model(stack, strengths).predicted_depth.numpy())
        assert np.array_equal(out["task"], task(str(strangers / "photo.jpg"))["predicted_depth"].numpy())
        assert out["task"].shape == (50, 80)


def test_installed_class_gives_the_local_bits_without_remote_code(hub, home, wanted):
    folder = home / "owners"
    folder.mkdir()
    write_photo(folder)
    run_client(WITH_PACKAGE, folder, hub.environment(folder / "hf"))
    assert_same_bits(folder / "package.npz", wanted)
    assert not list((folder / "hf" / "hub").rglob("*.py"))

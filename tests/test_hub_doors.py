"""Publish, then load by every door, from a Hub on loopback with the real client."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from diffusers import FluxKontextPipeline
from hub_server import HubServer, Repository
from PIL import Image
from safetensors.torch import load_file, save_file

import tiny
from bokehdepth import BokehDepthPipeline
from bokehdepth.hub import EMBEDDED_FOLDER
from bokehdepth.hub import folder as hub_folder
from bokehdepth.hub.folder import PROJECT
from doors import assert_same_bits, call_local, examples, run_client, write_photo

MINI, SECOND, LIGHT, BASE = "tester/bokehdepth", "tester/second", "tester/light", "tester/base"
ADAPTER, DEPTH, OTHER = "tester/bokeh-adapter", "tester/dsfa", "tester/other"
TAG = f"v{yaml.safe_load((EMBEDDED_FOLDER / 'card.yaml').read_text())['version']}"


def command_line(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "bokehdepth", *map(str, arguments)]
    variables = {**os.environ, **environment}
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, env=variables)


def facts_file(path: Path, **metadata: object) -> Path:
    """The embedded model's facts under other metadata."""
    facts = yaml.safe_load((EMBEDDED_FOLDER / "card.yaml").read_text())
    facts["metadata"] |= metadata
    path.write_text(yaml.safe_dump(facts))
    return path


def readme_example(line: str) -> str:
    """The one example of the README with such a line in it."""
    (code,) = [code for code in examples((PROJECT / "README.md").read_text()) if line in code]
    return code


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Sums round by how threads share them, and two waiting for each other on a busy machine are slow."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("doors")
    write_photo(folder)
    return folder


@pytest.fixture(scope="module")
def models(home):
    """Folders of the models beside the embedded one."""
    changed = shutil.copytree(EMBEDDED_FOLDER, home / "changed")
    weights = load_file(changed / "bokeh_adapter" / "diffusion_pytorch_model.safetensors")
    save_file(
        {k: v * 3 for k, v in weights.items()}, changed / "bokeh_adapter" / "diffusion_pytorch_model.safetensors"
    )
    facts = (changed / "card.yaml").read_text().replace(f"version: {TAG[1:]}", "version: 99.0.0")
    (changed / "card.yaml").write_text(facts)
    whole = tiny.pipeline()
    whole.save_pretrained(home / "second")
    tiny.pipeline(transformer=None, vae=None, scheduler=None, base_model_id=BASE).save_pretrained(home / "light")
    hub_folder.build_folder("pipeline", changed, home / "changed_folder", repository=MINI)
    # A repository whose code differs: an older or newer release.
    package = shutil.copytree(hub_folder.PACKAGE, home / "package", ignore=shutil.ignore_patterns("__pycache__"))
    for name, old, new in (
        ("processing_bokehdepth.py", "rows = strips.unflatten", "rows = 1 - strips.unflatten"),
        ("pipeline_bokehdepth.py", "values = values.float()", "values = 2 * values.float()"),
    ):
        text = (package / name).read_text()
        assert old in text
        (package / name).write_text(text.replace(old, new))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hub_folder, "PACKAGE", package)
        hub_folder.build_folder("pipeline", "embedded", home / "other", repository=OTHER)
    kontext = FluxKontextPipeline(
        scheduler=tiny.scheduler(), vae=tiny.autoencoder(), transformer=tiny.transformer(),
        text_encoder=None, tokenizer=None, text_encoder_2=None, tokenizer_2=None,
    )  # fmt: skip
    kontext.save_pretrained(home / "base")
    return home


@pytest.fixture(scope="module")
def wanted(models):
    """What each model gives in this process, from its local folder."""
    photo, results = Image.open(models / "photo.png"), {}
    for name, folder in (("mini", EMBEDDED_FOLDER), ("changed", models / "changed"), ("second", models / "second")):
        results[name] = call_local(BokehDepthPipeline.from_pretrained(folder), photo)
    return results


@pytest.fixture(scope="module")
def hub(models):
    """The Hub after everything was published by the command line."""
    with HubServer() as server:
        environment = server.environment(models / "owner")
        adapter = facts_file(models / "adapter.yaml", base_model=[BASE], base_model_relation="adapter")
        light = facts_file(models / "light.yaml", base_model=[BASE], base_model_relation="adapter")
        depth = facts_file(models / "depth.yaml", library_name="transformers", pipeline_tag="depth-estimation")
        second = facts_file(models / "second.yaml")
        orders = [
            ["embedded", "--repo", MINI, "--private"],
            [models / "changed", "--repo", MINI],
            [models / "second", "--repo", SECOND, "--facts", second],
            [models / "light", "--repo", LIGHT, "--facts", light],
            [models / "second", "--kind", "adapter", "--repo", ADAPTER, "--facts", adapter],
            ["embedded", "--kind", "depth", "--repo", DEPTH, "--facts", depth],
        ]
        for arguments in orders:
            run = command_line("publish", *arguments, **environment)
            assert run.returncode == 0, run.stderr
        # These two are somebody else's: they get there without our command.
        for name, options in ((BASE, {"gated": True}), (OTHER, {})):
            repository = server.repositories["model", name] = Repository(**options)
            if name == OTHER:  # a first release of our code, then one of other code in files of the same names
                repository.tags["first"] = repository.commit(server.keep_folder(models / "changed_folder"))
            repository.commit(server.keep_folder(models / name.partition("/")[2]))
        yield server


WITHOUT_PACKAGE = """
import importlib
from diffusers import AutoModel, DiffusionPipeline, FluxKontextPipeline
from huggingface_hub import hf_hub_download
from transformers import AutoModelForDepthEstimation, pipeline

# The examples of the cards, as they stand there.
pipe = out = None
torch.manual_seed(0)
scope = {}
exec(Path("example_pipeline.py").read_text(), scope)
np.savez("example.npz", depth=scope["out"].depth_m, frames=np.stack([np.asarray(f) for f in scope["out"].images]))
first = scope["pipe"]
keep("remote", call(first))

readme_scope = {}
exec(Path("example_readme.py").read_text(), readme_scope)
keep("readme", call(readme_scope["pipe"]))

pinned = DiffusionPipeline.from_pretrained("tester/bokehdepth", revision=TAG, trust_remote_code=True)
keep("pinned", call(pinned))

# Three repositories in one process, one with two releases of other code in files of the same names; each has its own
# result, and the first one still has it after them.
for door, revision in (("other_first", "first"), ("other", "main"), ("other_back", "first")):
    keep(door, call(DiffusionPipeline.from_pretrained("tester/other", revision=revision, trust_remote_code=True)))
    keep(f"remote_after_{door}", call(first))
second = DiffusionPipeline.from_pretrained("tester/second", trust_remote_code=True)
keep("second", call(second))
keep("remote_again", call(first))

# A gated base: a sentence, then success once access is given.
light = DiffusionPipeline.from_pretrained("tester/light", trust_remote_code=True)
try:
    light.load_base_model()
except ValueError as error:
    Path("gated.txt").write_text(str(error))
order(grant="tester/base")
light.load_base_model()
keep("light", call(light))
light_scope = {}
exec(Path("example_light.py").read_text(), light_scope)
keep("light_example", call(light_scope["pipe"]))

base = FluxKontextPipeline.from_pretrained("tester/base", text_encoder=None, tokenizer=None, text_encoder_2=None,
                                           tokenizer_2=None)
adapter_scope = {}
exec(Path("example_adapter.py").read_text(), adapter_scope)
made = DiffusionPipeline.from_pretrained(
    "tester/base", custom_pipeline="tester/second", trust_remote_code=True, bokeh_adapter=adapter_scope["adapter"],
    depth_estimator=second.depth_estimator, text_encoder=None, tokenizer=None, text_encoder_2=None, tokenizer_2=None,
)
keep("custom_pipeline", call(made))
second.bokeh_adapter.detach()
joined = type(second).from_pipe(base, bokeh_adapter=second.bokeh_adapter, depth_estimator=second.depth_estimator)
keep("from_pipe", call(joined))

switched = DiffusionPipeline.from_pretrained("tester/second", trust_remote_code=True, transformer=None, vae=None)
assert switched.transformer is None and switched.depth_estimator is not None
switched.save_pretrained("saved_without_base")
switched.register_modules(transformer=base.transformer, vae=base.vae)
switched.save_pretrained("saved_switched")
first.save_pretrained("saved_remote")
made.save_pretrained("saved_custom")

depth_scope = {}
for number in (0, 1):
    exec(Path(f"example_depth_{number}.py").read_text(), depth_scope)
pixels = torch.linspace(-1, 1, 3 * 96 * 96).reshape(1, 3, 96, 96)
stack, strengths = torch.stack([pixels, pixels / 2], dim=1), torch.tensor([[0.0, 20.0]])
inside = AutoModelForDepthEstimation.from_pretrained(
    "tester/bokehdepth", subfolder="depth_estimator", trust_remote_code=True, dtype=torch.float32
)
with torch.no_grad():
    model = depth_scope["model"].float()
    assert torch.equal(model(stack, strengths).predicted_depth, inside(stack, strengths).predicted_depth)
    np.savez("depth.npz", model=inside(stack, strengths).predicted_depth.numpy(),
             task=depth_scope["depth_m"].float().numpy())
"""

# A release is loaded, and in a later process the next one, from the same cache.
LATER = """
from diffusers import DiffusionPipeline
keep("other_later", call(DiffusionPipeline.from_pretrained("tester/other", trust_remote_code=True)))
"""


@pytest.fixture(scope="module")
def strangers(hub, models):
    """One process without the package, and its own cache, through all doors that need none."""
    folder = models / "strangers"
    folder.mkdir()
    write_photo(folder)
    card = hub.read(MINI, "README.md").decode()
    (folder / "example_pipeline.py").write_text(examples(card)[0])
    (folder / "example_light.py").write_text(examples(hub.read(LIGHT, "README.md").decode())[0])
    (folder / "example_adapter.py").write_text(examples(hub.read(ADAPTER, "README.md").decode())[1])
    for number, code in enumerate(examples(hub.read(DEPTH, "README.md").decode())):
        (folder / f"example_depth_{number}.py").write_text(code)
    (folder / "example_readme.py").write_text(readme_example('DiffusionPipeline.from_pretrained("folder"'))
    shutil.copytree(models / "changed_folder", folder / "folder")
    environment = hub.environment(folder / "hf")
    run_client(f"TAG = {TAG!r}\n{WITHOUT_PACKAGE}", folder, environment, package=False)
    run_client(LATER, folder, environment, package=False)
    return folder


def test_each_remote_door_gives_the_local_bits(strangers, wanted):
    for door, name in (
        ("remote", "changed"),
        ("remote_again", "changed"),
        ("remote_after_other", "changed"),
        ("readme", "changed"),
        ("pinned", "mini"),
        ("other_first", "changed"),
        ("other_back", "changed"),
        ("second", "second"),
        ("light", "second"),
        ("light_example", "second"),
        ("custom_pipeline", "second"),
        ("from_pipe", "second"),
    ):
        assert_same_bits(strangers / f"{door}.npz", wanted[name])


@pytest.mark.parametrize("door", ["other", "other_later"])
def test_a_release_of_other_code_runs_its_own(strangers, wanted, door):
    with np.load(strangers / f"{door}.npz") as out:
        plain = np.stack([np.asarray(frame) for frame in wanted["mini"].images]).astype(int)
        assert np.abs(255 - out["frames"].astype(int) - plain).max() <= 1
        assert 1.8 < out["depth"].mean() / wanted["mini"].depth_m.mean() < 2.2


def test_the_cards_example_runs_as_it_stands(strangers, models):
    local = BokehDepthPipeline.from_pretrained(models / "changed")
    local.set_progress_bar_config(disable=True)
    torch.manual_seed(0)
    photo = Image.open(strangers / "photo.jpg").convert("RGB")
    assert_same_bits(strangers / "example.npz", local(photo, bokeh_strengths=(10, 20, 30)))


def test_the_gated_base_is_refused_in_one_sentence(strangers):
    text = (strangers / "gated.txt").read_text()
    assert text == f"{BASE} is gated; accept its licence on its Hub page and log in with a token that reads it."


def test_depth_model_and_depth_task_give_the_local_bits(strangers, models):
    from transformers import AutoModelForDepthEstimation, pipeline

    pixels = torch.linspace(-1, 1, 3 * 96 * 96).reshape(1, 3, 96, 96)
    stack, strengths = torch.stack([pixels, pixels / 2], dim=1), torch.tensor([[0.0, 20.0]])
    local = AutoModelForDepthEstimation.from_pretrained(EMBEDDED_FOLDER / "depth_estimator", dtype=torch.float32)
    folder = models / "depth"
    run = command_line("publish", "embedded", "--kind", "depth", "--repo", DEPTH, "--facts", models / "depth.yaml",
                       "--dry-run", "--json")  # fmt: skip
    assert "preprocessor_config.json" in {file["name"] for file in json.loads(run.stdout)["files"]}
    hub_folder.build_folder("depth", "embedded", folder, repository=DEPTH, facts=models / "depth.yaml")
    task = pipeline("depth-estimation", model=str(folder), trust_remote_code=True)
    with torch.no_grad(), np.load(strangers / "depth.npz") as out:
        assert np.array_equal(out["model"], local(stack, strengths).predicted_depth.numpy())
        assert np.array_equal(out["task"], task(str(strangers / "photo.jpg"))["predicted_depth"].float().numpy())


@pytest.mark.parametrize(
    ("folder", "name"), [("saved_remote", "changed"), ("saved_custom", "second"), ("saved_switched", "second")]
)
def test_what_a_remote_door_saves_loads_again(strangers, wanted, folder, name, tmp_path):
    photo = Image.open(strangers / "photo.png")
    again = BokehDepthPipeline.from_pretrained(strangers / folder)
    assert (call_local(again, photo).depth_m == wanted[name].depth_m).all()
    again.save_pretrained(tmp_path / "twice")
    twice = call_local(BokehDepthPipeline.from_pretrained(tmp_path / "twice"), photo)
    assert (twice.depth_m == wanted[name].depth_m).all()
    assert [f.tobytes() for f in twice.images] == [f.tobytes() for f in wanted[name].images]


def test_saving_without_the_base_leaves_it_out(strangers):
    index = json.loads((strangers / "saved_without_base" / "model_index.json").read_text())
    assert index["transformer"] == [None, None] and not (strangers / "saved_without_base" / "transformer").exists()
    assert BokehDepthPipeline.from_pretrained(strangers / "saved_without_base").transformer is None


WITH_PACKAGE = """
from diffusers import FluxKontextPipeline
scope = {}
exec(Path("example_package.py").read_text(), scope)
readme_scope = {}
torch.manual_seed(0)
exec(Path("example_readme.py").read_text(), readme_scope)
assert readme_scope["out"].depth_m.shape == (50, 80) and len(readme_scope["out"].images) == 3
from bokehdepth import BokehAdapter, BokehDepthPipeline
keep("readme_package", call(readme_scope["pipe"]))
keep("package", call(scope["pipe"]))
assert type(scope["pipe"]) is BokehDepthPipeline
keep("package_second", call(BokehDepthPipeline.from_pretrained("tester/second")))
pinned = BokehDepthPipeline.from_pretrained("tester/bokehdepth", revision=TAG)
keep("package_pinned", call(pinned))
order(grant="tester/base")
light = BokehDepthPipeline.from_pretrained("tester/light")
light.load_base_model()
keep("package_light", call(light))
base = FluxKontextPipeline.from_pretrained("tester/base", text_encoder=None, tokenizer=None, text_encoder_2=None,
                                           tokenizer_2=None)
parts = {k: v for k, v in base.components.items() if k not in ("image_encoder", "feature_extractor")}
passed = BokehDepthPipeline.from_pretrained("tester/light", **parts)
assert passed.transformer is base.transformer
keep("package_passed", call(passed))
passed.bokeh_adapter.detach()
adapter_scope = {}
exec(Path("example_adapter.py").read_text(), adapter_scope)
adapter = adapter_scope["adapter"]
assert type(adapter) is BokehAdapter
joined = BokehDepthPipeline.from_pipe(base, bokeh_adapter=adapter, depth_estimator=light.depth_estimator)
keep("package_from_pipe", call(joined))
joined.save_pretrained("saved_joined")
"""

OFFLINE = """
import huggingface_hub
from bokehdepth import BokehDepthPipeline
from bokehdepth.hub import load_pipeline
keep("unreachable", call(BokehDepthPipeline.from_pretrained("tester/bokehdepth")))
keep("local_only", call(BokehDepthPipeline.from_pretrained("tester/bokehdepth", local_files_only=True)))
try:
    load_pipeline("tester/bokeh-adapter-2")
except ValueError as error:
    Path("unreachable.txt").write_text(str(error))
huggingface_hub.constants.HF_HUB_OFFLINE = True
keep("offline", call(BokehDepthPipeline.from_pretrained("tester/bokehdepth", revision=TAG)))
try:
    load_pipeline("tester/bokeh-adapter-2")
except ValueError as error:
    Path("offline.txt").write_text(str(error))
"""


def test_installed_class_loads_without_remote_code_then_offline(hub, models, wanted):
    folder = models / "owners"
    folder.mkdir()
    photo = write_photo(folder)
    (folder / "example_package.py").write_text(examples(hub.read(MINI, "README.md").decode())[1])
    (folder / "example_adapter.py").write_text(examples(hub.read(ADAPTER, "README.md").decode())[0])
    (folder / "example_readme.py").write_text(readme_example('load_pipeline("embedded")'))
    environment = hub.environment(folder / "hf")
    run_client(f"TAG = {TAG!r}\n{WITH_PACKAGE}", folder, environment)
    assert not list((folder / "hf" / "hub").rglob("*.py")), "code was fetched that nobody runs"
    assert not (folder / "hf" / "modules").exists()
    for door, name in (
        ("package", "changed"),
        ("package_second", "second"),
        ("package_pinned", "mini"),
        ("package_light", "second"),
        ("package_passed", "second"),
        ("package_from_pipe", "second"),
    ):
        assert_same_bits(folder / f"{door}.npz", wanted[name])
    embedded = BokehDepthPipeline.from_pretrained(EMBEDDED_FOLDER, dtype=torch.float32)
    assert_same_bits(folder / "readme_package.npz", call_local(embedded, photo))
    again = BokehDepthPipeline.from_pretrained(folder / "saved_joined")
    assert (call_local(again, photo).depth_m == wanted["second"].depth_m).all()

    hub.stop()
    run_client(f"TAG = {TAG!r}\n{OFFLINE}", folder, environment)
    for door, name in (("unreachable", "changed"), ("local_only", "changed"), ("offline", "mini")):
        assert_same_bits(folder / f"{door}.npz", wanted[name])
    sentence = "tester/bokeh-adapter-2 is not complete in the cache and the Hub is out of reach; "
    for name in ("unreachable", "offline"):
        assert (folder / f"{name}.txt").read_text() == sentence + "load it once with a connection."

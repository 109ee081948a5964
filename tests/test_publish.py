"""Folders for the Hub, and `bokehdepth publish`."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import yaml
from hub_server import HubServer
from huggingface_hub import SpaceCard

from bokehdepth.cli import main
from bokehdepth.errors import InputError
from bokehdepth.hub import EMBEDDED_FOLDER
from bokehdepth.hub.folder import PACKAGE, PROJECT, build_folder, joined_source
from bokehdepth.hub.publish import list_files, publish


def facts_file(path, **metadata):
    facts = yaml.safe_load((EMBEDDED_FOLDER / "card.yaml").read_text())
    facts["metadata"] |= metadata
    path.write_text(yaml.safe_dump(facts))
    return path


@pytest.fixture
def model(tmp_path):
    return shutil.copytree(EMBEDDED_FOLDER, tmp_path / "model")


def test_pipeline_folder_has_the_layout_of_the_design(tmp_path):
    folder = build_folder("pipeline", "embedded", tmp_path / "folder", repository="me/model")
    names = {name for name, _ in list_files(folder)}
    index = json.loads((folder / "model_index.json").read_text())
    assert index["vae"] == ["modeling_mini_flux", "PatchAutoencoder"]
    assert {"README.md", "LICENSE", "depth_estimator/preprocessor_config.json", "pipeline.py"} <= names
    assert "card.yaml" not in names and not any("pycache" in name or "__init__" in name for name in names)
    assert {name for name in names if name.endswith("bokehdepth.py")} == {"pipeline_bokehdepth.py"}
    assert "def joined_source" not in (folder / "pipeline_bokehdepth.py").read_text()  # publishing stays at home
    for part, name in (
        ("", "pipeline_bokehdepth"),
        ("bokeh_adapter", "modeling_bokeh_adapter"),
        ("transformer", "modeling_mini_flux"),
        ("depth_estimator", "modeling_bokehdepth_efficientnet"),
    ):
        for place in (folder, folder / part):
            assert (place / f"{name}.py").read_text() == joined_source(PACKAGE / f"{name}.py")
    assert "examples/photos.jpg" in names
    for path in EMBEDDED_FOLDER.rglob("*.safetensors"):
        assert (folder / path.relative_to(EMBEDDED_FOLDER)).read_bytes() == path.read_bytes()
    assert 'from_pretrained("me/model"' in (folder / "README.md").read_text()


def test_parts_alone(tmp_path):
    adapter = facts_file(tmp_path / "adapter.yaml", base_model=["me/base"], base_model_relation="adapter")
    folder = build_folder("adapter", "embedded", tmp_path / "adapter", repository="me/a", facts=adapter)
    assert json.loads((folder / "config.json").read_text())["auto_map"]["AutoModel"].endswith(".BokehAdapter")
    depth = facts_file(tmp_path / "d.yaml", library_name="transformers", pipeline_tag="depth-estimation")
    folder = build_folder("depth", "embedded", tmp_path / "depth", repository="me/d", facts=depth)
    assert json.loads((folder / "preprocessor_config.json").read_text())["size"] == {"height": 192, "width": 192}
    assert "metres along the optical axis" in (folder / "README.md").read_text()
    # The package's own files were linked or copied, never written to.
    assert "auto_map" not in json.loads((EMBEDDED_FOLDER / "bokeh_adapter" / "config.json").read_text())
    assert json.loads((EMBEDDED_FOLDER / "depth_estimator" / "config.json").read_text())["dtype"] == "bfloat16"


def _link(model):
    (model / "bokeh_adapter" / "notes.txt").symlink_to("/etc/hostname")


def _link_to_a_folder(model):
    (model / "examples" / "more").symlink_to(model.parent)


def _unfinished(model):
    (model / "training.json").write_text(json.dumps({"step": 6, "of": 8}))


def _pickle(model):
    (model / "transformer" / "weights.bin").write_bytes(b"x")


def _truncate(model):
    path = min((model / "transformer").glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-100])


def _stranger(model):
    index = json.loads((model / "model_index.json").read_text())
    (model / "model_index.json").write_text(json.dumps({**index, "vae": ["modeling_other", "Other"]}))


def _unknown_base(model):
    index = json.loads((model / "model_index.json").read_text())
    (model / "model_index.json").write_text(json.dumps({**index, "base_model_id": "black-forest-labs/Kontext"}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_link, "'bokeh_adapter/notes.txt', a symbolic link that leaves the folder"),
        (_link_to_a_folder, "'examples/more', a symbolic link that leaves the folder"),
        (_unfinished, "of step 6 of 8 of its training; wanted that of the end"),
        (_pickle, "weights.bin'; wanted safetensors"),
        (_truncate, "damaged weights"),
        (_stranger, "no module of bokehdepth"),
        (_unknown_base, "wanted black-forest-labs/Kontext among them"),
        (lambda model: shutil.rmtree(model / "vae"), "without the folder vae"),
        (lambda model: (model / "model_index.json").unlink(), "without model_index.json"),
        (lambda model: (model / "model_index.json").write_text("{"), "no JSON"),
        (lambda model: (model / "card.yaml").unlink(), "facts is "),
    ],
)
def test_damaged_models_are_refused_and_nothing_is_written(model, tmp_path, damage, message):
    damage(model)
    with pytest.raises(InputError, match=message):
        build_folder("pipeline", model, tmp_path / "out", repository="me/model")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("pipeline", "embedded", "model"), "repository is 'model'; wanted user/name"),
        (("video", "embedded", "me/model"), "kind is 'video'"),
        (("space", "embedded", "me/model"), "none for a Space"),
        (("pipeline", None, "me/model"), "model is None"),
        (("depth", EMBEDDED_FOLDER / "depth_estimator", "me/d"), "facts is"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        publish(*arguments, dry_run=True)
    with pytest.raises(InputError, match="tag is 'latest'"):
        publish("pipeline", "embedded", "me/model", tag="latest", dry_run=True)


def test_links_inside_the_folder_and_finished_models_are_published(model, tmp_path):
    weights = min((model / "vae").glob("*.safetensors"))
    weights.rename(model / "weights.bin")
    weights.symlink_to(model / "weights.bin")
    for record in ({"step": 8, "of": 8}, {"step": 2, "of": 8, "held_out_loss": 0.5}):
        (model / "training.json").write_text(json.dumps(record))
        folder = build_folder("pipeline", model, tmp_path / str(record["step"]), repository="me/model")
        published = folder / weights.relative_to(model)
        assert not published.is_symlink() and published.read_bytes() == (model / "weights.bin").read_bytes()


def test_a_data_set_with_links_is_refused(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "README.md").symlink_to(PROJECT / "README.md")
    with pytest.raises(InputError, match="'README.md', a symbolic link that leaves"):
        publish("dataset", tmp_path / "data", "me/data", dry_run=True)


def test_without_a_checkout_the_sentence_says_so(tmp_path):
    with pytest.raises(InputError, match="publishing wants a checkout"):
        build_folder("pipeline", "embedded", tmp_path / "out", repository="me/model", project=tmp_path)


def test_dry_run_lists_files_and_asks_nobody(capsys):
    assert main(["publish", "embedded", "--repo", "me/model", "--dry-run"]) == 0
    out = capsys.readouterr()
    rows = dict(reversed(line.split(maxsplit=1)) for line in out.out.splitlines())
    weights = min((EMBEDDED_FOLDER / "transformer").glob("*.safetensors")).relative_to(EMBEDDED_FOLDER).as_posix()
    assert int(rows[weights]) == (EMBEDDED_FOLDER / weights).stat().st_size
    assert "nothing was uploaded to me/model" in out.err
    assert main(["publish", "embedded", "--repo", "me/model", "--dry-run", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    version = yaml.safe_load((EMBEDDED_FOLDER / "card.yaml").read_text())["version"]
    assert document["tag"] == f"v{version}" and document["commit"] is None
    assert document["total_bytes"] == sum(file["bytes"] for file in document["files"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--repo", "me/model"], "MODEL is missing"),
        (["embedded", "--space", "--repo", "me/model"], "wanted none with --space"),
        (["embedded", "--repo", "model", "--dry-run"], "wanted user/name"),
        (["embedded", "--kind", "depth", "--repo", "me/d", "--dry-run"], "library_name 'diffusers'"),
        (["embedded", "--repo", "me/model", "--kind", "adapter", "--space"], "not allowed with"),
        (["embedded"], "--repo"),
    ],
)
def test_wrong_commands_are_one_sentence(arguments, message, capsys):
    assert main(["publish", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


# ---------------------------------------------------------------------- data set and Space, by the real client


def run(*arguments, **environment):
    command = [sys.executable, "-m", "bokehdepth", "publish", *map(str, arguments)]
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, env={**os.environ, **environment})


def test_space_holds_what_a_space_needs_and_passes_the_clients_validation(tmp_path):
    with HubServer() as hub:
        environment = hub.environment(tmp_path / "hf")
        done = run("--space", "--repo", "tester/demo", **environment)
        assert done.returncode == 0, done.stderr
        files = hub.files("tester/demo", "space")
        assert {"app.py", "requirements.txt", "README.md", "LICENSE", "bokehdepth/hub/load.py"} <= set(files)
        assert "bokehdepth/mini/model_index.json" in files and not any(".pyc" in name for name in files)


def test_space_imports_from_its_own_folder(tmp_path):
    """Every file that the page's imports need is in the folder: the package is found there and nowhere else."""
    folder = build_folder("space", None, tmp_path / "space", repository="me/demo")
    code = (
        "import sys, pathlib, importlib.util as u; sys.path.insert(0, '.'); "
        "import bokehdepth, bokehdepth.hub, bokehdepth.tasks.result_files, bokehdepth.camera.f_numbers; "
        "import bokehdepth.files.photos; "
        "print(pathlib.Path(bokehdepth.__file__).resolve().parent, bokehdepth.hub.EMBEDDED_FOLDER.is_dir())"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str((folder / "bokehdepth").resolve()), "True"]
    data = SpaceCard.load(folder / "README.md").data
    assert (data.sdk, data.app_file, data.python_version) == ("gradio", "app.py", "3.12")
    assert len(data.short_description) <= 60
    assert f"gradio>={data.sdk_version.rpartition('.')[0]}" in (folder / "requirements.txt").read_text()


def test_data_set_is_published_with_its_own_card(tmp_path):
    folder = tmp_path / "data"
    (folder / "images").mkdir(parents=True)
    (folder / "images" / "a.jpg").write_bytes(b"jpeg")
    (folder / ".build").mkdir()
    (folder / ".build" / "state").write_text("x")
    with HubServer() as hub:
        environment = hub.environment(tmp_path / "hf")
        arguments = (folder, "--kind", "dataset", "--repo", "tester/data", "--private", "--tag", "v1.0.0")
        assert "without README.md" in run(*arguments, **environment).stderr
        (folder / "README.md").write_text("---\nlicense: cc0-1.0\ntags: [bokeh]\n---\n{{ scenes }} scenes\n")
        refused = run(*arguments, **environment)
        assert refused.returncode == 2 and "left in it" in refused.stderr
        assert not hub.repositories
        (folder / "README.md").write_text("---\nlicense: cc0-1.0\ntags: [bokeh]\n---\n100 scenes\n")
        done = run(*arguments, **environment)
        assert done.returncode == 0, done.stderr
        repository = hub.repositories["dataset", "tester/data"]
        assert repository.private and repository.tags == {"v1.0.0": repository.head}
        assert set(hub.files("tester/data", "dataset")) == {".gitattributes", "README.md", "images/a.jpg"}

"""Weights that are not whole, or not finite, or not of their model: one sentence, whoever loads them."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from diffusers import DiffusionPipeline
from hub_server import HubServer
from safetensors.torch import load_file, save_file

import tiny
from bokehdepth.errors import InputError
from bokehdepth.hub import EMBEDDED_FOLDER, load_pipeline, weights_record
from bokehdepth.hub.folder import PROJECT, build_folder
from bokehdepth.modeling_bokehdepth import BokehDepthAnythingForDepthEstimation
from bokehdepth.pipeline_bokehdepth import BokehDepthPipeline
from bokehdepth.released.convert import convert_checkpoint
from bokehdepth.weights_bokehdepth import WeightsError, check_weights

pytestmark = pytest.mark.filterwarnings("ignore")
PARTS = ("bokeh_adapter", "depth_estimator", "transformer", "vae")


def change_weights(model, part, change):
    """Rewrites the first file of a part's weights; returns the name that was changed."""
    path = min((model / part).glob("*.safetensors"))
    state = load_file(path)
    name = max(state, key=lambda key: state[key].numel())
    change(state, name)
    save_file(state, path, metadata={"format": "pt"})
    return name


def drop(state, name):
    del state[name]


def poison(state, name):
    state[name] = state[name].clone()
    state[name].view(-1)[-1] = float("nan")


def add(state, name):
    state["nonsense.weight"] = torch.ones(2)


def reshape(state, name):
    state[name] = torch.ones(3, 7, dtype=state[name].dtype)


CHANGES = [
    (drop, "lack 1 of"),
    (poison, "not finite in 1 of"),
    (add, "have 1 tensors that"),
    (reshape, "another shape"),
]


@pytest.fixture
def model(tmp_path):
    return shutil.copytree(EMBEDDED_FOLDER, tmp_path / "model")


@pytest.mark.parametrize(("change", "words"), CHANGES)
@pytest.mark.parametrize("part", PARTS)
def test_every_part_of_a_folder(model, part, change, words):
    name = change_weights(model, part, change)
    with pytest.raises(InputError) as caught:
        load_pipeline(model)
    sentence = str(caught.value)
    assert words in sentence and part in sentence and "\n" not in sentence
    assert ("nonsense.weight" if change is add else name) in sentence


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    return build_folder("pipeline", "embedded", tmp_path_factory.mktemp("hub") / "model", repository="me/model")


@pytest.mark.parametrize(("change", "words"), CHANGES)
@pytest.mark.parametrize("part", PARTS[:3])
def test_every_part_by_remote_code(published, tmp_path, part, change, words):
    folder = shutil.copytree(published, tmp_path / "model")
    change_weights(folder, part, change)
    with pytest.raises(ValueError, match=words) as caught:
        DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    assert type(caught.value).__name__ == "WeightsError" and part in str(caught.value)


def test_from_the_hub(published, tmp_path):
    folder = shutil.copytree(published, tmp_path / "model")
    name = change_weights(folder, "depth_estimator", drop)
    code = (
        "import sys\nfrom bokehdepth.hub import load_pipeline\n"
        "try: load_pipeline('tester/model')\nexcept ValueError as error: print(error)"
    )
    with HubServer() as hub:
        environment = {**os.environ, **hub.environment(tmp_path / "hf"), "PYTHONPATH": str(PROJECT)}
        upload = (
            "import sys; from huggingface_hub import HfApi; api = HfApi(); api.create_repo('tester/model')\n"
            "api.upload_folder(repo_id='tester/model', folder_path=sys.argv[1])"
        )
        for command in ((upload, str(folder)), (code,)):
            done = subprocess.run([sys.executable, "-c", *command], env=environment, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
    assert "depth_estimator" in done.stdout and name in done.stdout and done.stdout.count("\n") == 1


@pytest.mark.parametrize(("change", "words"), CHANGES)
@pytest.mark.parametrize("part", ["transformer", "vae"])
def test_parts_that_are_the_libraries_own(tmp_path, part, change, words):
    tiny.pipeline().save_pretrained(tmp_path / "model")
    tiny.kontext().save_pretrained(tmp_path / "base")
    for folder in ("model", "base"):
        name = change_weights(tmp_path / folder, part, change)
    with pytest.raises(InputError, match="expected shape" if change is reshape else part) as caught:  # diffusers' own
        load_pipeline(tmp_path / "model")
    assert ("nonsense.weight" if change is add else name) in str(caught.value)
    empty = dict.fromkeys(("scheduler", "vae", "transformer"))
    pipe = tiny.pipeline(**empty, base_model_id=str(tmp_path / "base"))
    with pytest.raises(ValueError, match="expected shape" if change is reshape else words):
        pipe.load_base_model()


def test_whole_weights_of_every_kind_load(tmp_path):
    tiny.pipeline().save_pretrained(tmp_path / "model", max_shard_size="40kB")
    assert len([*(tmp_path / "model/transformer").glob("*.safetensors")]) > 2
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        pipe = load_pipeline(tmp_path / "model", dtype=dtype)
        assert pipe.transformer.dtype == pipe.vae.dtype == dtype
    tiny.kontext().save_pretrained(tmp_path / "base")
    pipe = tiny.pipeline(transformer=None, base_model_id=str(tmp_path / "base"))
    pipe.load_base_model(with_text_encoders=True)
    assert pipe.transformer is not None and pipe.text_encoder_2 is not None


def test_values_are_looked_at_one_by_one_where_a_sum_overflows():
    layer = torch.nn.Linear(2, 2).half()
    torch.nn.init.constant_(layer.weight, 65504)
    check_weights("layer", layer)
    layer = torch.nn.Linear(2, 2)
    torch.nn.init.constant_(layer.weight, 3e38)
    check_weights("layer", layer)
    layer.bias.data = layer.bias.data.to(torch.float8_e5m2)
    check_weights("layer", layer)
    layer.weight.data[0, 0] = -torch.inf
    with pytest.raises(WeightsError, match=r"layer have values that are not finite in 1 of its tensors \(weight\)"):
        check_weights("layer", layer)


def test_a_part_that_is_to_be_trained_may_be_missing(tmp_path):
    model = tiny.depth_model()
    model.save_pretrained(tmp_path)
    state = {name: value for name, value in model.state_dict().items() if not name.startswith("dsfa.")}
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match="lack .* of its tensors .dsfa"):
        BokehDepthAnythingForDepthEstimation.from_pretrained(tmp_path)
    BokehDepthAnythingForDepthEstimation.from_pretrained(tmp_path, fresh_parts=["dsfa"])
    del state["head.conv1.bias"]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"lack 1 of its tensors \(head.conv1.bias\)"):
        BokehDepthAnythingForDepthEstimation.from_pretrained(tmp_path, fresh_parts=["dsfa"])


# ---------------------------------------------------------------------- released files

FIRST = "embedding_layer.0.weight"
ADAPTER = {FIRST: torch.ones(64, 1)}
PLAIN = ("pixel_encoder.cls_token", "pixel_encoder.pos_embed", "pixel_decoder.depth_layer.to_latents.weight")
RELEASED = {
    "average is a number": (
        {"model": ADAPTER, "ema": {"shadow_params": 5}},
        "must have ema.shadow_params for tensors",
    ),
    "average is a word": (
        {"model": ADAPTER, "ema": {"shadow_params": "x"}},
        "must have ema.shadow_params for tensors",
    ),
    "sparse": ({FIRST: torch.ones(64, 1).to_sparse()}, "the layout torch.sparse_coo"),
    "no values": ({FIRST: torch.ones(64, 1, device="meta")}, "got one without values"),
    "6 GB out of one value": (
        {FIRST: torch.ones(1, 1).expand(40_000, 40_000)},
        "must hold all values of embedding_layer.0.weight, got 4 bytes",
    ),
    "640 GB": (
        {FIRST: torch.ones(1, 1).expand(400_000, 400_000)},
        "must hold all values of embedding_layer.0.weight, got 4 bytes",
    ),
    "8 bits": ({FIRST: torch.ones(64, 1).to(torch.float8_e4m3fn)}, "a tensor of torch.float8_e4m3fn"),
    "a number for a matrix": (
        {**ADAPTER, "adapter_modules.0.to_v_dof.down.weight": torch.tensor(1.0)},
        "must have 2 dimensions",
    ),
    "a depth model of numbers": (dict.fromkeys(PLAIN, torch.tensor(1.0)), "must have 3 dimensions"),
    "a depth model of nothing": (
        {"encoder_fusion.layers.0.block.x": torch.ones(1), "pretrained.cls_token": torch.ones(1, 1, 0)},
        "none of them 0",
    ),
}


@pytest.mark.parametrize("case", RELEASED)
def test_an_odd_released_file_is_one_sentence(tmp_path, case):
    content, words = RELEASED[case]
    torch.save(content, tmp_path / "file.pth")
    with pytest.raises(InputError) as caught:
        convert_checkpoint(tmp_path / "file.pth", tmp_path / "out")
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["file.pth"]


def test_a_pickle_is_not_taken_for_safetensors(tmp_path):
    torch.save(ADAPTER, tmp_path / "model.safetensors")
    for source in (tmp_path / "model.safetensors", tmp_path):
        with pytest.raises(InputError, match="got a PyTorch file 'model.safetensors'"):
            convert_checkpoint(source, tmp_path / "out")


# ---------------------------------------------------------------------- everything else in the folder


def _json(part, name, change):
    def damage(model):
        path = model / part / name
        value = change(json.loads(path.read_text()))
        path.write_text(value if isinstance(value, str) else json.dumps(value))

    return damage


def _index(**changes):
    return _json("", "model_index.json", lambda index: {**index, **changes})


def _weights(part, change):
    return lambda model: change(min((model / part).glob("*.safetensors")))


FAULTS = {
    "cut weights": _weights("depth_estimator", lambda path: path.write_bytes(path.read_bytes()[:-100])),
    "cut weights of the adapter": _weights("bokeh_adapter", lambda path: path.write_bytes(path.read_bytes()[:-100])),
    "pickle named safetensors": _weights("depth_estimator", lambda path: torch.save({"a": torch.ones(2)}, path)),
    "no weights": _weights("transformer", lambda path: path.unlink()),
    "no configuration": lambda model: (model / "depth_estimator" / "config.json").unlink(),
    "configuration is a list": _json("depth_estimator", "config.json", lambda _: [1]),
    "configuration of the adapter is a list": _json("bokeh_adapter", "config.json", lambda _: [1]),
    "configuration is no JSON": _json("vae", "config.json", lambda _: "{"),
    "configuration is no text": lambda model: (model / "vae" / "config.json").write_bytes(b"\xff\xfe\x00"),
    "rank is a word": _json("bokeh_adapter", "config.json", lambda config: {**config, "rank": "x"}),
    "rank is huge": _json("bokeh_adapter", "config.json", lambda config: {**config, "rank": 10**9}),
    "unknown level": _json("depth_estimator", "config.json", lambda config: {**config, "dsfa_levels": [99]}),
    "index is a list": _json("", "model_index.json", lambda _: [1]),
    "index is a number": _json("", "model_index.json", lambda _: 5),
    "index is empty": _json("", "model_index.json", lambda _: {}),
    "index is no JSON": _json("", "model_index.json", lambda _: "{"),
    "index is deep": lambda model: (model / "model_index.json").write_text("[" * 100_000),
    "class is an empty list": _index(_class_name=[]),
    "part of a stranger": _index(vae=["modeling_other", "Other"]),
    "part that diffusers lacks": _index(vae=["diffusers", "Nope"]),
    "part that is a command": _index(vae=["os", "system"]),
    "part is a number": _index(vae=3),
    "steps are a word": _json("bokeh_adapter", "config.json", lambda config: {**config, "num_inference_steps": "x"}),
    "area below 0": _json("bokeh_adapter", "config.json", lambda config: {**config, "max_area": -5}),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_folder_is_one_sentence(model, fault):
    FAULTS[fault](model)
    with pytest.raises(InputError) as caught:
        load_pipeline(model)
    assert "\n" not in str(caught.value) and "wanted" in str(caught.value)


def test_our_own_class_says_it_too(model):
    name = change_weights(model, "depth_estimator", poison)
    with pytest.raises(ValueError, match=name):
        BokehDepthPipeline.from_pretrained(model)


def test_the_run_record_names_a_base_that_is_fetched(model):
    assert set(weights_record(model)) == {"pipeline"}
    _index(base_model_id="black-forest-labs/FLUX.1-Kontext-dev", transformer=[None, None])(model)
    assert weights_record(model)["base"] == {"id": "black-forest-labs/FLUX.1-Kontext-dev", "revision": None}
    assert set(weights_record(model, with_base=False)) == {"pipeline"}

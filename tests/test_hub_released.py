"""The released weights from a Hub on loopback: tiny files in the released layouts, under their true names."""

import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import released_layouts as layouts
import torch
from hub_server import HubServer, Repository
from PIL import Image

import tiny
from bokehdepth.camera import read_camera
from bokehdepth.files.depth_maps import load_depth
from bokehdepth.files.photos import open_photo
from bokehdepth.hub import EMBEDDED_FOLDER
from bokehdepth.released.checkpoint import ADAPTER, BASE_MODEL, DEPTH_MODELS, REVISIONS, parse_revisions
from bokehdepth.released.convert import convert_state
from bokehdepth.released.pipeline import PRESETS, ReleasedPipeline
from doors import run_client, write_photo

RELEASE = ADAPTER.repo_id
BASE = {"attention_head_dim": 16, "num_attention_heads": 4, "num_single_layers": 3, "axes_dims_rope": (4, 6, 6)}


def base():
    return tiny.kontext(transformer=tiny.transformer(**BASE))


def states():
    """The three files by name; heads of 8 channels, since the released number of heads is 8."""
    depth_anything = layouts.depth_anything(dim=64, blocks=12, features=8, outs=(4, 6, 8, 8), side=3)
    return {
        ADAPTER.filename: layouts.filled(layouts.adapter(blocks=5, dim=64)),
        DEPTH_MODELS["unidepth"].filename: layouts.filled(layouts.unidepth(64, 12, 32, 4, side=3), seed=2),
        DEPTH_MODELS["depth_anything"].filename: layouts.filled(depth_anything, seed=3),
    }


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("released")
    write_photo(folder)
    base().save_pretrained(folder / "base")
    return folder


@pytest.fixture(scope="module")
def hub(home):
    """The base, which is gated, and the release, whose newest commit has no depth models any more."""
    with HubServer() as server:
        own = server.repositories["model", BASE_MODEL] = Repository(gated=True)
        own.commit(server.keep_folder(home / "base"))
        files = {}
        for name, state in states().items():
            buffer = io.BytesIO()
            # As the releases' trainers save them under DDP.
            wrapped = {f"module.{key}": value for key, value in state.items()}
            torch.save(wrapped if name == ADAPTER.filename else {"model": wrapped, "step": 1}, buffer)
            files[name] = server.keep(buffer.getvalue())
        buffer = io.BytesIO()
        torch.save(layouts.filled(layouts.unidepth(64, 12, 32, 4, side=3, dsfa=False), seed=4), buffer)
        author = server.repositories["model", "author/depth"] = Repository()
        author.commit({"depth.pth": server.keep(buffer.getvalue())})
        release = server.repositories["model", RELEASE] = Repository()
        release.tags["whole"] = release.commit(files)
        release.commit({ADAPTER.filename: files[ADAPTER.filename]})
        yield server


COMMANDS = """
import contextlib, io, os, warnings
from bokehdepth.cli import main

def command(*arguments):
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        code = main([arguments[0], "photo.png", "--model", "released", "--device", "cpu", *arguments[1:]])
    return [code, said.getvalue()]

base, release, commit = sys.argv[1:]
stack = ("stack", "-o", "never", "--steps", "1", "--bokeh-strengths", "10")
did = {"gated": command(*stack)}
token, os.environ["HF_TOKEN"] = os.environ["HF_TOKEN"], "hf_of_nobody"
did["token"] = command(*stack)
os.environ["HF_TOKEN"] = token
order(grant=base)
did["form"] = command(*stack, "--revision", "v1")
did["stranger"] = command(*stack, "--revision", "somebody/else@v1")
did["revision"] = command(*stack, "--revision", f"{release}@v9")
did["base revision"] = command(*stack, "--revision", f"{base}@v9,{release}@whole")
did["moved"] = command("depth", "-o", "never")
lens = ("--focal-length-35mm", "40")
did["pinned"] = command("depth", "-o", "pinned", "--revision", f"{release}@{commit}", *lens)
did["no lens"] = command("depth", "-o", "no_lens", "--revision", f"{release}@{commit}")

from bokehdepth import BokehDepthPipeline
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    pipe = BokehDepthPipeline.from_released(depth="depth_anything", with_base=False, revisions={release: "whole"})
    did["warned of a pinned one"] = [str(w.message) for w in caught if "not pinned" in str(w.message)]
did["revisions"], did["plan"], did["preset"] = dict(pipe.revisions), pipe.placement, pipe.preset
pixels = torch.linspace(-1, 1, 2 * 3 * 70 * 56).reshape(1, 2, 3, 70, 56)
strengths = torch.tensor([[0.0, 0.5]])
pipe.depth_estimator.save_pretrained("depth_anything")
again = type(pipe.depth_estimator).from_pretrained("depth_anything")
with torch.no_grad():
    depths = [model(pixels, strengths).predicted_depth for model in (pipe.depth_estimator, again)]
from bokehdepth.released.checkpoint import Source
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    other = BokehDepthPipeline.from_released(depth_source=Source("author/depth", "depth.pth"), with_base=False)
    did["warned"] = [str(w.message) for w in caught if "not pinned" in str(w.message)]
did["notes"], did["other"] = list(other.notes), dict(other.revisions)
did["saved depth is equal"] = torch.equal(*depths)
np.save("depth_anything.npy", depths[0].numpy())
Path("did.json").write_text(json.dumps(did))
"""


@pytest.fixture(scope="module")
def did(hub, home):
    """One process with the package through every order that is to be refused, then some that are not."""
    folder = home / "client"
    folder.mkdir()
    write_photo(folder)
    commit = hub.repositories["model", RELEASE].history[0]
    run_client(COMMANDS, folder, hub.environment(folder / "hf"), BASE_MODEL, RELEASE, commit)
    return json.loads((folder / "did.json").read_text())


@pytest.mark.parametrize(
    ("order", "sentence"),
    [
        ("gated", f"{BASE_MODEL} is gated; accept its licence on its Hub page and log in with a token that reads it."),
        ("form", "`revision` must be REPOSITORY@COMMIT of each of"),
        ("stranger", "`revisions` must be of black-forest-labs/FLUX.1-Kontext-dev,"),
        ("token", f"{BASE_MODEL} was refused by the Hub ("),
        ("revision", f"{RELEASE} was refused by the Hub (404 Client Error"),
        ("base revision", f"{BASE_MODEL} was refused by the Hub (404 Client Error"),
        ("moved", f"{RELEASE} has no file UDv2_dsfa_release.pth at"),
    ],
)
def test_refusals_are_one_sentence_and_nothing_is_written(did, home, order, sentence):
    code, said = did[order]
    *assumed, error = said.splitlines()
    assert code == 2 and error.startswith("bokehdepth: error: ") and sentence in error and error.endswith("."), said
    assert all(line.startswith("bokehdepth: warning: photo ") for line in assumed)
    assert not (home / "client" / "never").exists()


@torch.no_grad()
def test_depth_alone_loads_one_pinned_file_says_its_licence_and_takes_a_known_lens(did, hub, home):
    commit = hub.repositories["model", RELEASE].history[0]
    model, _ = convert_state(states()[DEPTH_MODELS["unidepth"].filename])
    pixels = torch.from_numpy(np.asarray(Image.open(home / "photo.png")) / 255).permute(2, 0, 1)[None].float()
    camera = read_camera(open_photo(home / "photo.png"), focal_length_35mm=40.0).intrinsics
    wanted = {"pinned": torch.tensor(camera)[None], "no lens": None}
    for order, intrinsics in wanted.items():
        code, said = did[order]
        assert code == 0 and "CC BY-NC 4.0" in said and "not pinned" not in said
        folder = home / "client" / order.replace(" ", "_") / "photo"
        record = json.loads((folder / "depth.json").read_text())
        assert record["weights"] == {"depth": {"id": RELEASE, "revision": commit}}
        # Without a lens the model's own camera is used, not the one that is assumed for the record.
        depth = model.infer(pixels, intrinsics=intrinsics).predicted_depth[0]
        np.testing.assert_allclose(load_depth(folder / "depth.npz"), depth, rtol=1e-3)
        found = (model.infer(pixels).intrinsics if intrinsics is None else intrinsics)[0, 0, 0]
        with np.load(folder / "depth.npz") as saved:  # the camera that belongs to this depth
            np.testing.assert_allclose(saved["focal_length_px"], found, rtol=1e-3)


def test_what_is_not_pinned_is_said_in_one_sentence(did, hub):
    head = hub.repositories["model", "author/depth"].head
    sentence = f"not pinned, the newest was loaded; for the same weights again ask for revision author/depth@{head}."
    assert did["warned"] == [sentence] and did["notes"][1:] == [sentence] and did["other"] == {"author/depth": head}
    assert "non-commercial" in did["notes"][0]


@torch.no_grad()
def test_released_depth_anything_keeps_its_rule_of_positions(did, hub, home):
    assert did["saved depth is equal"] and did["warned of a pinned one"] == []
    commit = hub.repositories["model", RELEASE].history[0]
    assert (did["revisions"], did["plan"], did["preset"]) == ({RELEASE: commit}, "resident", "paper")
    model, _ = convert_state(states()[DEPTH_MODELS["depth_anything"].filename])
    pixels = torch.linspace(-1, 1, 2 * 3 * 70 * 56).reshape(1, 2, 3, 70, 56)
    expected = model(pixels, torch.tensor([[0.0, 0.5]])).predicted_depth.numpy()
    np.testing.assert_allclose(np.load(home / "client" / "depth_anything.npy"), expected, rtol=1e-5)


def test_command_runs_the_whole_release_and_names_its_commits(did, hub, home):
    """After `did`, which brought the licence of the base; the newest release is the whole one again."""
    release, own = (hub.repositories["model", name] for name in (RELEASE, BASE_MODEL))
    release.commit(release.commits[release.history[0]])
    command = [sys.executable, "-m", "bokehdepth", "run", "photo.png", "-o", "out", "--model", "released", "--device",
               "cpu", "--threads", "1", "--steps", "2", "--bokeh-strengths", "10", "20", "--seed", "3"]  # fmt: skip
    environment = hub.environment(home / "hf")
    run = subprocess.run(command, cwd=home, capture_output=True, text=True, env={**os.environ, **environment})
    assert run.returncode == 0, run.stderr
    assert f"ask for revision {BASE_MODEL}@{own.head},{RELEASE}@{release.head}." in run.stderr
    record = json.loads((home / "out" / "photo" / "run.json").read_text())
    assert record["weights"] == {
        "base": {"id": BASE_MODEL, "revision": own.head},
        "adapter": {"id": RELEASE, "revision": release.head},
        "depth": {"id": RELEASE, "revision": release.head},
    }
    files = states()
    sizes = {"num_double_blocks": 2, "num_single_blocks": 3, "num_attention_heads": 4, "attention_head_dim": 16}
    adapter, _ = convert_state(files[ADAPTER.filename], joint_attention_dim=32, pooled_projection_dim=24, **sizes)
    pipe = ReleasedPipeline(
        **{name: part for name, part in base().components.items() if name in ReleasedPipeline._base_components},
        bokeh_adapter=adapter,
        depth_estimator=convert_state(files[DEPTH_MODELS["unidepth"].filename])[0],
    )
    pipe.bokeh_adapter.register_to_config(guidance_scale=PRESETS["paper"].guidance_scale)
    pipe.set_progress_bar_config(disable=True)
    photo = Image.open(home / "photo.png")
    wanted = pipe(photo, (10, 20), num_inference_steps=2, generator=torch.Generator().manual_seed(3))
    for name, frame in zip(("bokeh_k10.png", "bokeh_k20.png"), wanted.images, strict=True):
        difference = np.asarray(Image.open(home / "out" / "photo" / name)).astype(int) - np.asarray(frame)
        assert np.abs(difference).max() <= 1
    assert np.abs(np.asarray(wanted.images[0]).astype(int) - np.asarray(photo)).mean() > 1
    np.testing.assert_allclose(load_depth(home / "out" / "photo" / "depth.npz"), wanted.depth_m, rtol=1e-3)


def test_commits_stand_in_one_place_and_have_their_form():
    assert set(REVISIONS) == {BASE_MODEL, RELEASE} == {BASE_MODEL, *(s.repo_id for s in DEPTH_MODELS.values())}
    assert all(commit is None or (len(commit) == 40 and int(commit, 16)) for commit in REVISIONS.values())
    assert parse_revisions(" a/b@1, c/d@x@y ") == {"a/b": "1", "c/d": "x@y"}
    package = EMBEDDED_FOLDER.parent
    holders = [path.name for path in package.rglob("*.py") if 'fogradio/BokehDepth"' in path.read_text()]
    assert holders == ["checkpoint.py"]

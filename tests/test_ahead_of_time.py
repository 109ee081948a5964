"""Blocks compiled ahead of time: the same frames, each block's own weights and rows, refusals, all or nothing."""

import json
import re
import shutil
import subprocess
import zipfile

import numpy as np
import pytest
import torch
from peft import LoraConfig

import tiny
from bokehdepth import ahead_of_time
from bokehdepth.acceleration import BLOCKS, bake_modulation
from bokehdepth.ahead_of_time import (
    FACTS,
    PACKAGE,
    CompiledBlock,
    load_compiled_blocks,
    restore_blocks,
    save_compiled_blocks,
)
from bokehdepth.errors import InputError

FIXED = {"reference_attention": "causal", "reference_timestep": 0.0}
PHOTO = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler for AOTInductor")


def make(kind):
    """The released kind of adapter, or one with fixed keys of the photo and a baked modulation."""
    pipe = tiny.pipeline(bokeh_adapter=tiny.adapter(**(FIXED if kind == "fixed" else {})))
    pipe.bokeh_adapter.attach(pipe.transformer)
    pipe.bokeh_adapter.fold()
    if kind == "fixed":
        bake_modulation(pipe, token_counts=(16, 36))
    return pipe


def frames(pipe, strengths=(10, 20, 30), **options):
    options = {"generator": torch.Generator().manual_seed(0), "restore": False, "output_type": "pt", **options}
    return pipe.generate_stack(PHOTO, strengths, **options).images


def close(got, wanted):
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    made = {}

    def of(kind):
        if kind not in made:
            # What the CPU says it can do is taken at its word: trying it out compiles for most of a minute.
            with torch._inductor.config.patch("cpp.vec_isa_ok", True):
                made[kind] = save_compiled_blocks(make(kind), tmp_path_factory.mktemp("compiled") / kind)
        return made[kind]

    return of


def blocks(pipe, number):
    return [getattr(pipe.transformer, group)[number] for group in BLOCKS]


@compiler
@pytest.mark.parametrize("kind", ["full", "fixed"])
def test_frames_are_the_eager_ones_at_any_size_and_number(packages, kind, monkeypatch):
    pipe, folder = make(kind), packages(kind)
    calls = [{}, {"strengths": (20,)}, {"max_area": 96 * 96}, {"bokeh_scale": 0.3}]
    wanted = [frames(pipe, **call) for call in calls]
    load_compiled_blocks(pipe, folder)
    eager = []
    for block in blocks(pipe, 0):
        plain = type(block).forward
        monkeypatch.setattr(
            type(block), "forward", lambda self, *a, f=plain, **k: eager.append(self) or f(self, *a, **k)
        )
    for call, images in zip(calls, wanted, strict=True):
        close(frames(pipe, **call), images)
    # Keys of a photo are recorded once, by the blocks themselves.
    assert len(eager) == (4 * len(calls) if kind == "fixed" else 0)
    restore_blocks(pipe.transformer)
    assert torch.equal(frames(pipe), wanted[0])
    assert eager


@compiler
@pytest.mark.parametrize("kind", ["full", "fixed"])
def test_each_block_runs_with_its_own_weights_and_rows(packages, kind):
    pipe = make(kind)
    before = frames(pipe)

    def check():
        wanted = frames(pipe)
        assert (wanted - before).abs().max() > 1e-3
        load_compiled_blocks(pipe, packages(kind))
        close(frames(pipe), wanted)

    with torch.no_grad():
        for block in blocks(pipe, 1):
            block.attn.to_v.weight.mul_(-1)
    check()
    for block in blocks(pipe, 0):  # while compiled: within a weight, and in another weight's place
        with torch.no_grad():
            block.attn.to_v.bias.add_(1)
        block.attn.to_v.weight = torch.nn.Parameter(block.attn.to_v.weight.flip(0))
    changed = frames(pipe)
    restore_blocks(pipe.transformer)
    close(changed, frames(pipe))
    assert (changed - before).abs().max() > 1e-3
    first, second = (block.attn.processor for block in blocks(pipe, 1))
    first.index, second.index = second.index, first.index
    close_before = (frames(pipe) - changed).abs().max()
    assert close_before > 1e-3
    check()


@compiler
def test_weights_are_neither_in_the_package_nor_copied(packages):
    pipe = make("full")
    load_compiled_blocks(pipe, packages("full"))
    kinds = json.loads((packages("full") / FACTS).read_text())["blocks"]
    for block, group in zip(blocks(pipe, 0), BLOCKS, strict=True):
        read = {name for name, _ in block.named_parameters() if ".processor." not in name}
        assert set(kinds[group]["weights"]) == read
        inside = {name: weight.data_ptr() for name, weight in block.named_parameters() if name in read}
        frames(pipe)
        assert {name: weight.data_ptr() for name, weight in block.named_parameters() if name in read} == inside
        assert block.forward._package is getattr(pipe.transformer, group)[1].forward._package


@compiler
@pytest.mark.parametrize("group", BLOCKS)
def test_packages_ask_for_no_executable_stack(packages, group, tmp_path):
    with zipfile.ZipFile(packages("full") / group / PACKAGE) as archive:
        (library,) = (name for name in archive.namelist() if name.endswith(".so"))
        headers = subprocess.check_output(["readelf", "-lW", archive.extract(library, tmp_path)], text=True)
    (stack,) = (line for line in headers.splitlines() if "GNU_STACK" in line)
    assert " RW " in stack and "RWE" not in stack


@compiler
def test_a_package_that_computes_something_else_is_refused(packages):
    pipe = make("full")
    load_compiled_blocks(pipe, packages("full"))
    compiled = [block.forward for block in blocks(pipe, 1)]
    restore_blocks(pipe.transformer)
    calls = ahead_of_time._captured(pipe, (10, 20), {})
    for number, reaction in ((1, None), (0, RuntimeError)):
        for block, forward, group in zip(blocks(pipe, number), compiled, BLOCKS, strict=True):
            if reaction is None:
                ahead_of_time._compare(block, forward, calls[group])
                continue
            with pytest.raises(reaction, match="off the eager one"):
                ahead_of_time._compare(block, forward, calls[group])


@compiler
def test_calls_that_the_packages_do_not_fit_are_refused(packages):
    pipe = make("full")
    load_compiled_blocks(pipe, packages("full"))
    with pytest.raises(InputError, match="hidden_states is float32 .9, 32, 32.*frames from 1 to 8"):
        frames(pipe, range(1, 10))
    call = {
        name: x for name, x in ahead_of_time._captured(pipe, (10, 20), {})[BLOCKS[0]].items() if name != "condition"
    }
    with pytest.raises(InputError, match="joint_attention_kwargs has nothing"):
        blocks(pipe, 0)[0](**call)
    condition = {"bokeh_values": torch.zeros(4, 2, 1, 32)}
    keys = dict.fromkeys(("reference_keys", "reference_values"), torch.zeros(4, 2, 16, tiny.HEADS, tiny.HEAD_DIM))
    with pytest.raises(InputError, match="joint_attention_kwargs has .*reference_keys.* want bokeh_values"):
        blocks(pipe, 0)[0](**call, joint_attention_kwargs={**condition, **keys})
    for change, message in (
        ({"hidden_states": call["hidden_states"].double()}, "hidden_states is float64"),
        ({"temb": call["temb"][:1]}, r"temb is float32 \(1, 32\)"),
        ({"image_rotary_emb": tuple(x[1:] for x in call["image_rotary_emb"])}, "36 positions; wanted 5 \\+ 32"),
    ):
        with pytest.raises(InputError, match=message):
            blocks(pipe, 0)[0](**{**call, "joint_attention_kwargs": condition, **change})
    with pytest.raises(InputError, match="compiled already"):
        load_compiled_blocks(pipe, packages("full"))
    pipe.transformer.add_adapter(LoraConfig(target_modules=["to_q"]))
    with pytest.raises(InputError, match="not folded"):
        frames(pipe)
    pipe.transformer.unload_lora()
    frames(pipe)  # folds again
    pipe.transformer.add_adapter(LoraConfig(target_modules=["to_v"]))
    with pytest.raises(InputError, match="no plain weight attn.to_v.bias"):
        frames(pipe)


@compiler
def test_packages_of_another_make_are_refused(packages, tmp_path):
    folder = shutil.copytree(packages("full"), tmp_path / "copy")
    facts = json.loads((folder / FACTS).read_text())
    pipe = make("full")
    for name, value in facts["made_for"].items():
        other = {**facts, "made_for": {**facts["made_for"], name: "other"}}
        (folder / FACTS).write_text(json.dumps(other))
        with pytest.raises(InputError, match=re.escape(f"compiled for {name} 'other'; wanted {value!r}")):
            load_compiled_blocks(pipe, folder)
    facts["blocks"][BLOCKS[1]]["weights"]["proj_out.weight"]["shape"] = [1, 2]
    (folder / FACTS).write_text(json.dumps(facts))
    with pytest.raises(InputError, match=r"proj_out.weight float32 \[1, 2\]; wanted float32 \[32, 160\]"):
        load_compiled_blocks(pipe, folder)
    for text, message in (("{", "not readable"), ('{"format": 0}', "has format 0; wanted 1")):
        (folder / FACTS).write_text(text)
        with pytest.raises(InputError, match=message):
            load_compiled_blocks(pipe, folder)
    (folder / FACTS).unlink()
    with pytest.raises(InputError, match=f"has no {FACTS}"):
        load_compiled_blocks(pipe, folder)
    bake_modulation(pipe)
    with pytest.raises(InputError, match="no plain weight norm1.linear.bias"):
        load_compiled_blocks(pipe, packages("full"))
    with pytest.raises(InputError, match="reference_attention 'full'; wanted 'causal, fixed timestep'"):
        load_compiled_blocks(make("fixed"), packages("full"))
    assert not any(isinstance(vars(block).get("forward"), CompiledBlock) for block in blocks(pipe, 0))


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        ({"num_tokens": 2}, "num_tokens=2"),
        ({"null_token": True}, "null_token=True"),
        ({"block_indices": [0, 2]}, "2 of 4 blocks"),
        ({"reference_attention": "causal"}, "reference_timestep is None"),
    ],
)
def test_adapters_without_one_graph_for_each_kind_are_refused(adapter, message, tmp_path):
    pipe = tiny.pipeline(bokeh_adapter=tiny.adapter(**adapter))
    with pytest.raises(InputError, match="not folded"):
        save_compiled_blocks(pipe, tmp_path / "compiled")
    pipe.bokeh_adapter.fold()
    with pytest.raises(InputError, match=message):
        save_compiled_blocks(pipe, tmp_path / "compiled")
    assert not list(tmp_path.iterdir())


def test_saving_is_checked_first_and_leaves_all_or_nothing(tmp_path, monkeypatch):
    pipe, folder = make("full"), tmp_path / "compiled"
    for options, message in (
        ({"max_frames": 2}, "max_frames is 2; wanted 3 or more"),
        ({"bokeh_strengths": (0, 20)}, "wanted two or more above 0"),
        ({"max_photo_tokens": 8}, "image_tokens from 2 to 16"),
        ({"max_text_tokens": 4}, "text_tokens from 2 to 4"),
    ):
        with pytest.raises(InputError, match=message):
            save_compiled_blocks(pipe, folder, **options)

    def fail(*arguments):
        arguments[-1].write_bytes(b"half")
        raise RuntimeError("no compiler")

    monkeypatch.setattr(ahead_of_time, "_compile", fail)
    with pytest.raises(RuntimeError, match="no compiler"):
        save_compiled_blocks(pipe, folder)
    assert not list(tmp_path.iterdir())
    folder.mkdir()
    (folder / FACTS).write_text("{}")
    with pytest.raises(InputError, match="exists"):
        save_compiled_blocks(pipe, folder)
    pipe.transformer.compile_repeated_blocks()
    with pytest.raises(InputError, match="hooks or torch.compile"):
        save_compiled_blocks(pipe, folder, overwrite=True)

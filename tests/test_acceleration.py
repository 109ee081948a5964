"""Baked modulation, quantisation, and the README's calls to diffusers: compiled blocks, attention kernels."""

import importlib.util
import shutil
import sys

import numpy as np
import pytest
import torch
from diffusers.models.attention_dispatch import attention_backend

import tiny
from bokehdepth.errors import InputError
from bokehdepth.speed import bake_modulation, modulation_layers, quantize, restore_modulation

FIXED = {"reference_attention": "causal", "reference_timestep": 0.0}
PHOTO = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)


def module_bytes(module):
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))


def frames(pipe, strengths=(10, 20, 30), **options):
    options = {"generator": torch.Generator().manual_seed(0), "restore": False, "output_type": "pt", **options}
    return pipe.generate_stack(PHOTO, strengths, **options).images


@pytest.mark.parametrize(
    "adapter", [{}, {"modulation_conditioning": True}, {"modulation_conditioning": True, **FIXED}],
    ids=["branch", "modulation", "modulation and fixed keys"],
)  # fmt: skip
def test_baking_is_exact_smaller_and_undone_to_the_last_bit(adapter):
    pipe = tiny.pipeline(
        transformer=tiny.transformer().double(), bokeh_adapter=tiny.adapter(**adapter).double(), vae=tiny.autoencoder()
    )
    latents = {}
    for name in ("plain", "baked", "restored"):
        trail = []
        frames(pipe, callback_on_step_end=lambda p, i, t, kept, trail=trail: trail.append(kept["latents"]) or {})
        latents[name] = trail[-1]
        if name == "plain":
            before = module_bytes(pipe.transformer)
            layers = modulation_layers(pipe.transformer)
            dropped = sum(module_bytes(layer) for layer in layers.values())
            removed = bake_modulation(pipe)
        elif name == "baked":
            after = module_bytes(pipe.transformer)
            restore_modulation(pipe.transformer, removed)
    assert latents["plain"].dtype == torch.float64
    torch.testing.assert_close(latents["baked"], latents["plain"], rtol=1e-11, atol=1e-11)
    assert torch.equal(latents["restored"], latents["plain"])
    # Two steps' rows of the tables stay: at FLUX's size a thousandth, here more.
    rows = 2 * (3 if "modulation_conditioning" in adapter else 1) + ("reference_timestep" in adapter)
    embedding = module_bytes(removed["time_text_embed"])
    width = tiny.HEADS * tiny.HEAD_DIM
    tables = rows * 8 * width * (2 * 12 + 2 * 3 + 2)
    keys = rows * 8 * (24 + 2)
    assert before - after == dropped + embedding - tables - keys


def test_a_remembered_photo_finds_its_rows_too():
    pipe = tiny.pipeline(bokeh_adapter=tiny.adapter(modulation_conditioning=True, **FIXED))
    wanted = frames(pipe)
    bake_modulation(pipe)
    torch.testing.assert_close(frames(pipe), wanted, atol=1e-5, rtol=0)
    memory = pipe.remember_photo(PHOTO, generator=torch.Generator().manual_seed(0))
    got = pipe.generate_stack(memory, (20,), restore=False, output_type="pt").images
    torch.testing.assert_close(got, frames(pipe, (20,)), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "call", [{"strengths": (10.1,)}, {"num_inference_steps": 3}, {"guidance_scale": 1.0}],
    ids=["K", "steps", "guidance"],
)  # fmt: skip
def test_what_was_not_baked_is_refused(call):
    pipe = tiny.pipeline(bokeh_adapter=tiny.adapter(modulation_conditioning=True))
    bake_modulation(pipe)
    with pytest.raises(InputError, match="baked for other"):
        frames(pipe, **call)
    pooled = torch.randn(1, 24)
    with pytest.raises(InputError, match="baked for other"):
        frames(pipe, prompt_embeds=torch.randn(1, 5, 32), pooled_prompt_embeds=pooled)
    with pytest.raises(InputError, match="baked already"):
        bake_modulation(pipe)


def test_any_k_is_baked_where_k_does_not_reach_the_modulation():
    pipe = tiny.pipeline()
    wanted = frames(pipe, (3.3, 29.0))
    bake_modulation(pipe, (10,))
    torch.testing.assert_close(frames(pipe, (3.3, 29.0)), wanted, atol=1e-5, rtol=0)


def test_a_baked_pipeline_is_not_saved_without_its_weights(tmp_path):
    pipe = tiny.pipeline()
    removed = bake_modulation(pipe)
    with pytest.raises(ValueError, match="restore_modulation"):
        pipe.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()
    with pytest.raises(InputError, match="restore_modulation"):
        pipe.transformer.save_pretrained(tmp_path / "part")
    with pytest.raises(ValueError, match="restore_modulation"):
        pipe.load_lora_weights({})
    restore_modulation(pipe.transformer, removed)
    pipe.save_pretrained(tmp_path / "model")


def test_too_many_rows_are_refused_and_nothing_is_replaced():
    pipe = tiny.pipeline()
    with pytest.raises(InputError, match="300 combinations"):
        bake_modulation(pipe, num_inference_steps=300)
    frames(pipe)


def test_attention_kernel_goes_to_the_adapters_processors():
    pipe = tiny.pipeline()
    wanted = frames(pipe)
    with attention_backend("native"):  # diffusers also sets the process's kernel, which is put back here
        pipe.transformer.set_attention_backend("_native_math")
    processors = pipe.transformer.attn_processors.values()
    assert {p._attention_backend.value for p in processors} == {"_native_math"}
    assert {id(p) for p in processors} == {id(p) for p in pipe.bokeh_adapter.blocks.values()}
    torch.testing.assert_close(frames(pipe), wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize("adapter", [{}, FIXED], ids=["full", "fixed keys"])
def test_blocks_of_a_kind_share_one_graph(adapter):
    """The compiler's front end alone: how many graphs it makes, and that they compute the same."""
    pipe = tiny.pipeline(
        transformer=tiny.transformer(num_layers=3, num_single_layers=5),
        bokeh_adapter=tiny.adapter(num_double_blocks=3, num_single_blocks=5, **adapter),
    )
    wanted, graphs = frames(pipe), []
    pipe.bokeh_adapter.fold()

    def count(graph, examples):
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    try:
        with torch._dynamo.config.patch(allow_unspec_int_on_nn_module=True):  # blocks differ in a number
            pipe.transformer.compile_repeated_blocks(fullgraph=True, backend=count)
            torch.testing.assert_close(frames(pipe), wanted, atol=1e-4, rtol=0)
            # Two kinds of block, and the first of each kind before its number is known to vary.
            made = len(graphs)
            frames(pipe, (5, 6, 7))
            assert len(graphs) == made
    finally:
        torch._dynamo.reset()
    assert made == 4, made


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler for torch.compile")
def test_compiled_code_gives_the_same_frames():
    pipe = tiny.pipeline()
    wanted = frames(pipe)
    torch._dynamo.reset()
    try:
        pipe.transformer.compile_repeated_blocks(fullgraph=True)
        torch.testing.assert_close(frames(pipe), wanted, atol=1e-4, rtol=0)
    finally:
        torch._dynamo.reset()


def test_quantisation_is_checked_and_says_what_is_missing(monkeypatch):
    with pytest.raises(InputError, match="kind is 'int3'; wanted one of float8, int8, int4"):
        quantize(tiny.pipeline(), "int3")
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(InputError, match=r"kind 'int8' needs the library torchao.*bokehdepth\[quant\]"):
        quantize(tiny.pipeline(), "int8")


@pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="torchao is not installed")
def test_int8_weights_are_close_and_fold_the_adapter_first():
    pipe = tiny.pipeline()
    wanted = frames(pipe)
    quantize(pipe, "int8")
    assert pipe.bokeh_adapter.is_folded
    difference = (frames(pipe) - wanted).abs().mean()
    assert 0 < difference < 0.02

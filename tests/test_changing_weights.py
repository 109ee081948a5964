"""What caches or merges weights, against what changes them: the right frames, or one sentence before anything runs."""

import copy
import gc

import numpy as np
import pytest
import torch
from diffusers import FluxKontextPipeline, FluxTransformer2DModel
from diffusers.models.transformers.transformer_flux import FluxAttnProcessor, FluxIPAdapterAttnProcessor
from peft import LoraConfig
from safetensors import safe_open

import tiny
from bokehdepth import BokehDepthPipeline
from bokehdepth.errors import InputError
from bokehdepth.speed import bake_modulation

FIXED = {"reference_attention": "causal", "reference_timestep": 0.25}
PHOTO = np.random.default_rng(0).integers(0, 256, (50, 80, 3), dtype=np.uint8)
ALL = ("attn.to_q", "attn.to_k", "attn.to_v")


def frames(pipe, image=PHOTO, **options):
    own = {} if hasattr(image, "tokens") else {"generator": torch.Generator().manual_seed(0)}
    return pipe.generate_stack(image, (10, 30), output_type="np", **own, **options).images


def unfolded(pipe):
    """A pipeline that never folds, for comparison."""
    pipe.bokeh_adapter.prepare = pipe.bokeh_adapter.attach
    return pipe


def close(got, wanted):
    np.testing.assert_allclose(got, wanted, atol=3e-5)


def differ(got, other):
    assert np.abs(got - other).max() > 1e-3


# ---------------------------------------------------------------------- folding by itself


@pytest.mark.parametrize("adapter", [{}, FIXED, {"null_token": True, "num_tokens": 2}], ids=["one", "fixed", "null"])
def test_a_stack_folds_by_itself_and_says_the_same(adapter):
    pipe = tiny.pipeline(bokeh_adapter=tiny.adapter(**adapter))
    got = frames(pipe)
    assert pipe.bokeh_adapter.is_folded
    close(got, frames(unfolded(tiny.pipeline(bokeh_adapter=tiny.adapter(**adapter)))))
    pipe.bokeh_adapter.unfold()
    assert not pipe.bokeh_adapter.is_folded
    assert np.array_equal(frames(pipe), got)


@torch.no_grad()
def test_passes_without_k_are_the_bases_own_and_the_next_stack_folds_again():
    pipe, inputs = tiny.pipeline(), {
        "hidden_states": torch.randn(1, 4, 16), "encoder_hidden_states": torch.randn(1, 5, 32),
        "pooled_projections": torch.randn(1, 24), "timestep": torch.ones(1), "guidance": torch.ones(1),
        "img_ids": torch.zeros(4, 3), "txt_ids": torch.zeros(5, 3),
    }  # fmt: skip
    plain = pipe.transformer(**inputs).sample
    wanted = frames(pipe)
    assert torch.equal(pipe.transformer(**inputs).sample, plain)
    assert not pipe.bokeh_adapter.is_folded
    assert np.array_equal(frames(pipe), wanted)
    # Also where somebody took the processors off.
    pipe.transformer.set_attn_processor(FluxAttnProcessor())
    assert torch.equal(pipe.transformer(**inputs).sample, plain)


def test_training_of_a_folded_adapter_reaches_its_weights():
    pipe = tiny.pipeline()
    frames(pipe)
    adapter = pipe.bokeh_adapter
    condition = adapter.attention_kwargs((10.0,))
    out = pipe.transformer(
        hidden_states=torch.randn(1, 4, 16), encoder_hidden_states=torch.randn(1, 5, 32),
        pooled_projections=torch.randn(1, 24), timestep=torch.ones(1), guidance=torch.ones(1),
        img_ids=torch.zeros(4, 3), txt_ids=torch.zeros(5, 3), joint_attention_kwargs=condition,
    ).sample  # fmt: skip
    out.square().mean().backward()
    change = adapter.blocks["0"].to_q_lora.up.weight
    assert change.grad is not None and change.grad.abs().sum() > 0
    before = frames(pipe)
    with torch.no_grad():
        change.add_(1.0)
    after = frames(pipe)
    differ(after, before)
    other = tiny.pipeline()
    other.bokeh_adapter.load_state_dict(adapter.state_dict())
    close(after, frames(unfolded(other)))


# ---------------------------------------------------------------------- LoRAs


def test_loras_after_a_stack_are_those_before_one():
    pipe, other = tiny.pipeline(), unfolded(tiny.pipeline())
    before = frames(pipe)
    for one in (pipe, other):
        one.load_lora_weights(tiny.lora(layers=ALL), adapter_name="style")
    wanted = frames(other)
    differ(wanted, before)
    close(frames(pipe), wanted)
    for one in (pipe, other):
        one.set_adapters("style", 0.4)
    close(frames(pipe), frames(other))
    differ(frames(pipe), wanted)
    pipe.unload_lora_weights()
    assert np.array_equal(frames(pipe), before) and pipe.bokeh_adapter.is_folded


@pytest.mark.parametrize("stack_between", [False, True])
def test_fused_loras_are_in_the_bases_weights(stack_between):
    pipe, other = tiny.pipeline(), unfolded(tiny.pipeline())
    before = frames(pipe)
    for one in (pipe, other):
        one.load_lora_weights(tiny.lora(layers=ALL))
        if stack_between and one is pipe:
            frames(one)
        one.fuse_lora()
    close(frames(pipe), frames(other))
    for one in (pipe, other):
        one.unload_lora_weights()
    fused = frames(pipe)
    assert pipe.bokeh_adapter.is_folded
    close(fused, frames(other))
    differ(fused, before)


def test_a_lora_of_the_transformer_itself_is_seen_too():
    pipe, other = tiny.pipeline(), unfolded(tiny.pipeline())
    frames(pipe)
    state = {name.removeprefix("transformer."): value for name, value in tiny.lora(layers=ALL).items()}
    for one in (pipe, other):
        one.transformer.load_lora_adapter(state, prefix=None)
    close(frames(pipe), frames(other))
    for one in (pipe, other):
        one.transformer.fuse_lora()
        one.transformer.unload_lora()
    close(frames(pipe), frames(other))
    # Where it comes in unseen and is fused while folded, nobody can tell the LoRA from the fold any more.
    torn = tiny.pipeline()
    frames(torn)
    torn.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False))
    torn.transformer.fuse_lora()
    with pytest.raises(ValueError, match="must keep the weights that the adapter was folded into"):
        frames(torn)
    torn.transformer.unload_lora()
    with pytest.raises(ValueError, match="must keep the weights that the adapter was folded into"):
        frames(torn)


# ---------------------------------------------------------------------- processors, precision, other adapters


def test_other_processors_make_way_or_are_named():
    pipe = tiny.pipeline()
    wanted = frames(pipe)
    pipe.transformer.set_attn_processor(FluxAttnProcessor())
    assert pipe.bokeh_adapter.transformer is pipe.transformer
    assert np.array_equal(frames(pipe), wanted)
    other = FluxIPAdapterAttnProcessor(hidden_size=32, cross_attention_dim=32)
    pipe.transformer.transformer_blocks[0].attn.set_processor(other)
    with pytest.raises(ValueError, match="processor` must be diffusers' own .* got FluxIPAdapterAttnProcessor"):
        frames(pipe)
    assert pipe.transformer.transformer_blocks[0].attn.processor is other
    fresh = tiny.transformer()
    fresh.transformer_blocks[0].attn.set_processor(other)
    before = dict(fresh.attn_processors)
    with pytest.raises(ValueError, match="got FluxIPAdapterAttnProcessor"):
        tiny.adapter().attach(fresh)
    assert fresh.attn_processors == before and not fresh._forward_pre_hooks


def test_another_precision_is_that_of_a_pipeline_made_in_it():
    pipe = tiny.pipeline()
    frames(pipe)
    got = frames(pipe.to(torch.bfloat16))
    assert np.array_equal(got, frames(tiny.pipeline().to(torch.bfloat16)))
    assert pipe.bokeh_adapter.is_folded


def test_an_adapter_that_is_gone_makes_way_for_another():
    pipe = tiny.pipeline()
    frames(pipe)
    pipe.register_modules(bokeh_adapter=tiny.adapter(seed=8))
    gc.collect()
    assert np.array_equal(frames(pipe), frames(tiny.pipeline(bokeh_adapter=tiny.adapter(seed=8))))
    kept = pipe.bokeh_adapter
    pipe.register_modules(bokeh_adapter=tiny.adapter(seed=9))
    with pytest.raises(ValueError, match="already carries a bokeh adapter; call detach"):
        frames(pipe)
    kept.detach()
    assert np.array_equal(frames(pipe), frames(tiny.pipeline(bokeh_adapter=tiny.adapter(seed=9))))


# ---------------------------------------------------------------------- copies and files


def test_copies_stand_by_themselves():
    pipe = tiny.pipeline()
    wanted = frames(pipe)
    whole = copy.deepcopy(pipe)
    base = copy.deepcopy(pipe.transformer)
    adapter = copy.deepcopy(pipe.bokeh_adapter)
    assert whole.transformer is not pipe.transformer and adapter.transformer is None
    with torch.no_grad():
        whole.transformer.proj_out.weight.zero_()
    differ(frames(whole), wanted)
    assert whole.bokeh_adapter.transformer is whole.transformer
    assert np.array_equal(frames(pipe), wanted)
    # The copied base still carries a copy of the adapter's work, which makes way.
    parts = {**pipe.components, "transformer": base, "bokeh_adapter": adapter}
    assert np.array_equal(frames(BokehDepthPipeline(**parts)), wanted)
    adapter.detach()
    own = tiny.transformer().state_dict()
    assert all(torch.equal(value, own[name]) for name, value in base.state_dict().items())
    assert all(type(processor) is FluxAttnProcessor for processor in base.attn_processors.values())


def test_a_part_that_is_saved_while_folded_is_the_bases_own(tmp_path):
    pipe, own = tiny.pipeline(), tiny.transformer().state_dict()
    wanted = frames(pipe)
    assert pipe.bokeh_adapter.is_folded
    pipe.transformer.save_pretrained(tmp_path / "transformer")
    again = FluxTransformer2DModel.from_pretrained(tmp_path / "transformer")
    assert again.state_dict().keys() == own.keys()
    assert all(torch.equal(value, own[name]) for name, value in again.state_dict().items())
    pipe.bokeh_adapter.save_pretrained(tmp_path / "adapter")
    pipe.save_pretrained(tmp_path / "pipe")
    with safe_open(tmp_path / "pipe" / "transformer" / "diffusion_pytorch_model.safetensors", "pt") as file:
        assert set(file.keys()) == own.keys()
        assert all(torch.equal(file.get_tensor(name), own[name]) for name in own)
    assert pipe.bokeh_adapter.is_folded and np.array_equal(frames(pipe), wanted)


def test_weights_that_are_loaded_while_folded_are_the_bases_own():
    pipe, new = tiny.pipeline(), tiny.transformer(seed=12)
    frames(pipe)
    pipe.transformer.load_state_dict(new.state_dict())
    assert np.array_equal(frames(pipe), frames(tiny.pipeline(transformer=new)))
    state = pipe.transformer.state_dict()
    wanted = frames(pipe)
    pipe.transformer.load_state_dict(state)
    assert np.array_equal(frames(pipe), wanted)


def test_weights_that_are_written_over_a_fold_are_refused():
    pipe = tiny.pipeline()
    frames(pipe)
    with torch.no_grad():
        pipe.transformer.transformer_blocks[1].attn.to_k.weight.add_(0.5)
    with pytest.raises(ValueError, match="`transformer_blocks.1.attn.to_k` must keep the weights"):
        frames(pipe)


def test_quantised_bases_keep_the_fold_or_say_so(tmp_path):
    pipe = tiny.pipeline()
    wanted = frames(pipe)
    pipe.bokeh_adapter.seal("int8")  # what `speed.quantize` does at its end
    assert np.array_equal(frames(pipe), wanted)
    with pytest.raises(ValueError, match="must hold the base's own weights to be saved, got int8"):
        pipe.save_pretrained(tmp_path / "pipe")
    assert not (tmp_path / "pipe").exists()
    with pytest.raises(ValueError, match="must be as it was folded to be unfolded, got int8 weights"):
        pipe.load_lora_weights(tiny.lora())
    stock = FluxKontextPipeline(**{name: getattr(pipe, name) for name in pipe._base_components})
    stock.set_progress_bar_config(disable=True)
    with pytest.raises(ValueError, match="got int8 weights"):
        stock(prompt_embeds=torch.zeros(1, 5, 32), pooled_prompt_embeds=torch.zeros(1, 24), num_inference_steps=1,
              max_area=64 * 64)  # fmt: skip


def test_projections_fused_after_a_fold_stay_folded():
    pipe = tiny.pipeline()
    wanted = frames(pipe)
    pipe.transformer.fuse_qkv_projections()
    close(frames(pipe), wanted)
    with pytest.raises(ValueError, match="got fused projections"):
        pipe.bokeh_adapter.unfold()
    early = tiny.pipeline()
    early.transformer.fuse_qkv_projections()
    close(frames(early), wanted)


# ---------------------------------------------------------------------- a remembered photo


def load_lora(pipe):
    pipe.load_lora_weights(tiny.lora())


def scale_lora(pipe):
    pipe.set_adapters("default_0", 0.4)


def cast(pipe):
    pipe.to(torch.bfloat16)


def train_adapter(pipe):
    with torch.no_grad():
        pipe.bokeh_adapter.blocks["0"].to_v_bokeh.up.weight.add_(1.0)


def other_autoencoder(pipe):
    pipe.register_modules(vae=tiny.autoencoder(seed=9))


@pytest.mark.parametrize("adapter", [{}, FIXED], ids=["full", "fixed"])
@pytest.mark.parametrize("change", [load_lora, cast, train_adapter, other_autoencoder], ids=lambda f: f.__name__)
def test_a_photo_is_remembered_for_the_weights_that_saw_it(adapter, change):
    pipe = tiny.pipeline(bokeh_adapter=tiny.adapter(**adapter))
    memory = pipe.remember_photo(PHOTO, generator=torch.Generator().manual_seed(0))
    frames(pipe, memory)
    change(pipe)
    ran = []
    pipe.transformer.register_forward_pre_hook(lambda *_: ran.append(1))
    with pytest.raises(ValueError, match="must be a PhotoMemory of these weights"):
        frames(pipe, memory)
    assert not ran
    again = pipe.remember_photo(PHOTO, generator=torch.Generator().manual_seed(0))
    assert np.array_equal(frames(pipe, again), frames(pipe))


def test_a_memory_outlives_what_changes_nothing():
    pipe = tiny.pipeline(bokeh_adapter=tiny.adapter(**FIXED))
    load_lora(pipe)
    memory = pipe.remember_photo(PHOTO, generator=torch.Generator().manual_seed(0))
    wanted = frames(pipe, memory)
    frames(pipe, joint_attention_kwargs={"scale": 0.3})
    assert np.array_equal(frames(pipe, memory), wanted)
    scale_lora(pipe)
    with pytest.raises(ValueError, match="PhotoMemory of these weights"):
        frames(pipe, memory)
    plain = tiny.pipeline()
    memory = plain.remember_photo(PHOTO, generator=torch.Generator().manual_seed(0))
    wanted = frames(plain, memory)
    plain.bokeh_adapter.unfold()
    assert np.array_equal(frames(plain, memory), wanted)


# ---------------------------------------------------------------------- baked modulation


def test_baked_layers_are_not_baked_with_a_lora_in_them():
    pipe = tiny.pipeline()
    pipe.load_lora_weights(tiny.lora())
    bake_modulation(pipe)  # of attention alone: nothing of it is in the tables
    other = tiny.pipeline()
    other.transformer.add_adapter(LoraConfig(r=2, target_modules=["norm1.linear"], init_lora_weights=False))
    with pytest.raises(InputError, match=r"norm1.linear` must be a plain torch.nn.Linear .* \(unload LoRAs\)"):
        bake_modulation(other)
    frames(other)

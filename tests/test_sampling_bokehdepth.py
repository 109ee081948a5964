"""What stacks of one photo share."""

import numpy as np
import pytest
import torch

import tiny
from bokehdepth import BokehAdapter
from bokehdepth.sampling_bokehdepth import PhotoMemory, Record, encode_reference

FIXED = {"reference_attention": "causal", "reference_timestep": 0.25, "null_token": True, "rotary_query": False}


def photo(seed=0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (50, 80, 3), dtype=np.uint8)


def noise(seed=0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def inputs(batch=2, tokens=6, **changes):
    """Arguments of a transformer pass: 6 noisy and 6 reference tokens, one photo for all of the batch."""
    source = noise(5)
    ids = torch.zeros(2 * tokens, 3)
    ids[tokens:, 0], ids[:, 1] = 1, torch.arange(2 * tokens) % 3
    draw = {"generator": source}
    reference = torch.randn(1, tokens, 16, **draw).expand(batch, -1, -1)
    arguments = {
        "hidden_states": torch.cat([torch.randn(batch, tokens, 16, **draw), reference], dim=1),
        "encoder_hidden_states": torch.randn(1, 5, 32, **draw).expand(batch, -1, -1),
        "pooled_projections": torch.randn(1, 24, **draw).expand(batch, -1),
        "timestep": torch.full((batch,), 0.25),
        "guidance": torch.full((batch,), 3.5),
        "img_ids": ids,
        "txt_ids": torch.zeros(5, 3),
    }
    return {**arguments, **changes}


def passes(pipe, seen: list) -> torch.utils.hooks.RemovableHandle:
    return pipe.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(tuple(kwargs["hidden_states"].shape[:2])), with_kwargs=True
    )


@pytest.mark.parametrize("folded", [False, True], ids=["as trained", "folded"])
@pytest.mark.parametrize("branch", [{}, {"null_token": False}], ids=["null token", "constant branch"])
@torch.no_grad()
def test_photos_keys_computed_apart_equal_those_in_the_sequence(branch, folded):
    """Where AdaLN tells all tokens the same noise level, the pass apart is causal attention in one sequence."""
    transformer, one = tiny.transformer().double(), tiny.adapter(**{**FIXED, "reference_timestep": None, **branch})
    one.double().attach(transformer)
    wide = {k: v.double() if k != "img_ids" else v for k, v in inputs().items()}
    condition = one.attention_kwargs((10.0, 30.0), reference_tokens=6)
    wanted = transformer(**wide, joint_attention_kwargs=condition).sample[:, :6]
    one.detach()

    apart = tiny.adapter(**{**FIXED, **branch}).double()
    apart.load_state_dict(one.state_dict())
    apart.attach(transformer)
    if folded:
        apart.fold()
    hidden, ids = wide["hidden_states"], wide["img_ids"]
    kept = encode_reference(
        transformer, apart, hidden[:1, 6:], ids[6:], wide["pooled_projections"][:1], wide["guidance"][:1]
    )
    assert kept["reference_keys"].shape == (4, 1, 6, tiny.HEADS, tiny.HEAD_DIM)
    condition = apart.constant_branch(apart.attention_kwargs((10.0, 30.0)))
    assert ("bokeh_values" in condition) == (branch != {})
    alone = {**wide, "hidden_states": hidden[:, :6], "img_ids": ids[:6]}
    got = transformer(**alone, joint_attention_kwargs={**condition, **kept}).sample
    torch.testing.assert_close(got, wanted, rtol=1e-5 if folded else 1e-10, atol=1e-6 if folded else 1e-10)
    without = transformer(**alone, joint_attention_kwargs=condition).sample
    assert (without - wanted).abs().max() > 1e-2 * wanted.abs().max()


@torch.no_grad()
def test_recorded_keys_stand_for_the_reference_in_the_step_that_recorded_them():
    transformer, adapter = tiny.transformer(), tiny.adapter()
    adapter.attach(transformer)
    record, arguments = Record(), inputs()
    condition = adapter.attention_kwargs((10.0, 30.0))
    wanted = transformer(
        **arguments, joint_attention_kwargs={**condition, "record": record, "record_tokens": 6}
    ).sample[:, :6]
    keys, values = (torch.stack(part) for part in zip(*record.pairs, strict=True))
    own = {**arguments, "hidden_states": arguments["hidden_states"][:, :6], "img_ids": arguments["img_ids"][:6]}
    kept = {**condition, "reference_keys": keys, "reference_values": values}
    torch.testing.assert_close(transformer(**own, joint_attention_kwargs=kept).sample, wanted, atol=1e-5, rtol=1e-5)


def test_gradients_of_the_reference_flow_also_with_checkpointing():
    gradients = []
    for checkpointing in (False, True):
        transformer, adapter = tiny.transformer(), tiny.adapter(**FIXED)
        adapter.attach(transformer)
        transformer.train()
        if checkpointing:
            transformer.enable_gradient_checkpointing()
        arguments = inputs()
        hidden, ids = arguments.pop("hidden_states"), arguments.pop("img_ids")
        kept = encode_reference(
            transformer, adapter, hidden[:, 6:], ids[6:], arguments["pooled_projections"], arguments["guidance"]
        )
        condition = adapter.attention_kwargs((10.0, 30.0))
        out = transformer(
            hidden_states=hidden[:, :6], img_ids=ids[:6], **arguments, joint_attention_kwargs={**condition, **kept}
        ).sample
        out.square().mean().backward()
        gradients.append({name: p.grad for name, p in adapter.named_parameters()})
    assert all(g is not None and g.abs().sum() > 0 for g in gradients[0].values())
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name])


@pytest.mark.parametrize("modulation", [False, True])
def test_another_k_of_a_remembered_photo_costs_its_noisy_tokens_alone(modulation):
    pipe = tiny.pipeline(bokeh_adapter=tiny.adapter(**FIXED, modulation_conditioning=modulation))
    options = {"num_inference_steps": 3, "generator": noise()}
    wanted = pipe.generate_stack(photo(), (10, 20, 30), **options, output_type="pt").images
    seen, encoded, encode = [], [], pipe.vae.encode
    pipe.vae.encode = lambda *a, **k: encoded.append(1) or encode(*a, **k)
    handle = passes(pipe, seen)
    memory = pipe.remember_photo(photo(), 3, generator=noise())
    assert isinstance(memory, PhotoMemory) and not memory.reference
    first = pipe.generate_stack(memory, (10,), output_type="pt").images
    second = pipe.generate_stack(memory, (20, 30), output_type="pt").images
    handle.remove()
    count = memory.tokens.shape[1]
    assert seen == [(1, count)] + 3 * [(1, count)] + 3 * [(2, count)] and encoded == [1]
    torch.testing.assert_close(torch.cat([first, second]), wanted, atol=2e-5, rtol=0)


def test_remembering_changes_nothing_of_weights_with_full_attention():
    pipe = tiny.pipeline()
    wanted = pipe.generate_stack(photo(), (10, 20), generator=noise(), output_type="pt").images
    memory = pipe.remember_photo(photo(), generator=noise())
    got = [pipe.generate_stack(memory, (k,), output_type="pt").images for k in (10, 20)]
    torch.testing.assert_close(torch.cat(got), wanted, atol=2e-5, rtol=0)
    assert not memory.reference
    out = pipe(memory, (10, 20))
    assert out.depth_m.shape == (50, 80)


def test_options_that_do_not_fit_a_memory_are_refused():
    fixed = tiny.pipeline(bokeh_adapter=tiny.adapter(**FIXED))
    memory = fixed.remember_photo(photo(), generator=noise())
    with pytest.raises(ValueError, match="generator is given with a PhotoMemory"):
        fixed.generate_stack(memory, (10,), generator=noise())
    with pytest.raises(ValueError, match="num_inference_steps is 0"):
        fixed.remember_photo(photo(), 0)


def test_fixed_reference_timestep_is_configured_saved_and_checked(tmp_path):
    adapter = tiny.adapter(**FIXED)
    adapter.save_pretrained(tmp_path)
    assert BokehAdapter.from_pretrained(tmp_path).config.reference_timestep == 0.25
    assert "reference_tokens" not in adapter.attention_kwargs((2.0,))
    with pytest.raises(ValueError, match="reference_tokens is 4; wanted 0"):
        adapter.attention_kwargs((2.0,), reference_tokens=4)
    for wrong in ({"reference_timestep": 2.0}, {"reference_attention": "full"}):
        with pytest.raises(ValueError, match="reference_timestep is"):
            tiny.adapter(**{**FIXED, **wrong})
    with pytest.raises(ValueError, match="reference_timestep is None"):
        encode_reference(tiny.transformer(), tiny.adapter(), torch.zeros(1, 6, 16), torch.zeros(6, 3), torch.zeros(1))

"""What stacks of one photo share: exact where it is said to be, and otherwise named."""

import numpy as np
import pytest
import torch

import tiny
from bokehdepth import BokehAdapter
from bokehdepth.sampling_bokehdepth import PhotoMemory, encode_reference

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
    record, arguments = [], inputs()
    condition = adapter.attention_kwargs((10.0, 30.0))
    wanted = transformer(
        **arguments, joint_attention_kwargs={**condition, "record": record, "record_tokens": 6}
    ).sample[:, :6]
    keys, values = (torch.stack(part) for part in zip(*record, strict=True))
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


def test_refreshing_the_photos_keys_is_named_and_starts_exact():
    pipe, seen = tiny.pipeline(), []
    handle = passes(pipe, seen)
    trail: dict[int, list] = {1: [], 2: []}
    for refresh, latents in trail.items():
        out = pipe.generate_stack(
            photo(), (10, 30), num_inference_steps=4, generator=noise(), reference_refresh=refresh,
            callback_on_step_end=lambda p, i, t, kept, latents=latents: latents.append(kept["latents"]) or {},
        )  # fmt: skip
        assert out.approximations == (() if refresh == 1 else ("reference_refresh=2",))
    handle.remove()
    own = seen[0][1] // 2
    assert [tokens // own for _, tokens in seen] == [2, 2, 2, 2, 2, 1, 2, 1]
    assert torch.equal(trail[1][0], trail[2][0]) and not torch.equal(trail[1][1], trail[2][1])


def test_shared_steps_run_once_and_frames_do_not_depend_on_each_other():
    pipe, seen = tiny.pipeline(), []
    options = {"generator": noise(), "num_inference_steps": 4, "shared_steps": 2, "output_type": "pt"}
    handle = passes(pipe, seen)
    three = pipe.generate_stack(photo(), (10, 20, 30), **options)
    assert three.approximations == ("shared_steps=2",)
    assert [batch for batch, _ in seen] == [1, 1, 3, 3]
    one = pipe.generate_stack(photo(), (20,), **{**options, "generator": noise()}).images
    torch.testing.assert_close(three.images[1:2], one, atol=1e-5, rtol=0)
    memory = pipe.remember_photo(photo(), 4, generator=noise())
    seen.clear()
    for _ in range(2):
        again = pipe.generate_stack(memory, (10, 20, 30), shared_steps=2, output_type="pt").images
    handle.remove()
    assert [batch for batch, _ in seen] == [1, 1, 3, 3, 3, 3]
    torch.testing.assert_close(again, three.images, atol=1e-5, rtol=0)
    exact = pipe.generate_stack(photo(), (10, 20, 30), **{**options, "generator": noise(), "shared_steps": 0}).images
    assert not torch.allclose(exact, again, atol=1e-4)


def trail_of(pipe, image=None, strengths=(10, 20, 30), **options):
    """A stack, its latents after each step, and each pass: frames, pictures of tokens, frames of kept keys."""
    latents, seen = [], []

    def watch(module, args, kwargs):
        keys = kwargs["joint_attention_kwargs"].get("reference_keys")
        batch, tokens = kwargs["hidden_states"].shape[:2]
        seen.append((batch, tokens, 0 if keys is None else keys.shape[1]))

    handle = pipe.transformer.register_forward_pre_hook(watch, with_kwargs=True)
    own = {"num_inference_steps": 6, "generator": noise()} if image is None else {}
    out = pipe.generate_stack(
        photo() if image is None else image, strengths, **{**own, **options}, output_type="pt",
        callback_on_step_end=lambda p, i, t, kept: latents.append(kept["latents"]) or {},
    )  # fmt: skip
    handle.remove()
    return out, latents, [(batch, tokens // latents[0].shape[1], kept) for batch, tokens, kept in seen]


FULL, KEPT = (3, 2, 0), (3, 1, 3)
ONE_FULL, ONE_KEPT = (1, 2, 0), (1, 1, 1)
PASSES = {
    "kept through each phase": (3, 6, [ONE_FULL, ONE_KEPT, ONE_KEPT, FULL, KEPT, KEPT]),
    "split where keys are kept": (2, 4, [ONE_FULL, ONE_KEPT, FULL, KEPT, KEPT, KEPT]),
    "counted anew from the split": (1, 2, [ONE_FULL, FULL, KEPT, FULL, KEPT, FULL]),
    "split at a refresh": (2, 2, [ONE_FULL, ONE_KEPT, FULL, KEPT, FULL, KEPT]),
    "shared steps alone": (2, 1, 2 * [ONE_FULL] + 4 * [FULL]),
    "refresh alone": (0, 3, [FULL, KEPT, KEPT, FULL, KEPT, KEPT]),
    "neither": (0, 1, 6 * [FULL]),
}


@pytest.mark.parametrize(("shared", "refresh", "wanted"), PASSES.values(), ids=PASSES)
def test_passes_carry_the_photo_as_often_as_both_options_say(shared, refresh, wanted):
    pipe = tiny.pipeline()
    out, latents, seen = trail_of(pipe, shared_steps=shared, reference_refresh=refresh)
    assert seen == wanted
    assert sum(tokens == 2 for _, tokens, _ in seen) == -(-shared // refresh) - (-(6 - shared) // refresh)
    named = {"shared_steps": (shared, 0), "reference_refresh": (refresh, 1)}
    assert out.approximations == tuple(f"{name}={value}" for name, (value, exact) in named.items() if value != exact)
    assert [len(step) for step in latents] == shared * [1] + (6 - shared) * [3]
    for step in latents[shared:]:
        assert all((step[i] - step[j]).abs().max() > 1e-4 for i, j in ((0, 1), (0, 2), (1, 2)))
    if not out.approximations:
        plain = pipe.generate_stack(photo(), (10, 20, 30), num_inference_steps=6, generator=noise(), output_type="pt")
        assert torch.equal(out.images, plain.images)


def test_first_pass_after_the_split_is_exact_for_each_frame():
    pipe = tiny.pipeline()
    _, exact, _ = trail_of(pipe, shared_steps=1)
    _, kept, _ = trail_of(pipe, shared_steps=1, reference_refresh=6)
    # The one shared step has no kept keys yet, so both come to the split with the same latents.
    assert torch.equal(exact[0], kept[0]) and torch.equal(exact[1], kept[1])
    assert all((exact[2][i] - kept[2][i]).abs().max() > 1e-5 for i in range(3))


def test_frames_with_both_options_do_not_depend_on_each_other():
    pipe, options = tiny.pipeline(), {"shared_steps": 2, "reference_refresh": 3}
    three = trail_of(pipe, **options)[0].images
    for index, k in enumerate((10, 20, 30)):
        one = trail_of(pipe, strengths=(k,), **options)[0].images
        torch.testing.assert_close(three[index : index + 1], one, atol=1e-5, rtol=0)


def test_remembered_shared_latents_are_those_of_the_same_options():
    pipe = tiny.pipeline()
    both, alone = {"shared_steps": 3, "reference_refresh": 2}, {"shared_steps": 3}
    wanted = {name: trail_of(pipe, **options)[0].images for name, options in (("both", both), ("alone", alone))}
    assert not torch.allclose(wanted["both"], wanted["alone"], atol=1e-4)
    memory = pipe.remember_photo(photo(), 6, generator=noise())
    for turn in range(2):  # the second time from what the first one left
        for name, options in (("both", both), ("alone", alone)):
            out, _, seen = trail_of(pipe, memory, **options)
            torch.testing.assert_close(out.images, wanted[name], atol=1e-5, rtol=0)
            assert [batch for batch, _, _ in seen] == (3 - 3 * turn) * [1] + 3 * [3]
            assert seen[-3:] == ([FULL, KEPT, FULL] if name == "both" else 3 * [FULL])


def test_latents_that_a_callback_changed_are_not_remembered():
    pipe = tiny.pipeline()
    memory = pipe.remember_photo(photo(), 3, generator=noise())
    pipe.generate_stack(
        memory, (10,), shared_steps=1, callback_on_step_end=lambda p, i, t, kept: {"latents": kept["latents"] * 0}
    )
    assert not memory.shared_latents
    pipe.generate_stack(memory, (10,), shared_steps=1, callback_on_step_end=lambda *_: {})
    assert len(memory.shared_latents) == 1


REFUSED = {
    "shared steps": ({"shared_steps": 2, "num_inference_steps": 2}, "shared_steps is 2; wanted a whole number from 0"),
    "no whole number": ({"shared_steps": 0.5}, "shared_steps is 0.5"),
    "refresh": ({"reference_refresh": 0}, "reference_refresh is 0; wanted a whole number from 1"),
}


@pytest.mark.parametrize(("arguments", "message"), REFUSED.values(), ids=REFUSED)
def test_bad_options_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        tiny.pipeline().generate_stack(photo(), (10,), **arguments)


def test_options_that_do_not_fit_the_weights_are_refused():
    some = tiny.pipeline(bokeh_adapter=tiny.adapter(block_indices=[1, 3]))
    with pytest.raises(ValueError, match="not all blocks are adapted"):
        some.generate_stack(photo(), (10,), reference_refresh=2)
    fixed = tiny.pipeline(bokeh_adapter=tiny.adapter(**FIXED))
    with pytest.raises(ValueError, match="keep the photo's keys anyway"):
        fixed.generate_stack(photo(), (10,), reference_refresh=2)
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

import copy
import threading

import numpy as np
import pytest
import torch
from diffusers.models.transformers.transformer_flux import FluxAttnProcessor

import tiny
from bokehdepth import BokehAdapter


def inputs(batch: int = 2, seed: int = 5) -> dict:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.zeros(8, 3)
    ids[4:, 0] = 1
    ids[:, 1], ids[:, 2] = torch.arange(8) % 4 // 2, torch.arange(8) % 2
    return {
        "hidden_states": torch.randn(batch, 8, 16, generator=generator),
        "encoder_hidden_states": torch.randn(batch, 5, 32, generator=generator),
        "pooled_projections": torch.randn(batch, 24, generator=generator),
        "timestep": torch.linspace(0.9, 0.2, batch),
        "guidance": torch.full((batch,), 3.5),
        "img_ids": ids,
        "txt_ids": torch.zeros(5, 3),
    }


def run(transformer, adapter=None, strengths=(10.0, 30.0), scale=None, **changes):
    arguments = {**inputs(len(strengths)), **changes}
    if adapter is not None:
        arguments["joint_attention_kwargs"] = adapter.attention_kwargs(strengths, scale)
        arguments["pooled_projections"] = adapter.modulate(arguments["pooled_projections"], strengths)
    with torch.no_grad():
        return transformer(**arguments).sample


VARIANTS = {
    "one token": {},
    "four tokens and null": {"num_tokens": 4, "null_token": True, "rotary_query": False},
    "modulation": {"modulation_conditioning": True},
    "modulation alone": {"modulation_conditioning": True, "attention_conditioning": False},
    "some blocks": {"block_indices": [1, 3]},
}


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_fresh_adapter_changes_no_bit(variant):
    transformer, adapter = tiny.transformer(), tiny.adapter(trained=False, **variant)
    plain = run(transformer)
    adapter.attach(transformer)
    assert torch.equal(run(transformer, adapter), plain)


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_trained_adapter_follows_k_and_leaves_unconditioned_calls_alone(variant):
    transformer, adapter = tiny.transformer(), tiny.adapter(**variant)
    plain = run(transformer)
    adapter.attach(transformer)
    out = run(transformer, adapter)
    assert not torch.allclose(out, plain, atol=1e-4)
    assert not torch.allclose(out, run(transformer, adapter, (10.0, 20.0)), atol=1e-5)
    assert torch.equal(run(transformer, adapter), out)
    assert torch.equal(run(transformer), plain)


def test_batch_equals_singles():
    transformer, adapter = tiny.transformer(), tiny.adapter(null_token=True, modulation_conditioning=True)
    adapter.attach(transformer)
    both = run(transformer, adapter)
    for row, strength in enumerate((10.0, 30.0)):
        one = {k: v[row : row + 1] if k in ("hidden_states", "encoder_hidden_states", "pooled_projections",
               "timestep", "guidance") else v for k, v in inputs().items()}  # fmt: skip
        torch.testing.assert_close(run(transformer, adapter, (strength,), **one), both[row : row + 1])


def test_branch_is_eq_3_for_any_number_of_tokens():
    adapter = tiny.adapter(num_tokens=3, query_key_lora=False)
    processor = adapter.blocks["0"]
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 7, tiny.HEADS, tiny.HEAD_DIM, generator=generator)
    embeds = adapter.attention_kwargs((5.0, 25.0))["bokeh_embeds"]
    with torch.no_grad():
        key = processor.to_k_bokeh(embeds).view(2, 3, tiny.HEADS, tiny.HEAD_DIM)
        value = processor.to_v_bokeh(embeds).view(2, 3, tiny.HEADS, tiny.HEAD_DIM)
        wanted = torch.nn.functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (query, key, value)))
        got = processor._branch(query, embeds)
    torch.testing.assert_close(got, wanted.transpose(1, 2).flatten(2))


def test_one_token_is_a_constant_and_a_null_token_is_not():
    transformer = tiny.transformer()
    query = torch.randn(1, 6, tiny.HEADS, tiny.HEAD_DIM)
    for null, constant in ((False, True), (True, False)):
        adapter = tiny.adapter(null_token=null)
        with torch.no_grad():
            out = adapter.blocks["0"]._branch(query, adapter.attention_kwargs((20.0,))["bokeh_embeds"])
            out = out.expand(1, 6, -1)
        assert bool((out - out[:, :1]).abs().max() < 1e-7) is constant
    adapter = tiny.adapter()
    adapter.attach(transformer)
    before = run(transformer, adapter)
    for block in adapter.blocks.values():
        torch.nn.init.normal_(block.to_k_bokeh.up.weight)
    assert torch.equal(run(transformer, adapter), before)


def test_scale_is_linear_in_lambda_inside_one_block():
    transformer = tiny.transformer(num_layers=0, num_single_layers=1)
    adapter = tiny.adapter(num_double_blocks=0, num_single_blocks=1, query_key_lora=False)
    adapter.attach(transformer)
    attention = transformer.single_transformer_blocks[0].attn
    hidden = torch.randn(1, 6, tiny.HEADS * tiny.HEAD_DIM)
    with torch.no_grad():
        zero, half, one = (attention(hidden, **adapter.attention_kwargs((20.0,), scale)) for scale in (0.0, 0.5, 1.0))
        plain = attention(hidden)
    assert torch.equal(zero, plain)
    torch.testing.assert_close(half - plain, (one - plain) / 2)


def test_detach_restores_what_stood_before():
    transformer, adapter = tiny.transformer(), tiny.adapter()
    before = dict(transformer.attn_processors)
    keys, plain = list(transformer.state_dict()), run(transformer)
    adapter.attach(transformer)
    adapter.attach(transformer)
    adapter.detach()
    assert transformer.attn_processors == before
    assert list(transformer.state_dict()) == keys
    assert torch.equal(run(transformer), plain)
    assert all(isinstance(p, FluxAttnProcessor) for p in before.values())


def test_fold_is_exact_and_undone_to_the_last_bit():
    transformer, adapter = tiny.transformer().double(), tiny.adapter().double()
    weights = copy.deepcopy(transformer.state_dict())
    adapter.attach(transformer)
    wide = {k: v.double() if k not in ("img_ids", "txt_ids") else v for k, v in inputs().items()}
    unfolded = run(transformer, adapter, **wide)
    adapter.fold()
    assert adapter.is_folded
    folded = run(transformer, adapter, **wide)
    torch.testing.assert_close(folded, unfolded, rtol=1e-5, atol=1e-6)  # merged in float32
    adapter.fold()
    assert torch.equal(run(transformer, adapter, **wide), folded)
    adapter.detach()
    assert all(torch.equal(value, weights[name]) for name, value in transformer.state_dict().items())


def test_fold_refuses_what_it_cannot_merge():
    transformer, adapter = tiny.transformer(), tiny.adapter()
    with pytest.raises(ValueError, match="not attached"):
        adapter.fold()
    adapter.attach(transformer)
    transformer.fuse_qkv_projections()
    with pytest.raises(ValueError, match="unfused, unquantised"):
        adapter.fold()


def test_fused_projections_give_the_same_numbers():
    transformer, adapter = tiny.transformer(), tiny.adapter()
    adapter.attach(transformer)
    before = run(transformer, adapter)
    transformer.fuse_qkv_projections()
    torch.testing.assert_close(run(transformer, adapter), before)


def test_attach_refuses_another_shape_or_a_second_adapter():
    transformer, adapter = tiny.transformer(), tiny.adapter()
    with pytest.raises(ValueError, match="num_single_layers=3; the adapter wants 2"):
        adapter.attach(tiny.transformer(num_single_layers=3))
    adapter.attach(transformer)
    with pytest.raises(ValueError, match="already carries a bokeh adapter"):
        tiny.adapter().attach(transformer)
    with pytest.raises(ValueError, match="attached to another transformer"):
        adapter.attach(tiny.transformer())


@pytest.mark.parametrize("bad", [(-1.0,), (31.0,), (float("nan"),), (float("inf"),), ()])
def test_strength_out_of_range_is_refused(bad):
    with pytest.raises(ValueError, match="bokeh_strengths"):
        tiny.adapter().attention_kwargs(bad)


def test_adapter_alone_is_saved_and_loaded(tmp_path):
    transformer, adapter = tiny.transformer(), tiny.adapter(null_token=True, modulation_conditioning=True)
    adapter.attach(transformer)
    before = run(transformer, adapter)
    adapter.save_pretrained(tmp_path)
    saved = {p.name for p in tmp_path.iterdir()}
    assert saved == {"config.json", "diffusion_pytorch_model.safetensors"}
    adapter.detach()
    again = BokehAdapter.from_pretrained(tmp_path)
    assert torch.equal(again.prompt_embeds, adapter.prompt_embeds)
    again.attach(transformer)
    assert torch.equal(run(transformer, again), before)


def test_every_live_parameter_gets_a_gradient_also_with_checkpointing():
    grads = []
    for checkpointing in (False, True):
        transformer, adapter = tiny.transformer(), tiny.adapter(null_token=True, modulation_conditioning=True)
        adapter.attach(transformer)
        if checkpointing:
            transformer.enable_gradient_checkpointing()
        transformer.train()
        arguments = inputs()
        arguments["pooled_projections"] = adapter.modulate(arguments["pooled_projections"], (10.0, 30.0))
        out = transformer(**arguments, joint_attention_kwargs=adapter.attention_kwargs((10.0, 30.0))).sample
        out.square().mean().backward()
        grads.append({n: p.grad for n, p in adapter.named_parameters()})
    assert all(g is not None and g.abs().sum() > 0 for g in grads[0].values())
    for name, grad in grads[0].items():
        torch.testing.assert_close(grad, grads[1][name])


def test_two_threads_do_not_meet():
    transformer, adapter = tiny.transformer(), tiny.adapter()
    adapter.attach(transformer)
    wanted = {k: run(transformer, adapter, (k, k)) for k in (5.0, 25.0)}
    wrong = []

    def work(k):
        wrong.extend(k for _ in range(10) if not torch.equal(run(transformer, adapter, (k, k)), wanted[k]))

    threads = [threading.Thread(target=work, args=(k,)) for k in wanted]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_peft_lora_on_the_base_works_beside_the_adapter():
    from peft import LoraConfig

    transformer, adapter = tiny.transformer(), tiny.adapter()
    adapter.attach(transformer)
    before = run(transformer, adapter)
    transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    changed = run(transformer, adapter)
    assert not torch.allclose(changed, before, atol=1e-5)
    with pytest.raises(ValueError, match="unfused, unquantised"):
        adapter.fold()
    transformer.disable_adapters()
    torch.testing.assert_close(run(transformer, adapter), before)


def parity_weight(seed, name, shape):
    import zlib

    generator = np.random.Generator(np.random.Philox(key=[seed, zlib.crc32(name.encode())]))
    z = generator.standard_normal(shape, dtype=np.float32)
    last = name.split(".")[-1]
    if last == "bias":
        return 0.05 * z
    if last == "weight" and len(shape) == 1:
        return 1 + 0.1 * z
    return z / np.sqrt(np.prod(shape[1:]))


def parity_normal(seed, name, shape):
    import zlib

    generator = np.random.Generator(np.random.Philox(key=[seed, zlib.crc32(("in:" + name).encode())]))
    return torch.from_numpy(generator.standard_normal(shape, dtype=np.float32))


RELEASED = {
    "k_embedding": "embedding_layer",
    "to_k_bokeh": "to_k_dof",
    "to_v_bokeh": "to_v_dof",
    "to_q_lora": "to_q_adp",
    "to_k_lora": "to_k_adp",
    "blocks": "adapter_modules",
}


@pytest.mark.parametrize("fold", [False, True], ids=["as trained", "folded"])
def test_numbers_of_the_released_adapter(data_root, fold):
    path = data_root.parent / "parity" / "open" / "A_flux_adapter.npz"
    if not path.exists():
        pytest.skip(f"no parity numbers at {path}")
    reference = np.load(path)
    sizes = {"attention_head_dim": 16, "num_attention_heads": 4}
    transformer = tiny.transformer(
        **sizes, num_single_layers=3, pooled_projection_dim=16, axes_dims_rope=(4, 6, 6), in_channels=16
    )
    adapter = tiny.adapter(
        **sizes, num_single_blocks=3, rank=8, alpha=8.0, context_dim=768, pooled_projection_dim=16, prompt_length=0
    )
    for model, rename in ((transformer, {}), (adapter, RELEASED)):
        state = {}
        for name, value in model.state_dict().items():
            released = ".".join(rename.get(part, part) for part in name.split("."))
            state[name] = torch.from_numpy(np.asarray(parity_weight(1, released, tuple(value.shape)), np.float32))
        model.load_state_dict(state)
    adapter.attach(transformer)
    if fold:
        adapter.fold()
    ids = torch.tensor([[t // 12, t % 12 // 4, t % 4] for t in range(24)], dtype=torch.float32)
    out = run(
        transformer,
        adapter,
        (1.0, 10.0, 20.0, 30.0),
        hidden_states=parity_normal(1, "A.hidden", (4, 24, 16)),
        encoder_hidden_states=parity_normal(1, "A.text", (4, 5, 32)),
        pooled_projections=parity_normal(1, "A.pooled", (4, 16)),
        timestep=torch.tensor([0.9, 0.6, 0.35, 0.1]),
        guidance=torch.tensor([7.0, 7.0, 3.5, 1.0]),
        img_ids=ids,
        txt_ids=torch.zeros(5, 3),
    )
    name = next(n for n in reference.files if n.endswith("qk_on_batch") and not n.startswith("f64"))
    wanted = torch.from_numpy(reference[name])
    # The base embeds timesteps up to 1000 by sines of float32 phases, of last digit 6e-5; another CPU's exp moves
    # it by one (seen: 1.3e-5 of the largest value here, the same in float32 and float64).
    assert (out - wanted).abs().max() <= 2e-5 * wanted.abs().max()

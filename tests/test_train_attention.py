"""Reference masking and grounded attention of the adapter's processor, against plain masked attention."""

import pytest
import torch
import torch.nn.functional as fn

import tiny
from bokehdepth import BokehAdapter


def inputs(batch: int, reference: int = 4) -> dict:
    generator = torch.Generator().manual_seed(3)
    ids = torch.zeros(4 + reference, 3)
    ids[4:, 0] = 1
    ids[:, 1], ids[:, 2] = torch.arange(len(ids)) % 4 // 2, torch.arange(len(ids)) % 2
    return {
        "hidden_states": torch.randn(1, len(ids), 16, generator=generator).expand(batch, -1, -1),
        "encoder_hidden_states": torch.randn(1, 5, 32, generator=generator).expand(batch, -1, -1),
        "pooled_projections": torch.zeros(batch, 24),
        "timestep": torch.full((batch,), 0.7),
        "guidance": torch.ones(batch),
        "img_ids": ids,
        "txt_ids": torch.zeros(5, 3),
    }


def qkv(tokens: int = 9, batch: int = 3):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(batch, tokens, tiny.HEADS, tiny.HEAD_DIM, generator=generator) for _ in range(3)]


def masked(q, k, v, mask):
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return fn.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)


def test_causal_attention_is_the_masked_one():
    q, k, v = qkv()
    mask = torch.ones(9, 9, dtype=torch.bool)
    mask[5:, :5] = False
    processor = tiny.adapter().blocks["2"]
    torch.testing.assert_close(processor._causal(q, k, v, None, 4), masked(q, k, v, mask))
    assert (processor._causal(q, k, v, None, 4) - masked(q, k, v, None)).abs().max() > 0.1
    for wrong in (9, 12):
        with pytest.raises(ValueError, match="reference_tokens is"):
            processor._causal(q, k, v, None, wrong)


def test_grounded_attention_is_the_masked_one_over_the_whole_batch():
    q, k, v = qkv()
    rows = torch.tensor([0, 0, 2])
    flat = [x.flatten(0, 1)[None] for x in (q, k, v)]
    owner = torch.arange(27) // 9
    mask = (owner[:, None] == owner[None]) | (rows[owner][:, None] == owner[None])
    wanted = masked(*flat, mask)[0].unflatten(0, (3, 9))
    got = tiny.adapter().blocks["2"]._grounded(q, k, v, None, rows)
    torch.testing.assert_close(got, wanted)
    with pytest.raises(ValueError, match="pivot_rows has shape"):
        tiny.adapter().blocks["2"]._grounded(q, k, v, None, rows[:2])


@pytest.mark.parametrize("kind", ["full", "causal"])
def test_reference_tokens_do_not_see_k_when_causal(kind):
    transformer, adapter = tiny.transformer(), tiny.adapter(reference_attention=kind, num_tokens=2, null_token=True)
    adapter.attach(transformer)
    seen = []
    transformer.single_transformer_blocks[-1].register_forward_hook(lambda m, i, out: seen.append(out[1]))
    with torch.no_grad():
        condition = adapter.attention_kwargs((2.0, 30.0), reference_tokens=4)
        out = transformer(**inputs(2), joint_attention_kwargs=condition).sample
    weak, strong = seen[0][:, -4:]
    assert torch.equal(weak, strong) == (kind == "causal")
    assert (out[0, :4] - out[1, :4]).abs().max() > 1e-3


def test_causal_attention_is_configured_saved_and_checked(tmp_path):
    adapter = tiny.adapter(reference_attention="causal")
    adapter.save_pretrained(tmp_path)
    assert BokehAdapter.from_pretrained(tmp_path).config.reference_attention == "causal"
    with pytest.raises(ValueError, match="reference_tokens is None"):
        adapter.attention_kwargs((2.0,))
    assert "reference_tokens" not in tiny.adapter().attention_kwargs((2.0,), reference_tokens=4)
    with pytest.raises(ValueError, match="reference_attention is 'half'"):
        tiny.adapter(reference_attention="half")
    with pytest.raises(ValueError, match="block_indices is"):
        tiny.adapter(reference_attention="causal", block_indices=[0])
    pipe = tiny.pipeline(bokeh_adapter=adapter)
    photo = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    frames = [
        tiny.pipeline(bokeh_adapter=tiny.adapter(reference_attention=kind)).generate_stack(
            photo, (20.0,), generator=torch.Generator().manual_seed(0), restore=False, output_type="pt"
        ).images
        for kind in ("full", "causal")
    ]  # fmt: skip
    assert pipe.bokeh_adapter.config.reference_attention == "causal" and not torch.equal(*frames)

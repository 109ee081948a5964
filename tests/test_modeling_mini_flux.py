import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxKontextPipeline

from bokehdepth.modeling_bokeh_adapter import BokehAdapter
from bokehdepth.modeling_mini_flux import (
    MiniFluxTransformer2DModel,
    PatchAutoencoder,
    blend_disks,
    level_weights,
    quantile_offset,
)
from bokehdepth.pipeline_bokehdepth import BokehDepthPipeline
from bokehdepth.rendering.disk import disk_blur
from bokehdepth.sampling_bokehdepth import encode_reference

OFFSETS = torch.tensor([0.0, 0.1, 0.4])


def tiny(**changes) -> MiniFluxTransformer2DModel:
    torch.manual_seed(0)
    settings = {
        "num_layers": 1,
        "num_single_layers": 1,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 8,
        "pooled_projection_dim": 8,
        "axes_dims_rope": (4, 6, 6),
        "width_factor": 0.25,
        "depth_factor": 0.25,
        "decoder_channels": (8, 8, 16, 16),
    }
    return MiniFluxTransformer2DModel(**{**settings, **changes}).eval()


def arguments(model, image, strengths, sigma=1.0, seed=0):
    batch, _, height, width = image.shape
    rows, columns = height // 16, width // 16
    ids = FluxKontextPipeline._prepare_latent_image_ids(1, rows, columns, "cpu", torch.float32)
    reference = ids.clone()
    reference[:, 0] = 1
    noisy = torch.randn(batch, rows * columns, 768, generator=torch.Generator().manual_seed(seed))
    return {
        "hidden_states": torch.cat([noisy, model._pack(image)], dim=1),
        "encoder_hidden_states": torch.zeros(batch, 1, 8),
        "pooled_projections": torch.zeros(batch, 8),
        "timestep": torch.full((batch,), sigma),
        "img_ids": torch.cat([ids, reference]),
        "txt_ids": torch.zeros(1, 3),
        "joint_attention_kwargs": {"bokeh_strengths": torch.tensor(strengths)},
    }


def picture(height=32, width=48, batch=1):
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(3)) * 2 - 1


def test_patch_autoencoder_loses_nothing():
    image = picture(32, 64, 2)
    coder = PatchAutoencoder()
    latents = coder.encode(image).latent_dist
    assert latents.mode().shape == (2, 192, 4, 8)
    assert torch.equal(coder.decode(latents.sample()).sample, image)
    assert torch.equal(coder.decode(coder.encode(image, return_dict=False)[0].mode(), return_dict=False)[0], image)
    with pytest.raises(ValueError, match="patch_px is 4"):
        PatchAutoencoder(patch_px=4)


def test_packing_is_that_of_diffusers():
    model, image = tiny(), picture()
    latents = PatchAutoencoder().encode(image).latent_dist.mode()
    packed = FluxKontextPipeline._pack_latents(latents, *latents.shape)
    assert torch.equal(model._pack(image), packed)
    assert torch.equal(model._unpack(packed, 2, 3), image)


def one_hot(level, height=40, width=56):
    weights = torch.zeros(1, 3, height, width)
    weights[:, level] = 1
    return weights


def test_level_zero_is_the_photo():
    image = picture(40, 56) / 2 + 0.5
    out = blend_disks(image, one_hot(0), OFFSETS, torch.tensor([30.0]))
    assert (out - image).abs().max() < 6e-3  # display values below 0.5 % are floored
    bright = image.clamp(min=0.02)
    assert (blend_disks(bright, one_hot(0), OFFSETS, torch.tensor([30.0])) - bright).abs().max() < 1e-5


@pytest.mark.parametrize("strength", [10.0, 30.0])
@pytest.mark.parametrize("level", [1, 2])
def test_a_level_is_the_disk_of_eq_15(level, strength):
    image = picture(40, 64) / 2 + 0.5
    out = blend_disks(image, one_hot(level, 40, 64), OFFSETS, torch.tensor([strength]))
    radius = strength * 64 / 512 * float(OFFSETS[level])
    wanted = disk_blur(image[0].permute(1, 2, 0).numpy(), radius, gamma=2.2)
    error = np.abs(out[0].permute(1, 2, 0).numpy() - wanted).mean()
    change = np.abs(image[0].permute(1, 2, 0).numpy() - wanted).mean()
    assert error < 0.06 * change + 0.02  # the soft edge of small disks differs from exact coverage


def test_a_sharp_subject_does_not_bleed_into_the_blur_behind_it():
    image = torch.full((1, 3, 64, 64), 0.2)
    image[..., 20:44] = 1.0
    weights = torch.zeros(1, 3, 64, 64)
    weights[:, 2], weights[:, 2, :, 20:44], weights[:, 0, :, 20:44] = 1, 0, 1
    out = blend_disks(image, weights, torch.tensor([0.0, 0.5, 1.5]), torch.tensor([30.0]))
    assert (out[..., 20:44] - 1).abs().max() < 1e-5
    assert (out[..., :20] - 0.2).abs().max() < 0.06


def test_velocity_leads_to_the_blend_in_one_step():
    model, image = tiny(), picture()
    given = arguments(model, image, [20.0])
    with torch.no_grad():
        velocity, logits = model(**given, return_weights=True)
    count = given["hidden_states"].shape[1] // 2
    x0 = model._unpack(given["hidden_states"][:, :count] - velocity[:, :count], 2, 3)
    weights = torch.nn.functional.interpolate(logits, size=(32, 48), mode="bilinear").softmax(1)
    levels = torch.tensor(model.config.offsets_dpt)
    weights = level_weights(quantile_offset(weights, levels), levels)
    blend = blend_disks(image / 2 + 0.5, weights, levels, torch.tensor([20.0]))
    torch.testing.assert_close(x0, blend * 2 - 1, atol=1e-5, rtol=0)
    assert not velocity[:, count:].any()
    assert logits.shape == (1, len(model.config.offsets_dpt), 16, 24)


def test_quantile_offset_by_hand():
    levels = torch.tensor([0.0, 0.1, 0.4])
    cases = [[0.6, 0.2, 0.2], [0.5, 0.5, 0.0], [0.25, 0.5, 0.25], [0.0, 0.0, 1.0], [0.1, 0.1, 0.8], [0.4, 0.6, 0.0]]
    weights = torch.tensor(cases).T.view(1, 3, 1, 6)
    # edges of the levels: 0, 0.05, 0.25, 0.55
    wanted = torch.tensor([0.0, 0.0, 0.15, 0.4, 0.25 + 0.3 * 3 / 8, 0.05 + 0.2 / 6])
    torch.testing.assert_close(quantile_offset(weights, levels)[0, 0, 0], wanted)
    lower = torch.tensor([0.0, 0.0, 0.0, 0.25 + 0.3 / 4, 0.25 + 0.3 * 5 / 80, 0.0])
    torch.testing.assert_close(quantile_offset(weights, levels, 0.25)[0, 0, 0], lower)


def test_a_sure_level_comes_back_as_itself():
    levels = torch.tensor([0.0, 0.1, 0.4])
    weights = level_weights(torch.tensor([0.0, 0.4]).view(1, 1, 1, 2), levels)
    torch.testing.assert_close(quantile_offset(weights, levels)[0, 0, 0], torch.tensor([0.0, 0.4]))


def test_batch_equals_singles():
    model, image = tiny(), picture(batch=2)
    given = arguments(model, image, [10.0, 30.0])
    with torch.no_grad():
        both = model(**given).sample
        for row in range(2):
            one = {k: v[row : row + 1] if torch.is_tensor(v) and "ids" not in k else v for k, v in given.items()}
            one["joint_attention_kwargs"] = {"bokeh_strengths": torch.tensor([[10.0, 30.0][row]])}
            torch.testing.assert_close(model(**one).sample, both[row : row + 1], atol=1e-4, rtol=0)


def test_checkpointing_changes_no_gradient():
    grads = []
    for checkpointing in (False, True):
        model = tiny().train()
        if checkpointing:
            model.enable_gradient_checkpointing()
        model(**arguments(model, picture(), [20.0])).sample.square().mean().backward()
        grads.append([p.grad for p in model.parameters() if p.grad is not None])
    assert len(grads[0]) == len(grads[1]) > 20
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


def test_missing_reference_and_missing_k_are_refused():
    model = tiny()
    given = arguments(model, picture(), [20.0])
    with pytest.raises(ValueError, match="no bokeh_strengths"):
        model(**{**given, "joint_attention_kwargs": {}})
    with pytest.raises(ValueError, match="wanted half"):
        model(**{**given, "img_ids": given["img_ids"] * torch.tensor([0.0, 1.0, 1.0])})


def test_saved_and_loaded(tmp_path):
    model, image = tiny(), picture()
    given = arguments(model, image, [20.0])
    model.save_pretrained(tmp_path)
    again = MiniFluxTransformer2DModel.from_pretrained(tmp_path)
    before, after = model.state_dict(), again.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)
    with torch.no_grad():
        # Mapped weights lie at other addresses, for which some convolutions round otherwise.
        torch.testing.assert_close(again(**given).sample, model(**given).sample, atol=1e-5, rtol=0)


def test_mirrored_means_the_same_for_a_photo_and_its_mirror_image():
    plain, mirrored = tiny(), tiny(mirrored=True)
    for name, value in plain.state_dict().items():  # a start that prefers one level hides differences
        if name.startswith("decoder.proj_out"):
            value.copy_(torch.randn(value.shape, generator=torch.Generator().manual_seed(1)))
    mirrored.load_state_dict(plain.state_dict())
    image = picture()
    given = arguments(plain, image, [20.0])
    count = given["hidden_states"].shape[1] // 2
    turned = {
        **given,
        "hidden_states": torch.cat(
            [plain._pack(plain._unpack(part, 2, 3).flip(-1)) for part in given["hidden_states"].split(count, 1)], dim=1
        ),
    }
    with torch.no_grad():
        both = [mirrored(**kwargs, return_weights=True)[1] for kwargs in (given, turned)]
        each = [plain(**kwargs, return_weights=True)[1].softmax(1) for kwargs in (given, turned)]
    assert (both[0].softmax(1) - both[1].flip(-1).softmax(1)).abs().max() < 1e-5
    assert (both[0].softmax(1) - (each[0] + each[1].flip(-1)) / 2).abs().max() < 1e-5
    assert (each[0] - each[1].flip(-1)).abs().max() > 1e-3  # otherwise nothing was tested
    mirrored.train(), plain.train()
    assert torch.equal(mirrored(**given, return_weights=True)[1], plain(**given, return_weights=True)[1])


def test_a_picture_head_adds_to_the_photo_and_has_no_levels():
    model, image = tiny(head="picture"), picture()
    given = arguments(model, image, [20.0])
    with torch.no_grad():
        model.decoder.proj_out.weight.zero_()
        model.decoder.proj_out.bias.fill_(0.25)
        velocity, logits = model(**given, return_weights=True)
    count = given["hidden_states"].shape[1] // 2
    x0 = model._unpack(given["hidden_states"][:, :count] - velocity[:, :count], 2, 3)
    assert logits is None and (x0 - image - 0.25).abs().max() < 1e-5


@pytest.mark.parametrize("head", ["disks", "picture"])
def test_the_first_samples_alone_can_become_pictures(head):
    model, image = tiny(head=head), picture(batch=3)
    given = arguments(model, image, [5.0, 20.0, 30.0])
    with torch.no_grad():
        whole, some = (model(**given, return_weights=True, blended=count) for count in (None, 2))
    torch.testing.assert_close(some[0], whole[0][:2], rtol=0, atol=1e-4)  # K of all decides the margin of transforms
    assert whole[0][2].abs().max() > 0 and whole[0].shape[0] == 3
    if head == "disks":
        assert torch.equal(some[1], whole[1])


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"in_channels": 192}, "`in_channels` must be 768.*got 192"),
        ({"decoder_depths": (1, 1)}, r"`decoder_depths` must be four numbers.*got \(1, 1\)"),
        ({"decoder_channels": (8, 8, 8)}, "`decoder_channels` must be four numbers"),
        ({"quantile": 1.0}, "quantile is 1.0"),
        ({"head": "luck"}, "head is 'luck'"),
        ({"head": "picture", "mirrored": True}, "mirrored is True with head 'picture'"),
    ],
)
def test_bad_heads_are_refused(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        tiny(**changes)


def apart(model, told=1.0) -> BokehAdapter:
    """A trained-like adapter whose photos are encoded by themselves."""
    torch.manual_seed(1)
    adapter = BokehAdapter(
        num_double_blocks=1,
        num_single_blocks=1,
        num_attention_heads=2,
        attention_head_dim=16,
        joint_attention_dim=8,
        pooled_projection_dim=8,
        context_dim=8,
        rank=4,
        alpha=4.0,
        null_token=True,
        query_key_lora=False,
        prompt_length=1,
        reference_attention="causal",
        reference_timestep=told,
    )
    for processor in adapter.blocks.values():
        torch.nn.init.normal_(processor.to_v_bokeh.up.weight, std=0.5)
    adapter.attach(model)
    return adapter.eval()


@pytest.mark.parametrize("mirrored", [False, True])
def test_photo_encoded_apart_equals_one_masked_sequence(mirrored):
    """Where the photo is told the noise level of the noisy tokens the two ways are one arithmetic."""
    model, photos = tiny(mirrored=mirrored), picture(batch=2)
    adapter = apart(model)
    whole = arguments(model, photos, [10.0, 30.0])
    condition = adapter.attention_kwargs(torch.tensor([10.0, 30.0]))
    count = whole["hidden_states"].shape[1] // 2
    whole["joint_attention_kwargs"] |= condition
    masked = {**whole["joint_attention_kwargs"], "reference_tokens": count}
    kept = encode_reference(
        model, adapter, whole["hidden_states"][:, count:], whole["img_ids"][count:], whole["pooled_projections"]
    )
    assert len(kept["reference_keys"]) == (4 if mirrored else 2)
    noisy = {"hidden_states": whole["hidden_states"][:, :count], "img_ids": whole["img_ids"][:count]}
    with torch.no_grad():
        expected = model(**{**whole, "joint_attention_kwargs": masked}, return_weights=True)
        found = model(**{**whole, **noisy, "joint_attention_kwargs": {**condition, **kept,
                         "bokeh_strengths": torch.tensor([10.0, 30.0])}}, return_weights=True)  # fmt: skip
    torch.testing.assert_close(found[1], expected[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[0], expected[0][:, :count], rtol=1e-4, atol=1e-4)


def test_a_further_k_of_a_remembered_photo_needs_the_photo_no_more():
    model = tiny(mirrored=True)
    adapter = apart(model, told=0.0)
    others = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "depth_estimator"))
    pipe = BokehDepthPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(), vae=PatchAutoencoder(), transformer=model, bokeh_adapter=adapter,
        **others,
    )  # fmt: skip
    adapter.register_to_config(max_area=32 * 48, num_inference_steps=2)
    pipe.set_progress_bar_config(disable=True)
    photo = (picture()[0] / 2 + 0.5).permute(1, 2, 0).numpy()
    together = pipe.generate_stack(photo, [10.0, 30.0], generator=torch.Generator().manual_seed(0)).images
    memory = pipe.remember_photo(photo, generator=torch.Generator().manual_seed(0))
    first = pipe.generate_stack(memory, [10.0]).images
    lengths = []
    handle = model.register_forward_pre_hook(
        lambda module, args, given: lengths.append(given["hidden_states"].shape[1]), with_kwargs=True
    )
    second = pipe.generate_stack(memory, [30.0]).images
    handle.remove()
    assert lengths == [6, 6]  # two steps of the noisy tokens alone
    for one, other in zip((*first, *second), together, strict=True):
        np.testing.assert_allclose(np.asarray(one, float), np.asarray(other, float), atol=1.0)
    assert not np.array_equal(np.asarray(first[0]), np.asarray(second[0]))


def test_one_kind_of_tokens_alone_wants_what_belongs_to_it():
    model = tiny()
    given = arguments(model, picture(), [30.0])
    with pytest.raises(ValueError, match="0 of them reference tokens; wanted half"):
        model(**{**given, "hidden_states": given["hidden_states"][:, :6], "img_ids": given["img_ids"][:6]})


def test_the_stem_sees_a_remembered_photo_once():
    model = tiny(mirrored=True)
    adapter, given = apart(model), arguments(model, picture(), [30.0])
    count, seen = given["hidden_states"].shape[1] // 2, []
    model.stem.register_forward_hook(lambda module, args, out: seen.append(args[0].shape))
    kept = encode_reference(
        model, adapter, given["hidden_states"][:, count:], given["img_ids"][count:], given["pooled_projections"]
    )
    assert len(seen) == 2 and [len(levels) for levels in kept["reference_features"]] == [4, 4]
    given["joint_attention_kwargs"] |= adapter.attention_kwargs(torch.tensor([30.0])) | kept
    for _ in range(2):
        model(**{**given, "hidden_states": given["hidden_states"][:, :count], "img_ids": given["img_ids"][:count]})
    assert len(seen) == 2

"""Photos in every container, lists and batches, K, cameras: what goes in, and that together is one by one."""

import numpy as np
import pytest
import torch
from PIL import Image

import tiny
from bokehdepth.hub import load_pipeline

FIXED = {"reference_attention": "causal", "reference_timestep": 0.25, "modulation_conditioning": True}
IMAGE = np.random.default_rng(0).integers(0, 256, (50, 80, 3), dtype=np.uint8)
OTHER = np.random.default_rng(1).integers(0, 256, (50, 80, 3), dtype=np.uint8)
CAMERA = np.array([[90.0, 0, 40], [0, 90, 25], [0, 0, 1]])


@pytest.fixture(scope="module")
def pipe():
    return tiny.pipeline()


@pytest.fixture(scope="module")
def embedded():
    pipe = load_pipeline("embedded")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def noise(seed=0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tensor(values) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).permute(2, 0, 1)


WIDE = IMAGE.astype(np.uint16) * 257  # the same colours in 16 bits
SHARE = IMAGE / 255
CONTAINERS = {
    "PIL": Image.fromarray(IMAGE),
    "uint16 array": WIDE,
    "float64 array": SHARE,
    "float32 array": SHARE.astype(np.float32),
    "backwards": np.ascontiguousarray(SHARE[:, ::-1, ::-1])[:, ::-1, ::-1],
    "backwards uint8": np.ascontiguousarray(IMAGE[::-1])[::-1],
    "uint8 tensor": tensor(IMAGE),
    "uint16 tensor": tensor(WIDE),
    "float tensor": tensor(SHARE),
    "channels last": tensor(SHARE.astype(np.float32))[None].to(memory_format=torch.channels_last)[0],
    "tensor with gradients": tensor(SHARE).requires_grad_(),
}


@pytest.mark.parametrize("photo", CONTAINERS.values(), ids=CONTAINERS)
def test_every_container_is_the_same_photo(pipe, photo):
    wanted = pipe(IMAGE, 20, generator=noise(), output_type="np")
    got = pipe(photo, 20, generator=noise(), output_type="np")
    np.testing.assert_allclose(got.images, wanted.images, atol=1e-5)
    np.testing.assert_allclose(got.depth_m, wanted.depth_m, rtol=1e-4)
    # And as a frame of a stack.
    frames = pipe.estimate_depth(IMAGE, [photo], 20).depth_m
    np.testing.assert_allclose(frames, pipe.estimate_depth(IMAGE, [IMAGE], 20).depth_m, rtol=1e-4)


def test_half_precision_is_taken_at_its_values(pipe):
    photo = tensor(SHARE).to(torch.bfloat16)
    got = pipe.estimate_depth(photo).depth_m
    np.testing.assert_allclose(got, pipe.estimate_depth(photo.float()).depth_m, rtol=1e-4)


REFUSED = {
    "int32": (IMAGE.astype(np.int32), "`image` must hold uint8, uint16 or floating-point values, got int32"),
    "bool": (torch.zeros(3, 50, 80, dtype=torch.bool), "got torch.bool"),
    "above one": (SHARE * 1.01, r"outside \[0, 1\]"),
    "channels first array": (IMAGE.transpose(2, 0, 1), r"shape \(3, 50, 80\); wanted \(H, W, 3\)"),
    "channels last tensor": (torch.from_numpy(IMAGE), r"shape \(50, 80, 3\); wanted \(3, H, W\)"),
    "empty batch": (IMAGE[None][:0], "empty list"),
    "batch in a list": ([np.stack([IMAGE, OTHER])], r"shape \(2, 50, 80, 3\)"),
}


@pytest.mark.parametrize(("photo", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_photo_is_refused(pipe, photo, message):
    for method in (pipe, pipe.estimate_depth):
        with pytest.raises(ValueError, match=message):
            method(photo)


# ---------------------------------------------------------------------- lists and batches


def test_lists_and_batches_are_the_same(pipe):
    options = {"output_type": "np"}
    wanted = pipe([IMAGE, OTHER], (10, 20), generator=[noise(1), noise(2)], **options)
    assert isinstance(wanted.images, list) and wanted.images[0].shape == (2, 50, 80, 3)
    batches = (
        np.stack([IMAGE, OTHER]),
        torch.stack([tensor(IMAGE), tensor(OTHER)]),
        (Image.fromarray(IMAGE), Image.fromarray(OTHER)),
        [IMAGE[None], tensor(OTHER)[None]],
    )
    for batch in batches:
        got = pipe(batch, (10, 20), generator=[noise(1), noise(2)], **options)
        np.testing.assert_allclose(got.images, wanted.images, atol=1e-5)
        np.testing.assert_allclose(got.depth_m, wanted.depth_m, rtol=1e-4)
        stacked = pipe.estimate_depth(batch, np.stack(wanted.images), (10, 20))
        np.testing.assert_allclose(stacked.depth_m, wanted.depth_m, rtol=1e-4)
    one = pipe(IMAGE[None], 10, generator=noise())
    assert len(one.images) == len(one.depth_m) == 1  # a batch of one is a batch


def one_by_one(pipe, photos, strengths, sources, **options):
    results = [
        pipe(p, strengths, generator=noise(s), output_type="np", **options)
        for p, s in zip(photos, sources, strict=True)
    ]
    return [r.images for r in results], [r.depth_m for r in results]


@pytest.mark.parametrize("adapter", [{}, FIXED, {"num_tokens": 2, "null_token": True}], ids=["one", "fixed", "null"])
def test_photos_of_one_size_are_one_batch_equal_to_one_by_one(adapter):
    pipe, small = tiny.pipeline(bokeh_adapter=tiny.adapter(**adapter)), IMAGE[:40, :48]
    photos, passes, encoded, read = [IMAGE, small, OTHER], [], [], []
    encode = pipe.vae.encode
    pipe.vae.encode = lambda image, *a, **k: encoded.append(len(image)) or encode(image, *a, **k)
    pipe.transformer.register_forward_pre_hook(
        lambda m, a, k: passes.append(len(k["hidden_states"])), with_kwargs=True
    )
    pipe.depth_estimator.register_forward_pre_hook(
        lambda m, a, k: read.append(tuple(k["pixel_values"].shape[:2])), with_kwargs=True
    )
    out = pipe(photos, (0, 10, 20), generator=[noise(i) for i in range(3)], output_type="np")
    assert encoded == [2, 1] and read == [(2, 3), (1, 3)]
    steps = [4] * 2 + [2] * 2
    assert passes == ([2, 4, 4, 1, 2, 2] if "reference_timestep" in adapter else steps)
    frames, depths = one_by_one(pipe, photos, (0, 10, 20), range(3))
    for got, wanted in zip((*out.images, *out.depth_m), (*frames, *depths), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=2e-3, atol=2e-5)
    # One generator draws for photo after photo, whatever their sizes.
    source = noise(5)
    singly = [pipe(p, 20, generator=source, output_type="np").images for p in photos]
    together = pipe(photos, 20, generator=noise(5), output_type="np").images
    for got, wanted in zip(together, singly, strict=True):
        np.testing.assert_allclose(got, wanted, atol=2e-5)


def test_embedded_model_takes_photos_together(embedded):
    photos = [IMAGE, OTHER, IMAGE[:, :64]]
    cameras = [CAMERA, CAMERA * [[1.2], [1.2], [1]], CAMERA]
    out = embedded(photos, (10, 20), generator=[noise(i) for i in range(3)], output_type="np", intrinsics=cameras)
    for index, photo in enumerate(photos):
        alone = embedded(photo, (10, 20), generator=noise(index), output_type="np", intrinsics=cameras[index])
        np.testing.assert_allclose(out.images[index], alone.images, atol=1e-4)
        np.testing.assert_allclose(out.depth_m[index], alone.depth_m, rtol=1e-3)
    guessed = embedded.estimate_depth(photos)
    assert [camera.shape for camera in guessed.intrinsics] == [(3, 3)] * 3
    np.testing.assert_allclose(guessed.intrinsics[1], embedded.estimate_depth(OTHER).intrinsics, rtol=1e-3)


def test_remembered_photos_go_with_new_ones(pipe):
    memory = pipe.remember_photo(IMAGE, generator=noise(1))
    got = pipe.generate_stack([memory, OTHER, memory], 20, output_type="np").images
    assert np.array_equal(got[0], got[2])
    assert np.array_equal(got[0], pipe.generate_stack(IMAGE, 20, generator=noise(1), output_type="np").images)
    with pytest.raises(ValueError, match="`image` must be one photo, got a list of 2"):
        pipe.remember_photo([IMAGE, OTHER])


def test_latents_of_each_photo(pipe):
    latents = torch.randn(2, 20, 16, generator=noise(3))
    both = pipe.generate_stack([IMAGE, OTHER], 20, latents=latents, output_type="np").images
    for photo, own, got in zip((IMAGE, OTHER), latents.split(1), both, strict=True):
        np.testing.assert_allclose(
            pipe.generate_stack(photo, 20, latents=own, output_type="np").images, got, atol=2e-5
        )
    with pytest.raises(ValueError, match="`latents` must be packed noise .* of photos of one size"):
        pipe.generate_stack([IMAGE, OTHER[:32]], 20, latents=latents)


# ---------------------------------------------------------------------- cameras


def test_a_matrix_for_each_photo_or_one_for_one_size(embedded):
    other = CAMERA * [[1.5], [1.5], [1]]
    alone = [embedded.estimate_depth(p, intrinsics=m).depth_m for p, m in ((IMAGE, CAMERA), (OTHER, other))]
    assert not np.allclose(alone[1], embedded.estimate_depth(OTHER, intrinsics=CAMERA).depth_m, rtol=1e-2)
    for matrices in ([CAMERA, other], np.stack([CAMERA, other]), torch.tensor(np.stack([CAMERA, other])),
                     [torch.tensor(CAMERA), other.tolist()]):  # fmt: skip
        got = embedded.estimate_depth([IMAGE, OTHER], intrinsics=matrices)
        np.testing.assert_allclose(got.depth_m, alone, rtol=1e-3)
        assert got.intrinsics is matrices
    shared = embedded.estimate_depth([IMAGE, OTHER], intrinsics=CAMERA).depth_m
    np.testing.assert_allclose(shared[1], embedded.estimate_depth(OTHER, intrinsics=CAMERA).depth_m, rtol=1e-3)


CAMERAS_REFUSED = {
    "one for two sizes": ([IMAGE, IMAGE[:40]], CAMERA, "one matrix for each photo of 2 different sizes, got one"),
    "too few": ([IMAGE] * 3, [CAMERA] * 2, r"must have shape \(3, 3\) or \(3, 3, 3\), got \(2, 3, 3\)"),
    "several for one": (IMAGE, np.stack([CAMERA] * 2), r"must have shape \(3, 3\), got \(2, 3, 3\)"),
    "a focal length": (IMAGE, 90.0, r"must have shape \(3, 3\), got \(\)"),
    "words": (IMAGE, ["wide"], "must be numbers"),
    "NaN": (IMAGE, CAMERA * np.nan, "must be finite"),
}


@pytest.mark.parametrize(("photo", "matrix", "message"), CAMERAS_REFUSED.values(), ids=CAMERAS_REFUSED)
def test_other_cameras_are_refused_before_a_stack_is_made(embedded, photo, matrix, message):
    ran = []
    handle = embedded.transformer.register_forward_pre_hook(lambda *_: ran.append(1))
    with pytest.raises(ValueError, match=message):
        embedded(photo, 20, intrinsics=matrix)
    handle.remove()
    assert not ran


# ---------------------------------------------------------------------- K


def test_one_k_is_a_number(pipe):
    wanted = pipe(IMAGE, (20,), generator=noise(), output_type="np")
    for k in (20, 20.0, np.float32(20), np.array(20), torch.tensor(20.0)):
        got = pipe(IMAGE, k, generator=noise(), output_type="np")
        assert got.bokeh_strengths == (20.0,) and np.array_equal(got.images, wanted.images)
    frame = Image.fromarray(OTHER)
    assert np.array_equal(
        pipe.estimate_depth(IMAGE, [frame], 20).depth_m, pipe.estimate_depth(IMAGE, [frame], (20,)).depth_m
    )
    assert pipe.check_bokeh_strengths(7) == (7.0,)


def test_the_limit_and_the_default_are_those_of_what_is_loaded():
    depth = tiny.depth_model()
    depth.config.bokeh_strength_max = 24.0
    pipe = tiny.pipeline(bokeh_adapter=tiny.adapter(max_bokeh_strength=60.0), depth_estimator=depth)
    ran = []
    for part in (pipe.transformer, depth):
        part.register_forward_pre_hook(lambda *_: ran.append(1))
    assert pipe.max_bokeh_strength() == 24 and pipe.check_bokeh_strengths() == (8.0, 16.0, 24.0)
    assert pipe.generate_stack(IMAGE, output_type="np").bokeh_strengths == (20.0, 40.0, 60.0)
    ran.clear()
    for call in (lambda: pipe(IMAGE, (10, 30)), lambda: pipe.estimate_depth(IMAGE, [IMAGE], 30)):
        with pytest.raises(ValueError, match="wanted one or more values from 0 to 24"):
            call()
    with pytest.raises(ValueError, match="wanted one or more values from 0 to 60"):
        pipe.generate_stack(IMAGE, 61)
    assert not ran
    assert pipe(IMAGE).bokeh_strengths == (8.0, 16.0, 24.0)
    assert tiny.pipeline().check_bokeh_strengths() == (10.0, 20.0, 30.0)

"""The embedded model as a first visitor meets it."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from bokehdepth.errors import InputError
from bokehdepth.hub import EMBEDDED, EMBEDDED_FOLDER, load_pipeline, resolve_model, weights_record
from doors import assert_same_bits, call_local, run_remote_door


@pytest.fixture(scope="module")
def pipe():
    pipeline = load_pipeline(EMBEDDED)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def photo():
    skimage = pytest.importorskip("skimage")
    return Image.fromarray(skimage.data.astronaut()).resize((256, 256))


def test_folder_is_small_and_holds_no_second_copy_of_code():
    weights = list(EMBEDDED_FOLDER.rglob("*.safetensors"))
    assert weights and all(path.stat().st_size < 15e6 for path in weights)
    assert sum(path.stat().st_size for path in EMBEDDED_FOLDER.rglob("*") if path.is_file()) < 60e6
    assert not list(EMBEDDED_FOLDER.rglob("*.py"))
    assert not [p for p in EMBEDDED_FOLDER.rglob("*") if p.suffix in (".bin", ".pt", ".pth", ".ckpt")]
    index = json.loads((EMBEDDED_FOLDER / "model_index.json").read_text())
    assert index["transformer"] == ["modeling_mini_flux", "MiniFluxTransformer2DModel"]


def test_stack_follows_k_and_keeps_size(pipe, photo):
    tall = photo.crop((40, 0, 200, 256))
    out = pipe.generate_stack(tall, (5, 15, 30), generator=torch.Generator().manual_seed(0), output_type="np")
    sharp = np.asarray(tall, np.float32) / 255
    assert out.images.shape == (3, 256, 160, 3)
    change = [np.abs(frame - sharp).mean() for frame in out.images]
    assert 0 < change[0] < change[1] < change[2]


def test_depth_is_metric_positive_and_reads_the_stack(pipe, photo):
    out = pipe(photo, (10, 20, 30), generator=torch.Generator().manual_seed(0))
    assert out.depth_m.shape == (256, 256)
    assert np.isfinite(out.depth_m).all() and out.depth_m.min() > 0.05 and out.depth_m.max() < 60
    blurred = [photo.resize((32, 32)).resize((256, 256))] * 3
    assert not np.allclose(pipe.estimate_depth(photo, blurred, (10, 20, 30)).depth_m, out.depth_m, rtol=1e-3)


def test_same_seed_same_bits(pipe, photo):
    first, second = (pipe(photo, (10, 30), generator=torch.Generator().manual_seed(7)) for _ in range(2))
    assert [f.tobytes() for f in first.images] == [f.tobytes() for f in second.images]
    assert np.array_equal(first.depth_m, second.depth_m)


def test_weights_record_is_a_checksum():
    record = weights_record(EMBEDDED)["pipeline"]
    assert record["id"] == EMBEDDED and record["revision"].startswith("sha256:") and len(record["revision"]) == 71


def test_published_folder_carries_its_own_code(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "published")
    run_remote_door(tmp_path / "published", tmp_path)
    local = load_pipeline(tmp_path / "published")
    assert_same_bits(tmp_path / "out.npz", call_local(local, Image.open(tmp_path / "photo.png")))


@pytest.mark.parametrize("model", ["nowhere/at/all", "./missing", "no_such_folder", "a b/c"])
def test_unknown_models_are_refused(model):
    with pytest.raises(InputError, match="model is"):
        resolve_model(model)


def test_folder_without_index_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"without model_index\.json"):
        resolve_model(tmp_path)


def test_unreachable_repository_is_one_sentence():
    with pytest.raises(InputError, match="somebody/something is not complete in the cache and"):
        load_pipeline("somebody/something")

import numpy as np
import pytest
import torch

from bokehdepth.errors import InputError
from bokehdepth.rendering.aperture import Aperture
from bokehdepth.rendering.layered_torch import SceneBatch, render_batch
from datasets_scripts.scenes.generator import SceneGenerator

SIZE = (48, 64)


@pytest.fixture(scope="module")
def scenes():
    generator = SceneGenerator(SIZE, seed=3)
    return [generator.generate(index, kind) for index, kind in enumerate(("portrait", "room", "landscape", "table"))]


def test_a_batch_is_each_scene_rendered_by_itself(scenes):
    strengths = torch.tensor([[0.0, 12.0, 30.0], [3.0, 8.0, 25.0], [5.0, 10.0, 15.0], [1.0, 2.0, 60.0]])
    rendered = render_batch(SceneBatch.of(scenes), strengths)
    assert rendered.shape == (4, 3, 3, *SIZE)
    for row, scene in enumerate(scenes):
        for frame, strength in enumerate(strengths[row].tolist()):
            ours = rendered[row, frame].permute(1, 2, 0).numpy()
            assert np.sqrt(np.mean((ours - scene.render(strength)) ** 2)) < 0.004
    assert np.abs(rendered[0, 0].permute(1, 2, 0).numpy() - scenes[0].image).max() < 1e-5


def test_gradients_reach_light_and_strength(scenes):
    batch = SceneBatch.of(scenes[:1])
    light = batch.light.clone().requires_grad_()
    strengths = torch.tensor([[14.0]], requires_grad=True)
    render_batch(SceneBatch(light, batch.disparity_dpt, batch.focus_distance_m), strengths).square().mean().backward()
    assert light.grad.isfinite().all() and light.grad.abs().sum() > 0
    assert strengths.grad.isfinite().all() and strengths.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("strengths", "aperture", "message"),
    [
        (torch.zeros(2, 1), Aperture(), r"bokeh_strengths has the shape \(2, 1\), wanted \(4, F\)"),
        (torch.zeros(4), Aperture(), "bokeh_strengths has the shape"),
        (torch.full((4, 1), -1.0), Aperture(), "bokeh_strengths has values below 0"),
        (torch.full((4, 1), torch.nan), Aperture(), "bokeh_strengths has values below 0 or not finite"),
        (torch.zeros(4, 1), Aperture(5), "aperture has 5 blades"),
    ],
)
def test_bad_input_is_refused(scenes, strengths, aperture, message):
    with pytest.raises(InputError, match=message):
        render_batch(SceneBatch.of(scenes), strengths, aperture=aperture)


def test_bad_batches_are_refused(scenes):
    with pytest.raises(InputError, match="scenes is empty"):
        SceneBatch.of([])
    with pytest.raises(InputError, match="scenes have the sizes"):
        SceneBatch.of([scenes[0], SceneGenerator((32, 32)).generate(0)])

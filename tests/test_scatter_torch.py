import numpy as np
import pytest
import torch

from bokehdepth.errors import InputError
from bokehdepth.rendering.aperture import Aperture
from bokehdepth.rendering.scatter import span_scatter as span_scatter_of_arrays
from bokehdepth.rendering.scatter_torch import span_scatter


def case(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(2, 3, 14, 17, dtype=dtype, generator=generator)
    radius = 1 + 5 * torch.rand(2, 14, 17, dtype=dtype, generator=generator)
    return values, radius, torch.rand(2, 3, 14, 17, dtype=dtype, generator=generator)


@pytest.mark.parametrize("border", ["continued", "lost"])
def test_a_batch_is_each_picture_by_itself(border):
    values, radius, _ = case(torch.float32)
    together = span_scatter(values, radius, border=border)
    for index in range(2):
        alone = span_scatter_of_arrays(
            values[index].permute(1, 2, 0).contiguous().numpy(), radius[index].numpy(), border=border
        )
        assert np.abs(together[index].permute(1, 2, 0).numpy() - alone).max() < 2e-5


@pytest.mark.parametrize("border", ["continued", "lost"])
@pytest.mark.parametrize("aperture", [Aperture(), Aperture(5, 30, 1.5)], ids=str)
def test_the_gradient_of_the_values_is_the_transposed_operator(border, aperture):
    values, radius, weight = case()
    values.requires_grad_()
    (span_scatter(values, radius, border=border, aperture=aperture) * weight).sum().backward()
    other = torch.rand(values.shape, dtype=values.dtype, generator=torch.Generator().manual_seed(1))
    forward = (span_scatter(other, radius, border=border, aperture=aperture) * weight).sum()
    assert (values.grad * other).sum() == pytest.approx(forward.item(), rel=1e-6)


def test_the_gradient_of_the_radius_is_the_slope_of_the_render():
    values, radius, weight = case()
    radius.requires_grad_()
    (span_scatter(values, radius) * weight).sum().backward()
    for index in [(0, 3, 4), (1, 10, 12), (1, 0, 0)]:
        moved = []
        for step in (1 / 16, -1 / 16):
            other = radius.detach().clone()
            other[index] += step
            moved.append((span_scatter(values, other) * weight).sum())
        slope = (moved[0] - moved[1]) * 8
        assert radius.grad[index] == pytest.approx(slope.item(), rel=1e-6, abs=1e-9)


def test_a_blur_can_be_learned_through_the_render():
    """Gradient descent on one radius finds the one that a picture was made with."""
    values = torch.rand(1, 1, 40, 40, generator=torch.Generator().manual_seed(2))
    wanted = span_scatter(values, torch.full((1, 40, 40), 3.0))
    radius = torch.tensor(5.0, requires_grad=True)
    optimiser = torch.optim.Adam([radius], lr=0.1)
    for _ in range(60):
        optimiser.zero_grad()
        loss = (span_scatter(values, radius.expand(1, 40, 40)) - wanted).square().mean()
        loss.backward()
        optimiser.step()
    assert radius.item() == pytest.approx(3.0, abs=0.15)


@pytest.mark.parametrize(
    ("values", "radius", "message"),
    [
        (torch.zeros(1, 3, 4), torch.zeros(1, 4), "values is torch.float32"),
        (torch.zeros(1, 3, 4, 5, dtype=torch.int64), torch.zeros(1, 4, 5), "values is torch.int64"),
        (torch.zeros(1, 3, 4, 5), torch.zeros(1, 5, 4), "radius_px has the shape"),
        (torch.zeros(1, 3, 4, 5), torch.full((1, 4, 5), -1.0), "radius_px spans"),
        (torch.zeros(1, 3, 4, 5), torch.full((1, 4, 5), torch.nan), "radius_px spans"),
    ],
)
def test_bad_tensors_are_refused(values, radius, message):
    with pytest.raises(InputError, match=message):
        span_scatter(values, radius)

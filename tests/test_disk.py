import numpy as np
import pytest
from scipy.ndimage import convolve

from bokehdepth.errors import InputError
from bokehdepth.rendering.disk import disk_blur, disk_kernel


@pytest.mark.parametrize("radius", [0.0, 0.25, 0.5])
def test_a_disk_inside_one_pixel_is_the_identity(radius):
    assert disk_kernel(radius).tolist() == [[1.0]]
    image = np.random.default_rng(0).random((5, 6, 3))
    blurred = disk_blur(image, radius)
    assert np.array_equal(blurred, image) and blurred is not image


@pytest.mark.parametrize("radius", [0.6, 1.0, 1.5, 2.2, 7.0, 20.5])
def test_weights_are_pixel_coverage(radius):
    kernel = disk_kernel(radius)
    size = kernel.shape[0]
    assert kernel.dtype == np.float32 and kernel.shape == (size, size)
    assert size == 2 * np.ceil(radius - 0.5) + 1
    assert kernel.sum() == pytest.approx(1, abs=1e-6)
    assert np.array_equal(kernel, kernel.T) and np.array_equal(kernel, kernel[::-1])
    fine = 40  # counting sub-pixels inside the circle is an independent way to the area
    axis = (np.arange(size * fine) + 0.5) / fine - size / 2
    inside = axis[:, None] ** 2 + axis**2 <= radius**2
    counted = inside.reshape(size, fine, size, fine).mean(axis=(1, 3)) / (np.pi * radius**2)
    assert np.abs(kernel - counted).max() < 0.006 / radius


def test_half_pixel_cells_by_hand():
    # Radius sqrt(0.5) reaches the corners of the middle pixel: it is full, each neighbour has one circular segment.
    kernel = disk_kernel(np.sqrt(0.5)).astype(np.float64)
    segment = (np.pi / 2 - 1) / 4
    assert kernel[1, 1] == pytest.approx(1 / (np.pi / 2), abs=1e-6)
    assert kernel[0, 1] == pytest.approx(segment / (np.pi / 2), abs=1e-6)
    assert kernel[0, 0] == pytest.approx(0, abs=1e-9)


def test_second_moment_is_that_of_a_disk():
    radius = 9.3
    kernel = disk_kernel(radius).astype(np.float64)
    offset = np.arange(len(kernel)) - len(kernel) // 2
    variance = (kernel * offset[:, None] ** 2).sum()
    assert variance == pytest.approx(radius**2 / 4 + 1 / 12, rel=1e-3)  # 1/12: each weight is an area, one pixel wide


@pytest.mark.parametrize(
    ("shape", "kind"), [((31, 40), np.float32), ((31, 40, 3), np.float64), ((7, 9, 1), np.float32)]
)
def test_blur_is_convolution_with_replicated_edges(shape, kind):
    image = np.random.default_rng(1).random(shape).astype(kind)
    kernel = disk_kernel(3.3).astype(np.float64)
    expected = convolve(
        image.astype(np.float64), kernel.reshape(kernel.shape + (1,) * (len(shape) - 2)), mode="nearest"
    )
    blurred = disk_blur(image, 3.3)
    assert blurred.shape == shape and blurred.dtype == kind
    assert np.abs(blurred - expected).max() < 2e-6


def test_flat_stays_flat_and_a_radius_beyond_the_picture_works():
    assert disk_blur(np.full((8, 8, 3), 0.25), 20.0, gamma=2.2) == pytest.approx(0.25, abs=1e-7)
    assert disk_blur(np.zeros((8, 8)), 3.0, gamma=2.2) == pytest.approx(0, abs=1e-6)


def test_blur_in_light_keeps_highlights_bright():
    image = np.zeros((21, 21))
    image[10, 10] = 1.0
    light = disk_blur(image, 3.0, gamma=2.2)
    assert light[10, 10] == pytest.approx((1 / (np.pi * 9)) ** (1 / 2.2), rel=1e-3)
    assert light[10, 10] > 5 * disk_blur(image, 3.0)[10, 10]


@pytest.mark.parametrize(
    ("image", "radius", "gamma", "sentence"),
    [
        (np.zeros((4, 4), np.uint8), 1.0, 1.0, "image is uint8"),
        (np.zeros(4), 1.0, 1.0, r"image is float64 \(4,\)"),
        (np.full((4, 4), np.nan), 1.0, 1.0, "not finite"),
        (np.full((4, 4), -0.1), 1.0, 2.2, "negative value -0.1"),
        (np.zeros((4, 4)), -1.0, 1.0, "radius_px is -1.0"),
        (np.zeros((4, 4)), float("inf"), 1.0, "radius_px is inf"),
        (np.zeros((4, 4)), 1.0, 0.0, "gamma is 0.0"),
    ],
)
def test_bad_input(image, radius, gamma, sentence):
    with pytest.raises(InputError, match=sentence):
        disk_blur(image, radius, gamma=gamma)

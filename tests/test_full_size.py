"""Full-size work goes over a photo in strips: the same pixels as in one piece, and little memory."""

import numpy as np
import pytest
import torch
import torch.nn.functional as fn
from PIL import Image

from bokehdepth import imaging
from bokehdepth import processing_bokehdepth as processing
from bokehdepth.benchmarks.memory import peak_bytes
from bokehdepth.processing_bokehdepth import DetailRestorer, PhotoRows, Reduction, resize, restored_stack

SIZES = [((96, 128), (48, 64)), ((401, 333), (57, 48)), ((40, 300), (20, 160)), ((64, 64), (100, 100))]


def picture(height, width, seed=0):
    values = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed))
    return (fn.avg_pool2d(values, 3, 1, 1) * 255).round() / 255


def frames_of(reference):
    blurred = fn.avg_pool2d(reference, 5, 1, 2)
    return torch.cat([reference, blurred, torch.lerp(reference, fn.avg_pool2d(reference, 3, 1, 1), 0.5)])


def restored_whole(photo, reference, generated):
    """The restoration written for whole pictures, on torch's own resizing."""

    def enlarged(image, mode):
        return fn.interpolate(image, photo.shape[-2:], mode=mode, antialias=mode == "bicubic", align_corners=False)

    restorer = DetailRestorer(PhotoRows(photo), reference)
    detail = processing._detail(generated) * restorer.detail
    share = (restorer._surroundings(detail) / restorer.power).clamp(0, 1)
    step = [((share - low) / (high - low)).clamp(0, 1) for low, high in ((0.5, 1.0), (0.75, 0.95))]
    adding, keeping = (enlarged(t * t * (3 - 2 * t), "bilinear") for t in step)
    finest = photo - enlarged(reference, "bicubic").clamp(0, 1)
    return torch.lerp(enlarged(generated, "bicubic").clamp(0, 1) + adding * finest, photo, keeping).clamp(0, 1)


@pytest.mark.parametrize("strip_px", [1, 1500, 10**9])
@pytest.mark.parametrize(("size", "small"), SIZES)
def test_strips_give_what_one_piece_gives(size, small, strip_px, monkeypatch):
    monkeypatch.setattr(processing, "STRIP_PX", strip_px)
    photo = picture(*size)
    rows = PhotoRows(photo)
    reference = rows.resized(*small)
    torch.testing.assert_close(reference, resize(photo, *small), atol=1e-5, rtol=0)
    generated = frames_of(reference)
    made, reduced = restored_stack(DetailRestorer(rows, reference), generated, True, "pt", (30, 40))
    assert torch.equal(made[:1], photo)
    whole = restored_whole(photo, reference, generated)
    torch.testing.assert_close(made[1:], whole, atol=1e-5, rtol=0)
    torch.testing.assert_close(reduced, resize(torch.cat([photo, whole]), 30, 40), atol=1e-5, rtol=0)


def test_a_reduction_to_the_same_size_changes_nothing():
    photo = picture(50, 40)
    reduction = Reduction(50, 40, 50, 40)
    for start, strip in PhotoRows(photo).strips():
        reduction.add(start, strip[None])
    assert torch.equal(reduction.pictures(), photo)


def test_rows_of_every_kind_of_photo_are_the_same(monkeypatch):
    monkeypatch.setattr(processing, "STRIP_PX", 500)
    values = (picture(60, 70)[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    floats = values.astype(np.float32) / 255
    kinds = Image.fromarray(values), values, floats, torch.from_numpy(floats).permute(2, 0, 1)
    read = [torch.cat([strip for _, strip in PhotoRows(kind).strips()]) for kind in kinds]
    assert all(torch.equal(one, read[0]) for one in read) and read[0].shape == (60, 210)


def test_frames_of_every_output_type_are_the_same():
    photo = picture(60, 70)
    reference = resize(photo, 30, 35)
    pil, array, tensor = (
        restored_stack(DetailRestorer(PhotoRows(photo), reference), frames_of(reference), False, kind)[0]
        for kind in ("pil", "np", "pt")
    )
    assert np.array_equal(array, tensor.permute(0, 2, 3, 1).numpy())
    assert np.array_equal(np.stack([np.asarray(frame) for frame in pil]), (array * 255).round().astype(np.uint8))


def test_memory_at_work_does_not_grow_with_the_photos_area():
    peaks = []
    for height in (500, 2000):
        photo = Image.new("RGB", (1200, height), (90, 120, 200))

        def work(photo=photo):
            rows = PhotoRows(photo)
            reference = rows.resized(100, 120)
            restored_stack(DetailRestorer(rows, reference), frames_of(reference), False, "pil", (64, 96))

        peaks.append(peak_bytes(work, torch.device("cpu")))
    assert peaks[1] < 1.2 * peaks[0]
    assert peaks[1] < 4 * 3 * 1200 * 2000  # one float copy of the photo


def test_the_library_and_the_files_of_a_hub_repository_have_the_same_limits():
    assert (processing.MIN_SIDE_PX, processing.MAX_ASPECT) == (imaging.MIN_SIDE_PX, imaging.MAX_ASPECT)


@pytest.mark.parametrize("size", [(257, 32), (8000, 32), (40, 20000)])
def test_a_strip_is_refused_before_any_work(size):
    with pytest.raises(ValueError, match=r"wanted sides of a ratio up to 8:1"):
        PhotoRows(Image.new("RGB", size))
    PhotoRows(Image.new("RGB", (256, 32)))

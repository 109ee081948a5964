"""Full-size work goes over a photo in strips: the same pixels as in one piece, and little memory."""

import zipfile
from io import BytesIO

import numpy as np
import pytest
import torch
import torch.nn.functional as fn
from PIL import Image

from bokehdepth import processing_bokehdepth as processing
from bokehdepth.errors import InputError
from bokehdepth.files import depth_maps
from bokehdepth.files import photos as imaging
from bokehdepth.files.atomic import in_parallel
from bokehdepth.files.depth_maps import save_depth_npz, save_depth_png
from bokehdepth.files.pictures import depth_preview
from bokehdepth.files.stacks import save_stack
from bokehdepth.processing_bokehdepth import DetailRestorer, PhotoRows, Reduction, resize, restored_stack
from measure import peak_bytes

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

    restorer = DetailRestorer(PhotoRows(photo[0]), reference)
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
    rows = PhotoRows(photo[0])
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
    for start, strip in PhotoRows(photo[0]).strips():
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
        restored_stack(DetailRestorer(PhotoRows(photo[0]), reference), frames_of(reference), False, kind)[0]
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


def test_a_command_decodes_its_photo_once_and_a_long_list_keeps_few_pixels(tmp_path, monkeypatch):
    from bokehdepth.cli import main
    from bokehdepth.tasks import limits, photo_job

    opened = []
    for module in (photo_job, limits):
        monkeypatch.setattr(
            module, "open_photo", lambda path, **most: opened.append(path) or imaging.open_photo(path, **most)
        )
    paths = []
    for number in range(3):
        paths.append(tmp_path / f"{number}.png")
        Image.fromarray((picture(48, 64, number)[0].permute(1, 2, 0).numpy() * 255).astype(np.uint8)).save(paths[-1])
    options = ["--device", "cpu", "--steps", "1", "--bokeh-strengths", "10", "-q"]
    assert main(["run", str(paths[0]), "-o", str(tmp_path / "one"), *options]) == 0
    assert opened == paths[:1]
    opened.clear()
    monkeypatch.setattr(imaging, "MAX_PIXELS", 2 * 48 * 64)  # as if three photos were too many to be kept
    assert main(["run", *map(str, paths), "-o", str(tmp_path / "three"), *options]) == 0
    assert opened == [*paths, paths[2]]


def test_files_are_written_with_little_effort_and_lose_nothing(tmp_path):
    photo = (picture(300, 400)[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    depth_m = np.linspace(0.5, 80, 300 * 400, dtype=np.float32).reshape(300, 400)
    save_stack(tmp_path, [Image.fromarray(photo)] * 3, (10, 20, 30))
    for k in (10, 20, 30):
        with Image.open(tmp_path / f"bokeh_k{k}.png") as frame:
            assert np.array_equal(np.asarray(frame), photo) and frame.text["bokeh_strength"] == str(k)
    best = BytesIO()
    Image.fromarray(photo).save(best, "PNG")
    assert (tmp_path / "bokeh_k10.png").stat().st_size < 1.15 * len(best.getvalue())
    npz = save_depth_npz(tmp_path / "depth.npz", depth_m, focal_length_px=500, bokeh_strengths=(10,))
    assert np.array_equal(depth_maps.load_depth_npz(npz).depth_m, depth_m)
    with zipfile.ZipFile(npz) as packed:
        assert {entry.compress_type for entry in packed.infolist()} == {zipfile.ZIP_STORED}


def test_a_file_that_fails_is_told_when_the_others_are_done(tmp_path):
    def fail():
        raise InputError("no room")

    with pytest.raises(InputError, match="no room"):
        in_parallel([fail, (tmp_path / "other").touch])
    assert (tmp_path / "other").exists()


def test_codes_of_depth_do_not_depend_on_strips(tmp_path, monkeypatch):
    depth_m = np.random.default_rng(0).uniform(0.5, 80, (70, 50)).astype(np.float32)
    depth_m[0, :3] = np.nan, np.inf, 0.5
    for encoding in ("linear", "log"):
        codes = []
        for strip_px in (1, 10**9):
            monkeypatch.setattr(depth_maps, "_STRIP_PX", strip_px)
            path = save_depth_png(tmp_path / "d.png", depth_m, encoding=encoding, overwrite=True)
            codes.append(np.asarray(Image.open(path)))
        assert np.array_equal(*codes)
        assert (codes[0][0, 0], codes[0][0, 1]) == (0, 65535)


def test_a_large_maps_preview_is_small_and_tells_the_whole_maps_ends(tmp_path):
    depth_m = np.full((90, 300), 5, np.float32)
    depth_m[1::3, 1::3] = np.linspace(4, 6, 100)
    depth_m[1, 2], depth_m[2, 1] = 0.5, 70  # between what every third pixel shows
    small = depth_preview(depth_m, max_side_px=100)
    assert small.width < 300 and small.height < 90 + 200
    shown = depth_preview(depth_m[1::3, 1::3])
    assert np.array_equal(np.asarray(small)[:30, :100], np.asarray(shown)[:30, :100])
    assert small.tobytes() != shown.tobytes()  # by the legend, which says 0.5 to 70 m

"""What the embedded model's scenes are made of, from photographs that the test draws itself."""

import numpy as np
import pytest
import yaml
from PIL import Image, ImageDraw, ImageFilter

from bokehdepth.errors import InputError
from datasets_scripts.scenes.generator import SceneGenerator
from train.data import split_files

cv2 = pytest.importorskip("cv2", reason="needs OpenCV, of the extra train")
from datasets_scripts.scenes import cut_outs as materials  # noqa: E402 - after the check for OpenCV


def draw_photo(path):
    """A green field with a red disk in the middle."""
    rng = np.random.default_rng(1)
    picture = Image.fromarray((rng.random((160, 160, 3)) * 40 + np.array([20, 120, 20])).astype(np.uint8))
    ImageDraw.Draw(picture).ellipse((50, 50, 110, 110), fill=(220, 30, 30))
    picture.filter(ImageFilter.GaussianBlur(0.7)).save(path)
    truth = Image.new("L", (160, 160))
    ImageDraw.Draw(truth).ellipse((50, 50, 110, 110), fill=255)
    return np.asarray(truth) > 127


def circle(radius_px, corners=14, centre=(80, 80), side=160):
    """Corners of a rough outline, as shares."""
    angles = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    around = np.stack([np.cos(angles), np.sin(angles)], axis=1) * radius_px + centre
    return (around.clip(0, side) / side).tolist()


def overlap(alpha, truth):
    found = alpha > 0.5
    return (found & truth).sum() / (found | truth).sum()


@pytest.mark.parametrize("radius_px", [28, 33])
def test_a_rough_outline_snaps_to_the_subject(tmp_path, radius_px):
    truth = draw_photo(tmp_path / "disk.png")
    outline = circle(radius_px)
    alpha = materials.cut_out(np.asarray(Image.open(tmp_path / "disk.png")), outline)
    rough = Image.new("1", (160, 160))
    ImageDraw.Draw(rough).polygon([(x * 160, y * 160) for x, y in outline], fill=1)
    assert overlap(alpha, truth) > 0.9 > overlap(np.asarray(rough), truth)  # a pixel all round costs 0.07
    assert alpha.dtype == np.float32 and 0 <= alpha.min() and alpha.max() <= 1


def test_a_subject_that_the_border_cuts_reaches_it(tmp_path):
    draw_photo(tmp_path / "disk.png")
    photo = np.asarray(Image.open(tmp_path / "disk.png"))[:80]  # the lower half of the disk is outside
    outline = [(x, 2 * y) for x, y in circle(32) if y < 0.5] + [(0.3, 1.0), (0.7, 1.0)]
    angle = np.arctan2(*(np.array(outline) - [0.5, 1.0]).T[::-1])
    alpha = materials.cut_out(photo, np.array(outline)[np.argsort(angle)].tolist())
    assert (alpha[-1, 55:105] > 0.9).all() and (alpha[-1, :45] < 0.1).all() and (alpha[:15] < 0.1).all()


def test_an_outline_without_an_edge_is_taken_as_it_is(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (160, 160, 3), dtype=np.uint8)
    drawn = Image.new("1", (160, 160))
    ImageDraw.Draw(drawn).polygon([(x * 160, y * 160) for x, y in circle(40)], fill=1)
    assert overlap(materials.cut_out(noise, circle(40)), np.asarray(drawn)) > 0.75


def run(marks, tmp_path):
    (tmp_path / "marks.yaml").write_text(yaml.safe_dump(marks))
    return materials.main(["--marks", str(tmp_path / "marks.yaml"), "--output", str(tmp_path / "out")])


def test_the_command_makes_what_scenes_need(tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    for name in ("disk", "view", "chart"):
        draw_photo(tmp_path / "photos" / f"{name}.png")
    marks = {
        "license": "cc-by-sa-4.0",
        "photos": [str(tmp_path / "photos" / "*.png")],
        "subjects": {
            "disk": [
                {"what": "disk", "main": True, "outline": circle(31)},
                {"what": "part", "main": False, "outline": circle(24)},
                {"what": "dot", "main": False, "outline": circle(3)},
            ]
        },
        "backdrops": ["view"],
        "left_out": ["chart"],
    }
    assert run(marks, tmp_path) == 0
    out = tmp_path / "out"
    found = {
        folder.name: sorted(file.name for file in folder.iterdir()) for folder in out.iterdir() if folder.is_dir()
    }
    assert found["cutouts"] == ["disk--2.png", "disk.png"] and found["backdrops"] == ["view.png"]
    assert found["portraits"] == ["disk.png"] and Image.open(out / "portraits" / "disk.png").mode == "RGBA"
    assert found["textures"] == ["disk.png", "view.png"] and (out / "license.txt").read_text() == "cc-by-sa-4.0\n"
    cutout = np.asarray(Image.open(out / "cutouts" / "disk.png"))
    photo = np.asarray(Image.open(tmp_path / "photos" / "disk.png"))
    assert np.array_equal(cutout[..., :3], photo)  # the photograph itself stays whole behind its alpha
    # A photograph, what was cut out of it, and its second subject are always in one split.
    for share in (0.2, 0.5, 0.8):
        files = [str(tmp_path / "photos" / "disk.png"), str(out / "cutouts" / "disk*.png")]
        assert len(split_files(files, share, "train")) in (0, 3)
    no_file, no_terms = (
        {**marks, "photos": [str(tmp_path / "none*")]},
        {k: v for k, v in marks.items() if k != "license"},
    )
    wrong = ((marks, "which exists"), ({**marks, "backdrops": ["nobody"]}, "got 'nobody'"), (no_file, "none matches"),
             (no_terms, "must have the `license`"))  # fmt: skip
    for values, message in wrong:
        capsys.readouterr()
        assert run(values, tmp_path) == 2
        error = capsys.readouterr().err
        assert message in error and len(error.splitlines()) == 1


def test_photographs_become_scenes_with_their_subject_in_place(tmp_path):
    truth = draw_photo(tmp_path / "photo.png")
    photo = np.asarray(Image.open(tmp_path / "photo.png"))
    Image.fromarray(np.dstack([photo, truth.astype(np.uint8) * 255])).save(tmp_path / "disk.png")
    generator = SceneGenerator((64, 64), seed=2, portraits=[tmp_path / "disk.png"])
    kinds = [generator.generate(index).kind for index in range(60)]
    assert 0.08 < kinds.count("photograph") / 60 < 0.35
    for index in range(6):
        scene = generator.generate(index, "photograph")
        red = scene.image[..., 0] > 1.5 * scene.image[..., 1]
        inside = red & scene.subject_mask
        assert scene.subject_mask.any() and inside.sum() > 0.8 * scene.subject_mask.sum()
        assert np.allclose(scene.depth_m[scene.subject_mask], scene.focus_distance_m, rtol=1e-5)
        assert (np.abs(scene.depth_m / scene.focus_distance_m - 1) > 0.2).mean() > 0.2
        hidden = scene.layers[0].rgb  # behind the disk the field goes on
        assert (hidden[..., 0] > 1.5 * hidden[..., 1]).mean() < 0.02
    with pytest.raises(InputError, match="kind is 'photograph'"):
        SceneGenerator((64, 64)).generate(0, "photograph")
    with pytest.raises(InputError, match="portraits names"):
        SceneGenerator((64, 64), portraits=[tmp_path / "none.png"])

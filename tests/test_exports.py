"""Depth for other programs and for the screen: files read back byte by byte, checked against closed formulas."""

from __future__ import annotations

import json
import math
import struct
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from bokehdepth.camera import read_camera
from bokehdepth.errors import InputError
from bokehdepth.files.exr import save_depth_exr
from bokehdepth.files.photos import open_photo
from bokehdepth.files.pictures import shrunk_depth, size_within
from bokehdepth.files.point_clouds import distance_between_m, points_from_depth, save_glb, save_ply
from bokehdepth.rendering.refocus import render_from_depth
from bokehdepth.space.examples import example_photos
from bokehdepth.space.viewing import COLORMAPS, depth_view, describe_depth, marked, photo_point
from bokehdepth.tasks.refocus_job import plan_refocusing

FOCAL_PX = 50.0


def slanted(height: int = 37, width: int = 51) -> np.ndarray:
    return (2 + np.arange(width) / 25 + np.arange(height)[:, None] / 50).astype(np.float32)


def noise(height: int = 37, width: int = 51) -> PIL.Image.Image:
    return PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("size", [(1, 1), (16, 40), (37, 51)])
def test_openexr_reads_the_same_depth(tmp_path: Path, size: tuple[int, int]) -> None:
    reader = pytest.importorskip("OpenEXR")
    depth_m = np.random.default_rng(1).uniform(0.3, 90, size).astype(np.float32)  # noise, which ZIP cannot shrink
    depth_m[0, 0] = np.inf
    smooth_m = slanted(*size)
    smooth_m[-1, -1] = np.nan
    for name, values in (("noise.exr", depth_m), ("smooth.exr", smooth_m)):
        path = save_depth_exr(tmp_path / name, values, focal_length_px=FOCAL_PX)
        with reader.File(str(path)) as file:
            np.testing.assert_array_equal(file.channels()["Z"].pixels, values)
            assert file.header()["focal_length_px"] == FOCAL_PX


def test_points_lie_where_the_intrinsics_put_them() -> None:
    depth_m = slanted()
    points = points_from_depth(depth_m, FOCAL_PX, step=2)
    assert points.shape == (19, 26, 3)
    matrix = np.array([[FOCAL_PX, 0, 51 / 2], [0, FOCAL_PX, 37 / 2], [0, 0, 1]])
    seen = points.reshape(-1, 3) @ matrix.T
    pixels = seen[:, :2] / seen[:, 2:]
    rows, columns = np.mgrid[0:37:2, 0:51:2] + 0.5
    np.testing.assert_allclose(pixels, np.stack([columns.ravel(), rows.ravel()], axis=1), atol=1e-4)


def test_the_distance_is_that_of_the_wall_and_of_depth() -> None:
    wall_m = np.full((40, 60), 3.0, dtype=np.float32)
    assert distance_between_m(wall_m, FOCAL_PX, (10.5, 20), (35.5, 20)) == pytest.approx(25 * 3 / FOCAL_PX)
    step_m = wall_m.copy()
    step_m[:, 30:] = 5
    centre = distance_between_m(step_m, 1e9, (10, 20), (50, 20))  # a lens so long that only depth is left
    assert centre == pytest.approx(2, abs=1e-6)


def read_ply(path: Path) -> np.ndarray:
    """Vertices of a binary PLY file by its own header."""
    header, data = path.read_bytes().split(b"end_header\n", 1)
    lines = header.decode().splitlines()
    assert lines[:2] == ["ply", "format binary_little_endian 1.0"]
    kinds = {"float": "<f4", "uchar": "u1"}
    fields = [(words[2], kinds[words[1]]) for words in map(str.split, lines) if words[0] == "property"]
    count = next(int(line.split()[2]) for line in lines if line.startswith("element vertex"))
    vertices = np.frombuffer(data, dtype=fields)
    assert len(vertices) == count
    return vertices


def read_glb(path: Path) -> tuple[dict, list[bytes]]:
    """The document of a binary glTF file and what each of its buffer views holds."""
    data = path.read_bytes()
    magic, version, length, text_length, kind = struct.unpack_from("<4sIII4s", data)
    assert (magic, version, length, kind) == (b"glTF", 2, len(data), b"JSON")
    document = json.loads(data[20 : 20 + text_length])
    binary_length, kind = struct.unpack_from("<I4s", data, 20 + text_length)
    assert kind == b"BIN\0"
    binary = data[28 + text_length :]
    assert len(binary) == binary_length
    views = [binary[(at := view.get("byteOffset", 0)) : at + view["byteLength"]] for view in document["bufferViews"]]
    return document, views


def test_a_point_cloud_has_a_coloured_point_for_every_depth(tmp_path: Path) -> None:
    depth_m, image = slanted(), noise()
    depth_m[0, 0] = np.nan
    vertices = read_ply(save_ply(tmp_path / "points.ply", image, depth_m, focal_length_px=FOCAL_PX))
    assert len(vertices) == depth_m.size - 1
    points = points_from_depth(depth_m, FOCAL_PX).reshape(-1, 3)[1:]
    np.testing.assert_allclose(np.stack([vertices[axis] for axis in "xyz"], axis=1), points, rtol=1e-6)
    colors = np.stack([vertices[color] for color in ("red", "green", "blue")], axis=1)
    np.testing.assert_array_equal(colors, np.asarray(image).reshape(-1, 3)[1:])
    fewer = read_ply(save_ply(tmp_path / "few.ply", image, depth_m, focal_length_px=FOCAL_PX, max_points=500))
    assert 250 < len(fewer) <= 500


def test_a_relief_is_the_photo_in_space_torn_at_a_jump(tmp_path: Path) -> None:
    depth_m = np.full((30, 40), 2.0, dtype=np.float32)
    depth_m[:, 20:] = 4
    picture = noise(30, 40).resize((4000, 3000))
    picture.paste((255, 0, 0), (0, 0, 400, 300))  # red at the upper left
    depth_m = depth_m.repeat(100, axis=0).repeat(100, axis=1)
    path = save_glb(tmp_path / "relief.glb", picture, depth_m, focal_length_px=5000, max_vertices=1200)
    document, views = read_glb(path)
    (primitive,) = document["meshes"][0]["primitives"]
    material = document["materials"][primitive["material"]]
    assert "KHR_materials_unlit" in material["extensions"] and "KHR_materials_unlit" in document["extensionsUsed"]
    assert material["doubleSided"] is True
    texture = document["textures"][material["pbrMetallicRoughness"]["baseColorTexture"]["index"]]
    assert document["samplers"][texture["sampler"]] == {"wrapS": 33071, "wrapT": 33071}

    def values(number: int) -> np.ndarray:
        accessor = document["accessors"][number]
        width = {"VEC3": 3, "VEC2": 2, "SCALAR": 1}[accessor["type"]]
        raw = np.frombuffer(views[accessor["bufferView"]], dtype={5126: "<f4", 5125: "<u4"}[accessor["componentType"]])
        return raw[: accessor["count"] * width].reshape(-1, width)

    places, at = values(primitive["attributes"]["POSITION"]), values(primitive["attributes"]["TEXCOORD_0"])
    faces = values(primitive["indices"]).reshape(-1, 3)
    assert len(faces) == 2 * 29 * (19 + 19)
    assert set(np.round(-places[:, 2], 5)) == {2.0, 4.0}
    assert places[:, 1].max() == pytest.approx(4 * 1499.5 / 5000, rel=1e-5)  # y is up
    corners = places[faces]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    assert (normals[:, 2] > 0).all()  # all seen from the camera's side
    assert at.shape == (len(places), 2) and 0 < at.min() and at.max() < 1
    # The texture coordinate of a corner is the pixel that it is seen at; glTF counts from the upper left.
    seen = np.stack([places[:, 0], -places[:, 1]], axis=1) / -places[:, 2:] * 5000 / picture.size + 0.5
    np.testing.assert_allclose(at, seen, atol=1e-5)
    with PIL.Image.open(BytesIO(views[document["images"][texture["source"]]["bufferView"]])) as shown:
        assert shown.format == "JPEG" and shown.size == (2048, 1536)
        red, green, _ = shown.getpixel((50, 50))
        assert red > 200 and green < 60
    with pytest.raises(InputError, match="no surface"):
        save_glb(tmp_path / "none.glb", noise(), np.full((37, 51), np.nan, np.float32), focal_length_px=FOCAL_PX)
    assert not (tmp_path / "none.glb").exists()


def test_a_missing_library_is_named_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trimesh", None)
    monkeypatch.setitem(sys.modules, "OpenEXR", None)
    for save in (save_ply, save_glb):
        with pytest.raises(InputError, match=r"trimesh, which is not installed; pip install 'bokehdepth\[mesh\]'"):
            save(tmp_path / "a", noise(), slanted(), focal_length_px=FOCAL_PX)
    with pytest.raises(InputError, match=r"OpenEXR, which is not installed; pip install 'bokehdepth\[exr\]'"):
        save_depth_exr(tmp_path / "a", slanted(), focal_length_px=FOCAL_PX)
    assert not list(tmp_path.iterdir())


def test_wrong_input_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    for save in (save_ply, save_glb):
        with pytest.raises(InputError, match="wanted the picture's 50 x 30"):
            save(tmp_path / "a", noise(30, 50), slanted(), focal_length_px=FOCAL_PX)
        with pytest.raises(InputError, match="focal_length_px"):
            save(tmp_path / "a", noise(), slanted(), focal_length_px=-1)
    with pytest.raises(InputError, match="focal_length_px"):
        save_depth_exr(tmp_path / "a", slanted(), focal_length_px=math.nan)
    with pytest.raises(InputError, match="outside|inside"):
        distance_between_m(slanted(), FOCAL_PX, (0, 0), (51, 0))
    with pytest.raises(InputError, match="step"):
        points_from_depth(slanted(), FOCAL_PX, step=0)
    assert not list(tmp_path.iterdir())


def test_a_click_on_the_shown_picture_means_the_photos_pixel() -> None:
    assert size_within((4000, 3000), 1000) == (1000, 750)
    assert size_within((40, 30), 1000) == (40, 30)
    assert photo_point((0, 749), (4000, 3000), 1000) == (2.0, 2998.0)
    assert photo_point((1000, 10), (4000, 3000), 1000) is None  # on the legend
    depth_m = slanted(300, 400)
    small_m = shrunk_depth(depth_m, (100, 75))
    assert small_m.shape == (75, 100)
    x, y = photo_point((30, 20), (400, 300), 100)
    assert small_m[20, 30] == depth_m[int(y), int(x)]
    assert np.isin(small_m, depth_m).all()  # no mixtures


def test_the_view_marks_the_points_and_says_their_distance() -> None:
    depth_m = np.full((300, 400), 3.0, dtype=np.float32)
    plain = np.asarray(depth_view(depth_m, max_side_px=200))
    crossed = np.asarray(depth_view(depth_m, max_side_px=200, points_px=[(100, 60)]))
    changed = (plain != crossed).any(axis=2)
    assert tuple(crossed[30, 50]) == (255, 255, 255)
    assert not changed[:, 200:].any() and 0 < changed.sum() < 400
    both = marked(PIL.Image.new("RGB", (200, 150)), [(100, 60), (300, 60)], (400, 300))
    assert both.getpixel((100, 30)) == (255, 255, 255)  # the line between them
    for name in COLORMAPS:
        assert depth_view(slanted(), colormap=name) != depth_view(slanted(), colormap=name, near_bright=False)
    with pytest.raises(InputError, match="colormap is 'Jet'"):
        depth_view(depth_m, colormap="Jet")
    words = describe_depth(depth_m, FOCAL_PX, [(100, 60), (150, 60)])
    assert words.startswith("3 m and 3 m away, 3 m from each other")  # 50 px at 3 m and f = 50 px
    assert describe_depth(depth_m, FOCAL_PX) == "Nearest 3 m, farthest 3 m."


def test_refocusing_agrees_with_the_renderer_and_refuses_contradictions() -> None:
    scene = example_photos()[-2]
    photo = open_photo(scene)
    camera = read_camera(photo)
    assert camera.focus_distance_m.source == camera.focal_length_mm.source == "read"
    depth_m = np.tile(np.linspace(1, 6, 900, dtype=np.float32), (600, 1))
    plan = plan_refocusing(photo, depth_m, focus_at_px=(450, 300), f_number=1.4)
    assert plan.focus_distance_m == pytest.approx(3.5, abs=0.01)
    assert plan.bokeh_strength == pytest.approx(
        read_camera(photo, focus_distance_m=plan.focus_distance_m).bokeh_strength(1.4)
    )
    pixels = np.asarray(photo.image, dtype=np.float32) / 255
    wanted = render_from_depth(pixels, depth_m, plan.bokeh_strength, plan.focus_distance_m)
    np.testing.assert_array_equal(np.asarray(plan.render()), np.round(wanted * 255).astype(np.uint8))
    small = plan_refocusing(photo, depth_m, focus_distance_m=2, bokeh_strength=10).render(300)
    assert small.size == (300, 200)
    for wrong in ({}, {"focus_distance_m": 2, "focus_at_px": (1, 1)}):
        with pytest.raises(InputError, match="wanted one"):
            plan_refocusing(photo, depth_m, bokeh_strength=10, **wrong)
    with pytest.raises(InputError, match="wanted one of them"):
        plan_refocusing(photo, depth_m, focus_distance_m=2, bokeh_strength=10, f_number=2)
    with pytest.raises(InputError, match="wanted the picture's 900 x 600"):
        plan_refocusing(photo, depth_m[:-1], focus_distance_m=2, bokeh_strength=10)

"""The manifest: round trip, and every kind of bad row refused by file and line."""

import json
import math
from pathlib import Path

import pytest

from bokehdepth.camera import lens
from bokehdepth.errors import InputError
from bokehdepth.manifest import CameraAnns, Intrinsics, ManifestRow, StackFrame, read_manifest, write_manifest

K = lens.bokeh_strength(50.0, 2.0, 1.8, 36.0)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "set"
    for name in ("a/sharp.png", "a/bokeh.jpg", "a/depth.png", "a/mask.png", "a/k10.png", "a/k20.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    (tmp_path / "outside.png").write_bytes(b"x")
    return folder


def good() -> dict:
    """A full row as it stands in a file."""
    return {
        "id": "s1-f2",
        "scene": "s1",
        "dataset": "Aperture",
        "split": "train",
        "input_image_path": "a/sharp.png",
        "target_image_path": "a/bokeh.jpg",
        "depth_map_path": "a/depth.png",
        "depth_unit": "m",
        "depth_scale": 0.001,
        "fg_mask_path": "a/mask.png",
        "captions": ["a cat", "un chat à l'ombre"],
        "k_unit": "metric",
        "stack": [{"image_path": "a/k10.png", "dof-cond": 10}, {"image_path": "a/k20.png", "dof-cond": 20.5}],
        "intrinsics": {"fx": 500.0, "fy": 501.0, "cx": 320.0, "cy": 240.0},
        "camera_anns": {
            "N": 2.0,
            "fmm": 50.0,
            "f35mm": 50.0,
            "sensor_width": 36.0,
            "s1": 1.8,
            "dof-cond": K,
            "dof-cond-crop": K,
            "foreground_clear": True,
        },
    }


def written(root: Path, *rows: dict) -> Path:
    path = root / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_round_trip_and_names(root):
    (row,) = read_manifest(written(root, good()))
    assert row == ManifestRow(
        row_id="s1-f2",
        scene="s1",
        image_path=root / "a/sharp.png",
        target_path=root / "a/bokeh.jpg",
        depth_path=root / "a/depth.png",
        depth_unit="m",
        depth_scale=0.001,
        mask_path=root / "a/mask.png",
        captions=("a cat", "un chat à l'ombre"),
        strength_unit="metric",
        camera_anns=CameraAnns(K, K, 2.0, 50.0, 50.0, 36.0, 1.8, None, True),
        stack=(StackFrame(root / "a/k10.png", 10), StackFrame(root / "a/k20.png", 20.5)),
        intrinsics=Intrinsics(500.0, 501.0, 320.0, 240.0),
        dataset="Aperture",
        split="train",
    )
    assert row.camera_anns.lens_strength() == K
    assert set(row.paths()) >= {"input_image_path", "stack[1]"} and len(row.paths()) == 6
    again = write_manifest(root / "again.jsonl", [row])
    assert json.loads(again.read_text()) == good() and read_manifest(again) == [row]


def test_minimal_rows_of_each_use(root):
    rows = [
        {"id": "photo", "scene": "1", "input_image_path": "a/sharp.png"},
        {
            "id": "wild",
            "scene": "2",
            "target_image_path": "a/bokeh.jpg",
            "k_unit": "relative",
            "camera_anns": {"dof-cond": 12, "disp_focus": 0.4},
        },
        {
            "id": "depth",
            "scene": "3",
            "input_image_path": "a/sharp.png",
            "depth_map_path": "a/depth.png",
            "depth_unit": "m",
        },
    ]
    read = read_manifest(written(root, *rows))
    assert [row.row_id for row in read] == ["photo", "wild", "depth"]
    assert [json.loads(line) for line in write_manifest(root / "b.jsonl", read).read_text().splitlines()] == rows


def changed(**changes) -> dict:
    row = good()
    for key, value in changes.items():
        *parents, leaf = key.split("__")
        target = row
        for parent in parents:
            target = target[parent]
        if value is ...:
            del target[leaf]
        else:
            target[leaf] = value
    return row


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        (changed(colour="red"), "`colour` must be left out"),
        (changed(camera_anns__f_number=2.0), "`camera_anns.f_number` must be left out"),  # the name in memory
        (changed(camera_anns__K=3), "`camera_anns.K` must be left out"),
        (changed(scene=...), "`scene` must be there"),
        (changed(scene=" "), "`scene` must not be empty, got ' '"),
        (changed(id="../x"), "`id` must match .* got '../x'"),
        (changed(captions="a cat"), "`captions` must be a valid list, got 'a cat'"),
        (changed(captions=["a", 3]), "`captions.1` must be a valid string, got 3"),
        (changed(captions=["\ud800"]), "`captions.0` must be text that UTF-8 can hold"),
        (changed(split="dev"), "`split` must be 'train', 'validation' or 'test', got 'dev'"),
        (changed(depth_scale=None), "depth_scale is null"),
        (changed(depth_scale=-1), "`depth_scale` must be greater than 0, got -1"),
        (changed(depth_scale=True), "`depth_scale` must be a valid number, got True"),
        (changed(depth_scale=10**400), "`depth_scale` must be a valid number, got 1000"),
        (changed(depth_unit="km"), "`depth_unit` must be 'm', 'dpt' or 'relative_disparity', got 'km'"),
        (changed(depth_map_path=...), "without depth_map_path"),
        (changed(depth_unit="relative_disparity"), "do not go together"),
        (changed(k_unit=...), "k_unit is missing"),
        (changed(k_unit="relative"), "do not go together"),
        (changed(k_unit="relative", depth_unit="relative_disparity"), "s1 is 1.8 in a row of relative K"),
        (changed(camera_anns__disp_focus=0.3), "disp_focus is 0.3 in a row of metric K"),
        (changed(**{"camera_anns__dof-cond": K * 1.02, "camera_anns__dof-cond-crop": K * 1.02}), "dof-cond is 9.3"),
        (changed(**{"camera_anns__dof-cond-crop": K / 1.5}), "dof-cond-crop is"),
        (changed(**{"camera_anns__dof-cond": 31, "camera_anns__N": 0.5}), r"dof-cond must be in \[0, 30\]"),
        (changed(**{"camera_anns__dof-cond": -1}), "`camera_anns.dof-cond` must be"),
        (changed(**{"camera_anns__dof-cond": ...}), "no dof-cond, wanted the K of target_image_path"),
        (changed(camera_anns__N=0), "`camera_anns.N` must be greater than 0, got 0"),
        (changed(camera_anns__s1=0.04), "focus_distance_m must be greater than the focal length"),
        (changed(camera_anns__foreground_clear=1), "`camera_anns.foreground_clear` must be a valid boolean, got 1"),
        (changed(intrinsics__fx=0), "`intrinsics.fx` must be greater than 0"),
        (changed(intrinsics__cx=...), "`intrinsics.cx` must be there"),
        (changed(stack=[{"image_path": "a/k10.png", "dof-cond": 0}]), "`stack.0.dof-cond` must be greater than 0"),
        (changed(stack=[{"image_path": "a/k10.png"}]), "`stack.0.dof-cond` must be there"),
        (
            changed(stack=[{"image_path": "a/k30.png", "dof-cond": 3}]),
            "`stack.0.image_path` must be a file that exists, got 'a/k30.png'",
        ),
        (changed(stack=list(reversed(good()["stack"]))), r"dof-cond \[20.5, 10.0\], wanted ascending"),
        (changed(input_image_path="../outside.png"), "and stay inside it"),
        (changed(input_image_path="a/../../outside.png"), "and stay inside it"),
        (changed(input_image_path="/etc/hostname"), "and stay inside it"),
        (changed(input_image_path="a\\sharp.png"), "forward slashes"),
        (changed(input_image_path="a"), "must be a file that exists"),
        (changed(input_image_path=..., target_image_path=...), "both missing"),
        (changed(input_image_path=...), "input_image_path is missing"),
        ([1], "must be an object"),
    ],
)
def test_bad_rows_are_refused_by_file_and_line(root, row, sentence):
    path = written(root, {"id": "ok", "scene": "s", "input_image_path": "a/sharp.png"}, row)
    with pytest.raises(InputError, match=rf"rows\.jsonl, line 2: .*{sentence}"):
        read_manifest(path)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("", "not one JSON object"),
        ("{", "not one JSON object"),
        ('{"id": "x", "id": "y"}', "'id' stands twice"),
        ('{"id": "x", "scene": "s", "depth_scale": NaN}', "a value is NaN"),
        (
            '{"id": "x", "scene": "s", "input_image_path": "a/sharp.png", "depth_scale": 1e999}',
            "`depth_scale` must be a finite number, got inf",
        ),
        ('{"a": ' + "9" * 5000 + "}", "not one JSON object"),
        ("[" * 100_000, "not one JSON object"),
        ('{"id": "ok", "scene": "s", "input_image_path": "a/sharp.png"}', "id is 'ok' as in line 1"),
    ],
)
def test_bad_lines(root, line, sentence):
    path = root / "rows.jsonl"
    path.write_text('{"id": "ok", "scene": "s", "input_image_path": "a/sharp.png"}\n' + line + "\n")
    with pytest.raises(InputError, match=rf"rows\.jsonl, line 2: .*{sentence}"):
        read_manifest(path)
    path.write_bytes(b"\xff\n")
    with pytest.raises(InputError, match="line 1: not one JSON object in UTF-8"):
        read_manifest(path)


def test_links_that_leave_the_folder(root):
    (root / "link.png").symlink_to(root.parent / "outside.png")
    with pytest.raises(InputError, match="line 1: .*must lead to a file inside the manifest's folder"):
        read_manifest(written(root, {"id": "a", "scene": "s", "input_image_path": "link.png"}))
    (root / "inner.png").symlink_to(root / "a/sharp.png")
    assert read_manifest(written(root, {"id": "a", "scene": "s", "input_image_path": "inner.png"}))


def test_nothing_is_half_written(root):
    row = ManifestRow(row_id="a", scene="s", image_path=root / "a/sharp.png")
    path = root / "out.jsonl"
    for rows, sentence in (
        ([row, row], "row 2: id is 'a'"),
        (
            [row, ManifestRow(row_id="b", scene="s", image_path=root / "none.png")],
            "row 2: .*must be a file that exists",
        ),
        ([row, ManifestRow(row_id="b", scene="s", image_path=root.parent / "outside.png")], "row 2: .*inside"),
        ([], "rows is empty"),
    ):
        with pytest.raises(InputError, match=sentence):
            write_manifest(path, rows)
        assert not path.exists() and not list(root.glob(".*"))
    write_manifest(path, [row])
    with pytest.raises(InputError, match="exists"):
        write_manifest(path, [row])
    with pytest.raises(InputError, match="no file"):
        read_manifest(root / "none.jsonl")
    (root / "empty.jsonl").write_text("")
    with pytest.raises(InputError, match="empty"):
        read_manifest(root / "empty.jsonl")


def test_k_within_the_tolerance_is_read_and_a_lens_at_infinity_is_not_a_json_number(root):
    near = changed(**{"camera_anns__dof-cond": K * 1.009, "camera_anns__dof-cond-crop": K * 1.009})
    assert read_manifest(written(root, near))[0].camera_anns.bokeh_strength == K * 1.009
    with pytest.raises(InputError, match="`focus_distance_m` must be a finite number, got inf"):
        CameraAnns(focus_distance_m=math.inf)

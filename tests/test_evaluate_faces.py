"""Faces that are the subject of a photo: how much they changed."""

import sys

import numpy as np
import pytest
import yaml
from PIL import Image

from bokehdepth.errors import InputError
from bokehdepth.rendering.disk import disk_blur
from train import evaluate_faces

BOX = [[0.25, 0.25, 0.75, 0.75]]


def noise(side=64):
    return np.random.default_rng(0).random((side, side, 3)).astype(np.float32)


def test_changes_are_relative_to_a_blur_of_one_dioptre():
    photo = noise()
    blurred = disk_blur(photo, 30 * 64 / 512, gamma=2.2)
    assert evaluate_faces.relative_changes(photo, blurred, BOX, 30.0) == pytest.approx((1, 1))
    assert evaluate_faces.relative_changes(photo, photo, BOX, 30.0) == (0, 0)
    inside = blurred.copy()
    inside[16:48, 16:48] = photo[16:48, 16:48]
    assert evaluate_faces.relative_changes(photo, inside, BOX, 30.0) == pytest.approx((0, 1))


def test_the_command_looks_at_every_photo(tmp_path, monkeypatch, capsys):
    for name in ("one", "two"):
        Image.fromarray((noise() * 255).astype(np.uint8)).save(tmp_path / f"{name}.png")
    (tmp_path / "marks.yaml").write_text(yaml.safe_dump({"one": BOX, "two": [[0, 0, 1, 0.5]]}))
    command = ["--marks", tmp_path / "marks.yaml", "--root", tmp_path, "--output", tmp_path / "out" / "sheet.png"]
    monkeypatch.setattr(sys, "argv", ["evaluate_faces", *map(str, command)])
    evaluate_faces.main()
    table = capsys.readouterr().out
    assert " of 2 faces are sharp" in table and "| one |" in table and "| two |" in table
    with Image.open(tmp_path / "out" / "sheet.png") as sheet:
        assert sheet.width > 4 * 300
    (tmp_path / "one.jpg").write_bytes(b"")
    with pytest.raises(InputError, match=r"has 2 files one\.\*"):
        evaluate_faces.find(tmp_path, "one")
    with pytest.raises(SystemExit, match=r"has 2 files one\.\*"):
        evaluate_faces.main()

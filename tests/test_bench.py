import json

import pytest

from bokehdepth.benchmarks import render, scenes, timing
from bokehdepth.cli import main
from bokehdepth.errors import InputError

SMALL = ["--sizes", "48", "--repeats", "1"]


def test_contenders_take_turns_there_and_back():
    calls, now = [], iter(range(1000))
    contenders = {name: lambda name=name: calls.append(name) for name in "abc"}
    seconds = timing.interleaved(contenders, 2, clock=lambda: float(next(now)))
    assert "".join(calls) == "abc" + "abc" + "cba"
    assert seconds == {"a": 1.0, "b": 1.0, "c": 1.0}


def test_the_median_counts():
    times = iter([0.0, 1.0, 0.0, 9.0, 0.0, 2.0])
    assert timing.interleaved({"a": lambda: None}, 3, clock=lambda: next(times)) == {"a": 2.0}


def test_tables_are_aligned_and_say_what_is_missing():
    lines = timing.table([{"a": 1.23456, "b": "x"}, {"a": None, "b": "yy"}], {"a": "first", "b": "b"}).split("\n")
    assert lines == ["first   b", " 1.23   x", "    -  yy"]


def test_the_render_bench_measures_every_contender_and_checks_the_result(capsys):
    assert main(["bench", "render", *SMALL, "--mean-radii", "2", "4", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    names = {row["contender"] for row in result["rows"]}
    assert {render.SPAN, render.BRUTE, render.PLAIN, render.FFT, render.OCCLUSION, render.TORCH, render.COPY} <= names
    assert all(row["mpix_per_s"] > 0 for row in result["rows"])
    assert {row["time_over_span"] for row in result["rows"] if row["contender"] == render.SPAN} == {1.0}
    assert [gate["mean_radius_px"] for gate in result["gates"]] == [2.0, 4.0]
    assert all(gate["difference"] < 1e-3 for gate in result["gates"])


def test_a_result_that_is_off_fails_the_bench(monkeypatch, capsys):
    monkeypatch.setattr(render, "_TOLERANCE", -1.0)
    assert main(["bench", "render", *SMALL, "--mean-radii", "2"]) == 1
    assert "FAILED" in capsys.readouterr().out


def test_the_scene_bench_prints_rates(capsys):
    assert main(["bench", "scenes", "--sizes", "48", "--scenes", "2"]) == 0
    assert "made/s" in capsys.readouterr().out


def test_wrong_requests_are_refused(capsys):
    assert main(["bench", "render", "--sizes", "8"]) == 2
    assert "'8' is no whole number from 32" in capsys.readouterr().err
    assert main(["bench", "render", *SMALL, "--mean-radii", "0"]) == 2
    assert "mean_radii_px is [0.0]" in capsys.readouterr().err
    with pytest.raises(InputError, match="scenes is 0"):
        scenes.run(scenes=0)
    with pytest.raises(InputError, match="repeats is 0"):
        render.run(repeats=0)

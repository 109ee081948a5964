import json

import pytest
import torch

from bokehdepth.benchmarks import gates, pipeline, render, scenes, stage1, stage2, timing, training
from bokehdepth.benchmarks.memory import peak_bytes
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


# ---------------------------------------------------------------------- networks


def contender_rows(result, group):
    return {row["contender"]: row for row in result["groups"][group]["rows"]}


@pytest.fixture(scope="module")
def networks():
    """One small run of each bench of networks."""
    return {
        "stage1": stage1.run(size_px=64, frames=2, steps=2, repeats=1),
        "stage2": stage2.run(size_px=56, frames=3, repeats=1),
        "training": training.run(size_px=64, repeats=1),
    }


@pytest.mark.parametrize("name", ["stage1", "stage2", "training"])
def test_benches_of_networks_measure_count_and_check(networks, name):
    result = networks[name]
    rows = [row for group in result["groups"].values() for row in group["rows"]]
    assert gates.passed(result)
    for row in rows:
        assert row["seconds"] > 0 and row["gflop"] > 0 and row["peak_mb"] > 0 and row["time_over_floor"] > 0, row
    assert any(row["passed"] for row in rows) and any(row["passed"] is None for row in rows)
    for group in result["groups"].values():
        assert {row["time_over_rival"] for row in group["rows"] if row["contender"] == group["rival"]} == {1.0}
    text = {"stage1": stage1, "stage2": stage2, "training": training}[name].as_text(result)
    assert "passed:" in text and "approximat" in text


def test_counted_work_is_what_each_saving_leaves_out(networks):
    """Times depend on the machine; work does not."""
    stack, one = contender_rows(networks["stage1"], "stack"), contender_rows(networks["stage1"], "pass")
    assert stack[stage1.KEPT]["gflop"] < 0.75 * stack[stage1.SHORT]["gflop"]
    assert stack[stage1.SECOND]["gflop"] < stack[stage1.FIRST]["gflop"] < stack[stage1.ALONE]["gflop"]
    assert one[stage1.BAKED]["gflop"] < one[stage1.FOLDED]["gflop"] < one[stage1.TRAINED]["gflop"]
    fifty = stack[f"{stage1.RELEASED}, 50 steps"]["gflop"] / stack[stage1.RELEASED]["gflop"]
    assert 15 < fifty < 25
    assert one[stage1.FOLDED]["gflop"] == pytest.approx(one[stage1.PLAIN]["gflop"], rel=1e-3)
    step = contender_rows(networks["training"], "step")
    assert step[training.CHECKPOINTED]["peak_mb"] < 0.6 * step[training.PLAIN]["peak_mb"]
    focus, depth = contender_rows(networks["stage2"], "focus"), contender_rows(networks["stage2"], "depth")
    assert focus[stage2.ONE_QUERY]["gflop"] < 0.5 * focus[stage2.ALL_QUERIES]["gflop"]
    assert depth[stage2.HALF_EARLY]["gflop"] < depth[stage2.EARLY]["gflop"] < depth[stage2.EARLY_WHOLE]["gflop"]


def test_counted_work_of_a_product_and_of_attention():
    a, b = torch.randn(3, 5), torch.randn(5, 7)
    assert gates.counted_flop(lambda: a @ b)[1] == 2 * 3 * 5 * 7
    q, k = torch.randn(1, 2, 9, 16), torch.randn(1, 2, 11, 16)
    attention = torch.nn.functional.scaled_dot_product_attention
    assert gates.counted_flop(lambda: attention(q, k, k))[1] == 4 * 2 * 9 * 11 * 16


def test_peak_memory_counts_what_lives_at_once():
    before, cpu = torch.ones(1000), torch.device("cpu")

    def run():
        first = before * 2  # 4000 bytes
        second = first + 1  # 8000
        del first
        third = second[:500] * 3  # 4000 + 2000, the view is free
        before.add_(third.sum() * 0)
        return third

    assert peak_bytes(run, cpu) == 8000
    assert peak_bytes(lambda: before.add_(1), cpu) == 0


def test_memory_at_the_place_of_what_was_freed_is_counted():
    """What was there before and goes leaves its address to what comes."""
    held = [torch.ones(1000) for _ in range(200)]

    def run():
        for i in range(len(held)):
            held[i].add_(1)
            held[i] = None
        return [torch.zeros(1000) for _ in held]

    assert peak_bytes(run, torch.device("cpu")) == 200 * 4000


def test_a_fast_variant_that_is_off_fails_the_bench(capsys, monkeypatch):
    monkeypatch.setattr(stage2, "_TOLERANCE", dict.fromkeys(stage2._TOLERANCE, -1.0))
    assert main(["bench", "stage2", "--size", "28", "--frames", "2", "--repeats", "1"]) == 1
    assert "FAILED" in capsys.readouterr().out
    wrong = gates.Contender(lambda: torch.tensor([1.0, 2.0, 4.0]), "right", 1e-3)
    right = gates.Contender(lambda: torch.tensor([1.0, 2.0, 3.0]) @ torch.eye(3))
    rows = gates.compare({"right": right, "wrong": wrong}, "right", 1, torch.device("cpu"), torch.float32)
    assert rows[1]["passed"] is False and rows[1]["difference"] == pytest.approx(0.5**0.5, rel=1e-5)
    with pytest.raises(ArithmeticError, match="not finite"):
        nan = gates.Contender(lambda: torch.tensor([float("nan")]))
        gates.compare({"nan": nan}, "nan", 1, torch.device("cpu"), torch.float32)


def test_pipeline_bench_prints_loading_and_the_embedded_model(capsys):
    options = ["--size", "64", "--frames", "2", "--steps", "2", "--repeats", "1", "--json", "-q"]
    assert main(["bench", "pipeline", *options]) == 0
    result = json.loads(capsys.readouterr().out)
    assert contender_rows(result, "embedded")[pipeline.EMBEDDED_DEPTH]["gflop"] > 0
    load = result["groups"]["load"]
    (read,) = load["rows"]  # on the CPU nothing is moved
    assert read["passed"] and load["read_mb"] < load["files_mb"] < 1.005 * load["read_mb"]
    assert load["read_mb_per_s"] == pytest.approx(load["read_mb"] / read["seconds"]) and "moved_mb" not in load
    assert "read_mb_per_s" in pipeline.as_text(result)


def test_load_onto_a_device_times_what_is_moved_there():
    """The meta device stands for one with memory of its own."""
    load = pipeline._load(torch.device("meta"), torch.bfloat16, 1)
    read, moved = load["rows"]
    assert (read["contender"], moved["contender"]) == (pipeline.READ, pipeline.MOVED)
    assert load["moved_mb"] == load["read_mb"] > 30  # none of these parts makes buffers anew
    assert load["moved_mb_per_s"] == pytest.approx(load["moved_mb"] / moved["seconds"])
    assert read["passed"] and moved["passed"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["stage1", "--size", "100"], "size_px is 100, wanted 64 or more, a multiple of 16"),
        (["stage2", "--size", "100"], "size_px is 100, wanted a multiple of 14"),
        (["pipeline", "--size", "70"], "size_px is 70, wanted a multiple of 16"),
        (["training", "--size", "70"], "size_px is 70, wanted a multiple of 16"),
        (["stage1", "--frames", "1"], "'1' is no whole number from 2"),
    ],
)
def test_wrong_requests_to_benches_of_networks_are_refused(arguments, message, capsys):
    assert main(["bench", *arguments]) == 2
    assert message in capsys.readouterr().err


# ---------------------------------------------------------------------- memory of training


@pytest.fixture(scope="module")
def tiny_training():
    """Base and contenders of the training bench at a small size, in float32 on the CPU."""
    return training._parts(96, 2, False, torch.device("cpu"), torch.float32)


@pytest.mark.parametrize("name", [training.PLAIN, training.CHECKPOINTED, training.FIXED])
def test_counted_activations_are_the_bytes_that_autograd_keeps(tiny_training, name):
    """Counted on the meta device, as at FLUX's size, against the tensors that a true step packs."""
    base, parts = tiny_training
    prepare, step = parts[name]
    prepare()
    weights = {t.untyped_storage().data_ptr() for module in (base, step.adapter) for t in
               (*module.parameters(), *module.buffers())}  # fmt: skip
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = step.forward()
    real = sum(storage.nbytes() for storage in kept.values())
    del loss
    peak = peak_bytes(step, torch.device("cpu"))
    counted = {row["contender"]: row for row in training.counted_memory(96, 2, False, torch.float32)}[name]
    # The kernels of CPU and CUDA keep other statistics of a softmax, a few bytes for each query.
    assert counted["saved_gb"] * 1e9 == pytest.approx(real, rel=2e-3)
    assert counted["peak_gb"] * 1e9 == pytest.approx(peak, rel=0.03)
    stored = sum(t.nbytes for module in (base, step.adapter) for t in (*module.parameters(), *module.buffers()))
    assert counted["weights_gb"] * 1e9 == stored


def test_memory_of_a_step_at_fluxs_size(capsys):
    """By hand: 11.9 G weights in bfloat16, and the activations of 57 blocks of 3072 channels at 2560 tokens."""
    assert main(["bench", "training", "--true-size", "--count", "--size", "512", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    rows = {row["contender"]: row for row in result["memory"]}
    assert result["groups"] == {} and set(rows) == {training.PLAIN, training.CHECKPOINTED, training.SHORT,
                                                    training.FIXED, training.FIXED_CHECKPOINTED}  # fmt: skip
    plain, checkpointed = rows[training.PLAIN], rows[training.CHECKPOINTED]
    assert plain["weights_gb"] == pytest.approx(23.80 + 0.29 + 0.004, abs=0.3)
    # One tensor of each block: 2 photos of 1024 noisy, 1024 photo and 512 prompt tokens, 3072 channels of 2 bytes.
    # Kept are those that norms, gate, rotation, attention (q, k, v, result) and the four times wider part go back to.
    channels = 2 * (2 * 1024 + 512) * 3072 * 2 * 57 / 1e9
    assert 12 * channels < plain["saved_gb"] < 18 * channels
    # With checkpoints each block keeps its own input: one tensor, of text and picture together.
    assert checkpointed["saved_gb"] == pytest.approx(channels, rel=0.03)
    assert 50 < plain["total_gb"] < 55 and 26 < checkpointed["total_gb"] < 28

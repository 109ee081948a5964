"""The scripts of `benchmarks/` at tiny size: they run, check what they compare, and count what savings leave out."""

import importlib

import pytest
import torch

import stages
from measure import Contender, compare, counted_flop, peak_bytes

CPU = {"device": torch.device("cpu"), "dtype": torch.float32}
TINY = ["--frames", "2", "--steps", "2", "--repeats", "1"]


def work_of(printed: str) -> dict[str, float]:
    """GFLOP of each row; of a name that several tables have, that of the last one."""
    rows = [(line[:44].strip(), line[44:].split()) for line in printed.splitlines()]
    return {name: float(cells[2]) for name, cells in rows if name and len(cells) >= 5 and cells[0] != "s"}


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("bench", "size", "savings"),
    [
        ("stage1", 64, {
            "folded, baked": ("folded", 0.99), "folded, short prompt": ("folded", 0.9),
            "and the photo's keys kept": ("folded, short prompt", 0.75),
            "one K, photo known": ("one K, new photo", 0.75),
        }),
        ("stage2", 56, {
            "reference queried": ("all frames queried", 0.5),
            "two shallowest, the stack stops there": ("two shallowest, the stack goes on", 0.8),
            "two deepest, stack at half size": ("two deepest maps (default)", 0.7),
        }),
        ("pipeline", 64, {
            "both stages, photo known": ("both stages", 0.98), "one K, photo known": ("one K, new photo", 0.7),
        }),
        ("training", 64, {"short prompt": ("plain step", 0.9)}),
    ],
)  # fmt: skip
def test_stages_give_the_same_results_and_savings_leave_work_out(bench, size, savings, capsys, one_thread):
    assert stages.main([bench, "--size", str(size), "--photo", "96", *TINY]) == 0
    work = work_of(capsys.readouterr().out)
    for saving, (rival, share) in savings.items():
        assert 0 < work[saving] < share * work[rival], (saving, work)


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        ("renderers", ["--size", "48", "--mean-radii", "2", "--scenes", "1", "--repeats", "1"]),
        ("scenes", ["--sizes", "48", "--scenes", "2"]),
        ("sweep", ["--size", "128", "--scenes", "2", "--noises", "0.01", "--stacks", "10,20,30"]),
    ],
)
def test_the_other_scripts_run_and_pass(script, arguments, capsys):
    assert importlib.import_module(script).main(arguments) == 0
    assert capsys.readouterr().out.count("\n") > 0


def test_a_variant_that_is_off_fails(capsys):
    right = Contender(lambda: torch.tensor([1.0, 2.0, 3.0]) @ torch.eye(3))
    wrong = Contender(lambda: torch.tensor([1.0, 2.0, 4.0]) @ torch.eye(3), like="right")
    assert not compare("", {"right": right, "wrong": wrong}, 1, 1e-3, CPU)
    assert "7.1e-01 FAILED" in capsys.readouterr().out
    assert not compare("", {"nan": Contender(lambda: torch.full((3,), torch.nan) @ torch.eye(3))}, 1, 1e-3, CPU)


def test_counted_work_of_attention_on_the_cpu():
    q, k = torch.randn(1, 2, 9, 16), torch.randn(1, 2, 11, 16)
    attention = torch.nn.functional.scaled_dot_product_attention
    assert counted_flop(lambda: attention(q, k, k))[1] == 4 * 2 * 9 * 11 * 16


def test_peak_memory_is_of_what_lives_at_once():
    def run():
        first = torch.ones(100_000)  # 0.4 MB
        second = first + 1
        del first
        return second[:50_000] * 3  # 0.4 + 0.2 MB

    assert peak_bytes(run, CPU["device"]) == pytest.approx(800_000, rel=0.01)

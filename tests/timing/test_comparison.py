"""Two networks side by side: ratios, reasons, and what a runtime cannot do is said."""

import json

import pytest
import torch
from command import chipnet_
from torch import nn

from chipnet import ConfigError
from chipnet.timing import compare, comparison
from chipnet.timing.clock import Machine
from chipnet.timing.comparison import Comparison, Row, reason
from chipnet.timing.layers import Part


def net(width):
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, 5, 3, padding=1)
    ).eval()


@pytest.mark.parametrize(
    ("part", "why"),
    [
        (Part("BatchNorm2d", 8, 8, 0, 4000, 1e-5), ("call", ())),
        (Part("BatchNorm2d", 8, 8, 0, 4_000_000, 1e-3), ("memory", ())),
        (Part("Conv2d", 8, 8, 1_000, 4_000, 1e-3), ("memory", ())),
        (Part("Conv2d", 13, 16, 100_000, 1_000, 1e-3), ("width", (13,))),
        (Part("Conv2d", 13, 21, 100_000, 1_000, 1e-3), ("width", (13, 21))),
        (Part("Conv2d", 8, 16, 100_000, 1_000, 1e-3), ("small", ())),
    ],
)
def test_reasons(part, why):
    assert reason(Machine(macs=1e10, bytes=1e9, call=1e-5), part) == why


def test_a_smaller_network_is_faster_smaller_and_leaner():
    done = compare(
        {"big": net(64), "small": net(8)},
        torch.randn(2, 3, 24, 24),
        seconds=0.3,
        runtimes=["eager", "onnxruntime"],
    )
    assert not done.skipped
    assert done.macs_left == 1 / 8
    for runtime in ("eager", "onnxruntime"):
        ratio, low, high = done.ratios[runtime]
        assert low <= ratio <= high
        assert ratio < 1
        assert all(t.low <= t.median <= t.high for t in done.timings[runtime].values())
    assert done.memory["small"] * 8 == done.memory["big"]
    assert (done.batch, done.threads, done.dtype) == (2, 1, "float32")
    assert any(line.startswith("eager: ") and "for 12% of the MACs" in line for line in done.verdict())
    assert json.loads(json.dumps(done.to_json()))["macs_left"] == 1 / 8


def test_time_that_is_left_is_explained():
    """Two networks that differ in nothing but a claim: all of the second one's time is left over."""
    done = compare({"one": net(8), "other": net(8)}, torch.randn(1, 3, 8, 8), seconds=0.1, runtimes=["eager"])
    rows = {r.name: r for r in done.rows}
    assert set(rows) == {"0", "1", "2"}
    assert all(abs(r.excess) < max(r.first.seconds, r.second.seconds) for r in done.rows)
    short = Comparison(
        **{
            **vars(done),
            "macs": {"one": 100, "other": 10},
            "rows": (
                Row("0", rows["0"].first, rows["0"].second, 3e-3, "width", (13,)),
                Row("1", rows["1"].first, rows["1"].second, 1e-3, "call"),
            ),
        }
    )
    assert short.causes() == {"width": 3e-3, "call": 1e-3}
    assert (
        "What took the rest, in eager mode: 75% widths that are not a multiple of 8 (width); 25% calls"
        in short.verdict()[-1]
    )


def test_torch_compile_is_measured_or_the_reason_is_said(monkeypatch):
    networks = {"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)}
    done = compare(networks, torch.randn(2, 3), seconds=0.1, runtimes=["compile"])
    assert ("compile" in done.timings) != ("compile" in done.skipped)

    def broken(*args):
        raise RuntimeError("InvalidCxxCompiler:\n  no working C++ compiler")

    monkeypatch.setitem(comparison.RUNTIMES, "compile", broken)
    done = compare(networks, torch.randn(2, 3), seconds=0.1, runtimes=["compile"])
    assert not done.timings
    assert "needs a C++ compiler" in done.skipped["compile"]
    assert "RuntimeError: InvalidCxxCompiler: no working C++ compiler" in done.skipped["compile"]


def test_requests_that_cannot_be_used():
    with pytest.raises(ConfigError, match="two networks, got 1"):
        compare({"a": net(2)}, torch.randn(1, 3, 8, 8))
    with pytest.raises(ConfigError, match="unknown runtime tflite; known: eager, compile, onnxruntime"):
        compare({"a": net(2), "b": net(2)}, torch.randn(1, 3, 8, 8), runtimes=["tflite"])


# -- the command ------------------------------------------------------------------------------------------


def test_the_command_shows_both_and_the_layers(run_folder):
    done = chipnet_(
        "latency",
        run_folder,
        "--runtime",
        "eager",
        "--seconds",
        "0.1",
        "--threads",
        "1",
        "--batch",
        "3",
        "--rows",
        "4",
    )
    assert done.exit_code == 0, done.output
    assert "1 thread(s), batch 3, float32, torch" in done.stdout
    for word in ("dense", "quarter", "eager", "activations", "file", "2,290,560", "MACs left", "why"):
        assert word in done.stdout, word
    assert "of the MACs" in done.stdout


def test_the_command_gives_json_and_compares_two_runs(run_folder):
    done = chipnet_(
        "latency", run_folder, "--against", run_folder, "--runtime", "eager", "--seconds", "0.1", "--json"
    )
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert result["macs_left"] == 1
    assert result["names"] == ["quarter (against)", "quarter"]
    assert result["file_bytes"]["quarter"] == (run_folder / "model.safetensors").stat().st_size


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--batch", "0"), "--batch must be at least 1"),
        (("--device", "abacus"), "there is no device 'abacus'"),
        (("--threads", "0"), "threads must be at least 1"),
        (("--runtime", "tflite"), "unknown runtime tflite"),
    ],
)
def test_the_command_refuses_in_one_line(run_folder, arguments, said):
    done = chipnet_("latency", run_folder, *arguments)
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert said in done.stderr

"""New parts as CONTRIBUTING has them: a method, a kind of budget and an export format are one file of ours each.

An operator is none: `tests/graph/test_registration.py` registers rules from another package.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import chipnet

NEW = {
    "methods/last.py": '''
"""What comes last stays."""
import torch
from chipnet.methods.gradual import Gradual


class Last(Gradual):
    """Source: this test."""

    name = "last"

    def scores(self):
        return torch.arange(self.analysis.gates)
''',
    "analysis/kinds/rows.py": '''
"""Output channels of all layers, each call for itself."""
from chipnet.analysis.kinds.base import Kind


class Rows(Kind):
    name = "rows"
    about = "output channels of all calls of layers"

    def parts(self, counts):
        yield [(1, (call.works, call.rows)) for call in counts.calls]

    def dense(self, counts):
        return sum(len(layer.rows) for layer in counts.graph.layers)


KIND = Rows()
''',
    "formats/runtimes/pickled.py": '''
"""The module itself, pickled."""
import torch
from chipnet.formats.runtimes.base import Format


def write(model, inputs, dynamic, opset, meta, path):
    torch.save(model, path)


def load(path):
    model = torch.load(path, weights_only=False)
    return lambda inputs: [model(*inputs.args, **inputs.kwargs)]


FORMAT = Format(".pickled", write, load)
''',
}
USED = """
import chipnet, torch
from pathlib import Path
from torch import nn

assert Path(chipnet.__file__).parent == Path("chipnet").resolve()
net = nn.Sequential(nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, 1)).eval()
x = torch.randn(3, 2)
pruner = chipnet.Pruner(net, x, "rows=4", steps=1, method="last")
plan = pruner.harden(early=True)
pruner.detach()
assert plan.compact["rows"] == 4 and plan.dense["rows"] == 7
assert list(plan.mask) == [False, False, False, True, True, True]
done = chipnet.export(chipnet.compact(net, plan), "small.pickled", x)
print(done.format, type(pruner.method).__name__, pruner.budget)
"""


def test_a_method_a_kind_and_a_format_are_one_file_each(tmp_path: Path) -> None:
    shutil.copytree(
        Path(chipnet.__file__).parent, tmp_path / "chipnet", ignore=shutil.ignore_patterns("__pycache__")
    )
    for name, text in NEW.items():
        assert not (tmp_path / "chipnet" / name).exists()
        (tmp_path / "chipnet" / name).write_text(text)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", USED], cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == "pickled Last rows=4\n"

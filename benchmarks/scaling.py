"""Time of capture, plan and compaction against the number of operators: it should be linear.

    python -m benchmarks.scaling --nodes 50,150,500,1500,5000 --json scaling.json

Networks are chains of residual blocks of 16 channels (conv, batch norm, relu, conv, batch norm, add, relu: 7
operators a block) on 8 x 8 images, so that nothing but their length differs. One thread; a network is measured
once, after one of 30 operators has warmed up. Then ResNet-50 at 224 x 224, with and without the final
verification in float64.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import platform
import time
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

import chipnet
from chipnet._util.files import write_atomically


class Block(nn.Module):
    """A residual block: seven operators."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))


def chain(nodes: int, width: int = 16) -> nn.Module:
    blocks = [Block(width) for _ in range(max(1, nodes // 7))]
    return nn.Sequential(nn.Conv2d(3, width, 3, padding=1), *blocks, nn.Conv2d(width, 10, 1))


def measure(model: nn.Module, x: Tensor, verify: bool = False) -> dict[str, Any]:
    """Seconds of each part, for random masks at half of the MACs (hardening is not part of the total)."""
    model.eval()
    times = [time.perf_counter()]
    torch.export.export(model, (x,), strict=False)
    times.append(time.perf_counter())
    s = chipnet.Structure(model, x)
    times.append(time.perf_counter())
    mask = s.harden(torch.rand(s.gates, generator=torch.Generator().manual_seed(0)), {"macs": 0.5})
    times.append(time.perf_counter())
    plan = s.plan(mask)
    times.append(time.perf_counter())
    chipnet.compact(model, plan, verify=verify)
    times.append(time.perf_counter())
    export, capture, harden, planning, compacting = (b - a for a, b in itertools.pairwise(times))
    total = capture + planning + compacting
    parts = {"export": export, "capture": capture, "plan": planning, "compact": compacting, "total": total}
    return {"gates": s.gates, "harden": harden, **parts}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nodes", default="50,150,500,1500,5000")
    parser.add_argument("--json", type=Path, metavar="FILE")
    a = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    measure(chain(30), torch.randn(1, 3, 8, 8))
    rows = []
    print("| nodes | gates | export alone | capture | plan | compact | all three | ms a node | harden |")
    print("|---|---|---|---|---|---|---|---|---|")
    for nodes in map(int, a.nodes.split(",")):
        row = {"nodes": nodes, **measure(chain(nodes), torch.randn(1, 3, 8, 8))}
        rows.append(row)
        print(_line(str(nodes), row, f"{1000 * row['total'] / nodes:.1f}"), flush=True)
    x = torch.randn(1, 3, 224, 224)
    for name, verify in (("ResNet-50", False), ("ResNet-50, verified in float64", True)):
        row = {"nodes": name, **measure(torchvision.models.resnet50(), x, verify)}
        rows.append(row)
        print(_line(name, row, ""), flush=True)
    where = f"{platform.machine()}, torch {torch.__version__}, {datetime.date.today().isoformat()}, 1 thread"
    print(where)
    if a.json:
        write_atomically(a.json, json.dumps({"about": where, "rows": rows}, indent=1).encode())


def _line(name: str, row: dict[str, Any], per_node: str) -> str:
    times = [f"{row[k]:.2f} s" for k in ("export", "capture", "plan", "compact", "total")]
    return f"| {name} | {row['gates']:,} | {' | '.join(times)} | {per_node} | {row['harden']:.2f} s |"


if __name__ == "__main__":
    main()

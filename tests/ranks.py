"""What two processes do together: runs as `chipnet prune` makes them, and a loop of a user's own.

    python -m torch.distributed.run --standalone --nproc-per-node 2 tests/ranks.py FOLDER

Leaves FOLDER/MODEL-RANK-PHASE.pt (state of the network, masks and plan at the end of every phase), a run folder
FOLDER/MODEL, and FOLDER/loop-RANK.pt. FOLDER/killed is what a kill of both in soft pruning would have left of one
run, gone on with.
"""

import gc
import os
import shutil
import sys
import warnings
from pathlib import Path

import torch
import torch._dynamo  # a capture imports it
import torch.distributed as dist
import torch.nn.functional as F
from tiny import tiny_net
from torch import nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler

import chipnet
from chipnet.lab import checkpoint, cli, phases
from chipnet.lab.cli import runs
from chipnet.lab.data import TensorImages, load_data
from chipnet.methods import METHODS

COMMON = (
    "--budget",
    "macs=0.5",
    "--clip",
    "1",
    "--label-smoothing",
    "0.1",
    "--accelerator",
    "cpu",
    "--quiet",
)
DIGITS = (
    "--data",
    "digits",
    "--epochs",
    "1,2,1",
    "--batch-size",
    "32",
    "--lr",
    "0.05",
    "--limit",
    "171",
    "--limit-test",
    "61",
    "--accumulate",
    "2",
)
RUNS = {
    "conv_net": (*DIGITS, *COMMON),
    "dropping": (
        "--data", "ranks:loaders", "--epochs", "1,3,1", "--batch-size", "16", "--checkpoint-steps", "6", *COMMON
    ),
}  # fmt: skip
"""Model -> how `chipnet prune` is called for it."""
KILLED = ("dropping", "prune", 6)
"""The folder of this run is copied as it is in this phase at this step: an epoch's last one, since when every
process has seen other images."""


def conv_net(num_classes, in_channels):
    """No batch statistics: what two processes compute is what one computes."""
    return nn.Sequential(
        nn.Conv2d(in_channels, 11, 3, padding=1), nn.ReLU(), nn.Conv2d(11, 13, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(13, num_classes),
    )  # fmt: skip


def dropping(num_classes, in_channels):
    """Random numbers in the forward, others on every process."""
    return nn.Sequential(tiny_net(20, in_channels), nn.Dropout(0.3), nn.ReLU(), nn.Linear(20, num_classes))


class Varied(Dataset):
    """Digits, brighter or darker every time."""

    def __init__(self, images: TensorImages):
        self.images, self.classes = images, list(range(10))

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        image, label = self.images[i]
        return image / 255 + torch.rand(()), label


def loaders(batch_size):
    digits = load_data("digits", limit=96, limit_test=61)
    train = Varied(digits.train)
    sampler = DistributedSampler(train) if dist.is_initialized() else None
    test = DataLoader(Varied(digits.test), 32)
    return DataLoader(train, batch_size, sampler=sampler), test


def note(phase_class, place):
    finish = phase_class.finish

    def noting(self, run):
        found = {"weights": dict(self.network.state_dict())}
        if self.pruner is not None:
            found["pruner"] = self.pruner.state_dict()
            found["mask"] = self.pruner.mask
        following = finish(self, run)
        found["plan"] = run.plan.to_json() if run.plan else None
        found["known"] = {k: v for k, v in run.state.known.items() if k != "verify"}
        torch.save(found, f"{place()}-{self.name}.pt")
        return following

    phase_class.finish = noting


def copy_as_killed(folder):
    """A kill leaves what is on the disk: the folder is copied right after the checkpoint."""
    write, copy = checkpoint.write, folder / "killed"

    def writing(out, state):
        write(out, state)
        at = out.name, state["state"]["phase"], state["state"]["step"]
        if at == KILLED and not copy.exists():
            shutil.copytree(out, copy)

    checkpoint.write = writing
    return copy


def own_loop(method, rank=0, world=1):
    """Forty images a step, the method's masks and what it learnt, at the end and early: with
    DistributedDataParallel, or alone."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 23), nn.ReLU(), nn.Linear(23, 17), nn.ReLU(), nn.Linear(17, 3))
    pruner = chipnet.Pruner(net, torch.zeros(1, 6), "macs=0.4", steps=40, method=method)
    model = nn.parallel.DistributedDataParallel(net) if world > 1 else net
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    generator = torch.Generator().manual_seed(1)
    for step in range(40):
        if step == 12:
            early = pruner.state_dict()["method"]
        x = torch.randn(40, 6, generator=generator)
        y = (x[:, :3] * x[:, 3:]).argmax(1)
        mine = slice(rank * 40 // world, (rank + 1) * 40 // world)
        loss = F.cross_entropy(model(x[mine]), y[mine]) + pruner.loss()
        loss.backward()
        optimizer.step()
        pruner.step()
        optimizer.zero_grad()
    end = {"mask": pruner.mask, "pruner": pruner.state_dict()["method"], "weights": dict(net.state_dict())}
    return {**end, "early": early}


def main():
    torch.set_num_threads(1)
    runs.report_after = lambda folder: None
    (folder,) = sys.argv[1:]
    rank = int(os.environ["RANK"])
    current, copy = [""], copy_as_killed(Path(folder))
    for phase_class in phases.PHASES.values():
        note(phase_class, lambda: f"{folder}/{current[0]}-{rank}")
    for name, arguments in RUNS.items():
        gc.freeze()  # what is imported is no garbage, and takes long to look through
        current[0] = name
        out = str(Path(folder) / name)
        cli.app(["prune", "--model", f"ranks:{name}", "--out", out, *arguments], standalone_mode=False)
    current[0] = copy.name
    cli.app(["prune", "--quiet", "--resume", str(copy)], standalone_mode=False)
    loops = {method: own_loop(method, rank, 2) for method in METHODS}
    torch.save(loops, f"{folder}/loop-{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()

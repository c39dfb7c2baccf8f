"""Every public function refuses arguments of other types, with one of chipnet's own errors that names the argument.

The functions are read from docs/api.md, so that a new one is tried as soon as it is public.
"""

import functools
import importlib
import inspect
import re
from pathlib import Path
from types import SimpleNamespace

import api_page
import pytest
import torch
from torch import nn

import chipnet
from chipnet import ChipNetError

X = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
MASK = [True, False, True, True]


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))


WORLD: dict[str, object] = {}


def world() -> SimpleNamespace:
    """One network with all that is made of it."""
    if not WORLD:
        model = network()
        structure = chipnet.Structure(model, X[:1])
        plan = structure.plan(torch.tensor(MASK))
        masks = chipnet.Masks.of(structure, MASK)
        small = chipnet.compact(model, plan)
        pruner = chipnet.Pruner(network(), X[:1], "macs=0.75", steps=3)
        WORLD.update(locals())
    return SimpleNamespace(**WORLD)


# -- which functions are public ------------------------------------------------------------------------------
def public() -> dict[str, object]:
    """What docs/api.md lists, by name without ``chipnet.``."""
    return {
        f"{module}.{name}".removeprefix("chipnet.").lstrip("."): getattr(
            importlib.import_module(module), name
        )
        for module, names in api_page.members().items()
        for name in names
    }


def calls() -> dict[str, object]:
    """Functions of their arguments alone, by name. Methods are those of an object of this file's world."""
    objects = {
        "Structure": lambda: world().structure,
        "Pruner": lambda: world().pruner,
        "Plan": lambda: world().plan,
        "Masks": lambda: world().masks,
        "Budget": lambda: chipnet.Budget.parse("macs=0.5"),
        "Cost": lambda: world().plan.dense,
    }
    found = {}
    for name, thing in public().items():
        if inspect.isclass(thing) and issubclass(thing, Exception):
            continue
        if not (inspect.isclass(thing) or inspect.isfunction(thing)):  # tables, and types of functions
            continue
        if inspect.isclass(thing):
            found[name] = thing
            for method, value in vars(thing).items():
                own = inspect.isfunction(value) or isinstance(value, (classmethod, staticmethod))
                if own and not method.startswith("_"):
                    static = not inspect.isfunction(value)
                    make = objects.get(name)
                    if static or make is not None:
                        owner = thing if static else make()
                        found[f"{name}.{method}"] = getattr(owner, method)
        else:
            found[name] = thing
    return found


# -- what is given --------------------------------------------------------------------------------------------
def right(folder: Path) -> dict[str, object]:
    """One good value for each name that an argument has anywhere on the page."""
    w = world()
    return {
        "model": w.model, "network": w.model, "small": w.small, "plan": w.plan, "structure": w.structure,
        "mask": w.plan.mask, "masks": w.plan.mask, "scores": [1.0, 2.0, 3.0, 4.0], "bins": 3, "steps": 3,
        "budget": "macs=0.75", "budgets": ["macs=0.75"], "spec": "macs=0.5", "dense": w.plan.dense,
        "example_inputs": X, "inputs": X, "optimizer": torch.optim.SGD(w.model.parameters(), 0.1), "states": {},
        "path": folder / "file.pt2", "folder": folder, "factory": network, "batches": [(X, X)],
        "networks": {"a": w.model, "b": w.small}, "calls": {"a": lambda: None}, "state": w.pruner.state_dict(),
        "data": w.plan.to_json(), "name": "resnet8", "job": None, "request": None, "floor": 0.5, "share": True,
        "distance": "error", "images": 8, "format": "torch-export",
    }  # fmt: skip


NEIGHBOURS = {
    "None": None,
    "a tensor": torch.ones(2, 3, 5),
    "a dict": {"a": 1},
    "a path": Path("nowhere/file.json"),
    "a text": "no such thing",
    "a number": 3,
    "a class": nn.Linear,
}
FINE = {
    "path": {"a path", "a text"},
    "images": {"a number"},
    "steps": {"a number"},
    "bins": {"a number"},
    "states": {"a dict"},
    "factory": {"a class"},
    "data": {"a dict"},
}
"""Neighbours that an argument may be."""
FINE_HERE = {
    ("verify_compact", "inputs"): {"None"},
    ("integrations.lightning.PruningCallback", "network"): {"None", "a text"},
    **{
        (f"integrations.{name}.PruningCallback", "example_inputs"): {"a tensor", "a dict"}  # no network yet
        for name in ("lightning", "transformers")
    },
}
OPTIONAL = (
    "plan", "mask", "budget", "inputs", "example_inputs", "path", "factory", "floor", "share", "distance", "images",
    "format",
)  # fmt: skip
"""Of arguments with a default, those that are tried too; there None is the default."""
ELSEWHERE = {
    "lab.train.Request": "a record: prepare judges all of it at once",
    "Plan": "a record: made by Structure.plan and from_json",
    "Masks": "a record: made by Masks.of and load",
    "widths.shrink.Shrunk": "a record: what shrink returns",
    "methods.Method": "made by a Pruner, which checks what it is given",
    "methods.by_gate": "for methods: called with an analysis and its values",
    "Plan.called": "reads how to call the network",
    "Cost.record": "hands on what it does not know, which the reader of a plan refuses",
}
NAMED = {
    "spec": "budget", "network": "network|text", "optimizer": "optimi[sz]er", "example_inputs": "inputs",
    "data": "plan|budget", "name": "name|tensor|data set|network",
    "folder": "folder|file|run|exist", "path": "path|run",
    "dense": "costs", "masks": "mask",
}  # fmt: skip
"""What an error says of an argument, where that is not its name."""


def roles() -> list[tuple[str, str, str]]:
    """(function, argument, neighbour) of all that is tried."""
    known, found = set(right(Path("unused"))), []
    for name, call in calls().items():
        parameters = inspect.signature(call).parameters.values() if name not in ELSEWHERE else []
        needed = {
            p.name
            for p in parameters
            if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        }
        for p in parameters if needed <= known else []:
            if p.name in known and (p.name in needed or p.name in OPTIONAL):
                fine = FINE.get(p.name, set()) | FINE_HERE.get((name, p.name), set())
                fine |= set() if p.name in needed else {"None"}
                found += [(name, p.name, k) for k in NEIGHBOURS if k not in fine]
    return found


@pytest.mark.parametrize(("name", "argument", "neighbour"), roles())
def test_it_is_refused_in_words(name: str, argument: str, neighbour: str, tmp_path: Path) -> None:
    call, good = calls()[name], right(tmp_path)
    needed = [p.name for p in inspect.signature(call).parameters.values() if p.default is p.empty]
    given = {n: good[n] for n in needed if n in good}
    if "PruningCallback" in name:
        given["network"] = None if argument != "network" else ""
    given = {**given, argument: NEIGHBOURS[neighbour]}
    if name == "lab.runs.report.report":
        call = functools.partial(call, tmp_path)
    with pytest.raises(ChipNetError) as refused:
        found = call(**given)
        if hasattr(found, "__enter__"):
            found.__enter__()
    said = str(refused.value)
    assert re.search(NAMED.get(argument, argument), said), said
    assert len(said) < 700 and "tensor([" not in said, said
    assert list(tmp_path.iterdir()) == []


def test_all_that_takes_a_network_a_plan_or_a_budget_is_tried() -> None:
    tried = {name for name, *_ in roles()}
    assert len(tried) > 45
    nouns = {
        "model",
        "network",
        "plan",
        "small",
        "mask",
        "budget",
        "inputs",
        "example_inputs",
        "structure",
        "path",
    }
    left = {
        name
        for name, call in calls().items()
        if name not in tried and nouns & {*inspect.signature(call).parameters}
    }
    assert left <= {*ELSEWHERE}, left

"""The public page: every name has a docstring, and what is not a value or an error has an example."""

import importlib
import inspect
import os
import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn

import chipnet
from chipnet import _moved


def test_every_public_name_has_a_docstring() -> None:
    for name in chipnet.__all__:
        assert inspect.getdoc(getattr(chipnet, name)), name


def test_the_public_page_stays_small() -> None:
    assert len(chipnet.__all__) <= 23


def test_verbs_have_examples() -> None:
    for name in ("compact", "save", "Structure", "Pruner", "Budget"):
        assert ">>>" in (inspect.getdoc(getattr(chipnet, name)) or ""), name


def test_every_method_names_itself_and_its_source() -> None:
    from chipnet.methods import METHODS

    for name, method in METHODS.items():
        assert method.name == name
        assert inspect.getdoc(method)


def test_names_are_imported_when_they_are_used_and_modules_are_found() -> None:
    code = "import sys, chipnet.lab.cli; assert 'torch' not in sys.modules; chipnet.methods.METHODS; chipnet.Pruner"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    assert set(chipnet.__all__) <= set(dir(chipnet))
    with pytest.raises(AttributeError, match="module 'chipnet' has no attribute 'prunner'"):
        chipnet.prunner  # noqa: B018


@pytest.mark.parametrize(("old", "new"), _moved.NAMES.items())
def test_old_names_of_modules_are_the_same_modules(old: str, new: str) -> None:
    own, spec = importlib.import_module(f"chipnet.{new}"), importlib.util.find_spec(f"chipnet.{new}")
    sys.modules.pop(f"chipnet.{old}", None)
    with pytest.warns(DeprecationWarning, match=rf"chipnet\.{old} is chipnet\.{new} now"):
        assert importlib.import_module(f"chipnet.{old}") is own
    assert own.__name__ == f"chipnet.{new}" and own.__spec__ == spec


def test_pickles_that_name_old_modules_are_read() -> None:
    from chipnet.lab.models import ResNet

    for name in [n for n in sys.modules if n.startswith("chipnet.models")]:
        del sys.modules[name]
    with pytest.warns(DeprecationWarning, match=r"chipnet\.models is chipnet\.lab\.models"):
        assert pickle.loads(b"cchipnet.models._resnet\nResNet\n.") is ResNet


def test_no_old_name_is_made_up() -> None:
    assert importlib.util.find_spec("chipnet.losses") is not None
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("chipnet.models._vgh")


def test_names_of_structures_and_methods_that_have_moved() -> None:
    structure = chipnet.Structure(
        nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.ones(1, 3)
    )
    with pytest.warns(DeprecationWarning, match="Structure.site_gates is Structure.analysis.site_gates now"):
        assert structure.site_gates is structure.analysis.site_gates
    with pytest.warns(DeprecationWarning, match="Structure.round_to is Structure.options.round_to now"):
        assert structure.round_to == 1
    with pytest.raises(AttributeError, match="'Structure' object has no attribute 'site_gate'"):
        structure.site_gate  # noqa: B018
    pruner = chipnet.Pruner(
        nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), torch.ones(1, 3), "macs=1", steps=1
    )
    with pytest.warns(DeprecationWarning, match=r"Method\.structure is Method\.analysis now"):
        assert pruner.method.structure is pruner.structure.analysis

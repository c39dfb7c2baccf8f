"""The public page: every name has a docstring, and what is not a value or an error has an example."""

import inspect
import os
import subprocess
import sys

import pytest

import chipnet


def test_every_public_name_has_a_docstring() -> None:
    for name in chipnet.__all__:
        assert inspect.getdoc(getattr(chipnet, name)), name


def test_the_public_page_stays_small() -> None:
    assert len(chipnet.__all__) <= 20


def test_verbs_have_examples() -> None:
    for name in ("compact", "save", "Structure", "Pruner", "Budget"):
        assert ">>>" in (inspect.getdoc(getattr(chipnet, name)) or ""), name


def test_every_method_names_itself_and_its_source() -> None:
    from chipnet.methods import METHODS

    for name, method in METHODS.items():
        assert method.name == name
        assert inspect.getdoc(method)


def test_names_are_imported_when_they_are_used_and_modules_are_found() -> None:
    code = (
        "import sys, chipnet.cli; assert 'torch' not in sys.modules; chipnet.models.get_model; chipnet.Pruner"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    assert set(chipnet.__all__) <= set(dir(chipnet))
    with pytest.raises(AttributeError, match="module 'chipnet' has no attribute 'prunner'"):
        chipnet.prunner  # noqa: B018

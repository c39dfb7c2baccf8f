"""What is shipped: the wheel, its version, and the tools that a contributor runs before a commit."""

import importlib.metadata
import os
import re
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

import chipnet

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = (ROOT / "pyproject.toml").read_text()
_PROLOGUE = """
import importlib.metadata, sys, chipnet
assert chipnet.__file__.startswith(sys.prefix), chipnet.__file__
assert importlib.metadata.version("chipnet") == chipnet.__version__ == sys.argv[1]
"""


def _run(*command: object, fails: bool = False, **kwargs: object) -> str:
    """Run without the tree on the path; its output."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(
        list(map(str, command)), env=environment, capture_output=True, text=True, timeout=120, **kwargs
    )  # type: ignore[call-overload]
    assert (done.returncode != 0) is fails, done.stdout + done.stderr
    return str(done.stderr if fails else done.stdout)


def _needed(name: str) -> set[str]:
    """The distributions that one needs without extras, and those that they need."""
    found: set[str] = set()
    todo = [name]
    while todo:
        for text in importlib.metadata.requires(todo.pop()) or []:
            needed = Requirement(text)
            if (needed.marker is None or needed.marker.evaluate({"extra": ""})) and needed.name not in found:
                found.add(needed.name)
                todo.append(needed.name)
    return found


def _parts(name: str) -> set[Path]:
    """The files and folders of a distribution in its folder of packages."""
    package = importlib.metadata.distribution(name)
    names = {file.parts[0] for file in package.files or [] if file.parts[0] not in ("..", "__pycache__")}
    return {Path(str(package.locate_file(part))) for part in names}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    _run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT)
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_has_the_package_and_its_data_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    info = f"chipnet-{chipnet.__version__}.dist-info/"
    assert wheel.name == f"chipnet-{chipnet.__version__}-py3-none-any.whl"
    assert [n for n in names if not n.startswith(("chipnet/", info))] == []
    package = ROOT / "src" / "chipnet"
    there = {f"chipnet/{p.relative_to(package)}" for p in package.rglob("*") if p.is_file()}
    assert {n for n in there if not n.endswith(".pyc")} == {n for n in names if n.startswith("chipnet/")}


def test_the_installed_wheel_runs_the_first_block_of_the_readme(wheel: Path, tmp_path: Path) -> None:
    """In an environment of its own, which holds what the wheel declares that it needs and nothing else.

    Dependencies are links to this environment's: nothing is downloaded.
    """
    venv.create(tmp_path / "env")
    python = tmp_path / "env" / "bin" / "python"
    _run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel)
    (site,) = (tmp_path / "env").glob("[Ll]ib/**/site-packages")
    for part in {part for name in _needed("chipnet") for part in _parts(name)}:
        (site / part.name).symlink_to(part)
    assert not (site / "torchvision").exists() and not (site / "rich").exists()
    block = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)[0]
    assert "macs" in _run(python, "-c", _PROLOGUE + block, chipnet.__version__, cwd=tmp_path)
    for command in ([python.parent / "chipnet"], [python, "-m", "chipnet"]):  # of an extra that is not there
        said = _run(*command, "--version", cwd=tmp_path, fails=True)
        assert said == "the command line needs typer, which is not installed: pip install 'chipnet[cli]'\n"


def test_the_version_stands_once() -> None:
    assert 'dynamic = ["version"]' in PYPROJECT
    released = re.findall(r"^## \[(\d.*?)\]", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert released[0] == chipnet.__version__
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == chipnet.__version__


def test_the_changelog_is_by_release_and_every_line_is_in_one() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    heads = re.findall(r"^## \[(.*?)\](?: - \d{4}-\d\d-\d\d)?$", text, re.M)
    assert len(heads) == len(re.findall(r"^## ", text, re.M)) == len(set(heads)) and heads[0] == "Unreleased"
    for release in text.split("\n## ")[1:]:
        parts = re.findall(r"^### .*$", release, re.M)
        assert len(parts) == len(set(parts)), release.splitlines()[0]
    assert re.findall(r"^\*.*$", text, re.M) == []  # bullets are dashes


def test_hooks_of_pre_commit_run_the_pinned_tools() -> None:
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repository["repo"] == "local"
    pinned = dict(re.findall(r'"(ruff|mypy)==([\d.]+)"', PYPROJECT))
    used = set()
    for hook in repository["hooks"]:
        assert hook["language"] == "system"  # nothing is downloaded
        tool = re.fullmatch(r"\.venv/bin/(\w+)( .*)?", hook["entry"])
        assert tool is not None
        said = _run(Path(sys.executable).parent / tool[1], "--version")
        assert pinned[tool[1]] in said.split(), said
        used.add(tool[1])
    assert used == set(pinned)

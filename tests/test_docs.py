"""Every Python block of README and docs runs (those of one file share a namespace); commands can be read."""

import importlib
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import api_page
import pytest
import typer
import yaml
from floors import FLOORS

import chipnet
from benchmarks import front
from chipnet.formats.export import FORMATS
from chipnet.lab import cli

ROOT = Path(__file__).resolve().parents[1]
FILES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
COMMANDS = typer.main.get_command(cli.app)


BLOCK = re.compile(r'```python(?: title="(.*?)")?\n(.*?)```', re.S)
ELSEWHERE = "where chipnet is not installed"
_WITHOUT = """
import json, sys
sys.modules["chipnet"] = None  # an import of it fails
for block in json.loads(sys.argv[1]):
    exec(block, {})
"""


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_python_blocks_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block whose title is a file's name is that file; some run in a process without chipnet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # measured layers are not kept in the user's home
    monkeypatch.setattr("chipnet.timing.clock.SECONDS", 0.2)  # and networks are not measured for long
    monkeypatch.setattr("chipnet.formats.export.FORMATS", dict(FORMATS))  # a page adds one
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    namespace: dict[str, object] = {"__name__": "__docs__"}
    elsewhere = []
    for title, block in BLOCK.findall(path.read_text()):
        if title == ELSEWHERE:
            elsewhere.append(block)
        elif title:
            assert title.endswith(".py"), title
            (tmp_path / title).write_text(block)
        else:
            exec(compile(block, str(path), "exec"), namespace)
    if elsewhere:  # in one process, as each has to import PyTorch
        command = [sys.executable, "-c", _WITHOUT, json.dumps(elsewhere)]
        subprocess.run(command, check=True, cwd=tmp_path, timeout=120)
    for written in tmp_path.glob("*.py"):
        sys.modules.pop(written.stem, None)


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_commands_exist_with_their_options(path: Path) -> None:
    """Every `chipnet ...` line of a shell block is read by the command line, and not run."""
    for block in re.findall(r"```sh\n(.*?)```", path.read_text(), re.S):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("chipnet "):
                _, name, *arguments = shlex.split(line.split(" > ")[0], comments=True)
                command = COMMANDS.get_command(None, name)
                assert command is not None, line
                given = [a for a in arguments if a != "..."] + (["--out", "x"] if "..." in arguments else [])
                command.make_context(name, given)


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_links_to_files_of_the_repository_exist(path: Path) -> None:
    for target in re.findall(r"\]\((?!https?://)([^)#]+)", path.read_text()):
        assert (path.parent / target).exists(), f"{path.name} links to {target}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_options_that_are_spoken_of_exist(path: Path) -> None:
    """Every `--option` outside of Python blocks is one of ours, or stands in a line of another program."""
    known = {
        name for c in COMMANDS.commands.values() for p in c.params for name in (*p.opts, *p.secondary_opts)
    }
    known |= {"--help", "--version"}
    known |= {
        "--read",
        "--bf16",
        "--blocks",
        "--block",
        "--networks",
    }  # of benchmarks.zoo, .step_cost, .smallest
    text = BLOCK.sub("", path.read_text()).replace("\\\n", " ")
    for line in text.splitlines():
        command = re.search(
            r"\bpython -m (?!chipnet)|\bpip |\btorchrun\b|\bpytest\b|\bgit\b|\bpython3? ", line
        )
        if command is None:
            for option in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*[a-z0-9]", line):
                assert option in known, f"{path.name}: {option} in {line.strip()!r}"


def test_the_tree_of_the_architecture_is_the_tree() -> None:
    """Every file stands there, in its folder, or the folder does as one line; and nothing else."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    package = ROOT / "src" / "chipnet"
    picture = text[text.index("\nchipnet/\n") + 1 :].partition("\n```")[0].splitlines()[1:]
    named: list[Path] = []
    folders = [package]
    for line in picture:
        depth, name = (len(line) - len(line.lstrip())) // 2, line.split()[0]
        named.append(folders[depth - 1] / name)
        folders[depth:] = [named[-1]]
    open_folders = {path.parent for path in named}
    whole = {path for path in named if path not in open_folders}
    there = {p for p in package.rglob("*.py") if p.name not in ("__init__.py", "__main__.py")}
    assert sorted(p for p in there if not whole & {p, *p.parents}) == []
    assert sorted(p for p in named if not p.exists()) == []
    questions = [line.split(maxsplit=1)[1] for line in picture]
    assert [q for q in questions if "?" not in q or len(q) > 90] == []
    assert sorted({q for q in questions if questions.count(q) > 1}) == []  # each has a question of its own
    floors = [p.stem for p in named if p.parent == package and p.stem != "_moved"]
    assert sorted(floors, key=FLOORS.index) == floors  # the order in which imports go


def test_every_page_is_in_the_navigation_once() -> None:
    def pages(part: object) -> list[str]:
        inner = list(part.values()) if isinstance(part, dict) else part
        return [inner] if isinstance(inner, str) else [page for one in inner for page in pages(one)]

    named = pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    assert sorted(named) == sorted(str(p.relative_to(ROOT / "docs")) for p in (ROOT / "docs").rglob("*.md"))


def test_the_table_of_the_readme_is_what_was_measured() -> None:
    readme = (ROOT / "README.md").read_text()
    assert front.filled(readme) == readme, "run python -m benchmarks.front"
    assert all(len(front.points(method)) == 4 for method in front.METHODS)


def test_the_api_page_names_what_is_public_and_there() -> None:
    found = api_page.members()
    for module, names in found.items():
        assert [n for n in names if not hasattr(importlib.import_module(module), n)] == [], module
    assert sorted(found["chipnet"]) == sorted(chipnet.__all__)

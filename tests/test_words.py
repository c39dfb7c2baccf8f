"""Numbers and what they count agree: one helper writes them. Names are the field's, and one name is one thing.
Docstrings begin with what they are about."""

import ast
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

from chipnet._util.text import amount

SOURCE = Path(__file__).resolve().parents[1] / "src" / "chipnet"
COUNTED = re.compile(
    r"^ (?:[a-z-]+ ){0,2}(?:epoch|step|run|gate|site|layer|seed|thread|plot|slot|index map|batch norm)s\b"
)


ALWAYS_SEVERAL = {("base.py", "{len(scores)} gates")}  # of two groups that are compared


def written_out(source: str) -> Iterator[str]:
    """Numbers in f-strings that a plural noun follows, whatever the number is."""
    for node in ast.walk(ast.parse(source)):
        parts = node.values if isinstance(node, ast.JoinedStr) else []
        for number, text in itertools.pairwise(parts):
            if (
                isinstance(number, ast.FormattedValue)
                and number.conversion == -1
                and isinstance(text, ast.Constant)
            ):
                joined = isinstance(number.value, ast.Call) and ast.unparse(number.value.func).endswith(
                    ".join"
                )
                if COUNTED.match(str(text.value)) and not joined:
                    yield ast.unparse(number) + str(text.value)


def test_one_helper_writes_numbers_of_things() -> None:
    assert list(written_out("f'after {n} epochs'")) and not list(written_out("f'after {n} epoch'"))
    found = {(p.name, text) for p in SOURCE.rglob("*.py") for text in written_out(p.read_text())}
    assert {name for name in found if name not in ALWAYS_SEVERAL} == set(), amount(2, "place")


DIALECT = {"beside", "asked", "met", "least", "apart", "whole"}
FIELD = {
    "asked",  # of `Landing`: plan files name it
    "check_whole",  # whole numbers
    "_has_whole_heads", "_of_whole_heads",  # heads="whole"
    "_kept_whole", "READ_WHOLE", "WHOLE_TENSOR",  # what pins say: kept whole
}  # fmt: skip


def names_in(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Attribute):
            yield node.attr


def words(name: str) -> set[str]:
    return set(re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower().split("_"))


def test_names_use_no_word_that_only_we_use() -> None:
    assert words("_LastMetIsWhole") == {"", "last", "met", "is", "whole"}
    named = {
        n for p in SOURCE.rglob("*.py") for n in names_in(ast.parse(p.read_text())) if words(n) & DIALECT
    }
    assert named == FIELD


FRAGMENTS = {"Of", "Where", "Those", "By", "For", "On", "With", "Between"}
"""A text that begins so says what it is about only at its end. A question may begin with "where"."""


def texts_in(tree: ast.AST) -> Iterator[str]:
    """Docstrings, and texts below what they explain."""
    for node in ast.walk(tree):
        value = node.value if isinstance(node, ast.Expr) else None
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            yield " ".join(value.value.split())


def test_docstrings_begin_with_what_they_are_about() -> None:
    assert list(texts_in(ast.parse('"""a  b"""\nx = 1\n"""c"""'))) == ["a b", "c"]
    texts = [
        (p.name, text) for p in SOURCE.rglob("*.py") for text in texts_in(ast.parse(p.read_text())) if text
    ]
    begun = [t for t in texts if re.split(r"\W", t[1])[0] in FRAGMENTS]
    assert [t for t in begun if not re.match(r"Where [^.]*\?", t[1])] == []


ONE_IN_EACH = {
    "PruningCallback": "one for each framework",
    "Constant": "a schedule; a stand-in, which pickled networks name",
    "main": "of the command, and of what it runs once all is installed",
    "write": "of a format, and of checkpoints: called as `checkpoint.write`",
    "load": "of a format, and of compact networks",
    "read": "called as `checkpoint.read` and `options.read`",
    "bench": "a command is called as what it runs",
    "report": "a command is called as what it runs",
}


def test_one_public_name_is_one_thing() -> None:
    places: dict[str, list[str]] = {}
    for path in SOURCE.rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(path.name)
    assert {name for name, files in places.items() if len(files) > 1} == ONE_IN_EACH.keys()

"""Numbers and what they count agree: one helper writes them."""

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

"""The tables of docs/results.md, made from the rows in docs/results/*.csv.

    cp runs/extreme-budgets-small/results.csv docs/results/extreme-budgets-small.csv
    python -m benchmarks.results            # writes the tables anew
    python -m benchmarks.results --check    # exit code 1 where they are not what the rows say

Tables stand between `<!-- NAME.csv -->` and `<!-- end -->`; what is between is written over. Between `<!-- over
NAME.csv OTHER.csv -->` and `<!-- end -->` stands how methods do over the rows of several together.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from chipnet._util.files import write_atomically
from chipnet.lab.runs.grid import read_results
from chipnet.lab.runs.tables import standings, tables

DOCS = Path(__file__).resolve().parents[1] / "docs"
_BLOCK = re.compile(r"(<!-- (over )?([\w.-]+\.csv(?: [\w.-]+\.csv)*) -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(text: str, folder: Path) -> str:
    """``text`` with every table made from its rows in ``folder``.

    Raises:
        FileNotFoundError: a table's rows are missing.
    """

    def table(match: re.Match[str]) -> str:
        rows = [row for name in match[3].split() for row in read_results(folder / name)]
        return f"{match[1]}\n{(standings if match[2] else tables)(rows)}\n{match[4]}"

    return _BLOCK.sub(table, text)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing; fail where a table is not its rows'"
    )
    check = parser.parse_args().check
    page = DOCS / "results.md"
    was = page.read_text()
    now = filled(was, DOCS / "results")
    if now != was and not check:
        write_atomically(page, now.encode())
    return int(check and now != was)


if __name__ == "__main__":
    raise SystemExit(main())

"""The tables of the results pages, made from the rows in docs/results/*.csv.

    cp runs/extreme-budgets-small/results.csv docs/results/extreme-budgets-small.csv
    python -m benchmarks.results            # writes the tables anew
    python -m benchmarks.results --check    # exit code 1 where they are not what the rows say

Tables stand between `<!-- NAME.csv -->` and `<!-- end -->`; what is between is written over. Between `<!-- over
NAME.csv OTHER.csv -->` and `<!-- end -->` stands how methods do over the rows of several together, and after
`<!-- short ... -->` the same of fine-tuned networks alone, for the methods that have results at every budget.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from chipnet._util.files import write_atomically
from chipnet.lab.runs.rows import read_results
from chipnet.lab.runs.tables import Rows, standings, tables

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGES = ("results.md", "results-details.md")
_BLOCK = re.compile(
    r"(<!-- (over |short )?([\w.-]+\.csv(?: [\w.-]+\.csv)*) -->\n).*?(<!-- end -->)", re.DOTALL
)


def filled(text: str, folder: Path) -> str:
    """``text`` with every table made from its rows in ``folder``.

    Raises:
        FileNotFoundError: a table's rows are missing.
    """

    def table(match: re.Match[str]) -> str:
        rows = [row for name in match[3].split() for row in read_results(folder / name)]
        made = {"over ": standings, "short ": short, None: tables}[match[2]]
        return f"{match[1]}\n{made(rows)}\n{match[4]}"

    return _BLOCK.sub(table, text)


def short(rows: Rows) -> str:
    """Of `standings` the last stage, in columns."""
    cells = [[c.strip() for c in line.strip("| ").split("|")] for line in standings(rows).splitlines()[4:]]
    lines = ["| method | first at | points behind the best, mean | at worst |", "|---|---|---|---|"]
    for name, budgets, *_, last in cells:
        if budgets == cells[0][1]:
            first, mean, most = last.split(" / ")
            lines.append(f"| {name.partition(':')[2] or name} | {first} of {budgets} | {mean} | {most} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing; fail where a table is not its rows'"
    )
    check = parser.parse_args().check
    wrong = False
    for page in (DOCS / name for name in PAGES):
        was = page.read_text()
        now = filled(was, DOCS / "results")
        wrong |= now != was
        if now != was and not check:
            write_atomically(page, now.encode())
    return int(check and wrong)


if __name__ == "__main__":
    raise SystemExit(main())

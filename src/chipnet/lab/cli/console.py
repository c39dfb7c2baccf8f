"""The console that the command line prints on: brackets, colons and numbers in what it is given stay as they are.

Names, paths and errors are other people's text. Rich reads `[b]` in it as markup and `[/b]` as a mistake, so no
other module makes a console.
"""

from __future__ import annotations

from typing import Any

import rich.console
import rich.progress
import rich.text
from rich.table import Column

from chipnet._util.text import printable


class Console(rich.console.Console):
    """A console that prints text, and cells of tables, as they are."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)
        self.said: set[str] = set()
        """What the library has said."""

    def render_str(self, text: str, **options: Any) -> rich.text.Text:
        """A text, or a table's cell, as rich draws it; a name in it cannot command the terminal."""
        return super().render_str(printable(text), **options)

    def tell(self, text: str) -> None:
        """Print ``text``; a line that is longer than the terminal is one line."""
        self.print(text, soft_wrap=True)


class Text(rich.progress.TextColumn):
    """A part of a progress bar that shows text as it is, ``{task...}`` filled in."""

    def __init__(self, text: str, column: Column) -> None:
        super().__init__(text, markup=False, table_column=column)

"""What a page about runs is made of: tiles, charts, tables and text. `report.html` is how they look."""

from __future__ import annotations

import importlib.resources
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from chipnet._util.imports import optional_import
from chipnet.analysis.kinds import KINDS

STATES = ("dense", "soft", "hard", "compact")
NAMES = {"params": "parameters", "macs": "MACs", "volume": "activation volume", "channels": "channels"}


@dataclass(frozen=True)
class Cell:
    """A table's cell; ``key`` is what it is sorted by, where that is not its text."""

    text: str
    key: float | None = None
    link: str = ""


@dataclass(frozen=True)
class PageTable:
    columns: Sequence[tuple[str, bool]]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""


@dataclass(frozen=True)
class Chart:
    svg: str
    title: str
    text: str
    wide: bool = False


@dataclass(frozen=True)
class Section:
    title: str
    texts: Sequence[str] = ()
    charts: Sequence[Chart] = ()
    tables: Sequence[PageTable] = ()
    code: Sequence[str] = ()


@dataclass(frozen=True)
class Tile:
    name: str
    value: str
    note: str
    mood: str = ""


def page(**content: Any) -> str:
    jinja2 = optional_import("jinja2", needed_for="A report", install="chipnet[report]")
    template = (
        importlib.resources.files("chipnet.lab.runs").joinpath("report.html").read_text(encoding="utf-8")
    )
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(template).render(content)


def limited_kinds(result: Mapping[str, Any]) -> list[str]:
    """Kinds of cost that the budget limits; MACs where it limits nothing but latency, which is not counted."""
    return [k for k in KINDS if k in result["limits"]] or ["macs"]


def chart(draw: Any, title: str, text: str, *data: Any, wide: bool = False, **options: Any) -> Chart:
    return Chart(draw(*data, title=title, alt=f"{title}. {text}", **options), title, text, wide)


def share(part: float, digits: int = 2) -> str:
    return f"{100 * part:.{digits}f} %"

"""Charts as inline SVG that follow the page's colours, light or dark, and its font. Matplotlib draws them.

Every colour that is drawn is a marker which stands for a CSS variable of the page.
"""

from __future__ import annotations

import html
import io
import re
import warnings
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from chipnet._util.imports import optional_import

_VARIABLES = {
    "#010203": "--ink",
    "#010204": "--soft",
    "#010205": "--a",
    "#010206": "--b",
    "#010207": "--c",
    "#010208": "--d",
}
INK, SOFT, A, B, C, D = _VARIABLES
SERIES = (A, B, C, D, INK)
MARKERS = "osD^vPX"
_WIDTH, _HEIGHT = 4.8, 2.9


def lines(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    title: str,
    alt: str,
    x: str,
    y: str,
    level: tuple[str, float] | None = None,
    spans: Mapping[str, tuple[float, float]] | None = None,
) -> str:
    """Lines with points; ``level`` is a dashed horizontal one, ``spans`` are named parts of the x axis."""
    figure, axes = _axes(x, y)
    if level is not None:
        axes.axhline(level[1], color=SOFT, linestyle="--", linewidth=1, label=level[0])
    for (name, (xs, ys)), colour, marker in zip(series.items(), SERIES, MARKERS, strict=False):
        axes.plot(xs, ys, color=colour, marker=marker, markersize=3, linewidth=1.4, label=name)
    for i, (name, (low, high)) in enumerate((spans or {}).items()):
        if i:
            axes.axvline(low, color=SOFT, linewidth=0.6)
        axes.text((low + high) / 2, 1.02, name, transform=axes.get_xaxis_transform(), ha="center", color=INK)
    _legend(axes)
    return _svg(figure, title, alt)


def bars(
    before: Sequence[float], after: Sequence[float], names: Sequence[str], *, title: str, alt: str, y: str
) -> str:
    """One bar a layer: what it had, and in front of it what is left. Of many layers not all are named."""
    height = _HEIGHT + 0.05 * max(map(len, names), default=0)
    figure, axes = _axes("", y, width=max(_WIDTH, 0.11 * len(names)), height=height)
    at = range(len(names))
    axes.bar(at, before, width=0.9, facecolor="none", edgecolor=SOFT, linewidth=0.8, label="dense")
    axes.bar(at, after, width=0.9, color=A, label="compact")
    axes.set_xlim(-0.7, len(names) - 0.3)
    named = range(0, len(names), 1 + (len(names) - 1) // 60)
    axes.set_xticks(named, [names[i] for i in named], rotation=90, fontsize=6)
    _legend(axes)
    return _svg(figure, title, alt)


def shares(columns: Sequence[Sequence[float]], *, title: str, alt: str, x: str, y: str) -> str:
    """A histogram per column, values from 0 to 1 upwards: the darker, the larger its share."""
    patches = optional_import("matplotlib.patches", needed_for="A report", install="chipnet[report]")
    figure, axes = _axes(x, y)
    for i, column in enumerate(columns):
        total = sum(column) or 1
        for k, count in enumerate(column):
            if count:
                box = patches.Rectangle((i + 0.55, k / len(column)), 0.9, 1 / len(column))
                box.set(facecolor=A, edgecolor="none", alpha=0.08 + 0.92 * (count / total) ** 0.5)
                axes.add_patch(box)
    axes.set_xlim(0.4, len(columns) + 0.6)
    axes.set_ylim(0, 1)
    axes.grid(False)
    return _svg(figure, title, alt)


def front(
    groups: Mapping[str, Sequence[tuple[float, float, str]]],
    best: Sequence[tuple[float, float]],
    *,
    title: str,
    alt: str,
    x: str,
    y: str,
) -> str:
    """Points by group, each with its name, and the line of those that no other beats."""
    figure, axes = _axes(x, y)
    if len(best) > 1:
        axes.step(*zip(*best, strict=True), where="post", color=SOFT, linewidth=1, label="best so far")
    for (name, points), colour, marker in zip(groups.items(), SERIES, MARKERS, strict=False):
        axes.scatter(
            [p[0] for p in points], [p[1] for p in points], color=colour, marker=marker, s=26, label=name
        )
        for px, py, label in points:
            axes.annotate(
                label,
                (px, py),
                xytext=(4, 4),
                textcoords="offset points",
                color=INK,
                fontsize=7,
            )
    axes.margins(0.12)
    _legend(axes)
    return _svg(figure, title, alt)


def _axes(x: str, y: str, width: float = _WIDTH, height: float = _HEIGHT) -> tuple[Any, Any]:
    module = optional_import("matplotlib.figure", needed_for="A report", install="chipnet[report]")
    ticker = optional_import("matplotlib.ticker", needed_for="A report", install="chipnet[report]")
    figure = module.Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(x, color=INK)
    axes.set_ylabel(y, color=INK)
    axes.tick_params(colors=INK, labelsize=8)
    axes.xaxis.set_major_locator(ticker.MaxNLocator(6, integer=not x.endswith("%")))
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(SOFT)
    axes.grid(axis="y", color=SOFT, alpha=0.35, linewidth=0.5)
    axes.set_axisbelow(True)
    return figure, axes


def _legend(axes: Any) -> None:
    axes.legend(frameon=False, labelcolor=INK, fontsize=8, loc="best")


def _svg(figure: Any, title: str, alt: str) -> str:
    matplotlib = optional_import("matplotlib", needed_for="A report", install="chipnet[report]")
    module = optional_import("matplotlib.text", needed_for="A report", install="chipnet[report]")
    buffer = io.StringIO()
    for text in figure.findobj(module.Text):  # names are other people's: a dollar in one begins no formula
        text.set_parse_math(False)
    # One salt a chart: ids of charts in one page must differ, and be the same in every build of it.
    style = {"svg.fonttype": "none", "svg.hashsalt": title, "font.size": 9}
    with matplotlib.rc_context(style), warnings.catch_warnings():
        # Labels of numbers that a damaged file holds may leave no room: the page is made all the same.
        warnings.filterwarnings("ignore", "constrained_layout not applied", UserWarning)
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.S)
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\1c{zlib.crc32(title.encode()):x}-", text)
    width = int(figure.get_figwidth() * 90)
    text = re.sub(r'<svg ([^>]*?)height="[^"]*"([^>]*?)width="[^"]*"', r"<svg \1\2", text, count=1)
    text = text.replace(
        "<svg ", f'<svg role="img" aria-label="{html.escape(alt)}" style="--chart: {width}px" ', 1
    )
    text = re.sub(r"font: ([^;\"]*?)px [^;\"]*", r"font: \1px var(--font)", text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    return text

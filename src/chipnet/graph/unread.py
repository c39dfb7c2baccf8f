"""Which numbers count widths, though only methods other than forward read them?

Such a number follows where all hints agree: pieces of that size that the module's forward splits a tensor into, its
name (``in_channels``, ``out_chs``, ``groups``), or all widths in the module that are equal to it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field

import numpy as np
from torch import nn

from chipnet.graph.channels import ChannelGraph
from chipnet.graph.facts import Mix, Norm, Note, Number, Slots
from chipnet.graph.groups import small_groups
from chipnet.graph.numbers import Form, count, number
from chipnet.graph.standard import STANDARD_MIX, STANDARD_NORM
from chipnet.program.methods_read import is_torchs, methods_of
from chipnet.program.watch import Attribute

_IN = frozenset("in inp input inplanes cin c1 inc".split())  # noqa: SIM905
_OUT = frozenset("out oup output outplanes cout c2 outc".split())  # noqa: SIM905
_GROUPS = frozenset("groups group g ngroups".split())  # noqa: SIM905
_WIDTH = frozenset(
    "c ch chs channel channels dim dims width hidden planes features filters embed".split()  # noqa: SIM905
)


@dataclass
class _Widths:
    """Widths in one module, in the order of its forward: inputs of layers, outputs of layers, numbers of groups,
    and pieces that its own forward splits a tensor into."""

    read: list[Slots] = field(default_factory=list)
    written: list[Slots] = field(default_factory=list)
    groups: list[Slots] = field(default_factory=list)
    pieces: list[Slots] = field(default_factory=list)

    def of(self, value: int) -> list[Slots]:
        return [s for s in (*self.read, *self.written) if len(s) == value]


def unread(
    graph: ChannelGraph,
    pieces: Iterable[tuple[str, Slots]],
    modules: Mapping[str, nn.Module],
    used: Set[tuple[str, str]],
) -> tuple[list[Number], list[Note]]:
    """Numbers that follow though forward does not read them, and notes about those that do not.

    Args:
        graph: the graph.
        pieces: modules whose forward splits a tensor along channels, and each of the pieces.
        modules: all modules by their paths.
        used: modules and attributes that operators received.
    """
    candidates: dict[str, dict[str, list[str]]] = {}
    for path, module in modules.items():
        if is_torchs(type(module)) or isinstance(module, (*STANDARD_MIX, *STANDARD_NORM)):
            continue
        methods = methods_of(module)
        for name, value in vars(module).items():
            if type(value) is not int or value < 2 or name in methods.forward or (path, name) in used:
                continue
            if readers := [m for m, method in methods.others.items() if name in method.names]:
                candidates.setdefault(path, {})[name] = readers
    numbers, notes = [], []
    widths = _widths(graph, pieces, candidates.keys()) if candidates else {}
    for path, names in candidates.items():
        others = methods_of(modules[path]).others
        for name, readers in names.items():
            value = vars(modules[path])[name]
            sized = any(others[reader].has_sizes for reader in readers)
            form, equal = _counted(graph, widths[path], name, value, sized)
            if form is not None and not form.fixed:
                numbers.append(number(Attribute(path, name), form, minimum=int(_is(name, _GROUPS))))
            elif form is None and any(not count(graph, s).fixed for s in equal):
                readers.sort(key=lambda r: r.startswith("_"))
                where = f" of '{path}'" if path else ""
                notes.append(
                    Note(
                        f"'{name}'{where} is read by {readers[0]} and will not follow: it equals widths that may "
                        "change, and nothing says which it counts",
                        np.concatenate(equal),
                    )
                )
    return numbers, notes


def _widths(graph: ChannelGraph, pieces: Iterable[tuple[str, Slots]], paths: Set[str]) -> dict[str, _Widths]:
    found: dict[str, _Widths] = defaultdict(_Widths)
    for fact in graph.facts:
        if not isinstance(fact, (Mix, Norm)) or (isinstance(fact, Mix) and not fact.module):
            continue
        for path in {"", *_around(fact.module)} & paths:
            found[path].read.append(fact.src)
            found[path].written.append(fact.dst)
            if isinstance(fact, Mix) and fact.groups > 1:
                first = fact.src.reshape(fact.groups, -1)[:, 0]
                small = small_groups(fact.groups, len(fact.src))  # else surgery keeps their number
                found[path].groups.append(first if small else first[:0])
    for module, slots in pieces:
        if module in paths:
            found[module].pieces.append(slots)
    return found


def _around(path: str) -> list[str]:
    parts = path.split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))]


def _is(name: str, words: Set[str]) -> bool:
    return not words.isdisjoint(name.lower().strip("_").split("_"))


def _counted(
    graph: ChannelGraph, widths: _Widths, name: str, value: int, sized: bool
) -> tuple[Form | None, list[Slots]]:
    """What a number counts (None where that is not known), and all widths that are equal to it."""
    pieces = [s for s in widths.pieces if len(s) == value]
    groups = [s for s in widths.groups if len(s) == value]
    equal = widths.of(value)
    if _is(name, _GROUPS):
        equal = groups or equal if all(map(len, widths.groups)) else []
    elif _is(name, _IN):
        equal = [s for s in widths.read[:1] if len(s) == value] or equal
    elif _is(name, _OUT):
        equal = [s for s in widths.written[-1:] if len(s) == value] or equal
    elif pieces:
        equal = pieces
    elif not (_is(name, _WIDTH) or sized):
        return None, equal
    forms = [count(graph, s) for s in equal]
    if not forms:
        return Form({}, value), []
    return (forms[0] if all(f == forms[0] for f in forms) else None), equal

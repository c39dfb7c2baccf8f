"""How do facts, ties and pins read as text?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from chipnet.graph.facts import Barrier, Fact, Host, Map, Mix, Norm, Pin, Place, Slots, Source


def ranges(slots: Slots) -> str:
    """Slots in their order, as ranges and repetitions.

    Example:
        >>> ranges(np.array([3, 4, 5, 9, 1, 1, 1]))
        '3-5,9,1x3'
    """
    parts = []
    flat, i = slots.ravel().tolist(), 0
    while i < len(flat):
        up = _length(flat[i:], 1)
        same = _length(flat[i:], 0)
        end = f"-{flat[i] + up - 1}" if up > 1 else f"x{same}" if same > 1 else ""
        parts.append(f"{flat[i]}{end}")
        i += max(up, same)
    return ",".join(parts) or "nothing"


def _length(numbers: list[int], step: int) -> int:
    """How many of the first numbers each differ from the one before by ``step``."""
    return next((k for k, n in enumerate(numbers) if n != numbers[0] + k * step), len(numbers))


def fact_text(fact: Fact, at: Place) -> str:
    """A fact as one line.

    Example:
        >>> a, b, c = np.arange(4), np.arange(4, 8), np.arange(8, 12)
        >>> fact_text(Map(c, (a, b), "or"), Place("add", "block", "net.py:7"))
        'map 8-11 = or(0-3, 4-7)                       # add in block (net.py:7)'
    """
    return _line(_fact(fact, ranges(fact.dst)), at)


def _fact(fact: Fact, dst: str) -> str:
    match fact:
        case Source():
            return f"source {dst}{' live' * fact.live}{' flows' * fact.flow}{_gate(fact.host)}"
        case Map():
            return f"map {dst} = {fact.kind}({', '.join(ranges(src) for src in fact.srcs)}){_gate(fact.host)}"
        case Barrier():
            return f"{'output' if fact.output else 'barrier'} {dst} = all({ranges(fact.src)})"
        case Mix():
            groups = f" in {fact.groups} groups" if fact.groups > 1 else ""
            bias = " + bias" if fact.bias else ""
            return f"mix {dst} = sum({ranges(fact.src)}){groups}{bias}{_gate(fact.host)}"
        case Norm():
            mixed = "" if not fact.groups else f" over {fact.groups} group{'s' * (fact.groups > 1)}"
            live = ", live ones" if fact.statistics == "live" else ""
            return f"norm {dst} = norm({ranges(fact.src)}){mixed}{live}{_gate(fact.host)}"


def _gate(host: Host | None) -> str:
    if host is None:
        return ""
    return f", gate {host.weight}" if host.output is None else f", gate at the output of '{host.module}'"


def param_texts(axes: Mapping[str, Mapping[int, Slots]]) -> Iterator[str]:
    """Parameters and buffers that are cut, with the slots that indices along their axes belong to."""
    for name, owned in axes.items():
        yield f"cut {name}[{'; '.join(f'{axis}: {ranges(slots)}' for axis, slots in sorted(owned.items()))}]"


def tie_texts(root: Slots) -> Iterator[str]:
    """Classes of several slots, from the class of every slot. Classes whose slots differ by one are one line.

    Example:
        >>> list(tie_texts(np.array([0, 1, 2, 0, 1, 5, 5, 5])))
        ['tie 0-1 = 3-4', 'tie all of 5-7']
    """
    members: dict[int, list[int]] = {}
    for slot, c in enumerate(root.tolist()):
        members.setdefault(c, []).append(slot)
    tied = [slots for slots in members.values() if len(slots) > 1]
    while tied:
        up = next((k for k, m in enumerate(tied) if m != [s + k for s in tied[0]]), len(tied))
        many = " = ".join(f"{s}-{s + up - 1}" for s in tied[0])
        yield f"tie {many}" if up > 1 else f"tie all of {ranges(np.array(tied[0]))}"
        tied = tied[up:]


def pin_texts(pins: Mapping[int, Pin]) -> Iterator[str]:
    """Every pin, with the classes that it keeps whole."""
    kept: dict[Pin, list[int]] = {}
    for root in sorted(pins):
        kept.setdefault(pins[root], []).append(root)
    for why, roots in kept.items():
        yield _line(f"pin {ranges(np.array(roots))} {why.code.value}: {why.reason}", why.at)


def _line(text: str, at: Place) -> str:
    """A line, and where it is from."""
    module = f" in {at.module}" if at.module else ""
    return f"{text:<44}  # {at.node}{module}{f' ({at.line})' if at.line else ''}" if at.node else text

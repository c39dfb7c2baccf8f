"""A plan: what to cut, where, and why. Frozen, serialisable, and the only thing compaction reads."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from itertools import pairwise
from typing import Any, Literal, get_type_hints

from torch import nn

from chipnet._util.files import write_json
from chipnet._util.given import NETWORK, TENSOR, Wanted, new_file, path_of
from chipnet._util.schema import decode, encode, require
from chipnet._util.text import amount, did_you_mean, few
from chipnet.analysis.cost import Cost
from chipnet.budget.budget import Budget
from chipnet.budget.landing import Landing
from chipnet.errors import LoadError, PlanError
from chipnet.graph.facts import Frozen, LiveNorm
from chipnet.program.inputs import Inputs
from chipnet.program.outputs import Outputs
from chipnet.program.spelling import has_number

VERSION = 5
"""What is written. Version 3, which had records as lists, is read too, and version 4, which knew no live norms."""


@dataclass(frozen=True)
class SitePlan:
    """One site: its name, channels kept of all, which other sites share its gates and why, and why some channels
    are not gated."""

    name: str
    kept: int
    channels: int
    tied_to: tuple[str, ...]
    ties: str
    reason: str
    covered: bool = False
    """Do gates elsewhere in its channel-wise chain act for it?"""


@dataclass(frozen=True)
class Remap:
    """An index map at a module's input or output: channel ``i`` of the result is ``index[i]``, or zero for -1."""

    module: str
    side: Literal["input", "output"]
    axis: int
    index: tuple[int, ...]


@dataclass(frozen=True)
class Size:
    """A size that a module keeps as a number: ``module.name`` (or its element ``index``), which was ``was``,
    becomes ``value``."""

    module: str
    name: str
    index: int | None
    value: int
    was: int | None = None

    def __str__(self) -> str:
        element = "" if self.index is None else f"[{self.index}]"
        name = f"{self.module}.{self.name}{element}".lstrip(".")
        return f"{name}: {self.value} of {self.was}, a number that follows a width"


@dataclass(frozen=True)
class Scale:
    """``module.name``, a parameter or a float, is multiplied by ``factor``: a mean over channels counts fewer."""

    module: str
    name: str
    factor: float


@dataclass(frozen=True)
class Rows:
    """Rows ``at`` of what is left of a parameter are multiplied by ``factor``: attention divides by a width."""

    parameter: str
    at: tuple[int, ...]
    factor: float


@dataclass(frozen=True)
class Live:
    """A norm over channels, how many channels it reads, and which of them its statistics are over."""

    norm: LiveNorm
    channels: int
    kept: tuple[int, ...]


@dataclass(frozen=True)
class StandIn:
    """What takes a dead module's place. ``channels``: width of its output.

    ``constant``: a layer that reads nothing and gives its bias. ``dead``: a layer none of whose outputs is both
    live and needed. ``norm``: likewise a normalisation. ``pool``: a pooling that is given no channels.
    """

    module: str
    kind: Literal["constant", "dead", "norm", "pool"]
    channels: int


@dataclass(frozen=True, repr=False)
class Plan:
    """Hard masks as surgery: per parameter the indices that stay, before and after shapes and costs.

    Attributes:
        keep: parameter or buffer name -> axis -> indices that stay (only axes that shrink).
        zero: parameter name -> (axis, indices) of shut gates: zero before anything is cut.
        shut: module -> (axis, indices): channels that the masked network's gates set to zero in its output, for
            modules with no such parameters.
        stand_ins: modules replaced by a constant.
        remaps: index maps around modules (indexed realisation only).
        sizes: attributes of modules that hold widths.
        scales: parameters and attributes that make up for fewer channels in a mean.
        frozen: layers that compute their weight, and become plain ones with the weight as it is.
        rows: queries, which make up for a smaller width that attention divides by.
        live: norms over channels. In the masked network their statistics are those of channels that stay.
        shapes: name -> shape of every tensor of the dense model: what the plan may be applied to.
        dense, compact: costs before and after.
        budget: what was asked, as text; empty if nothing was.
        sites: for ``explain()``.
        mask: which gates are open.
    """

    keep: Mapping[str, Mapping[int, tuple[int, ...]]]
    zero: Mapping[str, tuple[int, tuple[int, ...]]]
    stand_ins: tuple[StandIn, ...]
    remaps: tuple[Remap, ...]
    shapes: Mapping[str, tuple[int, ...]]
    dense: Cost
    compact: Cost
    budget: str
    sites: tuple[SitePlan, ...]
    mask: tuple[bool, ...]
    realisation: str = "plain"
    sizes: tuple[Size, ...] = ()
    scales: tuple[Scale, ...] = ()
    shut: Mapping[str, tuple[int, tuple[int, ...]]] = field(default_factory=dict)
    frozen: tuple[Frozen, ...] = ()
    live: tuple[Live, ...] = ()
    rows: tuple[Rows, ...] = ()
    latency: Mapping[str, Any] | None = None
    """What was measured, with a latency budget: the fields of `chipnet.budget.landing.Landing`."""
    outputs: Outputs | None = None
    """Which outputs matter; None: all."""
    inputs: Inputs | None = field(default=None, compare=False, repr=False)
    """Example inputs for verification; not serialised."""

    def __repr__(self) -> str:
        cut = sum(s.kept < s.channels for s in self.sites)
        costs = ", ".join(f"{k} {self.compact[k]:,} of {self.dense[k]:,}" for k in self.dense.kinds)
        target = f", budget {self.budget}" if self.budget else ""
        return (
            f"Plan({self.realisation}: {cut} of {amount(len(self.sites), 'site')} narrower, {costs}{target})"
        )

    def called(self, example_inputs: Any) -> Inputs | None:
        """How to call the network: with ``example_inputs`` if they are given, else as when the plan was made."""
        return self.inputs if example_inputs is None else Inputs.of(example_inputs, self.outputs)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor after compaction (of modules that are kept).

        Raises:
            PlanError: the dense network has no tensor of that name.
        """
        TENSOR.check("name", name)
        cut, computed = self.keep.get(name, {}), {f"{f.module}.weight": f.shape for f in self.frozen}
        dense = computed.get(name) or self.shapes.get(name)
        if dense is None:
            close = did_you_mean(name, self.shapes)
            raise PlanError(f"the plan's network has no tensor {name!r}. {close}".rstrip())
        return tuple(len(cut[a]) if a in cut else n for a, n in enumerate(dense))

    def explain(self) -> str:
        """The plan as text: costs, then every site with what is kept and why.

        Example:
            >>> from torch import nn
            >>> import torch
            >>> from chipnet import Structure
            >>> s = Structure(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.ones(1, 3))
            >>> print(s.plan(torch.tensor([True, False, True, True])).explain())
            channels      5 of      6   83.33 %
            volume        5 of      6   83.33 %
            params       20 of     26   76.92 %
            macs         15 of     20   75.00 %
            0: 3 of 4
            2: 2 of 2, kept whole: an output of the network
        """
        rows = []
        for k in self.dense.kinds:
            now, was = self.compact[k], self.dense[k]
            rows.append(f"{k:8} {now:>6,} of {was:>6,} {100 * now / max(was, 1):7.2f} %")
        for s in self.sites:
            tied = f", tied to {few(s.tied_to)}{s.ties and f' ({s.ties})'}" if s.tied_to else ""
            label = "" if s.covered or s.kept < s.channels else "kept whole: "
            why = f", {label}{s.reason}" if s.reason else ""
            rows.append(f"{s.name}: {s.kept} of {s.channels}{tied}{why}")
        rows += [f"{d.module}: removed ({d.kind})" for d in self.stand_ins]
        rows += [str(size) for size in self.sizes if size.value != size.was]
        return "\n".join(rows)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values: records by the names of their fields."""
        other = {
            "dense": self.dense.to_json(),
            "compact": self.compact.to_json(),
            "outputs": self.outputs and self.outputs.to_json(),
            "inputs": None,
            "mask": "".join("1" if m else "0" for m in self.mask),
        }
        values = {n: other[n] if n in other else encode(v) for n, v in vars(self).items()}
        return {"version": VERSION, **{n: v for n, v in values.items() if v is not None}}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Plan:
        """Inverse of ``to_json``.

        Raises:
            LoadError: an unknown version, or not a plan.
        """
        version = data.get("version") if isinstance(data, Mapping) else None
        if version not in (3, 4, VERSION):
            raise LoadError(
                f"plan version {version!r} is unknown: this chipnet reads versions 3 to {VERSION}. "
                "Load it with the chipnet that wrote it."
            )
        hints = get_type_hints(cls)
        if isinstance(sites := data.get("sites"), list):
            data = {**data, "sites": [_with_covered(site) for site in sites]}
        data = {**data, **{n: Cost.record(data[n]) for n in ("dense", "compact") if n in data}}
        try:
            require("mask" in data and isinstance(data["mask"], str), "mask", "must be a text of 0 and 1")
            require(set(data["mask"]) <= {"0", "1"}, "mask", "must be a text of 0 and 1")
            known = {f.name for f in fields(cls)} - {"inputs", "mask", "outputs"}
            later = {"latency"} if version == VERSION else {"latency", "live", "rows"}
            missing = [n for n in known - later if n not in data]
            require(not missing, "it", f"lacks {', '.join(sorted(missing))}")
            values = {n: decode(hints[n], data[n], n) for n in known if n in data}
            chosen = decode(tuple[str | int, ...] | None, data.get("outputs"), "outputs")
            require(all(type(c) is str or c >= 0 for c in chosen or ()), "outputs", "has a number below 0")
            mask = tuple(c == "1" for c in data["mask"])
            plan = cls(**values, mask=mask, outputs=Outputs.of(chosen))
            plan._check()
        except ValueError as e:
            raise LoadError(f"the plan is damaged: {e}. Copy or make it again.") from e
        return plan

    def _check(self) -> None:
        """Do the parts fit each other? Raises `DamagedError`."""
        weights = {**self.shapes, **{f"{f.module}.weight": f.shape for f in self.frozen}}
        for name, shape in weights.items():
            require(all(n >= 0 for n in shape), f"shapes[{name!r}]", f"has a size below 0: {shape}")
        cuts = [(f"keep[{n!r}]", n, a, i) for n, axes in self.keep.items() for a, i in axes.items()]
        cuts += [(f"zero[{n!r}]", n, a, i) for n, (a, i) in self.zero.items()]
        for where, name, axis, index in cuts:
            require(name in weights, where, "is no tensor of the network")
            shape = weights[name]
            require(0 <= axis < len(shape), where, f"has axis {axis}, of {len(shape)}")
            _ascending(index, shape[axis], where)
        for name, (axis, index) in self.shut.items():
            require(-8 <= axis < 8, f"shut[{name!r}]", f"has axis {axis}")
            _ascending(index, 2**31, f"shut[{name!r}]")
        for r in self.remaps:
            require(-8 <= r.axis < 8, f"the index map of {r.module}", f"has axis {r.axis}")
            require(
                all(-1 <= i < 2**31 for i in r.index), f"the index map of {r.module}", "has other indices"
            )
        for d in self.stand_ins:
            require(
                0 <= d.channels < 2**31, f"the stand-in of {d.module}", f"has {amount(d.channels, 'channel')}"
            )
        for size in self.sizes:
            fits = 0 <= size.value < 2**31 and 0 <= (size.index or 0) < 2**31
            require(fits, f"{size.module}.{size.name}", f"is to be {size.value} at {size.index}")
        for scale in self.scales:
            require(scale.factor > 0, f"{scale.module}.{scale.name}", f"is scaled by {scale.factor}")
        for some in self.rows:
            require(some.parameter in weights, some.parameter, "is no tensor of the network")
            _ascending(some.at, weights[some.parameter][0], f"the rows of {some.parameter}")
            require(some.factor > 0, f"the rows of {some.parameter}", f"are scaled by {some.factor}")
        for one in self.live:
            where = f"the norm {one.norm.module}"
            over, affine = one.norm.over, [n for n in (one.norm.weight, one.norm.bias) if n is not None]
            require(one.norm.axis in over and all(-8 <= a < 0 for a in over), where, "has other axes")
            known = all(f"{one.norm.module}.{n}".lstrip(".") in weights for n in affine)
            require(known, where, "has a parameter that is no tensor of the network")
            require(0 <= one.channels < 2**31, where, f"has {amount(one.channels, 'channel')}")
            _ascending(one.kept, one.channels, where)
        for site in self.sites:
            require(0 <= site.kept <= site.channels, site.name, f"keeps {site.kept} of {site.channels}")
        for cost in (self.dense, self.compact):
            require(all(cost[k] >= 0 for k in cost.kinds), "a cost", "is below 0")
        require(self.realisation in ("plain", "indexed"), "realisation", f"is {self.realisation!r}")
        if self.budget:
            Budget.parse(self.budget)
        if self.latency is not None:
            decode(Landing, self.latency, "latency")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan as JSON, all or nothing.

        Raises:
            ConfigError: ``path`` is no path of a file in a folder that exists.
        """
        write_json(new_file("path", path), self.to_json(), indent=None)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Plan:
        """Read a plan written by ``save``.

        Raises:
            LoadError: the file is missing, is no JSON, or has an unknown version.
        """
        path = path_of("path", path)
        try:
            return cls.from_json(json.loads(path.read_text()))
        except (OSError, ValueError, RecursionError) as e:
            raise LoadError(f"cannot read a plan from {path}: {e}") from e

    def check(self, model: nn.Module) -> None:
        """Does ``model`` have the tensors this plan was made for?

        Raises:
            PlanError: lists the first differences.
            CaptureError: it is no network.
        """
        NETWORK.check("model", model)
        modules = dict(model.named_modules(remove_duplicate=False))
        mine = {n: tuple(t.shape) for n, t in model.state_dict(keep_vars=True).items()}
        buffers = model.named_buffers(remove_duplicate=False)  # those that are not saved may be cut too
        mine |= {n: tuple(b.shape) for n, b in buffers if n in self.shapes}
        wrong = [f"{n}: missing" for n in self.shapes if n not in mine]
        wrong += [f"{n}: not in the plan" for n in mine if n not in self.shapes]
        wrong += [
            f"{n}: {mine[n]} instead of {s}" for n, s in self.shapes.items() if n in mine and mine[n] != s
        ]
        used: tuple[Any, ...] = (*self.stand_ins, *self.remaps, *self.sizes, *self.scales, *self.frozen)
        named = {*(u.module for u in used), *self.shut, *(live.norm.module for live in self.live)}
        wrong += [f"{n}: no such module" for n in named if n not in modules]
        scaled = [s for s in self.scales if s.module in modules and not has_number(modules[s.module], s.name)]
        wrong += [f"{s.module}.{s.name}: no such number" for s in scaled]
        if wrong:
            raise PlanError(
                f"this plan was made for another network than {type(model).__name__}: "
                f"{few(wrong, 5, '; ')}. Give the dense network it was made for."
            )


PLAN = Wanted(
    Plan,
    "a chipnet.Plan",
    "Structure.plan(mask) makes one of a mask; Plan.load(path) reads a file, Plan.from_json its values.",
    PlanError,
)


_COVERED = (
    "follows the gates further down its chain",
    "follows the gates of what it reads",
    "goes with what it is multiplied by",
)
"""What older files say of sites for which gates elsewhere act."""


def _with_covered(site: Any) -> Any:
    """The record of a site as today's files have it. Older ones say only in words whether it is covered."""
    if isinstance(site, list) and len(site) == 6:
        return [*site, site[5] in _COVERED]
    if isinstance(site, dict) and "covered" not in site:
        return {**site, "covered": site.get("reason") in _COVERED}
    return site


def _ascending(index: tuple[int, ...], size: int, where: str) -> None:
    """Indices of an axis, each once."""
    inside = not index or (index[0] >= 0 and index[-1] < size)
    require(
        inside and all(a < b for a, b in pairwise(index)), where, f"has indices that are not those of {size}"
    )

"""Latency as a cost: how long each layer takes at each width, on this machine.

While masks are sought, the time of a network is modelled as

    time(gates) = a + b volume + c (sum over layers of table(rows, columns))

Tables are measured once for each device, version and number of threads, and kept in a file. Between the widths that
were measured they are interpolated, so the time is differentiable in soft gates. They never fall as widths grow, so
more open gates never cost less, which the solver needs. ``a`` and ``b`` stand for all that is no layer (norms,
activations, calls). ``c`` is 1 unless layers run faster inside of the network than by themselves. All three are set
so that the model is right for the dense network and for the smallest one, which are both measured.

A model is not a measurement: `chipnet.timing.landing` measures compact networks. Limits are whole nanoseconds.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from chipnet._util.device import device_of
from chipnet._util.files import write_atomically
from chipnet._util.finite import check_finite
from chipnet._util.schema import DamagedError, decode, require
from chipnet._util.text import amount
from chipnet._util.torch_private import ConvNd, ConvTransposeNd, hooks_after, hooks_before, parameters_of
from chipnet.analysis.analysis import Analysis
from chipnet.analysis.cost import CostModel
from chipnet.analysis.kinds import KINDS, LATENCY
from chipnet.budget.solver import smallest_mask
from chipnet.errors import PlanError
from chipnet.gates.hooks import strip_gates
from chipnet.graph.groups import small_groups
from chipnet.program.inputs import Inputs
from chipnet.program.ready import copied
from chipnet.surgery.apply import compact, fit_attributes
from chipnet.surgery.planning import make_plan
from chipnet.timing.clock import device_name, interleaved, side_by_side, sync_of

_STEPS = (0.125, 0.25, 0.5, 0.75, 1.0)
"""Widths at which a layer is measured, as parts of its full width."""


@dataclass(frozen=True)
class LayerTable:
    """Nanoseconds ``[rows, columns]`` of one layer at a grid of widths. At width 0 it is removed and takes none."""

    rows: tuple[int, ...]
    columns: tuple[int, ...]
    values: tuple[tuple[float, ...], ...]


class LatencyModel:
    """Nanoseconds of one forward, given how many channels exist; the formula is at the head of this file.

    Args:
        calls: for each layer the indices of its counts: is it alive, rows, columns, channels along another axis;
            and the number of those when it was measured.
        tables: one for each layer.
        rest: ``a``, ``b`` and ``c``.
    """

    def __init__(
        self,
        calls: Sequence[tuple[int, int, int, int, int]],
        tables: Sequence[LayerTable],
        rest: tuple[float, float, float],
    ) -> None:
        size = max((max(len(t.rows), len(t.columns)) for t in tables), default=2)
        self.calls = torch.tensor(calls, dtype=torch.int64).reshape(-1, 5).T.contiguous()
        self.grids = torch.tensor(
            [[_padded(t.rows, size) for t in tables], [_padded(t.columns, size) for t in tables]],
            dtype=torch.float64,
        ).reshape(2, len(tables), size)
        self.table = torch.zeros(len(tables), size, size, dtype=torch.float64)
        for k, t in enumerate(tables):
            v = torch.tensor(t.values, dtype=torch.float64)
            v = torch.cat([v, v[-1:].expand(size - len(v), -1)])
            self.table[k] = torch.cat([v, v[:, -1:].expand(-1, size - v.shape[1])], 1)
        self.rest = rest
        self._on: dict[torch.device, tuple[Tensor, Tensor, Tensor]] = {}

    def __call__(self, counts: Tensor, volume: Tensor) -> Tensor:
        """``[...]`` for counts ``[..., K]`` and volume ``[...]``."""
        if counts.device not in self._on:
            own = (self.calls, self.grids, self.table)
            self._on[counts.device] = tuple(t.to(counts.device) for t in own)  # type: ignore[assignment]
        calls, grids, table = self._on[counts.device]
        alive, *widths, across = (counts.index_select(-1, index) for index in calls[:4])
        (i, t), (j, u) = (_cell(w, grid) for w, grid in zip(widths, grids.to(counts.dtype), strict=True))
        table, layer = table.to(counts.dtype), torch.arange(len(table), device=counts.device)
        low = torch.lerp(table[layer, i, j], table[layer, i, j + 1], u)
        high = torch.lerp(table[layer, i + 1, j], table[layer, i + 1, j + 1], u)
        a, b, c = self.rest
        share = alive * across / calls[4]
        return c * (torch.lerp(low, high, t) * share).sum(-1) + b * volume + a


def _padded(grid: Sequence[int], size: int) -> list[float]:
    """A grid of ``size`` points: the widths, and more beyond the last, which nothing reaches."""
    return [*map(float, grid), *(float(grid[-1] + k) for k in range(1, size - len(grid) + 1))]


def _cell(x: Tensor, grid: Tensor) -> tuple[Tensor, Tensor]:
    """The place of ``x`` ``[..., L]`` in ``grid`` ``[L, G]``: the interval, and how far into it, from 0 to 1.

    A point of the grid belongs to the interval below it: the slope there is what one channel less would save.
    """
    i = (x.detach().unsqueeze(-1) > grid[:, 1:-1]).sum(-1)
    layer = torch.arange(len(grid), device=grid.device)
    low, high = grid[layer, i], grid[layer, i + 1]
    return i, (x - low) / (high - low)


# -- measuring --------------------------------------------------------------------------------------------


def with_latency(model: nn.Module, analysis: Analysis) -> CostModel:
    """The costs of a network and its latency, in nanoseconds, on the device that it is on.

    Args:
        model: the dense network, with or without gates.
        analysis: of it.
    """
    network = strip_gates(copied(model)).eval()
    device = device_of(network)
    cost = analysis.cost
    shapes = _input_shapes(network, analysis.inputs)
    modules = dict(network.named_modules(remove_duplicate=False))
    calls, tables = [], []
    with _Cache(device) as known, torch.no_grad():
        for call in cost.calls:
            name = call.layer.weight.rpartition(".")[0]
            module = modules.get(name)
            if module is None or not shapes.get(name) or not _simple(module):
                continue  # an operator without a module, or a weight that is computed: part of the rest
            among = 1 if call.layer.across is None else len(call.layer.across)
            calls.append((call.works, call.rows, call.cols, call.across, among))
            tables.append(known.table(module, shapes[name].pop(0)))
    layers = cost.extended(LATENCY, LatencyModel(calls, tables, (0.0, 0.0, 1.0)))
    rest = _rest(model, analysis.with_cost(layers))
    return cost.extended(LATENCY, LatencyModel(calls, tables, rest))


def _rest(model: nn.Module, analysis: Analysis) -> tuple[float, float, float]:
    """``a``, ``b`` and ``c`` from the dense network and from the smallest: what their layers do not explain."""
    masks = torch.stack([torch.ones(analysis.gates, dtype=torch.bool), smallest_mask(analysis, LATENCY)])
    costs = analysis.cost(masks.double())
    dense, small = networks(model, analysis, masks[1])
    took = side_by_side(dense, small, analysis.inputs)
    times = [1e9 * took[n].best for n in ("dense", "compact")]
    volumes, layers = costs[:, KINDS.index("volume")].tolist(), costs[:, -1].tolist()
    gained, by_layers = times[0] - times[1], layers[0] - layers[1]
    b = max((gained - by_layers) / max(volumes[0] - volumes[1], 1.0), 0.0)
    c = min(max(gained, 0.0) / max(by_layers, 1.0), 1.0)
    return max(times[1] - b * volumes[1] - c * layers[1], 0.0), b, c


def networks(model: nn.Module, analysis: Analysis, mask: Tensor) -> tuple[nn.Module, nn.Module]:
    """The dense network and the compact one of ``mask``, in eval mode, without gates."""
    check_finite(model, kind=PlanError)
    dense = strip_gates(copied(model)).eval()
    return dense, compact(dense, make_plan(analysis, mask), verify=False).eval()


def _input_shapes(network: nn.Module, inputs: Inputs) -> dict[str, list[tuple[int, ...]]]:
    """Shapes that every layer reads, call by call."""
    found: dict[str, list[tuple[int, ...]]] = defaultdict(list)

    def seen(name: str) -> Callable[[Any, Any], None]:
        return lambda module, args: found[name].append(tuple(args[0].shape)) if args else None

    layers = {n: m for n, m in network.named_modules() if isinstance(m, (ConvNd, nn.Linear))}
    handles = [m.register_forward_pre_hook(seen(n)) for n, m in layers.items()]
    with torch.no_grad():
        inputs.to(device_of(network))(network)
    for handle in handles:
        handle.remove()
    return found


def _simple(module: nn.Module) -> bool:
    """Is it a layer with a weight of its own, not one that is computed?"""
    layer = isinstance(module, (ConvNd, nn.Linear))
    return layer and parameters_of(module).get("weight") is not None


class _Cache:
    """Tables of layers, by what the layer is, in a file for each device, version and number of threads."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        where = (
            f"{device_name(device)}, {amount(torch.get_num_threads(), 'thread')}, torch {torch.__version__}"
        )
        name = "".join(c if c.isalnum() or c in ".+-" else "-" for c in where)
        self.path = Path(root) / "chipnet" / "latency" / f"{name}.json"
        self.tables: dict[str, Any] = {}
        self.new = False

    def __enter__(self) -> _Cache:
        unread = (OSError, ValueError, TypeError)  # no file yet, or a damaged one: measure anew
        with contextlib.suppress(*unread):
            self.tables = dict(json.loads(self.path.read_text()))
        return self

    def __exit__(self, *details: object) -> None:
        if self.new:
            with contextlib.suppress(OSError):  # a read-only home costs a measurement each time, nothing more
                self.path.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(self.path, json.dumps(self.tables).encode())

    def table(self, module: nn.Module, shape: tuple[int, ...]) -> LayerTable:
        weight = module.weight
        assert isinstance(weight, Tensor)
        key = f"{type(module).__name__}({module.extra_repr()}) {list(shape)} {weight.dtype}"
        try:
            return _usable(decode(LayerTable, self.tables.get(key), "a table"))
        except DamagedError:  # or not there: measure anew
            table = measure_layer(module, shape)
            self.tables[key], self.new = asdict(table), True
            return table


def _usable(table: LayerTable) -> LayerTable:
    """The table itself, if its times are for its widths and never fall as widths grow.

    Raises:
        DamagedError: they are not.
    """
    values = np.array(table.values if len({len(row) for row in table.values}) == 1 else [[]], dtype=float)
    require(values.shape == (len(table.rows), len(table.columns)), "a table", "has times of other widths")
    for widths in (table.rows, table.columns):
        require(widths[0] == 0 and all(a < b for a, b in pairwise(widths)), "a table", "has no rising widths")
    rising = (np.diff(values, axis=0) >= 0).all() and (np.diff(values, axis=1) >= 0).all()
    require(bool(rising) and bool((values >= 0).all()), "a table", "has times that fall")
    return table


def measure_layer(module: nn.Module, shape: tuple[int, ...]) -> LayerTable:
    """Time a convolution or linear layer at a grid of widths.

    The shortest of a few times counts: it is the one that nothing else disturbed.

    Args:
        module: the layer at its full width.
        shape: of its input; the number of channels follows the width.
    """
    rows_axis = 1 if isinstance(module, ConvTransposeNd) else 0
    weight = module.weight
    assert isinstance(weight, Tensor)
    full_rows, full_columns = weight.shape[rows_axis], weight.shape[1 - rows_axis]
    groups = getattr(module, "groups", 1)
    small = small_groups(groups, groups * full_columns)  # each group that stays reads as many as before
    step = full_rows // groups if small else groups
    rows, columns = _grid(full_rows, step), [full_columns] if small else _grid(full_columns, 1)
    if rows_axis == 1 and groups > 1:  # rare; groups of a transposed convolution stay
        rows, columns = [full_rows], [full_columns]
    grid = np.array([[_shortest(_slim(module, rows_axis, r, c), shape) for c in columns] for r in rows])
    grid = np.maximum.accumulate(np.maximum.accumulate(grid, 0), 1)
    values = np.pad(grid, ((1, 0), (1, 0)))
    return LayerTable((0, *rows), (0, *columns), tuple(tuple(map(float, row)) for row in values))


def _shortest(layer: Any, shape: tuple[int, ...]) -> float:
    """Nanoseconds of one call."""
    sizes = list(shape)
    if isinstance(layer, nn.Linear):
        sizes[-1] = layer.in_features
    else:
        sizes[1] = layer.in_channels
    x = torch.randn(sizes, device=layer.weight.device, dtype=layer.weight.dtype)
    return 1e9 * min(interleaved({"": lambda: layer(x)}, seconds=0.0, rounds=5, sync=sync_of(x.device))[""])


def _grid(full: int, step: int) -> list[int]:
    """Multiples of ``step`` up to ``full``, close to the parts of it in `_STEPS`."""
    return sorted({step, *(max(step, round(full * f / step) * step) for f in _STEPS)})


def _slim(module: nn.Module, rows_axis: int, rows: int, columns: int) -> Any:
    """The layer as surgery would leave it with so many rows and columns."""
    small = copy.deepcopy(module)
    for hooks in (hooks_after(small), hooks_before(small)):
        hooks.clear()
    weight, bias = parameters_of(module)["weight"], parameters_of(module).get("bias")
    assert weight is not None
    cut = weight.detach().narrow(rows_axis, 0, rows).narrow(1 - rows_axis, 0, columns).contiguous()
    parameters_of(small)["weight"] = nn.Parameter(cut)
    if bias is not None:
        parameters_of(small)["bias"] = nn.Parameter(
            bias.detach()[: rows if rows < weight.shape[rows_axis] else None]
        )
    fit_attributes(small)
    return small

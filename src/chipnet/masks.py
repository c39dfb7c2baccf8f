"""Masks that can be carried to another network of the same architecture: indices per named site, no weights.

A plan belongs to one network, to the last tensor: other classes or other input channels are another network. Masks
know only the sites that gates act on, by name and width, so they fit the same architecture whatever its input and
output layers are.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from chipnet._util.files import write_json
from chipnet._util.given import new_file, path_of
from chipnet._util.text import amount, few
from chipnet.analysis.vectors import read_mask
from chipnet.budget.budget import Budget
from chipnet.errors import BudgetError, LoadError, PlanError
from chipnet.structure import STRUCTURE, Structure

FORMAT, VERSION = "chipnet-masks", 1
_TEXTS = ("network", "realisation", "budget")


@dataclass(frozen=True, repr=False)
class Masks:
    """Which channels of which sites are kept.

    Attributes:
        widths: site -> channels it has in the dense network; only sites with gates.
        kept: site -> indices that stay, ascending.
        network: class of the network they were learnt on.
        realisation: of the structure they were learnt on.
        budget: what was asked there, as text; empty if nothing was.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> def net(classes):
        ...     return nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, classes))
        >>> ten, two = (Structure(net(n), torch.zeros(1, 3)) for n in (10, 2))
        >>> masks = Masks.of(ten, torch.tensor([True, False, True, True, False]))
        >>> masks.kept
        {'1': (0, 2, 3)}
        >>> two.plan(masks.transfer(two)).compact.params
        26
    """

    widths: Mapping[str, int]
    kept: Mapping[str, tuple[int, ...]]
    network: str
    realisation: str
    budget: str = ""

    @classmethod
    def of(cls, structure: Structure, mask: Tensor, budget: Budget | Mapping[str, Any] | str = "") -> Masks:
        """The masks of Boolean gates ``[gates]`` of a structure, such as ``pruner.mask`` or ``plan.mask``.

        Raises:
            PlanError: a mask of another length or with other values.
            BudgetError: the budget cannot be read; an empty text is none.
            ConfigError: the structure is something else.
        """
        STRUCTURE.check("structure", structure)
        target = "" if isinstance(budget, str) and not budget else str(Budget.parse(budget))
        mask = read_mask(mask, structure.gates).cpu()
        opened = np.append(mask.numpy(), True)  # index -1: a channel without a gate stays
        sites = [site for site in structure.sites if site.free]
        return cls(
            widths={site.name: site.channels for site in sites},
            kept={site.name: tuple(np.flatnonzero(opened[site.gates]).tolist()) for site in sites},
            network=structure.analysis.name,
            realisation=structure.options.realisation,
            budget=target,
        )

    def __repr__(self) -> str:
        kept, total = sum(map(len, self.kept.values())), sum(self.widths.values())
        target = f", budget {self.budget}" if self.budget else ""
        return (
            f"Masks({self.network}, {self.realisation}: {kept:,} of {amount(total, 'channel')} of "
            f"{amount(len(self.widths), 'site')}{target})"
        )

    @property
    def fingerprint(self) -> str:
        """The hash of the architecture: of names and widths of the sites, in order."""
        return hashlib.sha256(json.dumps(list(self.widths.items())).encode()).hexdigest()

    def transfer(self, structure: Structure) -> Tensor:
        """Boolean gates ``[gates]`` of another network of the same architecture.

        All sites must agree; nothing is transferred in part.

        Raises:
            PlanError: every site that differs, with the reason; or nothing matches at all; or the network would be
                disconnected.
            ConfigError: the structure is something else.
        """
        STRUCTURE.check("structure", structure)
        sites = {site.name: site for site in structure.sites if site.free}
        here, there = f"this {structure.analysis.name}", f"the masks (of a {self.network})"
        if not sites.keys() & self.widths.keys():
            raise PlanError(
                f"nothing of {there} matches {here}: they have {few(list(self.widths), 4)}, it has "
                f"{few(list(sites), 4)}. Give the architecture that the masks were learnt on."
            )
        wrong = [f"{n}: not gated in {here}" for n in self.widths if n not in sites]
        wrong += [
            f"{n}: not in {there}; keep it whole with ignore=[{n!r}]" for n in sites if n not in self.widths
        ]
        votes = torch.full((structure.gates,), -1)
        for name in self.widths.keys() & sites.keys():
            site, width = sites[name], self.widths[name]
            if site.channels != width:
                wrong.append(f"{name}: {amount(site.channels, 'channel')} in {here}, {width} in {there}")
                continue
            opened = np.isin(np.arange(width), self.kept[name])
            gated = site.gates >= 0
            if not opened[~gated].all():
                wrong.append(f"{name}: shut channels are kept whole in {here} ({site.reason})")
            gates, vote = torch.from_numpy(site.gates[gated]), torch.from_numpy(opened[gated]).long()
            if bool(((votes[gates] >= 0) & (votes[gates] != vote)).any()) or _differ(gates, vote):
                tied = few(list(structure.analysis.tied_to(site)) or [name], 4)
                wrong.append(f"{name}: shares gates with {tied} in {here}, and was masked otherwise")
            votes[gates] = vote
        if wrong:
            raise PlanError(
                f"{there} do not fit {here}:\n" + "\n".join(f"  - {w}" for w in sorted(wrong)) + "\n"
                "Give the same architecture and the same realisation "
                f"({self.realisation!r}), ignore and only as there."
            )
        mask = votes > 0
        if not structure.connected(mask):
            raise PlanError(f"under {there} the input of {here} does not reach every output")
        return mask

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "network": self.network,
            "realisation": self.realisation,
            "budget": self.budget,
            "fingerprint": self.fingerprint,
            "sites": {n: {"channels": w, "kept": list(self.kept[n])} for n, w in self.widths.items()},
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the masks as JSON, all or nothing.

        Raises:
            ConfigError: ``path`` is no path of a file in a folder that exists.
        """
        write_json(new_file("path", path), self.to_json())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Masks:
        """Read masks written by ``save``.

        Raises:
            LoadError: the file is missing, is of another kind or version, or is damaged: what is wrong, and at
                which site.
        """
        path = path_of("path", path)
        try:
            data = json.loads(path.read_text())
        except (OSError, ValueError, RecursionError) as e:
            raise LoadError(
                f"cannot read masks from {path}: {e}. Give the masks.json of a run, or what Masks.save wrote."
            ) from e
        kind = (data.get("format"), data.get("version")) if isinstance(data, dict) else None
        if kind != (FORMAT, VERSION):
            raise LoadError(
                f"{path} is no file of masks that this chipnet reads (format {FORMAT!r}, version {VERSION}). "
                "Give the masks.json of a run, or what Masks.save wrote."
            )
        if wrong := _damage(data):
            raise LoadError(f"the masks in {path} are damaged: {few(wrong, 4)}. Copy the file again.")
        masks = cls(
            widths={n: site["channels"] for n, site in data["sites"].items()},
            kept={n: tuple(site["kept"]) for n, site in data["sites"].items()},
            network=data["network"],
            realisation=data["realisation"],
            budget=data["budget"],
        )
        if masks.fingerprint != data.get("fingerprint"):
            raise LoadError(
                f"the masks in {path} are damaged: their sites do not match their fingerprint. Copy the file again."
            )
        return masks


def _damage(data: Mapping[str, Any]) -> list[str]:
    """What no masks hold, in words; their fingerprint apart, which knows only names and widths."""
    wrong = [f"'{n}' must be a text, not {data.get(n)!r}" for n in _TEXTS if not isinstance(data.get(n), str)]
    if wrong:
        return wrong
    if data["realisation"] not in ("plain", "indexed"):
        wrong.append(f"'realisation' must be 'plain' or 'indexed', not {data['realisation']!r}")
    if data["budget"]:
        try:
            Budget.parse(data["budget"])
        except BudgetError as error:
            wrong.append(" ".join(str(error).split()))
    sites = data.get("sites")
    if not isinstance(sites, dict) or not sites:
        return [*wrong, "they have no sites"]
    for name, site in sites.items():
        if said := _damaged_site(site):
            wrong.append(f"site '{name}': {said}")
    return wrong


def _damaged_site(site: Any) -> str:
    """What is wrong with one site, or nothing."""
    if not isinstance(site, dict) or not {"channels", "kept"} <= site.keys():
        return "it must have 'channels' and 'kept'"
    width, kept = site["channels"], site["kept"]
    if type(width) is not int or width < 1:
        return f"channels must be a whole number above 0, not {width!r}"
    if not isinstance(kept, list):
        return f"kept must be a list of indices, not {kept!r}"
    before = -1
    for index in kept:
        if type(index) is not int:  # a bool is none
            return f"kept holds {index!r}, which is no index"
        if not 0 <= index < width:
            return f"kept holds {index}, and its channels are 0 to {width - 1}"
        if index <= before:
            return f"kept holds {index} " + ("twice" if index == before else f"after {before}, not ascending")
        before = index
    return ""


def _differ(gates: Tensor, vote: Tensor) -> bool:
    """Do two channels of one gate disagree?"""
    order = torch.argsort(gates, stable=True)
    gates, vote = gates[order], vote[order]
    return bool(((gates.diff() == 0) & (vote.diff() != 0)).any())

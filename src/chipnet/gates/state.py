"""What is a pruner's state for? Another pruner's is refused, before anything changes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from chipnet._util.text import amount
from chipnet.analysis.analysis import Analysis
from chipnet.budget.budget import Budget
from chipnet.errors import ConfigError

VERSION = 1


def made_for(
    method: str, settings: Mapping[str, float], budget: Budget, steps: int, analysis: Analysis
) -> dict[str, Any]:
    """What a pruner's state is for, as plain JSON values.

    Args:
        method: a name of ``METHODS``, or ``module:Class``.
        settings: all of the method's, with their values.
        budget, steps: of the pruner.
        analysis: of the network.
    """
    return {
        "version": VERSION,
        "method": method,
        "settings": dict(settings),
        "budget": str(budget),
        "steps": steps,
        "gates": analysis.gates,
        "sites": [[site.name, site.channels, site.free] for site in analysis.sites],
    }


def refuse_other(
    state: Mapping[str, Any], mine: Mapping[str, Any], steps: int, method: Mapping[str, Any]
) -> None:
    """Refuse a state that is not for this pruner.

    Args:
        state: of a pruner.
        mine: what states of this one are for, as `made_for` says.
        steps: of this one.
        method: its method's state now.

    Raises:
        ConfigError: it is for another, or no state of a pruner.
    """
    lacking = {"taken", "steps", "method"} - state.keys() if isinstance(state, Mapping) else {"taken"}
    theirs = {} if lacking else state.get("for", {})
    if lacking or not all(isinstance(part, Mapping) for part in (state["method"], theirs)):
        raise ConfigError("this is no state of a pruner: give what its state_dict() returned")
    if theirs.get("version", VERSION) > VERSION:
        raise ConfigError(
            "this state of a pruner was written by a newer version of chipnet: update to that one"
        )
    if state["steps"] != steps:
        raise ConfigError(f"the saved pruner runs {amount(state['steps'], 'step')}, this one {steps}")
    wrong = [
        said for key, own in mine.items() if key in theirs and (said := _difference(key, theirs[key], own))
    ]
    if not wrong:  # written before states said what they are for; or damaged
        wrong = _shapes(state["method"], method)
    if not (isinstance(state["taken"], int) and state["taken"] >= 0):
        wrong.append(f"it has taken {state['taken']!r} steps")
    if wrong:
        raise ConfigError(
            f"this state is of another pruner than this one: {'; '.join(wrong)}. Make the pruner with what "
            "the saved one was made with"
        )


def _difference(key: str, theirs: Any, mine: Any) -> str:
    """How one entry of `made_for` differs, in words; empty where it does not."""
    if theirs == mine:
        return ""
    if key == "settings":
        names = [name for name in {**theirs, **mine} if theirs.get(name) != mine.get(name)]
        return "; ".join(f"{name} was {theirs.get(name)}, and is {mine.get(name)}" for name in names)
    if key == "sites":
        then, now = ([tuple(site) for site in sites] for sites in (theirs, mine))
        old, new = (
            [site for site in sites if site not in others] for sites, others in ((then, now), (now, then))
        )
        was, is_ = (
            f"'{name}' of {amount(channels, 'channel')}, {free} gated" if sites else "none"
            for sites in (old, new)
            for name, channels, free in (sites or [("", 0, 0)])[:1]
        )
        return f"sites differ, the first that does was {was}, and is {is_}"
    return f"{key} was {theirs}, and is {mine}"


def _shapes(theirs: Mapping[str, Any], mine: Mapping[str, Any]) -> list[str]:
    """How the parts of two states of one method differ."""
    wrong = [f"it lacks the method's '{name}'" for name in mine.keys() - theirs.keys()]
    wrong += [f"this method has no '{name}'" for name in theirs.keys() - mine.keys()]
    for name in theirs.keys() & mine.keys():
        one, other = theirs[name], mine[name]
        if isinstance(other, Tensor) and name != "generator" and getattr(one, "shape", None) != other.shape:
            found = list(one.shape) if isinstance(one, Tensor) else type(one).__name__
            wrong.append(f"'{name}' was {found}, and is {list(other.shape)}")
    return sorted(wrong)

"""The errors of the library: one base, a few named kinds.

Every error that the library raises on purpose is a `ChipNetError`, so one `except` clause separates
"chipnet refuses" from a bug. The kinds that report an unusable value are a `ValueError` as well.
"""


class ChipNetError(Exception):
    """Base of all errors raised on purpose by chipnet."""


class CaptureError(ChipNetError):
    """The network could not be captured as a graph, or has nothing to prune."""


class BudgetError(ChipNetError, ValueError):
    """A budget is malformed, or no network that still connects input to output can meet it."""


class PlanError(ChipNetError):
    """A plan does not fit the network that it is applied to."""


class LoadError(ChipNetError):
    """A saved file is missing a part, is damaged, or does not belong to the given network."""


class ExportError(ChipNetError):
    """A network cannot be written in a format, or what was written does not compute what the network does."""


class ConfigError(ChipNetError, ValueError):
    """An argument or a setting has a value that cannot be used."""

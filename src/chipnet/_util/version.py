"""Which version is this? The one place that says it: the package's metadata are made from here."""

__version__ = "0.2.0"

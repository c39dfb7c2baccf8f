"""Longer runs that are not tests. Each prints what it measured and how to repeat it."""

"""In which order do the parts of the library stand on each other?"""

FLOORS = [
    "errors",
    "_util",
    "program",
    "graph",
    "analysis",
    "budget",
    "gates",
    "surgery",
    "repair",
    "formats",
    "timing",
    "trials",
    "structure",
    "widths",
    "masks",
    "methods",
    "pruner",
    "",  # the public page
    "integrations",
    "lab",
    "__main__",
]
"""From the ground up; a file imports from its own floor and from those below."""

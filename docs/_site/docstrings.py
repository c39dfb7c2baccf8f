"""For the site: our docstrings call their examples `Example:`, the site's parser wants `Examples:`."""

from typing import Any

import griffe


class OneExample(griffe.Extension):
    """Renames the section before docstrings are parsed."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = obj.docstring.value.replace("\nExample:\n", "\nExamples:\n")

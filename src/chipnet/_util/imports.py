"""Optional packages and the user's own `module:callable` names, imported when first needed.

This file knows nothing about models or data; it turns the ways in which such an import can fail into one
`ConfigError` that says what to type next.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from chipnet.errors import ConfigError

REFERENCE = re.compile(r"\w[\w.]*:[A-Za-z_][\w.]*")
"""What `import_callable` reads: module:callable."""
IMPORTED: set[str] = set()
"""What `import_callable` has read in this process: code that its user asked for."""


def optional_import(module: str, *, needed_for: str, install: str) -> Any:
    """Import `module`, or raise a ConfigError that names the package to install.

    >>> optional_import("math", needed_for="sums", install="math").sqrt(4.0)
    2.0
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"{needed_for} needs the package {install!r}, which cannot be imported here ({error}). "
            f"Install it: pip install {install}"
        ) from error


@contextmanager
def _working_directory_importable() -> Iterator[None]:
    """Console scripts do not put the working directory on `sys.path`; `python -m` does. Make them agree."""
    here = str(Path.cwd())
    added = here not in sys.path and "" not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        yield
    finally:
        if added and here in sys.path:
            sys.path.remove(here)


def import_callable(reference: str) -> Callable[..., Any]:
    """The object that `module:callable` names; a dotted callable (`pkg.mod:Class.make`) is followed.

    Raises:
        ConfigError: the module or the attribute does not exist, importing it fails, or what it names cannot be
            called.

    >>> import_callable("math:sqrt")(9.0)
    3.0
    """
    module_name, _, attribute = reference.partition(":")
    if not module_name or not attribute:
        raise ConfigError(
            f"{reference!r} is not of the form module:callable, for example mypackage.nets:MyNet."
        )
    with _working_directory_importable():
        try:
            found: Any = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            # The module exists but one that it imports does not: that is not a wrong name, so say which one.
            missing = error.name or module_name
            if missing == module_name or module_name.startswith(missing + "."):
                raise ConfigError(
                    f"{reference!r}: there is no module {missing!r} on the import path. Run from the folder "
                    f"that holds it, or set PYTHONPATH."
                ) from error
            raise blamed(f"importing {module_name}", error) from error
        except Exception as error:
            raise blamed(f"importing {module_name}", error) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            names = ", ".join(
                sorted(n for n in dir(found) if callable(getattr(found, n)) and n[0] != "_")[:10]
            )
            raise ConfigError(
                f"{reference!r}: {module_name} has no {attribute!r}. Callables there: {names or 'none'}."
            )
        found = getattr(found, part)
    if not callable(found):
        raise ConfigError(f"{reference!r} is a {type(found).__name__}, which cannot be called.")
    IMPORTED.add(reference)
    return found


def call_user(reference: str, function: Callable[..., Any], options: Mapping[str, Any]) -> Any:
    """Call the user's `function` with those of `options` that it takes.

    Raises:
        ConfigError: it raised; names the error and the line.

    >>> call_user("math:sqrt", lambda x: x + 1, {"x": 1, "y": 2})
    2
    """
    try:
        return function(**accepted(function, options))
    except ConfigError:
        raise
    except Exception as error:
        given = ", ".join(options)
        raise blamed(f"calling {reference} (with those of {given} that it takes)", error) from error


def blamed(what: str, error: Exception) -> ConfigError:
    """The user's own error in one line, with the place where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if f.filename != __file__ and not f.filename.startswith("<frozen")]
    where = f" ({Path(own[-1].filename).name}:{own[-1].lineno})" if own else ""
    return ConfigError(f"{what} failed: {type(error).__name__}: {error}{where}.")


def accepted(function: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The `options` that `function` takes by keyword (all of them when it has `**kwargs`).

    >>> accepted(lambda a, *, b: None, {"a": 1, "b": 2, "c": 3})
    {'a': 1, 'b': 2}
    """
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # some callables written in C have no signature
        return {}
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return dict(options)
    named = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return {key: value for key, value in options.items() if key in named}

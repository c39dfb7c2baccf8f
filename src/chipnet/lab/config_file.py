"""Files of options, such as config.yaml of a run: read, so that nothing in them is lost or endless, and written."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

from chipnet._util.files import write_atomically
from chipnet.errors import ConfigError
from chipnet.lab.config import CONFIG, Request
from chipnet.lab.fit import cut
from chipnet.lab.layers import plain


def write_config(path: str | os.PathLike[str], request: Request) -> None:
    """Write the options of a run as YAML, all or nothing, and the command that started it."""
    import yaml

    values = plain(request) | {"command": request.command}
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    write_atomically(path, text.encode())


def started_by(out: Path) -> str | None:
    """The command that started the run in a folder, where its config.yaml has one."""
    path = out / CONFIG
    command = read_config(path).get("command") if path.is_file() else None
    return command if isinstance(command, str) else None


def read_config(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A layer for `request_from` from a YAML file, such as a run's config.yaml.

    Raises:
        ConfigError: the file is missing, is no YAML, gives a key twice, or holds no mapping.
    """
    import yaml

    path = Path(path)
    try:
        with open(path, "rb") as file:
            content = file.read(_LONGEST + 1)
        if len(content) > _LONGEST:
            raise ValueError(f"it is longer than {_LONGEST:,} bytes, which no options are")
        values = yaml.load(content.decode(), _loader())
    except FileNotFoundError:
        raise ConfigError(f"there is no config file {path}.") from None
    except (OSError, ValueError, yaml.YAMLError) as error:  # ValueError: no UTF-8, or a date that is none
        raise ConfigError(
            f"cannot read the config file {path}: {cut(' '.join(str(error).split()))}"
        ) from error
    if not isinstance(values, dict):
        raise ConfigError(
            f"the config file {path} holds a {type(values).__name__}, not options such as 'seed: 1'."
        )
    return values


_LONGEST, _DEEPEST, _LARGEST = 10**6, 50, 10**4
"""Bytes of a config file; how deep it is nested; its values, those that aliases stand for counted each time."""


@functools.cache
def _loader() -> Any:
    """YAML's safe loader for files of options: a key that is given twice in one mapping is an error (YAML drops the
    first), and so are aliases in what they stand for, and what is nested deeper or larger than options are."""
    import yaml

    def refuse(problem: str, node: Any) -> None:
        raise yaml.constructor.ConstructorError(problem=f"{problem} (line {node.start_mark.line + 1})")

    def check(node: Any, sizes: dict[int, int]) -> int:
        """How many values a node stands for."""
        if isinstance(node, yaml.ScalarNode) or node is None:
            return 1
        if (known := sizes.get(id(node))) is not None:  # an alias is the node itself
            return known
        size = 1
        lines: dict[Any, int] = {}
        for child in node.value:
            key, value = child if isinstance(node, yaml.MappingNode) else (None, child)
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                name, line = (key.tag, key.value), key.start_mark.line + 1
                if name in lines:
                    raise yaml.constructor.ConstructorError(
                        problem=f"the key {key.value!r} is in line {lines[name]} and again in line {line}: keep one"
                    )
                lines[name] = line
            size += check(key, sizes) + check(value, sizes)
            if size > _LARGEST:
                refuse(f"with its aliases it stands for more than {_LARGEST:,} values", node)
        sizes[id(node)] = size
        return size

    class Loader(yaml.SafeLoader):
        depth = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            alias = self.check_event(yaml.AliasEvent)
            event = self.peek_event()
            if alias and event.anchor in self.anchors and not hasattr(self.anchors[event.anchor], "complete"):
                refuse(f"the alias *{event.anchor} is inside of what it stands for", event)
            if self.depth > _DEEPEST:
                refuse(f"it is nested deeper than {_DEEPEST} levels", event)
            self.depth += 1
            node = super().compose_node(parent, index)
            self.depth -= 1
            node.complete = True
            return node

        def get_single_node(self) -> Any:
            node = super().get_single_node()
            check(node, {})  # as written: << is resolved later, and its keys may be given again
            return node

    return Loader

"""The command ``chipnet``, and ``python -m chipnet``."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line, or say which part of it is not installed."""
    try:
        from chipnet.lab.cli import main as command
    except ModuleNotFoundError as missing:
        if (missing.name or "chipnet").partition(".")[0] == "chipnet":
            raise
        sys.exit(f"the command line needs {missing.name}, which is not installed: pip install 'chipnet[cli]'")
    command()


if __name__ == "__main__":
    main()

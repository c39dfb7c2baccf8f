"""``python -m chipnet.lab.cli``: the same command line."""

from chipnet.lab.cli import main

main()

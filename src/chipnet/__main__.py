"""``python -m chipnet``: the command line."""

from chipnet.lab.cli import main

main()

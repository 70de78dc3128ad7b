"""`python -m medes`: the command line."""

from medes.cli.main import main

main()

"""`python -m tensornet`: the command line, where the folder of scripts is not on the path."""

from tensornet.cli import main

main()

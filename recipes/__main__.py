"""`python -m polyhead.recipes` is the `polyhead` command."""

from .command import main

main()

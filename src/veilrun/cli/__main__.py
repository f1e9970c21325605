"""`python -m veilrun.cli`."""

from veilrun.cli import main

main()

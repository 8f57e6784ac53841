"""`python -m effc`, for interpreters whose scripts are not on PATH."""

from effc.cli import main

main()

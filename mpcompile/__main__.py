"""``python -m mpcompile``."""

from mpcompile.cli import main

main()

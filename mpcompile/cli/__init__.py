"""The command line: one function per command, its help, and exit codes.

In come the words of a command line; out go options (`mpcompile.options`) for `mpcompile.commands`,
and one exit code. No file here imports torch, so that ``--help`` and wrong flags are answered at
once.
"""

from mpcompile.cli.leave import exit_code, main

__all__ = ["exit_code", "main"]

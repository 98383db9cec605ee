"""The command line: flags, their help and exit codes, a file a command.

In come the words of a command line; out go options for `mpcompile.commands`, and one exit code. No
file here imports torch, so that ``--help`` and wrong flags are answered at once.
"""

from mpcompile.cli import (  # noqa: F401  # each adds its command
    bench,
    calibrate,
    check,
    diff,
    explain,
    export,
    gradients,
    inspect,
    lint,
    reduce,
    report,
    run,
    schema,
    transform,
    tune,
)
from mpcompile.cli.app import Flags
from mpcompile.cli.leave import exit_code, main

__all__ = ["Flags", "exit_code", "main"]

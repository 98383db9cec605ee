"""The command line: a file a command. None imports torch before a command really runs."""

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

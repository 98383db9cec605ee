"""Run the command line; every failure is one sentence and an exit code."""

from __future__ import annotations

import gc
import os
import sys
import traceback

from cyclopts import CycloptsError

from mpcompile.cli.app import app
from mpcompile.errors import CompileError, from_here, printable

DEFECT = 70


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and leave with its exit code."""
    # By default Python looks for cycles after every 700 new objects, over all that torch and the
    # graphs have made; this took a sixth of the time of a command.
    gc.set_threshold(50_000, 10, 10)
    code = exit_code(sys.argv[1:] if arguments is None else arguments)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        # Threads of gloo can outlive their group and abort a process that has finished its work
        # (seen with torch 2.13); torchrun would see a failure and start all processes again.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def exit_code(arguments: list[str]) -> int:
    """Run the command line; return its exit code, with every failure as one sentence on stderr."""
    debug = "--debug" in arguments
    try:
        code = app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        return _say(" ".join(str(error).split()), 2)
    except CompileError as error:
        return _say(str(error), error.exit_code, debug)
    except KeyboardInterrupt:
        return _say("interrupted", 130)
    except BrokenPipeError:
        # The reader of a pipe has closed it (| head): print no message, and let Python print none.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())[:500]
        advice = "" if debug else " Run again with --debug, and report the traceback."
        return _say(f"this is a defect of mpcompile ({text}).{advice}", DEFECT, debug)
    return code if isinstance(code, int) else 0


def _say(sentence: str, code: int, debug: bool = False) -> int:
    if debug:
        traceback.print_exc()
    sys.stderr.write(f"mpcompile: {printable(from_here(sentence))}\n")
    return code

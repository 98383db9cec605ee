"""The options of commands: one frozen class per command, each field a flag with its help.

In come the words of a command line, read by cyclopts; out come typed options, which the command
uses as they are. No file here imports modules of the package outside this room.
"""

from mpcompile.options.bench import BenchOptions
from mpcompile.options.calibrate import CalibrateOptions
from mpcompile.options.check import CheckOptions
from mpcompile.options.diff import DiffOptions
from mpcompile.options.explain import ExplainOptions
from mpcompile.options.export import ExportOptions
from mpcompile.options.gradients import GradientsOptions
from mpcompile.options.inspect import InspectOptions
from mpcompile.options.lint import LintOptions
from mpcompile.options.reduce import ReduceOptions
from mpcompile.options.report import ReportOptions
from mpcompile.options.run import RunOptions
from mpcompile.options.schema import SchemaOptions
from mpcompile.options.transform import TransformOptions
from mpcompile.options.tune import TuneOptions

__all__ = [
    "BenchOptions",
    "CalibrateOptions",
    "CheckOptions",
    "DiffOptions",
    "ExplainOptions",
    "ExportOptions",
    "GradientsOptions",
    "InspectOptions",
    "LintOptions",
    "ReduceOptions",
    "ReportOptions",
    "RunOptions",
    "SchemaOptions",
    "TransformOptions",
    "TuneOptions",
]

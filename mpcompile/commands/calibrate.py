"""``mpcompile calibrate model.py``: measure in FP32 the range of each tensor."""

from __future__ import annotations

from pathlib import Path

from mpcompile.artifacts import check_file, write_file, write_json
from mpcompile.commands.terminal import open_terminal, warnings_on_one_line
from mpcompile.numerics.calibration import calibrate as measure
from mpcompile.options import CalibrateOptions
from mpcompile.program.workload import load, source_name
from mpcompile.show.summary import print_ranges


def calibrate(source: str, options: CalibrateOptions) -> None:
    """Measure, print the tensors nearest to overflow or underflow, write the ranges."""
    console = open_terminal(options.json)
    file = options.output or Path(f"{source_name(source)}.ranges.json")
    check_file(file, options.force)
    workload = load(source)
    with console.status("measuring"), warnings_on_one_line():
        ranges = measure(workload, options.batches)
    write_file(file, ranges.to_json() + "\n", options.force)
    print_ranges(ranges, console)
    console.print(f"wrote {file}")
    write_json(
        options.json,
        {
            "source": source,
            "output": str(file),
            "batches": ranges.batches,
            "tensors": len(ranges.values),
            "largest": max((held.largest_finite for held in ranges.values.values()), default=0.0),
            "not_finite": sum(held.nonfinite > 0 for held in ranges.values.values()),
        },
    )

"""Small views for tests of reports."""

from __future__ import annotations

from mpcompile.numerics.run_log import RunRow, SkipCause
from mpcompile.plan.dataflow import Where
from mpcompile.plan.ranges import Range, Ranges
from mpcompile.show.html_report.check_file import Check, CheckedNode
from mpcompile.show.html_report.document import ReportInput
from mpcompile.show.view import NodeRole, View, ViewNode

ROLES: tuple[NodeRole, ...] = ("op", "cast", "view", "output", "op")
HELD = Range(3.0, 10, 1, 1, ((-26, 2), (-3, 4), (1, 2)))


def hostile(texts: list[str]) -> ReportInput:
    """Return a report in which each name is one of these texts."""
    nodes = [ViewNode("start", "input", "input", "forward", "f32", "", ("f32",), "f32[2]", 8)]
    for place, text in enumerate(texts):
        nodes.append(
            ViewNode(
                id=f"{text}~{place}",
                op=text,
                role=ROLES[place % 5],
                stage=("forward", "backward", "update")[place % 3],
                precision=("f16", "f32", "both", "bf16", "other")[place % 5],
                computes=text,
                stores=(text,),
                type=text,
                bytes=place,
                reads=(nodes[-1].id,),
                planned=text,
                rule=text,
                reason=text,
                saved=place % 2 == 0,
                alive=place,
                where=Where(text, text, place),
            )
        )
    view = View(texts[0], "onnx", "fp16", tuple(nodes))
    ranges = Ranges("x", 1, dict.fromkeys(texts, HELD), dict.fromkeys(texts, HELD))
    check = Check(texts[1], {node.id: CheckedNode(node.id, 0.5, 0.25, 3.0) for node in nodes})
    log = tuple(
        RunRow(
            place, 1.0, 2.0**place, True,
            SkipCause(text, text, "backward", text, text, place, text, (text,), place % 2 == 0),
        )
        for place, text in enumerate(texts[:60])
    )  # fmt: skip
    return ReportInput(view, view, ranges, check, log)

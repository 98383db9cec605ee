"""Time a report of many ops, with both graphs, in a headless Chromium.

``python -m bench.compile_time.report_large --ops 20000`` prints the size of the report, the time
in Chromium from the start of the navigation until it can be used, and the time of clicks and
searches; once for ops in modules, once for as many ops in one module.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

from playwright.sync_api import Page

from bench.browser import browser, open_report
from bench.machine import describe
from mpcompile.plan.dataflow import Where
from mpcompile.show.html_report.document import ReportInput, document
from mpcompile.show.html_report.page import render
from mpcompile.show.view import NodePrecision, NodeRole, Stage, View, ViewNode

_LAYER = ("norm", "attention.q", "attention.k", "attention.v", "attention.out", "mlp.0", "mlp.2")
_STAGES: tuple[Stage, ...] = ("forward", "backward")

# Each returns the milliseconds until the next frame is on the screen.
_PAINTED = "new Promise((done) => requestAnimationFrame(() => setTimeout(done)))"
_OPEN = f"""async (name) => {{
  const group = mpreport.canvases[1].modules.byKey.get(name);
  const begin = performance.now();
  toggle(mpreport.canvases[1].graph, group);
  await {_PAINTED};
  return [performance.now() - begin, mpreport.canvases[1].cy.elements().length];
}}"""
_FIND = f"""async (words) => {{
  const field = document.getElementById("search");
  field.value = words;
  const begin = performance.now();
  field.dispatchEvent(new Event("input"));
  await {_PAINTED};
  return performance.now() - begin;
}}"""
_GROUPS = """() => {
  const found = [];
  let group = mpreport.canvases[1].modules.root;
  while ((group = group.members.find((member) => typeof member !== "number"))) {
    found.push(group.key);
  }
  return found;
}"""
_CHOOSE = f"""async () => {{
  const begin = performance.now();
  document.querySelector("#found [role=option]").click();
  await {_PAINTED};
  return performance.now() - begin;
}}"""


def view(ops: int, mixed: bool, flat: bool) -> View:
    """Return a step of `ops` ops, forward and backward, with weights and perhaps casts.

    Args:
        ops: how many ops.
        mixed: whether most are 16 bits, with a cast before each norm.
        flat: whether all are in one module; else there are seven per layer.
    """
    nodes: list[ViewNode] = [_node("x", "batch", "input", "forward", "f32", (), "")]
    for stage in _STAGES:
        for place in range(ops // 2):
            last = nodes[-1].id
            layer, part = divmod(place, len(_LAYER))
            module = "" if flat else f"layers.{layer}.{_LAYER[part]}"
            narrow = mixed and part > 0
            name = f"{stage}_{place}"
            reads: tuple[str, ...] = (last,)
            if mixed and part == 0:
                cast = f"{name}_cast"
                nodes.append(_node(cast, "_to_copy", "cast", stage, "both", (last,), module))
                reads = (cast,)
            if stage == "forward" and part > 0:
                weight = f"{name}_weight"
                kind: NodePrecision = "f16" if narrow else "f32"
                nodes.append(_node(weight, "master", "input", stage, kind, (), module))
                reads = (*reads, weight)
            op = "layer_norm" if part == 0 else "linear"
            nodes.append(_node(name, op, "op", stage, "f16" if narrow else "f32", reads, module))
    return View("large.py", "program", "fp16", tuple(nodes))


def _node(
    id: str,
    op: str,
    role: NodeRole,
    stage: Stage,
    precision: NodePrecision,
    reads: tuple[str, ...],
    module: str,
) -> ViewNode:
    stores = "f16" if precision == "f16" else "f32"
    return ViewNode(
        id, op, role, stage, precision, stores, (stores,), f"{stores}[8,1024,1024]", 1 << 24, reads,
        planned=id if role == "op" else "", reason=f"because of {op}", saved=role == "op",
        alive=1 << 30, where=Where(module, "large.py", 1 + len(id)),
    )  # fmt: skip


def _seconds(page: Page) -> float:
    """Return the time from the start of the navigation until the page could be used."""
    return float(page.evaluate("performance.getEntriesByName('ready')[0].startTime")) / 1000


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ops", type=int, default=20_000)
    arguments = parser.parse_args()
    print(json.dumps(describe("cpu")))
    with tempfile.TemporaryDirectory() as folder, browser() as started:
        print(f"Chromium {started.version}")
        for flat in (False, True):
            before, after = (view(arguments.ops, mixed, flat) for mixed in (False, True))
            begin = time.perf_counter()
            page_text = render(document(ReportInput(after, before)), after.source)
            written = time.perf_counter() - begin
            file = Path(folder) / "large.html"
            file.write_text(page_text, encoding="utf-8")
            print(
                f"{'one module' if flat else 'modules'}: {len(before.nodes):,} and "
                f"{len(after.nodes):,} nodes, {file.stat().st_size / 1e6:.1f} MB, "
                f"made in {written:.2f} s"
            )
            for trial in range(3):
                page = open_report(started, file)
                print(f"  opened in {_seconds(page):.2f} s ({trial + 1} of 3)")
                if trial < 2:
                    page.context.close()
            page.evaluate("for (const canvas of mpreport.canvases) canvas.closeAll()")
            for group in page.evaluate(_GROUPS):
                milliseconds, drawn = page.evaluate(_OPEN, group)
                print(f"  opened a group in {milliseconds:.0f} ms, {drawn} elements then drawn")
            print(f"  first search {page.evaluate(_FIND, 'cast 777'):.0f} ms")
            print(f"  next search {page.evaluate(_FIND, 'linear backward 99'):.0f} ms")
            print(f"  jump to what was found {page.evaluate(_CHOOSE):.0f} ms")
            page.context.close()


if __name__ == "__main__":
    main()

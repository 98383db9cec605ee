"""The report in a real browser: clicks, keys, the page after them, and that no name runs."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from planted.hostile_texts import CANARY, hostile_texts
from playwright.sync_api import Browser, Page, expect
from programs import report_subjects, tall

from bench.browser import browser, chromium, open_report
from mpcompile.errors import printable
from mpcompile.numerics.calibration import calibrate
from mpcompile.numerics.run_log import RunRow, SkipCause
from mpcompile.pipeline import transform
from mpcompile.plan.policy import FULL_PRECISION, Policy
from mpcompile.show.html_report.document import ReportInput, document
from mpcompile.show.html_report.page import render
from mpcompile.show.of_step import view_of
from mpcompile.show.view import View, ViewNode
from mpcompile.step.transformed import Choices

BEFORE, AFTER = 0, 1
LOG = (
    RunRow(0, 3.0, 65536.0, True, SkipCause("addmm", why="it was the search", expected=True)),
    RunRow(1, 2.5, 32768.0),
    RunRow(2, None, 32768.0, True, SkipCause("mm", why="a gradient overflowed")),
    RunRow(3, 2.0, 16384.0),
)


@dataclass
class Opened:
    """A page, and the errors and requests that must not happen on it."""

    page: Page
    wrong: list[str] = field(default_factory=list)

    def at(self, pane: int, member: str) -> tuple[float, float]:
        """Return the position of a node on the screen; `member` is a JavaScript expression."""
        position = self.page.evaluate(
            f"""() => {{
              const {{ modules, graph }} = mpreport.canvases[{pane}];
              return mpreport.position({pane}, {member});
            }}"""
        )
        assert position is not None, member
        return position["x"], position["y"]

    def click(self, pane: int, member: str) -> None:
        """Click with the mouse, as a person does."""
        self.page.mouse.click(*self.at(pane, member))

    def drawn(self, pane: int) -> int:
        """Return how many elements a canvas shows."""
        return int(self.page.evaluate(f"mpreport.canvases[{pane}].cy.elements().length"))


def in_browser() -> Iterator[Browser]:
    if chromium() is None:
        assert os.environ.get("CI") != "true", "CI has no chromium: .ci/run installs it"
        pytest.skip("there is no chromium on the path")
    with browser() as started:
        yield started


started = pytest.fixture(scope="module")(in_browser)


def opened(started: Browser, subject: ReportInput, folder: Path) -> Opened:
    file = folder / "the report.html"
    file.write_text(render(document(subject), subject.after.source), encoding="utf-8")
    leaving: list[str] = []
    page = open_report(started, file, leaving=leaving)
    found = Opened(page, leaving)
    page.on("console", lambda said: found.wrong.append(f"console: {said.type} {said.text}"))
    page.on("pageerror", lambda error: found.wrong.append(f"error: {error}"))

    def dialog(shown: object) -> None:
        found.wrong.append(f"dialog: {shown}")

    page.on("dialog", dialog)
    page.reload()  # so that the listeners see the whole load
    page.wait_for_function("document.documentElement.dataset.ready !== undefined")
    return found


@pytest.fixture(scope="module")
def subject() -> ReportInput:
    workload = tall.workload()
    before, after = (
        transform(workload, Choices(policy=policy)) for policy in (FULL_PRECISION, Policy())
    )
    return ReportInput(
        view_of(after, "tall.py"),
        view_of(before, "tall.py"),
        calibrate(workload),
        log=LOG,
        quotes=True,
    )


@pytest.fixture
def shown(started: Browser, subject: ReportInput, tmp_path: Path) -> Iterator[Opened]:
    found = opened(started, subject, tmp_path)
    yield found
    assert found.wrong == []
    found.page.context.close()


def node(name: str) -> str:
    return f"graph.nodeCalled('{name}')"


def cast_in(view: View) -> ViewNode:
    return next(item for item in view.nodes if item.role == "cast" and item.stage == "forward")


def test_both_graphs_are_shown_with_their_modules(shown: Opened, subject: ReportInput) -> None:
    assert subject.before is not None
    headers = shown.page.locator(".pane header").all_inner_texts()
    assert [text.split("\n")[0] for text in headers] == ["Before", "After"]
    assert f"{len(subject.before.nodes):,} nodes" in headers[BEFORE]
    assert f"{len(subject.after.nodes):,} nodes" in headers[AFTER]
    for pane in (BEFORE, AFTER):
        shown.at(pane, r"modules.byKey.get('\nforward')")
        shown.at(pane, r"modules.byKey.get('\nbackward')")
    assert shown.page.title().startswith("tall.py")


def test_a_click_opens_a_module_in_both_graphs_and_one_on_its_title_closes_it(
    shown: Opened,
) -> None:
    group = r"modules.byKey.get('\nbackward')"
    for button in shown.page.get_by_role("button", name="Close all").all():
        button.click()
    before = [shown.drawn(BEFORE), shown.drawn(AFTER)]
    shown.click(AFTER, group)
    opened = [shown.drawn(BEFORE), shown.drawn(AFTER)]
    assert all(now > then for now, then in zip(opened, before, strict=True))
    assert shown.page.locator("#panel h2").inner_text() == "backward"
    x, _ = shown.at(AFTER, group)
    title = shown.page.evaluate(
        r"""() => {
          const canvas = mpreport.canvases[1];
          const { top } = canvas.cy.container().getBoundingClientRect();
          return top + 8 + canvas.cornerOf(canvas.modules.byKey.get('\nbackward')).y;
        }"""
    )
    shown.page.mouse.click(x, title)
    assert [shown.drawn(BEFORE), shown.drawn(AFTER)] == before


def test_search_finds_a_node_and_a_click_on_a_cast_shows_its_reason(
    shown: Opened, subject: ReportInput
) -> None:
    cast = cast_in(subject.after)
    source = subject.after.by_id[cast.reads[0]]
    shown.page.keyboard.press("/")
    expect(shown.page.locator("#search")).to_be_focused()
    shown.page.keyboard.type(cast.id)
    expect(shown.page.locator("#found [role=option]").first).to_contain_text(cast.id)
    shown.page.keyboard.press("Enter")
    expect(shown.page.locator("#panel h2")).to_have_text(cast.id)
    shown.page.locator("#panel .nodes .link", has_text=source.id).first.click()
    expect(shown.page.locator("#panel h2")).to_have_text(source.id)
    shown.click(AFTER, node(cast.id))
    panel = shown.page.locator("#panel")
    expect(panel.locator("h2")).to_have_text(cast.id)
    expect(panel.locator(".why")).to_have_text(cast.reason)
    expect(panel).to_contain_text(cast.type)
    expect(panel).to_contain_text(f"{cast.bytes:,}")
    expect(panel).to_contain_text(source.id)
    assert shown.page.url.endswith(f"#after/{cast.id}")


def test_a_node_shows_its_source_line_its_ranges_and_its_counterpart(
    shown: Opened, subject: ReportInput
) -> None:
    assert subject.ranges is not None
    op = next(
        item
        for item in subject.after.nodes
        if item.planned in subject.ranges.values and item.role == "op" and item.where.file
    )
    shown.page.fill("#search", op.id)
    shown.page.keyboard.press("Enter")
    panel = shown.page.locator("#panel")
    expect(panel.locator("h2")).to_have_text(op.id)
    expect(panel.locator(".source")).to_contain_text(f":{op.where.line}")
    line = Path(op.where.file).read_text().splitlines()[op.where.line - 1].strip()
    expect(panel.locator("pre")).to_have_text(line)
    largest = subject.ranges.values[op.planned].largest_finite
    row = panel.get_by_role("row", name=re.compile("^largest")).first
    assert float(row.inner_text().split()[1]) == pytest.approx(largest, rel=1e-3)
    expect(panel.locator(".uplot").first).to_be_visible()
    assert shown.page.evaluate("mpreport.canvases[0].selected") is not None
    panel.locator("p .link").last.click()
    expect(panel.locator(".tags")).to_contain_text("before")


def test_a_hidden_node_is_shown_when_it_is_searched(shown: Opened, subject: ReportInput) -> None:
    view = next(item for item in subject.after.nodes if item.role == "view")
    hidden = shown.page.evaluate(f"mpreport.canvases[1].isShown({_index(subject.after, view)})")
    assert hidden is False
    shown.page.fill("#search", f"{view.id} view")
    shown.page.keyboard.press("Enter")
    expect(shown.page.locator("#panel h2")).to_have_text(view.id)
    shown.at(AFTER, node(view.id))
    count = shown.drawn(AFTER)
    shown.page.check("#views")
    assert shown.drawn(AFTER) > count


def _index(view: View, wanted: ViewNode) -> int:
    return view.nodes.index(wanted)


def test_tables_list_the_casts_and_link_to_the_graph(shown: Opened, subject: ReportInput) -> None:
    shown.page.click("#tab-tables")
    tables = shown.page.locator("#tables")
    casts = [item for item in subject.after.nodes if item.role == "cast"]
    expect(tables).to_contain_text(re.compile(rf"{len(casts)} casts?"))
    for stage in ("forward", "backward", "update"):
        count = sum(item.role == "op" and item.stage == stage for item in subject.after.nodes)
        expect(tables).to_contain_text(f"{stage}: {count} ops")
    cast = cast_in(subject.after)
    row = tables.locator("tr").filter(
        has=shown.page.get_by_role("button", name=cast.id, exact=True)
    )
    expect(row.locator(".why").first).to_have_text(cast.reason)
    row.first.get_by_role("button", name=cast.id, exact=True).first.click()
    expect(shown.page.locator("#graph")).to_be_visible()
    expect(shown.page.locator("#panel h2")).to_have_text(cast.id)


def test_plots_show_ranges_exponents_loss_scale_and_why_steps_were_skipped(shown: Opened) -> None:
    shown.page.click("#tab-plots")
    plots = shown.page.locator("#plots")
    titles = " ".join(plots.locator("h2").all_inner_texts())
    for word in ("Loss", "Loss scale", "2 skipped steps", "Memory", "Ranges", "all gradients"):
        assert word in titles
    expect(plots.locator(".uplot canvas")).to_have_count(6)
    expect(plots).to_contain_text("a gradient overflowed")
    expect(plots.locator("strong.danger")).to_have_count(1)


def test_a_selection_is_in_the_address(shown: Opened, subject: ReportInput) -> None:
    cast = cast_in(subject.after)
    shown.page.evaluate("(id) => { location.hash = `after/${id}`; }", cast.id)
    expect(shown.page.locator("#panel h2")).to_have_text(cast.id)
    shown.page.evaluate("() => { location.hash = 'after/%E0%A4%A'; }")
    expect(shown.page.locator("#panel h2")).to_have_text(cast.id)


def test_a_plan_alone_is_one_graph(started: Browser, tmp_path: Path) -> None:
    nodes = (ViewNode("x", "add", "op", "forward", "f16", reason="it may"),)
    found = opened(started, ReportInput(View("plan.json", "plan", "fp16", nodes)), tmp_path)
    found.click(0, node("x"))
    expect(found.page.locator("#panel .why")).to_have_text("it may")
    found.page.click("#tab-plots")
    expect(found.page.locator("#plots")).to_contain_text("mpcompile calibrate")
    found.page.click("#tab-tables")
    expect(found.page.locator("#tables")).to_contain_text("0 casts")
    assert found.wrong == []


def test_a_module_with_too_many_members_is_cut_into_parts(started: Browser, tmp_path: Path) -> None:
    nodes = tuple(
        ViewNode(f"n{i}", "add", "op", "forward", "f16", reads=(f"n{i - 1}",) if i else ())
        for i in range(2000)
    )
    found = opened(started, ReportInput(View("x", "plan", "fp16", nodes)), tmp_path)
    assert found.drawn(0) < 60
    found.page.fill("#search", "n1777")
    found.page.keyboard.press("Enter")
    expect(found.page.locator("#panel h2")).to_have_text("n1777")
    found.at(0, node("n1777"))
    assert found.drawn(0) < 1300
    assert found.wrong == []


def test_a_graph_with_too_many_edges_is_drawn_in_rows(started: Browser, tmp_path: Path) -> None:
    nodes = tuple(
        ViewNode(f"n{i}", "add", "op", "forward", "f16", reads=tuple(f"n{j}" for j in range(i)))
        for i in range(200)
    )
    found = opened(started, ReportInput(View("x", "plan", "fp16", nodes)), tmp_path)
    found.click(0, node("n3"))
    expect(found.page.locator("#panel h2")).to_have_text("n3")
    assert found.page.evaluate("mpreport.canvases[0].cy.elements('.real').length") == 199
    assert found.wrong == []


SHOWN = """() => Array.from({ length: LAST.size }, (_, node) => {
  panel.node(LAST, node, canvases[1].modules);
  const text = (query) => document.querySelector(`#panel ${query}`)?.textContent ?? "";
  return [text("h2"), text(".why"), text(".source")];
})"""


def test_hostile_texts_are_displayed_unchanged_and_run_nothing(
    started: Browser, tmp_path: Path
) -> None:
    subject = report_subjects.hostile(hostile_texts(500))
    found = opened(started, subject, tmp_path)
    page = found.page
    told = page.evaluate(SHOWN)
    for item, (name, why, source) in zip(subject.after.nodes, told, strict=True):
        assert name == printable(item.id)
        assert why == printable(item.reason)
        file = printable(item.where.file)
        assert source == (f"{file}:{item.where.line}" if file else "")
    for word in ("script", "canary", "__proto__", "constructor", "\\u202e"):
        page.fill("#search", word)
        assert page.locator("#found [role=option]").count() > 0
        page.keyboard.press("Enter")
    page.evaluate(
        "for (const canvas of canvases) for (const group of canvas.modules.all) "
        "canvas.setOpen(group, true)"
    )
    page.check("#views")
    page.mouse.move(700, 500)
    page.click("#tab-tables")
    for _ in range(20):
        if (more := page.locator("#tables .more:visible")).count():
            more.first.click()
    page.click("#tab-plots")
    plot = page.locator("#plots .uplot .u-over")
    for index in range(plot.count()):
        plot.nth(index).hover()
    assert printable(subject.after.source) in (page.locator("h1").text_content() or "")
    assert page.evaluate(f"{CANARY} === undefined")
    assert page.evaluate(
        "({}).polluted === undefined && Object.keys(Object.prototype).length === 0"
    )
    assert page.evaluate("document.querySelectorAll('iframe, img, svg, a, base').length") == 0
    assert found.wrong == []

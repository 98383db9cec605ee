"use strict";
// Joins the parts: one selection for both graphs, tabs, keys, and the address.

const TABS = ["graph", "tables", "plots"];
const drawn = new Set(["graph"]);

function byId(id) {
  return document.getElementById(id);
}

function canvasOf(graph) {
  return canvases[graph.index];
}

// Selects a node or a group and its counterpart in the other graph, and shows its facts.
function select(graph, member) {
  openTab("graph");
  const canvas = canvasOf(graph);
  canvas.show(member);
  if (BEFORE) showTwin(graph, member);
  if (member instanceof Group) {
    panel.group(graph, member, canvas.open.has(member), canvas.modules);
  } else {
    panel.node(graph, member, canvas.modules);
    history.replaceState(null, "", `#${graph.name}/${encodeURIComponent(graph.id(member))}`);
  }
}

function showTwin(graph, member) {
  const other = canvasOf(otherGraph(graph));
  const twin = member instanceof Group ?
    other.modules.byKey.get(member.key) : twinOf(graph, member);
  if (twin !== undefined) {
    other.show(twin);
  } else {
    other.selected = null;
    other.mark();
  }
}

// Opens or closes a group in both graphs.
function toggle(graph, group) {
  const canvas = canvasOf(graph);
  canvas.toggle(group);
  const open = canvas.open.has(group);
  canvas.selected = group;
  canvas.mark();
  if (BEFORE) {
    const other = canvasOf(otherGraph(graph));
    const twin = other.modules.byKey.get(group.key);
    if (twin && twin.parent) other.setOpen(twin, open);
    other.selected = twin ?? null;
    other.mark();
  }
  panel.group(graph, group, open, canvas.modules);
}

function openTab(name) {
  for (const tab of TABS) {
    byId(tab).hidden = tab !== name;
    byId(`tab-${tab}`).setAttribute("aria-selected", String(tab === name));
  }
  if (drawn.has(name)) return;
  drawn.add(name);
  if (name === "tables") tables = new Tables(byId("tables"), select);
  if (name === "plots") plots.draw();
}

function openTensor(name) {
  for (let node = 0; node < LAST.size; node++) {
    const isIt = LAST.id(node) === name || (LAST.text("planned", node) === name);
    if (isIt && LAST.role(node) !== "cast") return select(LAST, node);
  }
}

function head() {
  const kinds = { program: "a program", onnx: "an ONNX model", plan: "a plan" };
  byId("what").textContent = `${kinds[DOCUMENT.kind]} in ${DOCUMENT.format}, by mpcompile ${DOCUMENT.tool}`;
  const totals = GRAPHS.map((graph) => graph.totals);
  const after = totals[totals.length - 1];
  const change = (of, text) => (BEFORE ? `${text(of(totals[0], GRAPHS[0]))} → ` : "") + text(of(after, LAST));
  const bar = element("span", { class: "bar", role: "img", "aria-label": "ops by precision" });
  PRECISIONS.forEach((name, index) => {
    if (!after.counts[index]) return;
    const part = element("span", { class: name, title: `${countText(after.counts[index])} ${name}` },
      after.counts[index] > after.ops / 12 ? `${countText(after.counts[index])} ${name}` : "");
    part.style.flexGrow = String(after.counts[index]);
    bar.append(part);
  });
  const fact = (name, value) => element("span", { class: "fact" }, element("b", {}, value), ` ${name}`);
  byId("overview").replaceChildren(...[
    fact("ops", countText(after.ops)), bar, fact("casts", countText(after.casts)),
    after.saved > 0 && fact("saved for backward", change((total) => total.saved, bytesText)),
    LAST.peak && (!BEFORE || BEFORE.peak) &&
      fact("at the peak", change((_, graph) => graph.peak[1], bytesText)),
  ].filter(Boolean));
}

function panes() {
  const titles = { before: "Before", after: BEFORE ? "After" : "The graph" };
  return GRAPHS.map((graph) => {
    const container = element("div", { class: "canvas", role: "application", "aria-label": `graph ${graph.name}` });
    const fit = element("button", { type: "button", onclick: () => canvasOf(graph).fit() }, "Fit");
    const close = element("button", { type: "button", onclick: () => canvasOf(graph).closeAll() }, "Close all");
    byId("panes").append(element("section", { class: "pane", "aria-label": titles[graph.name] },
      element("header", {}, element("h2", {}, titles[graph.name]),
        element("span", { class: "quiet" }, `${countText(graph.size)} nodes`), fit, close), container));
    return new Canvas(graph, container, {
      select: (canvas, member) => select(canvas.graph, member),
      toggle: (canvas, group) => toggle(canvas.graph, group),
    });
  });
}

function openAddress() {
  const [name, id] = location.hash.slice(1).split("/");
  const graph = GRAPHS.find((item) => item.name === name);
  if (!graph || !id) return;
  let called;
  try {
    called = graph.nodeCalled(decodeURIComponent(id));
  } catch {
    return; // an address written by hand
  }
  if (called !== undefined) select(graph, called);
}

function listen() {
  for (const tab of TABS) byId(`tab-${tab}`).addEventListener("click", () => openTab(tab));
  document.addEventListener("keydown", (event) => {
    const typing = event.target instanceof HTMLInputElement;
    if (event.key !== "/" || typing || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    byId("search").focus();
    byId("search").select();
  });
  byId("views").addEventListener("change", hide);
  byId("inputs").addEventListener("change", hide);
  window.addEventListener("hashchange", openAddress);
  DARK.addEventListener("change", () => {
    for (const canvas of canvases) canvas.restyle();
    if (drawn.has("plots")) plots.draw();
  });
  let waiting = 0;
  window.addEventListener("resize", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => drawn.has("plots") && !byId("plots").hidden && plots.draw(), 150);
  });
}

function hide() {
  const roles = new Set();
  if (!byId("views").checked) roles.add("view");
  if (!byId("inputs").checked) for (const role of ["input", "output"]) roles.add(role);
  for (const canvas of canvases) canvas.setHidden(roles);
}

let tables = null;
const canvases = panes();
const panel = new Panel(byId("panel"), { select, toggle });
const plots = new Plots(byId("plots"), openTensor);
new Search(byId("search"), byId("found"), new Finder(canvases), select);
head();
listen();
if (BEFORE) canvasOf(BEFORE).mirror(canvasOf(LAST));
for (const canvas of canvases) canvas.fit();
openAddress();
// For tests: the position of a member of a graph on the screen.
window.mpreport = {
  canvases,
  position(pane, member) {
    const canvas = canvases[pane];
    const found = canvas.cy.getElementById(canvas.idOf(member));
    if (found.empty()) return null;
    const { left, top } = canvas.cy.container().getBoundingClientRect();
    const { x, y } = found.renderedPosition();
    return { x: left + x, y: top + y };
  },
};
requestAnimationFrame(() => {
  performance.mark("ready");
  document.documentElement.dataset.ready = String(Math.round(performance.now()));
});

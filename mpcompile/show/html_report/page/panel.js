"use strict";
// The panel: all facts about the selected node or group.

const MOST_LISTED = 12;

// asked: callbacks {select(graph, member), toggle(graph, group)}
class Panel {
  constructor(container, asked) {
    this.container = container;
    this.asked = asked;
    this.plots = [];
    this.empty();
  }

  show(...children) {
    for (const plot of this.plots) plot.destroy();
    this.plots = [];
    this.container.replaceChildren(...children.flat(Infinity).filter(Boolean));
    this.container.scrollTop = 0;
  }

  empty() {
    this.show(
      element("h2", {}, "Nothing selected"),
      element("p", { class: "quiet" },
        "Click a module to open it, its title to close it, and a node to read the reason for its " +
        "precision. Press / to search."),
    );
  }

  // modules: those of the graph, for the path above the title
  node(graph, node, modules) {
    const role = graph.role(node);
    this.show(
      this.path(graph, modules.path(node)),
      element("h2", {}, literal(graph.id(node), "name")),
      element("p", { class: "tags" },
        chip(graph.precision(node)),
        element("span", { class: `tag ${role}` }, role),
        element("span", { class: "tag" }, graph.stage(node)),
        graph.columns.saved[node] ? element("span", { class: "tag" }, "saved for backward") : null,
        BEFORE && element("span", { class: "tag" }, graph.name),
      ),
      this.reason(graph, node),
      this.table(this.rows(graph, node)),
      this.source(graph, node),
      this.checked(graph, node),
      this.measured(graph, node),
      this.neighbours(graph, "reads", graph.reads(node)),
      this.neighbours(graph, "read by", graph.readers(node)),
      this.twin(graph, node),
    );
  }

  group(graph, group, isOpen, modules) {
    const verb = isOpen ? "Close" : "Open";
    const counts = PRECISIONS.map((name, index) => [name, group.counts[index]])
      .filter(([, count]) => count)
      .map(([name, count]) => [name, element("span", {}, chip(name), ` ${plural(count, "op")}`)]);
    this.show(
      this.path(graph, modules.path(group).slice(0, -1)),
      element("h2", {}, literal(group.name, "name")),
      element("p", { class: "tags" },
        element("span", { class: "tag" }, group.isPart ? "part" : group.level === 1 ? "stage" : "module"),
        BEFORE && element("span", { class: "tag" }, graph.name)),
      this.table([
        ...counts,
        ["casts", countText(group.casts)],
        ["nodes", countText(group.nodes)],
        ["saved for backward", bytesText(group.saved)],
      ]),
      element("p", {}, element("button", {
        type: "button", onclick: () => this.asked.toggle(graph, group),
      }, verb)),
    );
  }

  path(graph, groups) {
    const parts = groups.flatMap((group) => [
      link(shortened(group.name, 40), () => this.asked.select(graph, group)), " › ",
    ]);
    return element("nav", { class: "path", "aria-label": "enclosing modules" }, parts);
  }

  reason(graph, node) {
    const why = graph.text("reason", node);
    const rule = graph.text("rule", node);
    if (!why) return null;
    return element("div", { class: "reason" },
      element("h3", {}, "Why"), element("p", {}, literal(why, "why")),
      rule && element("p", { class: "quiet" }, "by ", literal(rule)));
  }

  rows(graph, node) {
    const alive = graph.columns.alive[node];
    const computes = graph.text("computes", node);
    const planned = graph.text("planned", node);
    return [
      ["op", literal(graph.text("op", node))],
      graph.role(node) === "cast" && ["converts", graph.castText(node)],
      ["type", literal(graph.text("type", node) || "not known")],
      ["bytes", `${bytesText(graph.bytes(node))} (${countText(graph.bytes(node))})`],
      computes && ["computes in", computes],
      graph.text("stores", node) && ["stored as", graph.text("stores", node)],
      planned && planned !== graph.id(node) && ["op of the plan", literal(planned)],
      alive > 0 && ["memory here", bytesText(alive)],
    ].filter(Boolean);
  }

  table(rows) {
    return element("table", { class: "facts" }, element("tbody", {}, rows.map(([name, value]) =>
      element("tr", {}, element("th", { scope: "row" }, name), element("td", {}, value)))));
  }

  source(graph, node) {
    const source = graph.sourceText(node);
    if (!source) return null;
    const quote = QUOTES.get(source);
    return [element("h3", {}, "Source"), element("p", { class: "source" }, literal(source)),
      quote && element("pre", {}, literal(quote))];
  }

  checked(graph, node) {
    const row = graph === LAST ? CHECKED.get(graph.id(node)) : undefined;
    if (!row) return null;
    const errorText = (value) => (value === null ? "unknown" : numberText(value));
    return [
      element("h3", {}, "Compared with ", literal(stringAt(DOCUMENT.check.reference))),
      this.table([
        ["error", errorText(row.error)],
        row.autocast !== null && ["autocast's error", errorText(row.autocast)],
        row.headroom !== null && ["headroom", headroomText(row.headroom)],
        ["became zero", shareText(row.zeros)],
        ["subnormal in FP16", shareText(row.subnormals)],
      ].filter(Boolean)),
    ];
  }

  measured(graph, node) {
    const name = measuredName(graph, node);
    if (name === null) return null;
    const parts = [[VALUES.get(name), "Its values"], [GRADIENTS.get(name), "Its gradient"]];
    return parts.filter(([held]) => held).flatMap(([held, title]) => {
      const box = element("div", { class: "plot small" });
      requestAnimationFrame(() => {
        if (box.isConnected) this.plots.push(histogram(box, held, 130));
      });
      return [
        element("h3", {}, title, element("span", { class: "quiet" },
          `, over ${plural(DOCUMENT.ranges.batches, "batch", "batches")}`)),
        this.table([
          ["largest", numberText(held.largest)],
          ["headroom", headroomText(headroom(held))],
          ["zeros", shareText(held.count ? held.zeros / held.count : 0)],
          ["below 2⁻²⁴, lost", shareText(shareBelow(held, FP16.smallest))],
          ["below 2⁻¹⁴", shareText(shareBelow(held, FP16.normal))],
          held.nonfinite > 0 && ["not finite", countText(held.nonfinite)],
        ].filter(Boolean)),
        box,
      ];
    });
  }

  neighbours(graph, title, nodes) {
    if (!nodes.length) return null;
    const list = element("ul", { class: "nodes" });
    const add = (some) => list.append(...some.map((other) => element("li", {},
      chip(graph.precision(other)), " ",
      link(graph.id(other), () => this.asked.select(graph, other)),
      element("span", { class: "quiet" }, " ", literal(shortened(graph.text("op", other), 40))))));
    add(nodes.slice(0, MOST_LISTED));
    const rest = nodes.slice(MOST_LISTED, 1000);
    const more = rest.length > 0 && element("button", {
      type: "button", class: "more",
      onclick: (event) => {
        add(rest);
        event.target.remove();
      },
    }, `${countText(rest.length)} more`);
    return [element("h3", {}, `${title} ${countText(nodes.length)}`), list, more];
  }

  twin(graph, node) {
    const other = twinOf(graph, node);
    if (other === undefined) {
      return BEFORE && element("p", { class: "quiet" }, `Only in the graph ${graph.name}.`);
    }
    const there = otherGraph(graph);
    return [
      element("h3", {}, there === BEFORE ? "Before" : "After"),
      element("p", {}, chip(there.precision(other)), " ",
        link(there.id(other), () => this.asked.select(there, other)), " ",
        literal(there.text("type", other), "quiet")),
    ];
  }
}

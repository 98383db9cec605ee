"use strict";
// The tables, as mpcompile/show/tables.py counts them; each row links to its node.

const ROWS_AT_ONCE = 25;

// A table with a button for more rows. columns: [[title, class]]; make(item) returns the cells.
function growing(title, note, columns, items, make, opened) {
  const body = element("tbody");
  const more = element("button", { type: "button", class: "more" });
  let shown = 0;
  const grow = (count) => {
    for (const item of items.slice(shown, shown + count)) {
      const cells = make(item).map((cell, index) =>
        element("td", { class: columns[index][1] || null }, cell));
      body.append(element("tr", {}, cells));
    }
    shown = Math.min(shown + count, items.length);
    const rest = items.length - shown;
    more.hidden = rest === 0;
    more.textContent = `Show ${countText(Math.min(rest, 8 * ROWS_AT_ONCE))} of ${countText(rest)} more`;
  };
  more.addEventListener("click", () => grow(8 * ROWS_AT_ONCE));
  grow(opened ?? ROWS_AT_ONCE);
  const head = element("tr", {}, columns.map(([name, kind]) =>
    element("th", { scope: "col", class: kind || null }, name)));
  return element("section", { class: "card wide" },
    element("h2", {}, title), note && element("p", { class: "quiet" }, note),
    items.length ? element("div", { class: "scroll" },
      element("table", { class: "rows" }, element("thead", {}, head), body)) :
      element("p", {}, "None."),
    more);
}

class Tables {
  // selected(graph, node): callback for a click on a row
  constructor(container, selected) {
    this.selected = selected;
    const { ops, casts, saved, costs } = DOCUMENT.tables;
    container.replaceChildren(
      element("div", { class: "columns" }, ops.map(([stage, rows]) => this.ops(stage, rows))),
      this.casts(casts), this.saved(saved), this.costs(costs),
    );
  }

  ops(stage, rows) {
    const used = PRECISIONS.filter((_, index) => rows.some((row) => row[index + 1]));
    const total = rows.reduce((sum, row) => sum + row.slice(1).reduce((a, b) => a + b, 0), 0);
    const columns = [["op", "text"], ...used.map((name) => [chip(name), "number"])];
    const cells = (row) => [
      literal(stringAt(row[0])),
      ...used.map((name) => countText(row[PRECISIONS.indexOf(name) + 1]).replace(/^0$/, "·")),
    ];
    const sums = used.map((name) =>
      rows.reduce((sum, row) => sum + row[PRECISIONS.indexOf(name) + 1], 0));
    const note = used.map((name, index) => `${countText(sums[index])} ${name}`).join(", ");
    return growing(`${stage}: ${plural(total, "op")}`, note, columns, rows, cells, 14);
  }

  node(node, most = 48) {
    return link(shortened(LAST.id(node), most), () => this.selected(LAST, node), LAST.id(node));
  }

  where(node) {
    const module = LAST.text("module", node);
    const source = LAST.sourceText(node).split("/").pop();
    return [literal(shortened(module, 50)), module && source ? " " : "",
      element("span", { class: "quiet" }, literal(shortened(source, 40)))];
  }

  casts(rows) {
    const moved = rows.reduce((sum, [, bytes]) => sum + bytes, 0);
    const cells = ([node, bytes]) => {
      const readers = LAST.readers(node);
      const more = readers.length > 2 ? ` and ${countText(readers.length - 2)} more` : "";
      const source = LAST.reads(node)[0];
      return [
        this.node(node),
        [source === undefined ? "" : this.node(source, 36), " → ",
          readers.slice(0, 2).flatMap((reader, at) => [at ? ", " : "", this.node(reader, 36)]), more],
        LAST.castText(node), bytesText(bytes), literal(LAST.text("reason", node), "why"),
      ];
    };
    return growing(plural(rows.length, "cast"),
      `${bytesText(moved)} are read and written if nothing fuses them.`,
      [["cast", "text"], ["edge", "text"], ["to", ""], ["bytes", "number"], ["why", "text wide"]],
      rows, cells);
  }

  saved(rows) {
    const total = rows.reduce((sum, node) => sum + LAST.bytes(node), 0);
    const cells = (node) => [
      this.node(node), literal(LAST.text("op", node)), chip(LAST.precision(node)),
      literal(LAST.text("type", node)), bytesText(LAST.bytes(node)), this.where(node),
    ];
    return growing(`Saved for backward: ${plural(rows.length, "tensor")}`, bytesText(total),
      [["tensor", "text"], ["op", "text"], ["", ""], ["type", "text"], ["bytes", "number"],
        ["where", "text wide"]], rows, cells);
  }

  costs(rows) {
    const cells = ([node, bytes]) => [
      this.node(node), literal(LAST.text("op", node)), chip(LAST.precision(node)),
      literal(LAST.text("type", node)), bytesText(bytes), this.where(node),
    ];
    return growing("Largest costs", "Bytes read and written if nothing is fused.",
      [["node", "text"], ["op", "text"], ["", ""], ["type", "text"], ["bytes", "number"],
        ["where", "text wide"]], rows, cells, 10);
  }
}

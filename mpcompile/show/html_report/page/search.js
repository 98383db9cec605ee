"use strict";
// Search over ids, ops, modules and source positions; all words must occur.

const MOST_FOUND = 60;

class Finder {
  // canvases: the search finds their modules, too
  constructor(canvases) {
    this.canvases = canvases;
  }

  // [{graph, member, text}], the graph after first.
  find(query) {
    this.known ??= this.canvases.slice().reverse().flatMap((canvas) => this.entries(canvas));
    const words = query.toLowerCase().split(/\s+/).filter(Boolean);
    if (!words.length) return { found: [], count: 0 };
    const found = [];
    let count = 0;
    for (const entry of this.known) {
      if (!words.every((word) => entry.text.includes(word))) continue;
      count++;
      if (found.length < MOST_FOUND) found.push(entry);
    }
    return { found, count };
  }

  entries({ graph, modules }) {
    const groups = modules.all
      .filter((group) => group.parent && !group.isPart)
      .map((group) => ({
        graph, member: group, text: pathText(modules.path(group)).toLowerCase(),
      }));
    const nodes = [];
    for (let node = 0; node < graph.size; node++) {
      // A node in both graphs is found only in the graph after.
      if (graph === BEFORE && twinOf(graph, node) !== undefined) continue;
      const parts = [
        graph.id(node), graph.text("op", node), graph.text("module", node), graph.sourceText(node),
        graph.precision(node), graph.role(node), graph.stage(node),
      ];
      nodes.push({ graph, member: node, text: parts.join("\n").toLowerCase() });
    }
    return graph === BEFORE ? nodes : [...groups, ...nodes];
  }
}

// The search field and its list; chosen(graph, member) is the callback for a choice.
class Search {
  constructor(field, list, finder, chosen) {
    Object.assign(this, { field, list, finder, chosen });
    this.at = -1;
    field.addEventListener("input", () => this.update());
    field.addEventListener("focus", () => this.update());
    field.addEventListener("keydown", (event) => this.pressed(event));
    document.addEventListener("pointerdown", (event) => {
      if (!list.contains(event.target) && event.target !== field) this.close();
    });
  }

  update() {
    const { found, count } = this.finder.find(this.field.value);
    this.found = found;
    this.at = found.length ? 0 : -1;
    this.list.hidden = !this.field.value.trim();
    const head = element("li", { class: "quiet", role: "presentation" },
      count > found.length ? `${countText(count)} found, the first ${found.length}` :
        count ? `${countText(count)} found` : "nothing found");
    this.list.replaceChildren(head, ...found.map((entry, index) => this.item(entry, index)));
    this.mark();
  }

  item({ graph, member }, index) {
    const chosen = () => this.choose(index);
    if (member instanceof Group) {
      return element("li", { role: "option", onclick: chosen },
        element("span", { class: "tag" }, "module"), " ",
        literal(shortened(member.key.split("\n").slice(1).join(" › "), 90)));
    }
    const where = [graph.stage(member), graph.text("module", member)].filter(Boolean).join(" ");
    return element("li", { role: "option", onclick: chosen },
      chip(graph.precision(member)), " ", literal(shortened(graph.id(member), 60)), " ",
      element("span", { class: "quiet" },
        literal(shortened(`${graph.text("op", member)} · ${where}`, 70)),
        graph === BEFORE ? " · before" : ""));
  }

  pressed(event) {
    if (event.key === "Escape") {
      this.close();
      this.field.blur();
    } else if (event.key === "Enter" && this.at >= 0) {
      this.choose(this.at);
    } else if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      const step = event.key === "ArrowDown" ? 1 : -1;
      this.at = Math.min(Math.max(this.at + step, 0), this.found.length - 1);
      this.mark();
      event.preventDefault();
    }
  }

  mark() {
    [...this.list.querySelectorAll("[role=option]")].forEach((item, index) => {
      item.setAttribute("aria-selected", String(index === this.at));
      if (index === this.at) item.scrollIntoView({ block: "nearest" });
    });
  }

  choose(index) {
    const { graph, member } = this.found[index];
    this.close();
    this.field.blur();
    this.chosen(graph, member);
  }

  close() {
    this.list.hidden = true;
  }
}

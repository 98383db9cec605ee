"use strict";
// One graph on a canvas: groups open and close in it, and only open groups are laid out.

const MOST_DRAWN = 1200; // members on one canvas; if there are more, the groups opened first are closed
const FIRST_DRAWN = 40; // members that are open at the start
const FAR = 220; // edges longer than this bow around the nodes between their ends
const HIDDEN = new Set(["view"]);

class Canvas {
  // told: callbacks {select(canvas, member), toggle(canvas, group)}
  constructor(graph, container, told) {
    this.graph = graph;
    this.modules = new Modules(graph);
    this.open = new Set([this.modules.root]);
    this.layouts = new Map();
    this.selected = null;
    this.exception = null; // a node of a hidden role that the user asked to see
    this.openAtFirst();
    this.cy = cytoscape({
      container, elements: [], style: look(), layout: { name: "preset" },
      minZoom: 0.04, maxZoom: 3, autoungrabify: true, boxSelectionEnabled: false,
      selectionType: "single",
    });
    this.cy.on("tap", "node", (event) => this.tapped(event, told));
    this.setHidden(HIDDEN);
  }

  setHidden(roles) {
    this.hidden = roles;
    this.exception = null;
    this.connect();
    this.draw();
  }

  connect() {
    this.edges = new Edges(this.modules, (node) => this.isShown(node));
    this.layouts.clear();
  }

  isShown(member) {
    if (member instanceof Group || member === this.exception) return true;
    return !this.hidden.has(this.graph.role(member));
  }

  members(group) {
    return group.members.filter((member) => this.isShown(member));
  }

  // Opens level by level while there is room; a single stage is always opened.
  openAtFirst() {
    const waiting = [this.modules.root];
    let drawn = 0;
    while (waiting.length) {
      const group = waiting.shift();
      const fits = drawn + group.members.length <= FIRST_DRAWN;
      const alone = group.level === 0 || group.parent.members.length === 1;
      if (!fits && !alone) continue;
      this.open.add(group);
      drawn += group.members.length;
      waiting.push(...group.members.filter((member) => member instanceof Group));
    }
  }

  // Opens the groups that are open in another graph.
  mirror(other) {
    const open = [...other.open].map((group) => this.modules.byKey.get(group.key));
    this.open = new Set([this.modules.root, ...open.filter(Boolean)]);
    this.layouts.clear();
    this.draw();
  }

  tapped(event, told) {
    const member = this.memberOf(event.target.id());
    const box = event.target.hasClass("box");
    const top = event.target.position("y") - event.target.data("height") / 2;
    const onTitle = box && event.position.y < top + SPACE.head;
    if (member instanceof Group && (!box || onTitle)) told.toggle(this, member);
    else told.select(this, member);
  }

  toggle(group) {
    this.setOpen(group, !this.open.has(group));
  }

  setOpen(group, open) {
    if (open === this.open.has(group)) return;
    const corner = this.cornerOf(group);
    if (open) {
      for (const outer of [...this.modules.path(group.parent ?? group), group]) this.open.add(outer);
      this.makeRoom(group);
    } else {
      this.open.delete(group);
    }
    this.changed(group);
    this.draw();
    this.holdCorner(group, corner);
  }

  openAll(groups) {
    for (const group of groups) {
      this.open.add(group);
      this.changed(group);
    }
  }

  closeAll() {
    this.open = new Set([this.modules.root]);
    this.layouts.clear();
    this.draw();
    this.fit();
  }

  makeRoom(kept) {
    const needed = new Set([this.modules.root, ...this.modules.path(kept)]);
    let drawn = 0;
    for (const group of this.open) drawn += group.members.length;
    for (const group of [...this.open]) {
      if (drawn <= MOST_DRAWN) return;
      if (needed.has(group)) continue;
      this.open.delete(group);
      this.changed(group);
      drawn -= group.members.length;
    }
  }

  changed(group) {
    for (let outer = group; outer; outer = outer.parent) this.layouts.delete(outer);
  }

  layoutOf(group) {
    let known = this.layouts.get(group);
    if (!known) {
      const members = this.members(group);
      const shown = new Set(members);
      const edges = this.edges.of(group).filter(([from, to]) => shown.has(from) && shown.has(to));
      known = layOut(members, edges, (member) => this.sizeOf(member));
      this.layouts.set(group, known);
    }
    return known;
  }

  sizeOf(member) {
    if (!(member instanceof Group)) {
      return sizeOfLines(nodeLines(this.graph, member), this.graph.role(member));
    }
    if (!this.open.has(member)) return sizeOfLines(groupLines(member), "group");
    const { width, height } = this.layoutOf(member);
    const title = widthOf([`▾ ${shortened(member.name, LONGEST_LABEL)}`], true) + 2 * SPACE.pad;
    return {
      width: Math.max(width + 2 * SPACE.pad, title),
      height: height + SPACE.head + 2 * SPACE.pad,
    };
  }

  draw() {
    const elements = [];
    this.addGroup(this.modules.root, { x: 0, y: 0 }, elements);
    this.cy.batch(() => {
      this.cy.elements().remove();
      this.cy.add(elements);
    });
    this.mark();
  }

  // Adds the elements of an open group; origin is the corner of its members.
  addGroup(group, origin, elements) {
    const layout = this.layoutOf(group);
    const at = new Map();
    for (const [member, center] of layout.centers) {
      const position = { x: origin.x + center.x, y: origin.y + center.y };
      const size = this.sizeOf(member);
      at.set(member, position);
      elements.push(this.node(member, position, size, group.level));
      if (!(member instanceof Group) || !this.open.has(member)) continue;
      const inner = this.layoutOf(member);
      const inside = {
        x: position.x - inner.width / 2,
        y: position.y - size.height / 2 + SPACE.head + SPACE.pad,
      };
      this.addGroup(member, inside, elements);
    }
    layout.edges.forEach((edge, index) => {
      const points = edge.points.map((point) => ({ x: origin.x + point.x, y: origin.y + point.y }));
      const bent = segments(at.get(edge.from), at.get(edge.to), points);
      const label = edge.times > 1 ? `×${edge.times}` : "";
      elements.push({
        group: "edges", classes: points.length ? "bent" : "",
        data: {
          id: `e${group.index}.${index}`, source: this.idOf(edge.from), target: this.idOf(edge.to),
          label, z: 10 * group.level + 5, ...bent,
        },
      });
    });
  }

  idOf(member) {
    return member instanceof Group ? `g${member.index}` : `n${member}`;
  }

  memberOf(id) {
    const number = Number(id.slice(1));
    return id.startsWith("g") ? this.modules.all[number] : number;
  }

  node(member, position, size, level) {
    const data = { id: this.idOf(member), ...size, z: 10 * level + 6 };
    if (!(member instanceof Group)) {
      const role = this.graph.role(member);
      const saved = this.graph.columns.saved[member] ? " saved" : "";
      const label = nodeLines(this.graph, member).join("\n");
      const classes = `${this.graph.precision(member)} ${role}${saved}`;
      return { group: "nodes", data: { ...data, label }, position, classes };
    }
    if (this.open.has(member)) {
      const label = `▾ ${shortened(member.name, LONGEST_LABEL)}`;
      return { group: "nodes", data: { ...data, label }, position, classes: "box" };
    }
    const label = groupLines(member).join("\n");
    return { group: "nodes", data: { ...data, label, ...mix(member) }, position, classes: "group" };
  }

  // The element that shows a member: the outermost closed group around it, or the member itself.
  visible(member) {
    let found = member;
    let group = member instanceof Group ? member.parent : this.modules.groupOf[member];
    for (; group; group = group.parent) if (!this.open.has(group)) found = group;
    return found;
  }

  // Opens the groups around a member, and moves the view there if it is not visible.
  show(member) {
    const hidden = !this.isShown(member);
    if (hidden) {
      this.exception = member;
      this.connect();
    }
    const around = this.modules.path(member instanceof Group ? member.parent ?? member : member);
    const closed = around.filter((group) => !this.open.has(group));
    if (closed.length) {
      this.openAll(closed);
      this.makeRoom(closed[closed.length - 1]);
    }
    this.selected = member;
    if (closed.length || hidden) this.draw();
    else this.mark();
    const element = this.cy.getElementById(this.idOf(member));
    if (element.empty()) return;
    if (element.hasClass("box")) return this.showBox(element);
    const box = element.renderedBoundingBox();
    const outside = box.x1 < 0 || box.y1 < 0 || box.x2 > this.cy.width() || box.y2 > this.cy.height();
    if (!outside && this.cy.zoom() > 0.45) return;
    this.cy.zoom(Math.min(Math.max(this.cy.zoom(), 0.8), 1.2));
    this.cy.center(element);
  }

  // Shows an open group from its title on, as wide as the canvas allows.
  showBox(elements) {
    const box = elements.boundingBox();
    const zoom = Math.min(Math.max((this.cy.width() - 40) / box.w, 0.4), 1);
    this.cy.zoom(zoom);
    this.cy.pan({ x: this.cy.width() / 2 - zoom * (box.x1 + box.w / 2), y: 16 - zoom * box.y1 });
  }

  // Marks the selection, and draws the edges to its operands and its readers.
  mark() {
    this.cy.batch(() => {
      this.cy.elements(".real").remove();
      this.cy.elements(".selected").removeClass("selected");
      if (this.selected === null) return;
      const shown = this.visible(this.selected);
      this.cy.getElementById(this.idOf(shown)).addClass("selected");
      if (this.selected instanceof Group || shown !== this.selected) return;
      const pairs = [
        ...this.edges.reads[this.selected].map((source) => [this.visible(source), shown]),
        ...this.edges.readers[this.selected].map((reader) => [shown, this.visible(reader)]),
      ];
      const known = new Set();
      for (const [from, to] of pairs.slice(0, 200)) {
        const id = `r${this.idOf(from)}.${this.idOf(to)}`;
        if (known.has(id) || from === to) continue;
        known.add(id);
        const [source, target] = [this.idOf(from), this.idOf(to)];
        const start = this.cy.getElementById(source).position();
        const end = this.cy.getElementById(target).position();
        const length = Math.hypot(end.x - start.x, end.y - start.y);
        const bow = length > FAR ? Math.min(0.2 * length, 150) : 0;
        const data = { id, source, target, label: "", z: 9000, bow };
        this.cy.add({ group: "edges", classes: "real", data });
      }
    });
  }

  cornerOf(member) {
    const element = this.cy.getElementById(this.idOf(member));
    if (element.empty()) return null;
    const { x, y } = element.renderedPosition();
    const zoom = this.cy.zoom();
    return { x, y: y - (element.data("height") * zoom) / 2 };
  }

  // Keeps the clicked element under the pointer while everything around it moves.
  holdCorner(member, before) {
    const after = this.cornerOf(member);
    if (before && after) this.cy.panBy({ x: before.x - after.x, y: before.y - after.y });
  }

  // Fits the width, from the top: a step is much higher than a screen.
  fit() {
    this.cy.resize();
    this.showBox(this.cy.elements());
  }

  restyle() {
    this.cy.style(look());
    this.draw();
  }
}

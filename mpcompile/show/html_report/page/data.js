"use strict";
// The document that mpcompile/show/html_report/document.py writes, and the graphs in it.

const DOCUMENT = JSON.parse(document.getElementById("document").textContent);
const { roles: ROLES, stages: STAGES, precisions: PRECISIONS } = DOCUMENT.names;

function stringAt(index) {
  return DOCUMENT.strings[index];
}

class Graph {
  constructor(pane, index) {
    this.index = index;
    this.name = pane.name;
    this.memory = pane.memory;
    this.peak = pane.peak;
    this.columns = pane.nodes;
    this.size = pane.nodes.id.length;
  }

  text(column, node) {
    return DOCUMENT.strings[this.columns[column][node]];
  }

  id(node) {
    return this.text("id", node);
  }

  role(node) {
    return ROLES[this.columns.role[node]];
  }

  stage(node) {
    return STAGES[this.columns.stage[node]];
  }

  precision(node) {
    return PRECISIONS[this.columns.precision[node]];
  }

  bytes(node) {
    return this.columns.bytes[node];
  }

  reads(node) {
    return this.columns.reads[node];
  }

  readers(node) {
    if (!this.knownReaders) {
      this.knownReaders = Array.from({ length: this.size }, () => []);
      this.columns.reads.forEach((sources, reader) => {
        for (const source of sources) this.knownReaders[source].push(reader);
      });
    }
    return this.knownReaders[node];
  }

  // "f32→f16": the formats before and after a cast.
  castText(node) {
    const to = this.text("stores", node);
    const source = this.reads(node)[0];
    const from = source === undefined ? "" : this.text("stores", source);
    return `${from && from !== to ? from : to === "f32" ? "16 bits" : "f32"}→${to}`;
  }

  sourceText(node) {
    const file = this.text("file", node);
    return file ? `${file}:${this.columns.line[node]}` : "";
  }

  // The node's type without its format, which the page shows next to it.
  shape(node) {
    const type = this.text("type", node);
    const start = type.indexOf("[");
    return start < 0 ? type : type.slice(start);
  }

  nodeCalled(id) {
    this.nodes ??= new Map(this.columns.id.map((index, node) => [stringAt(index), node]));
    return this.nodes.get(id);
  }

  // Counts for the head of the page.
  get totals() {
    const counts = new Array(PRECISIONS.length).fill(0);
    let ops = 0, casts = 0, saved = 0;
    for (let node = 0; node < this.size; node++) {
      const role = this.role(node);
      if (role === "op") {
        ops++;
        counts[this.columns.precision[node]]++;
      }
      if (role === "cast") casts++;
      if (this.columns.saved[node]) saved += this.bytes(node);
    }
    return { ops, counts, casts, saved };
  }
}

const GRAPHS = DOCUMENT.panes.map((pane, index) => new Graph(pane, index));
const LAST = GRAPHS[GRAPHS.length - 1];
const BEFORE = GRAPHS.length > 1 ? GRAPHS[0] : null;

// Per node of the graph before, its counterpart after: the op, rather than a cast of its result.
const BACK = new Map();
(DOCUMENT.twins ?? []).forEach((before, after) => {
  const known = BACK.get(before);
  if (before < 0) return;
  if (known === undefined || (LAST.role(known) === "cast" && LAST.role(after) !== "cast")) {
    BACK.set(before, after);
  }
});

// The counterpart of a node in the other graph, or undefined.
function twinOf(graph, node) {
  if (!BEFORE) return undefined;
  const found = graph === BEFORE ? BACK.get(node) : DOCUMENT.twins[node];
  return found === undefined || found < 0 ? undefined : found;
}

function otherGraph(graph) {
  return graph === BEFORE ? LAST : BEFORE;
}

"use strict";
// The drawn edges: they skip hidden nodes, and join the members of one group.

class Edges {
  // shown(node): whether a node is drawn. The readers of a hidden node read its operands.
  constructor(modules, shown) {
    this.modules = modules;
    this.reads = Edges.past(modules.graph, shown);
    this.readers = Array.from({ length: modules.graph.size }, () => []);
    this.inside = new Map();
    const positions = Edges.positions(modules);
    for (let node = 0; node < modules.graph.size; node++) {
      if (!shown(node)) continue;
      for (const source of this.reads[node]) {
        this.readers[source].push(node);
        this.lift(source, node, positions);
      }
    }
  }

  static past(graph, shown) {
    const found = [];
    for (let node = 0; node < graph.size; node++) {
      const direct = graph.reads(node);
      if (direct.every(shown)) {
        found.push(direct);
        continue;
      }
      const sources = new Set();
      for (const source of direct) {
        if (shown(source)) sources.add(source);
        else for (const further of found[source] ?? []) sources.add(further);
      }
      found.push([...sources]);
    }
    return found;
  }

  static positions(modules) {
    const positions = new Int32Array(modules.graph.size);
    for (const group of modules.all) {
      group.members.forEach((member, position) => {
        if (!(member instanceof Group)) positions[member] = position;
      });
    }
    return positions;
  }

  lift(source, reader, positions) {
    const { groupOf } = this.modules;
    let from = source, to = reader;
    let left = groupOf[source], right = groupOf[reader];
    while (left !== right) {
      const deeper = left.level - right.level;
      if (deeper >= 0) [from, left] = [left, left.parent];
      if (deeper <= 0) [to, right] = [right, right.parent];
    }
    if (from === to) return;
    const start = from instanceof Group ? from.position : positions[from];
    const end = to instanceof Group ? to.position : positions[to];
    let counts = this.inside.get(left);
    if (!counts) this.inside.set(left, (counts = new Map()));
    const key = start * left.members.length + end;
    counts.set(key, (counts.get(key) ?? 0) + 1);
  }

  // Edges between the members of a group: [member, member, how many].
  of(group) {
    const count = group.members.length;
    return Array.from(this.inside.get(group) ?? [], ([key, times]) => [
      group.members[Math.floor(key / count)], group.members[key % count], times,
    ]);
  }
}

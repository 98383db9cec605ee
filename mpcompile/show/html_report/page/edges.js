"use strict";
// Edges as they are drawn: past what is hidden, and lifted to the members of one group.

class Edges {
  // shown(node): whether a node is drawn. What a hidden node reads, its readers read.
  constructor(modules, shown) {
    this.modules = modules;
    this.reads = Edges.past(modules.graph, shown);
    this.readers = Array.from({ length: modules.graph.size }, () => []);
    this.inside = new Map();
    const places = Edges.places(modules);
    for (let node = 0; node < modules.graph.size; node++) {
      if (!shown(node)) continue;
      for (const source of this.reads[node]) {
        this.readers[source].push(node);
        this.lift(source, node, places);
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

  static places(modules) {
    const places = new Int32Array(modules.graph.size);
    for (const group of modules.all) {
      group.members.forEach((member, place) => {
        if (!(member instanceof Group)) places[member] = place;
      });
    }
    return places;
  }

  lift(source, reader, places) {
    const { groupOf } = this.modules;
    let from = source, to = reader;
    let left = groupOf[source], right = groupOf[reader];
    while (left !== right) {
      const deeper = left.level - right.level;
      if (deeper >= 0) [from, left] = [left, left.parent];
      if (deeper <= 0) [to, right] = [right, right.parent];
    }
    if (from === to) return;
    const start = from instanceof Group ? from.place : places[from];
    const end = to instanceof Group ? to.place : places[to];
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

"use strict";
// The tree of stages and modules. A member of a group is a node (a number) or a Group.

const DEEPEST = 40; // parts of a module path; all deeper modules share a group
const MOST_MEMBERS = 300; // of a group that is laid out at once
const MOST_ALIKE = 8; // inputs of one kind, or outputs, that are drawn one by one
const PART = 150; // members of each part of a larger group

class Group {
  constructor(name, parent, key) {
    this.name = name;
    this.parent = parent;
    this.key = key;
    this.level = parent ? parent.level + 1 : 0;
    this.members = [];
    this.isPart = false;
    this.counts = new Array(PRECISIONS.length).fill(0);
    this.ops = 0;
    this.casts = 0;
    this.nodes = 0;
    this.saved = 0;
  }
}

class Modules {
  constructor(graph) {
    this.graph = graph;
    this.root = new Group(graph.name, null, "");
    this.byKey = new Map();
    this.groupOf = new Array(graph.size);
    this.read();
    this.tidy(this.root);
    this.all = [];
    this.number(this.root, 0);
    for (let node = 0; node < graph.size; node++) this.count(node);
  }

  read() {
    const { columns } = this.graph;
    const known = new Map();
    for (let node = 0; node < this.graph.size; node++) {
      const key = columns.module[node] * STAGES.length + columns.stage[node];
      let group = known.get(key);
      if (!group) {
        group = this.groupAt([STAGES[columns.stage[node]], ...this.parts(node)]);
        known.set(key, group);
      }
      group.members.push(node);
      this.groupOf[node] = group;
    }
  }

  parts(node) {
    const path = this.graph.text("module", node);
    const parts = path ? path.split(".") : [];
    return parts.length > DEEPEST
      ? [...parts.slice(0, DEEPEST - 1), parts.slice(DEEPEST - 1).join(".")]
      : parts;
  }

  groupAt(path) {
    let group = this.root;
    for (const name of path) {
      const key = `${group.key}\n${name}`;
      let child = this.byKey.get(key);
      if (!child) {
        child = new Group(name, group, key);
        this.byKey.set(key, child);
        group.members.push(child);
      }
      group = child;
    }
    return group;
  }

  // Joins chains of single modules, groups inputs of one kind, and cuts large groups into parts.
  tidy(group) {
    for (const member of group.members) if (member instanceof Group) this.tidy(member);
    if (group.level > 0) group.members = group.members.map((member) => this.plain(member, group));
    if (group.level > 0) this.gather(group);
    while (group.members.length > MOST_MEMBERS) this.cut(group);
  }

  // Puts many inputs of one kind into one group: a row of a hundred gradients shows nothing.
  gather(group) {
    const kinds = new Map();
    for (const member of group.members) {
      if (member instanceof Group) continue;
      const role = this.graph.role(member);
      if (role !== "input" && role !== "output") continue;
      if (role === "input" && this.isOwn(member, group)) continue;
      const kind = role === "input" ? this.graph.text("op", member) : "output";
      if (!kinds.has(kind)) kinds.set(kind, []);
      kinds.get(kind).push(member);
    }
    for (const [kind, members] of kinds) {
      if (members.length <= MOST_ALIKE || members.length === group.members.length) continue;
      const part = this.part(`${kind} × ${members.length}`, group, `#${kind}`, members);
      const inside = new Set(members);
      const index = group.members.indexOf(members[0]);
      group.members[index] = part;
      group.members = group.members.filter((member) => !inside.has(member));
      while (part.members.length > MOST_MEMBERS) this.cut(part);
    }
  }

  // Whether an input's reader is in the same group and reads only a few inputs.
  isOwn(input, group) {
    let reader = input;
    for (let steps = 0; steps < DEEPEST; steps++) {
      [reader] = this.graph.readers(reader);
      if (reader === undefined) return false;
      if (this.graph.role(reader) !== "view") break;
    }
    return this.groupOf[reader] === group && this.graph.reads(reader).length <= MOST_ALIKE;
  }

  part(name, group, end, members) {
    const part = new Group(name, group, `${group.key}\n${end}`);
    part.isPart = true;
    part.members = members;
    for (const member of members) {
      if (member instanceof Group) member.parent = part;
      else this.groupOf[member] = part;
    }
    this.byKey.set(part.key, part);
    return part;
  }

  plain(member, group) {
    if (!(member instanceof Group) || member.members.length !== 1) return member;
    const [only] = member.members;
    this.byKey.set(member.key, only instanceof Group ? only : group);
    if (only instanceof Group) {
      only.name = `${member.name}.${only.name}`;
      only.parent = group;
    } else {
      this.groupOf[only] = group;
    }
    return only;
  }

  cut(group) {
    const parts = [];
    for (let start = 0; start < group.members.length; start += PART) {
      const members = group.members.slice(start, start + PART);
      const from = parts.length * PART + 1;
      const name = `${from} – ${from + members.length - 1} of ${group.members.length}`;
      parts.push(this.part(name, group, `#${name}`, members));
    }
    group.members = parts;
  }

  number(group, level) {
    group.level = level;
    group.index = this.all.length;
    this.all.push(group);
    group.members.forEach((member, position) => {
      if (!(member instanceof Group)) return;
      member.position = position;
      this.number(member, level + 1);
    });
  }

  count(node) {
    const { columns } = this.graph;
    const role = this.graph.role(node);
    for (let group = this.groupOf[node]; group; group = group.parent) {
      group.nodes++;
      if (role === "op") {
        group.ops++;
        group.counts[columns.precision[node]]++;
      }
      if (role === "cast") group.casts++;
      if (columns.saved[node]) group.saved += columns.bytes[node];
    }
  }

  // Groups from the root's child down to the group that contains a member.
  path(member) {
    const found = [];
    let group = member instanceof Group ? member : this.groupOf[member];
    for (; group && group.parent; group = group.parent) found.unshift(group);
    return found;
  }
}

// "forward › blocks › 0", without the parts of cut groups.
function pathText(groups) {
  return groups.filter((group) => !group.isPart).map((group) => group.name).join(" › ");
}

"use strict";
// The layout of an open group's members: in layers by dagre, one group at a time.

const SPACE = { head: 34, pad: 18, between: 22, layers: 34 };
const SIMPLEX_UP_TO = 120; // members up to which the better but slower ranking is used

const MOST_EDGES = 1200; // in one group; more would take too long and could not be told apart

// Returns {width, height, centers: Map(member → {x, y}), edges: [{from, to, times, points}]}; the
// origin is the upper left corner.
function layOut(members, edges, sizeOf) {
  if (edges.length > MOST_EDGES) {
    // Too many edges: rows in order. The edges of the selection are still drawn.
    return withGrid({ width: 0, height: 0, centers: new Map(), edges: [] }, members, sizeOf);
  }
  const linked = new Set(edges.flatMap(([from, to]) => [from, to]));
  const layers = layered(members.filter((member) => linked.has(member)), edges, sizeOf);
  const alone = members.filter((member) => !linked.has(member));
  return alone.length ? withGrid(layers, alone, sizeOf) : layers;
}

function layered(members, edges, sizeOf) {
  if (!members.length) return { width: 0, height: 0, centers: new Map(), edges: [] };
  const graph = new dagre.graphlib.Graph();
  graph.setGraph({
    rankdir: "TB",
    nodesep: SPACE.between,
    ranksep: SPACE.layers,
    ranker: members.length > SIMPLEX_UP_TO ? "longest-path" : "network-simplex",
  });
  graph.setDefaultEdgeLabel(() => ({}));
  const names = new Map(members.map((member, index) => [member, String(index)]));
  for (const member of members) graph.setNode(names.get(member), { ...sizeOf(member) });
  for (const [from, to] of edges) graph.setEdge(names.get(from), names.get(to), {});
  dagre.layout(graph);
  const centers = new Map();
  for (const [member, name] of names) {
    const { x, y } = graph.node(name);
    centers.set(member, { x, y });
  }
  const { width, height } = graph.graph();
  const drawn = edges.map(([from, to, times]) => ({
    from, to, times, points: graph.edge(names.get(from), names.get(to)).points.slice(1, -1),
  }));
  return { width, height, centers, edges: drawn };
}

// Adds the members without edges as rows below.
function withGrid(layers, alone, sizeOf) {
  const sizes = alone.map(sizeOf);
  const area = sizes.reduce((sum, size) => sum + size.width * (size.height + SPACE.between), 0);
  const widest = Math.max(...sizes.map((size) => size.width));
  const most = Math.max(layers.width, widest, Math.sqrt(area * 1.2));
  const centers = new Map(layers.centers);
  let x = 0, y = layers.height ? layers.height + SPACE.layers : 0;
  let row = 0, width = layers.width;
  alone.forEach((member, index) => {
    const size = sizes[index];
    if (x > 0 && x + size.width > most) [x, y, row] = [0, y + row + SPACE.between, 0];
    centers.set(member, { x: x + size.width / 2, y: y + size.height / 2 });
    x += size.width + SPACE.between;
    row = Math.max(row, size.height);
    width = Math.max(width, x - SPACE.between);
  });
  return { width, height: y + row, centers, edges: layers.edges };
}

// An edge that dagre bends around nodes, as distances from the straight line between its ends.
function segments(start, end, points) {
  const dx = end.x - start.x, dy = end.y - start.y;
  const length = Math.hypot(dx, dy) || 1;
  const weights = [], distances = [];
  for (const point of points) {
    const px = point.x - start.x, py = point.y - start.y;
    weights.push((px * dx + py * dy) / (length * length));
    distances.push((py * dx - px * dy) / length);
  }
  return { weights: weights.join(" "), distances: distances.join(" ") };
}

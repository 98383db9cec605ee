"use strict";
// Where the members of an open group lie: layered by dagre, one group at a time.

const SPACE = { head: 34, pad: 18, between: 22, layers: 34 };
const SIMPLEX_UP_TO = 120; // members that the better but slower ranking of layers is taken for

const MOST_EDGES = 1200; // in one group; more are neither laid out in time nor told apart

// Returns {width, height, places: Map(member → {x, y}), edges: [{from, to, times, points}]}; the
// origin is the left upper corner, places are centres.
function layOut(members, edges, sizeOf) {
  if (edges.length > MOST_EDGES) {
    // In rows, in order; the edges of what is selected are drawn all the same.
    return withGrid({ width: 0, height: 0, places: new Map(), edges: [] }, members, sizeOf);
  }
  const linked = new Set(edges.flatMap(([from, to]) => [from, to]));
  const layers = layered(members.filter((member) => linked.has(member)), edges, sizeOf);
  const alone = members.filter((member) => !linked.has(member));
  return alone.length ? withGrid(layers, alone, sizeOf) : layers;
}

function layered(members, edges, sizeOf) {
  if (!members.length) return { width: 0, height: 0, places: new Map(), edges: [] };
  const graph = new dagre.graphlib.Graph();
  graph.setGraph({
    rankdir: "TB",
    nodesep: SPACE.between,
    ranksep: SPACE.layers,
    ranker: members.length > SIMPLEX_UP_TO ? "longest-path" : "network-simplex",
  });
  graph.setDefaultEdgeLabel(() => ({}));
  const names = new Map(members.map((member, place) => [member, String(place)]));
  for (const member of members) graph.setNode(names.get(member), { ...sizeOf(member) });
  for (const [from, to] of edges) graph.setEdge(names.get(from), names.get(to), {});
  dagre.layout(graph);
  const places = new Map();
  for (const [member, name] of names) {
    const { x, y } = graph.node(name);
    places.set(member, { x, y });
  }
  const { width, height } = graph.graph();
  const drawn = edges.map(([from, to, times]) => ({
    from, to, times, points: graph.edge(names.get(from), names.get(to)).points.slice(1, -1),
  }));
  return { width, height, places, edges: drawn };
}

// Adds what no edge joins as rows below.
function withGrid(layers, alone, sizeOf) {
  const sizes = alone.map(sizeOf);
  const area = sizes.reduce((sum, size) => sum + size.width * (size.height + SPACE.between), 0);
  const widest = Math.max(...sizes.map((size) => size.width));
  const most = Math.max(layers.width, widest, Math.sqrt(area * 1.2));
  const places = new Map(layers.places);
  let x = 0, y = layers.height ? layers.height + SPACE.layers : 0;
  let row = 0, width = layers.width;
  alone.forEach((member, place) => {
    const size = sizes[place];
    if (x > 0 && x + size.width > most) [x, y, row] = [0, y + row + SPACE.between, 0];
    places.set(member, { x: x + size.width / 2, y: y + size.height / 2 });
    x += size.width + SPACE.between;
    row = Math.max(row, size.height);
    width = Math.max(width, x - SPACE.between);
  });
  return { width, height: y + row, places, edges: layers.edges };
}

// An edge that dagre leads around nodes, as distances from the straight line between its ends.
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

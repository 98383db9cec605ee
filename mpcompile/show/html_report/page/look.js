"use strict";
// How nodes, groups and edges look: colours by precision, shapes by role, and their labels.

const DARK = window.matchMedia("(prefers-color-scheme: dark)");
const FONT = '12px system-ui, "Liberation Sans", "DejaVu Sans", sans-serif';
const LONGEST_LABEL = 30;

// A colour of page.css, for drawing on a canvas.
function color(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

const RULER = document.createElement("canvas").getContext("2d");

function widthOf(lines, bold = false) {
  RULER.font = bold ? `bold ${FONT}` : FONT;
  return Math.ceil(Math.max(...lines.map((line) => RULER.measureText(line).width)));
}

// The two lines on a node: its op, then its format and shape.
function nodeLines(graph, node) {
  const role = graph.role(node);
  if (role === "cast") return ["cast", shortened(graph.castText(node), LONGEST_LABEL)];
  const op = shortened(graph.text("op", node) || graph.id(node), LONGEST_LABEL);
  const precision = graph.precision(node);
  const shape = shortened(graph.shape(node), LONGEST_LABEL);
  const format = precision === "other" ? shortened(graph.text("type", node), LONGEST_LABEL) : "";
  return [op, format || `${precision} ${shape}`];
}

function groupLines(group) {
  const parts = PRECISIONS.map((name, index) => [group.counts[index], name])
    .filter(([count]) => count)
    .map(([count, name]) => `${countText(count)} ${name}`);
  if (group.casts) parts.push(plural(group.casts, "cast"));
  if (!parts.length) parts.push(plural(group.nodes, "node"));
  return [`▸ ${shortened(group.name, LONGEST_LABEL)}`, parts.join(" · ")];
}

function sizeOfLines(lines, role) {
  const side = role === "cast" ? 24 : 12;
  const width = widthOf(lines, role === "cast" || role === "group");
  return { width: Math.max(width + 2 * side, 64), height: role === "group" ? 46 : 40 };
}

// A closed group is a bar: the width of each precision is its share of the group's ops.
function mix(group) {
  const total = group.ops;
  if (!total) return { colors: `${color("other")} ${color("other")}`, stops: "0% 100%" };
  const colors = [], stops = [];
  let start = 0;
  PRECISIONS.forEach((name, index) => {
    if (!group.counts[index]) return;
    const end = start + (100 * group.counts[index]) / total;
    colors.push(color(name), color(name));
    stops.push(`${start}%`, `${end}%`);
    start = end;
  });
  return { colors: colors.join(" "), stops: stops.join(" ") };
}

// The stylesheet of the canvas, in the current colours.
function look() {
  const precisions = PRECISIONS.map((name) => ({
    selector: `node.${name}`,
    style: { "background-color": color(name) },
  }));
  return [
    { selector: "node", style: {
      shape: "round-rectangle", width: "data(width)", height: "data(height)",
      label: "data(label)", "text-wrap": "wrap", "text-valign": "center", "text-halign": "center",
      "font-family": 'system-ui, "Liberation Sans", "DejaVu Sans", sans-serif', "font-size": 12,
      "line-height": 1.25, color: color("on-node"), "background-color": color("other"),
      "border-width": 1, "border-color": color("node-edge"), "min-zoomed-font-size": 6,
      "z-index-compare": "manual", "z-index": "data(z)", "overlay-opacity": 0,
      "corner-radius": 6,
    } },
    ...precisions,
    { selector: "node.input, node.output", style: { "corner-radius": 20, "border-style": "dashed" } },
    { selector: "node.view", style: { "background-opacity": 0.45, "border-style": "dotted" } },
    { selector: "node.cast", style: {
      shape: "hexagon", "background-color": color("cast"), color: color("on-cast"),
      "font-weight": "bold", "border-color": color("cast-edge"), "border-width": 2,
    } },
    { selector: "node.saved", style: { "border-style": "double", "border-width": 4 } },
    { selector: "node.group", style: {
      "background-fill": "linear-gradient", "background-gradient-direction": "to-right",
      "background-gradient-stop-colors": "data(colors)",
      "background-gradient-stop-positions": "data(stops)",
      "border-width": 2, "font-weight": "bold",
    } },
    { selector: "node.box", style: {
      "background-color": color("box"), "background-opacity": 0.6, "border-color": color("line"),
      color: color("ink"), "text-valign": "top", "text-margin-y": 24, "font-weight": "bold",
      "corner-radius": 10,
    } },
    { selector: "edge", style: {
      width: 1.4, "line-color": color("wire"), "curve-style": "straight",
      "target-arrow-shape": "triangle", "target-arrow-color": color("wire"), "arrow-scale": 0.8,
      "z-index-compare": "manual", "z-index": "data(z)", "overlay-opacity": 0,
      label: "data(label)", "font-size": 10, color: color("quiet"),
      "text-background-color": color("paper"), "text-background-opacity": 0.85,
      "text-background-padding": 2, "min-zoomed-font-size": 6,
    } },
    { selector: "edge.bent", style: {
      "curve-style": "round-segments", "segment-weights": "data(weights)",
      "segment-distances": "data(distances)", "segment-radii": 12, "edge-distances": "node-position",
    } },
    { selector: "edge.real", style: {
      "curve-style": "unbundled-bezier", "control-point-distances": "data(bow)",
      "control-point-weights": 0.5, width: 2.2, "line-color": color("accent"), opacity: 0.75,
      "target-arrow-color": color("accent"), "arrow-scale": 1,
    } },
    { selector: "node.selected", style: {
      "border-color": color("accent"), "border-width": 4, "border-style": "solid",
      "outline-width": 4, "outline-color": color("accent"), "outline-opacity": 0.35,
    } },
  ];
}

"use strict";
// The measurements: per node, by the names in the measured documents.

const FP16 = { smallest: -24, normal: -14, end: 16, largest: 65504 };

// One row of ranges as an object; its exponents are powers of two.
function heldOf([name, largest, count, zeros, nonfinite, exponents, counts]) {
  return { name: stringAt(name), largest, count, zeros, nonfinite, exponents, counts };
}

function heldByName(rows) {
  return new Map((rows ?? []).map((row) => [stringAt(row[0]), heldOf(row)]));
}

const VALUES = heldByName(DOCUMENT.ranges?.values);
const GRADIENTS = heldByName(DOCUMENT.ranges?.gradients);
const CHECKED = new Map(
  (DOCUMENT.check?.rows ?? []).map(([id, error, autocast, headroom, zeros, subnormals]) => [
    stringAt(id), { error, autocast, headroom, zeros, subnormals },
  ]),
);
const QUOTES = new Map(
  DOCUMENT.quotes.map(([file, line, text]) => [`${stringAt(file)}:${line}`, stringAt(text)]),
);

// The name under which a node's tensor was measured: ranges are of the forward graph. A cast holds
// the numbers of its operand.
function measuredName(graph, node) {
  let at = node;
  for (let steps = 0; steps < 8; steps++) {
    const names = [graph.text("planned", at), graph.id(at), graph.id(at).replace(/_working$/, "")];
    const found = graph.stage(at) === "forward" && names.find((name) => VALUES.has(name));
    if (found) return found;
    const passes = graph.role(at) === "cast" || graph.role(at) === "view";
    if (!passes || !graph.reads(at).length) return null;
    [at] = graph.reads(at);
  }
  return null;
}

function headroom(held) {
  return held.largest > 0 ? Math.log2(FP16.largest / held.largest) : null;
}

// The share of the numbers other than zero that are below a power of two.
function shareBelow(held, exponent) {
  const others = held.count - held.zeros;
  let below = 0;
  held.exponents.forEach((known, index) => {
    if (known < exponent) below += held.counts[index];
  });
  return others ? below / others : 0;
}

// Numbers per exponent over many tensors, as {exponents, counts, zeros, count, nonfinite}.
function summed(held) {
  const found = new Map();
  let zeros = 0, count = 0, nonfinite = 0;
  for (const item of held) {
    zeros += item.zeros;
    count += item.count;
    nonfinite += item.nonfinite;
    item.exponents.forEach((exponent, index) => {
      found.set(exponent, (found.get(exponent) ?? 0) + item.counts[index]);
    });
  }
  const exponents = [...found.keys()].sort((a, b) => a - b);
  return { exponents, counts: exponents.map((e) => found.get(e)), zeros, count, nonfinite };
}

function headroomText(bits) {
  if (bits === null) return "zero everywhere";
  return `${Math.abs(bits).toFixed(1)} bits ${bits >= 0 ? "below" : "above"} FP16's largest`;
}

"use strict";
// Plots by uPlot. FP16's range is shaded on every axis of powers of two.

const AXIS = () => ({
  stroke: color("quiet"), grid: { stroke: color("grid"), width: 1 }, ticks: { stroke: color("grid") },
  font: '11px system-ui, "Liberation Sans", sans-serif',
});

function powerText(exponent) {
  const digits = { "-": "⁻", 0: "⁰", 1: "¹", 2: "²", 3: "³", 4: "⁴", 5: "⁵", 6: "⁶", 7: "⁷", 8: "⁸", 9: "⁹" };
  return `2${[...String(exponent)].map((digit) => digits[digit] ?? digit).join("")}`;
}

// Shades FP16's range, from its smallest to its largest number, darker where numbers are normal.
function fp16Window(axis) {
  const across = axis === "x";
  return {
    hooks: {
      drawClear: [(plot) => {
        const { ctx, bbox } = plot;
        ctx.save();
        ctx.beginPath();
        ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
        ctx.clip();
        for (const [from, to] of [[FP16.smallest, FP16.end], [FP16.normal, FP16.end]]) {
          const start = plot.valToPos(from, axis, true), end = plot.valToPos(to, axis, true);
          ctx.fillStyle = color("window");
          if (across) ctx.fillRect(start, bbox.top, end - start, bbox.height);
          else ctx.fillRect(bbox.left, end, bbox.width, start - end);
        }
        ctx.restore();
      }],
    },
  };
}

function sized(container, height) {
  return { width: Math.max(container.clientWidth, 120), height };
}

// How many numbers have each power of two, in one tensor or in many.
function histogram(container, held, height) {
  const first = Math.min(FP16.smallest - 3, ...held.exponents);
  const last = Math.max(FP16.end + 1, ...held.exponents);
  const exponents = Array.from({ length: last - first + 1 }, (_, index) => first + index);
  const counts = new Map(held.exponents.map((exponent, index) => [exponent, held.counts[index]]));
  const others = held.count - held.zeros || 1;
  const shares = exponents.map((exponent) => (100 * (counts.get(exponent) ?? 0)) / others);
  const every = height < 200 ? 16 : 8;
  return new uPlot({
    ...sized(container, height),
    legend: { show: height >= 200 }, cursor: { show: height >= 200, drag: { x: false, y: false } },
    scales: { x: { time: false, range: [first - 0.5, last + 0.5] }, y: { range: (_, __, most) => [0, (most || 1) * 1.05] } },
    series: [
      { label: "magnitude from", value: (_, v) => (v === null ? "–" : powerText(v)) },
      {
        label: "share of numbers that are not zero", fill: color("bar"), stroke: color("bar"), width: 0,
        points: { show: false }, paths: uPlot.paths.bars({ size: [0.85, 60] }),
        value: (_, v) => (v === null ? "–" : `${v.toFixed(3)} %`),
      },
    ],
    axes: [
      { ...AXIS(), grid: { show: false }, splits: () => exponents.filter((e) => e % every === 0),
        values: (_, ticks) => ticks.map(powerText) },
      { ...AXIS(), size: 44, values: (_, ticks) => ticks.map((v) => `${v}%`) },
    ],
    plugins: [fp16Window("x")],
  }, [exponents, shares], container);
}

// From the smallest to the largest power of two of every tensor, in the order of execution.
function rangesPlot(container, held, opened) {
  const kept = held.filter((item) => item.exponents.length);
  const low = kept.map((item) => item.exponents[0]);
  const high = kept.map((item) => Math.log2(item.largest));
  const bars = {
    hooks: {
      draw: [(plot) => {
        const { ctx, bbox } = plot;
        ctx.save();
        ctx.lineWidth = Math.max(1, Math.min(6, (0.6 * bbox.width) / kept.length));
        kept.forEach((item, index) => {
          const x = plot.valToPos(index, "x", true);
          ctx.strokeStyle = color(high[index] >= FP16.end ? "danger" : "bar");
          ctx.beginPath();
          ctx.moveTo(x, plot.valToPos(low[index], "y", true));
          ctx.lineTo(x, plot.valToPos(high[index], "y", true));
          ctx.stroke();
        });
        ctx.restore();
      }],
    },
  };
  const name = (index) => (index === null ? "–" : shortened(kept[index].name, 60));
  const plot = new uPlot({
    ...sized(container, 300), cursor: { drag: { x: true, y: false } },
    scales: { x: { time: false, range: (_, from, to) => [from - 1, to + 1] }, y: { range: (_, from, to) => [Math.min(from, FP16.smallest) - 2, Math.max(to, FP16.end) + 2] } },
    series: [
      { label: "tensor", value: (_, v) => name(v) },
      { label: "smallest", stroke: "transparent", points: { show: false }, value: (_, v) => (v === null ? "–" : powerText(v)) },
      { label: "largest", stroke: "transparent", points: { show: false }, value: (_, v) => (v === null ? "–" : numberText(2 ** v)) },
    ],
    axes: [
      { ...AXIS(), grid: { show: false }, values: (_, ticks) => ticks.map((v) => (Number.isInteger(v) ? v : "")) },
      { ...AXIS(), size: 54, incrs: [1, 2, 4, 8, 16, 32], values: (_, ticks) => ticks.map(powerText) },
    ],
    plugins: [fp16Window("y"), bars],
  }, [kept.map((_, index) => index), low, high], container);
  plot.over.addEventListener("click", () => {
    const { idx } = plot.cursor;
    if (idx !== null && idx !== undefined) opened(kept[idx].name);
  });
  return plot;
}

// The bytes alive over the step, before and after.
function memoryPlot(container) {
  const count = Math.max(...GRAPHS.map((graph) => graph.memory.length));
  const at = Array.from({ length: count }, (_, index) => (100 * index) / Math.max(count - 1, 1));
  const series = GRAPHS.map((graph) => at.map((_, index) => {
    const columns = graph.memory;
    return columns.length ? columns[Math.floor((index * columns.length) / count)][0] : null;
  }));
  return new uPlot({
    ...sized(container, 240), cursor: { drag: { x: false, y: false } },
    scales: { x: { time: false }, y: { range: (_, __, most) => [0, most * 1.08] } },
    series: [
      { label: "of the step", value: (_, v) => (v === null ? "–" : `${v.toFixed(0)} %`) },
      ...GRAPHS.map((graph) => ({
        label: graph.name, stroke: color(graph === BEFORE ? "line-before" : "line-after"), width: 2,
        fill: graph === BEFORE ? undefined : color("line-after-fill"), points: { show: false },
        paths: uPlot.paths.stepped({ align: 1 }), value: (_, v) => (v === null ? "–" : bytesText(v)),
      })),
    ],
    axes: [
      { ...AXIS(), values: (_, ticks) => ticks.map((v) => `${v} %`) },
      { ...AXIS(), size: 70, values: (_, ticks) => ticks.map((v) => bytesText(Math.round(v))) },
    ],
  }, [at, ...series], container);
}

// One number per step of a run, with the skipped steps marked.
function runPlot(container, label, values, log, logarithmic) {
  const skipped = new Map(log.skipped);
  const marks = {
    hooks: {
      draw: [(plot) => {
        const { ctx, bbox } = plot;
        ctx.save();
        for (const [index, cause] of skipped) {
          const x = plot.valToPos(log.step[index], "x", true);
          if (x < bbox.left || x > bbox.left + bbox.width) continue;
          ctx.strokeStyle = ctx.fillStyle = color(cause?.expected ? "quiet" : "danger");
          ctx.setLineDash([4, 4]);
          ctx.beginPath();
          ctx.moveTo(x, bbox.top);
          ctx.lineTo(x, bbox.top + bbox.height);
          ctx.stroke();
          ctx.beginPath();
          ctx.moveTo(x - 6, bbox.top);
          ctx.lineTo(x + 6, bbox.top);
          ctx.lineTo(x, bbox.top + 9);
          ctx.fill();
        }
        ctx.restore();
      }],
    },
  };
  const scale = logarithmic ? { distr: 3, log: 2 } : {};
  return new uPlot({
    ...sized(container, 220),
    scales: { x: { time: false }, y: scale },
    series: [
      { label: "step", value: (_, v) => (v === null ? "–" : countText(v)) },
      { label, stroke: color("line-after"), width: 2, points: { show: values.length < 60, size: 4 },
        value: (_, v) => (v === null ? "–" : numberText(v)) },
    ],
    axes: [
      AXIS(),
      { ...AXIS(), size: 60, values: (_, ticks) => ticks.map((v) =>
        v === null ? "" : logarithmic ? powerText(Math.round(Math.log2(v))) : v) },
    ],
    plugins: [marks],
  }, [log.step, values], container);
}

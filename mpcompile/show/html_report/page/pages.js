"use strict";
// The page of plots: which plots there are, and the text of each.

class Plots {
  // opened(name): callback for a click on a tensor of a plot
  constructor(container, opened) {
    this.container = container;
    this.opened = opened;
    this.drawn = [];
  }

  // Plots need a width, so they are drawn only when the page is visible.
  draw() {
    for (const plot of this.drawn) plot.destroy();
    this.drawn = [];
    this.container.replaceChildren();
    this.waiting = [];
    this.log();
    this.memory();
    this.ranges();
    // The cards get their widths only when all of them are in the page.
    this.drawn = this.waiting.map((plot) => plot());
    if (!DOCUMENT.ranges) this.hint("No ranges.", "mpcompile calibrate", "--ranges");
    if (!DOCUMENT.log) this.hint("No log of a run.", "mpcompile run", "--log");
  }

  hint(what, command, flag) {
    this.container.append(element("p", { class: "quiet" }, `${what} Give the file that `,
      element("code", {}, command), " writes with ", element("code", {}, flag), "."));
  }

  // Adds a card; plot(box) draws into it and returns the plot.
  card(title, note, plot, kind = "") {
    const box = element("div", { class: "plot" });
    this.container.append(element("section", { class: `card ${kind}` },
      element("h2", {}, title), note && element("p", { class: "quiet" }, note), box));
    this.waiting.push(() => plot(box));
  }

  log() {
    const log = DOCUMENT.log;
    if (!log) return;
    const note = `${plural(log.steps, "step")}, ${countText(log.skips)} skipped: each is marked.`;
    this.card("Loss", note, (box) => runPlot(box, "loss", log.loss, log, false));
    if (log.scale.some((scale) => scale !== null)) {
      const scales = log.scale.map((scale) => (scale > 0 ? scale : null));
      this.card("Loss scale", "Grey marks belong to the search for a scale, red ones do not.",
        (box) => runPlot(box, "loss scale", scales, log, true));
    }
    if (log.skipped.length) this.container.append(this.skips(log));
  }

  skips(log) {
    const cells = ([row, cause]) => {
      if (!cause) return [countText(log.step[row]), "", "", "", "not known"];
      const file = stringAt(cause.file);
      const node = stringAt(cause.node);
      return [
        countText(log.step[row]),
        cause.expected ? "the search for a scale" : element("strong", { class: "danger" }, "not expected"),
        [LAST.nodeCalled(node) === undefined ? literal(shortened(node, 60)) :
          link(shortened(node, 60), () => this.opened(node)), " ", literal(stringAt(cause.op), "quiet")],
        [literal(stringAt(cause.module)), " ", file && literal(`${file}:${cause.line}`, "quiet")],
        [literal(stringAt(cause.why), "why"), cause.gradients.length ? " Gradients: " : "",
          cause.gradients.slice(0, 5).flatMap((name, at) => [at ? ", " : "", literal(stringAt(name))]),
          cause.gradients.length > 5 ? ` and ${cause.gradients.length - 5} more` : ""],
      ];
    };
    return growing(plural(log.skips, "skipped step"), "Nothing was written in these steps.",
      [["step", "number"], ["why", "text"], ["first at", "text"], ["where", "text"], ["cause", "text wide"]],
      log.skipped, cells);
  }

  memory() {
    if (!GRAPHS.some((graph) => graph.memory.length)) return;
    const peaks = GRAPHS.filter((graph) => graph.peak)
      .map((graph) => `${graph.name} at most ${bytesText(graph.peak[1])}`).join(", ");
    this.card("Memory over the step, estimated", peaks, memoryPlot, "wide");
  }

  ranges() {
    if (!DOCUMENT.ranges) return;
    const values = [...VALUES.values()], gradients = [...GRADIENTS.values()];
    const note = "Each bar is a tensor, from its smallest to its largest magnitude, in the order of " +
      "execution. The shaded range is FP16's, 2⁻²⁴ to 65504; it is darker where FP16 has all its " +
      "digits. A click on a bar opens the tensor in the graph.";
    const zero = values.filter((held) => !held.exponents.length).length;
    const title = `Ranges of ${plural(values.length - zero, "tensor")}` +
      (zero ? `, ${countText(zero)} more hold only zeros` : "");
    this.card(title, note,
      (box) => rangesPlot(box, values, this.opened), "wide");
    if (gradients.length) {
      const all = summed(gradients);
      const title = `Exponents of all gradients (${countText(gradients.length)})`;
      this.card(title, this.lost(all), (box) => histogram(box, all, 260));
    }
    const all = summed(values);
    this.card("Exponents of all values", this.lost(all), (box) => histogram(box, all, 260));
  }

  lost(all) {
    return `${shareText(all.count ? all.zeros / all.count : 0)} are zero; of the others ` +
      `${shareText(shareBelow(all, FP16.smallest))} are below 2⁻²⁴ and would become zero in FP16 ` +
      `without a loss scale, ${shareText(shareBelow(all, FP16.normal))} below 2⁻¹⁴.`;
  }
}

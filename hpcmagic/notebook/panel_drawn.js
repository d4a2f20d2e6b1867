// What is drawn: a curve, and how the ranks get on.

class Chart {
  constructor(panel, name) {
    this.panel = panel;
    this.steps = [];
    this.values = [];
    this.log = false;
    this.at = null;
    this.last = make("span", { class: "num" });
    const log = make("button", {
      class: "bare", "aria-pressed": "false", title: "logarithmic axis", onclick: () => {
        this.log = !this.log;
        log.setAttribute("aria-pressed", this.log);
        this.changed();
      },
    }, "log");
    this.canvas = make("canvas", {
      role: "img", "aria-label": `${name}: no values yet`,
      onpointermove: (event) => { this.at = event.offsetX; this.changed(); },
      onpointerleave: () => { this.at = null; this.changed(); },
    });
    this.element = make("div", { class: "chart", "data-curve": name },
      make("div", { class: "name" }, make("b", { title: name }, name), this.last, make("span", { class: "grow" }), log),
      this.canvas);
    this.name = name;
  }

  add(begin, steps, values) {
    if (begin > this.values.length) return false;
    this.steps.length = this.values.length = begin;
    for (let n = 0; n < values.length; n++) { this.steps.push(steps[n]); this.values.push(values[n]); }
    this.element.dataset.points = this.values.length;
    this.element.dataset.last = this.values[this.values.length - 1];
    this.changed();
    return true;
  }

  changed() { this.dirty = true; this.panel.draw(); }

  paint(ink) {
    this.dirty = false;
    const { steps, values } = this, count = values.length;
    const on = surface(this.canvas);
    if (!on || !count) return;
    const { context, width, height } = on;
    const scaled = (value) => (this.log ? (value > 0 ? Math.log10(value) : NaN) : value);
    let low = Infinity, high = -Infinity;
    for (const value of values) {
      const y = scaled(value);
      if (y < low && y > -Infinity) low = y;
      if (y > high && y < Infinity) high = y;
    }
    if (low > high) { low = 0; high = 1; }
    if (high - low === Infinity) { low = Math.max(low, -8e307); high = Math.min(high, 8e307); } // else the axis has no end
    if (high - low < Math.abs(high) * 1e-12 + 1e-300) { const pad = Math.abs(high) * 0.01 || 1; low -= pad; high += pad; }
    const margin = (high - low) * 0.04;
    low -= margin; high += margin;
    const first = steps[0], last = Math.max(steps[count - 1], first + 1);
    const marks = ticks(low, high, 3);
    context.font = `10px ${ink.font}`;
    const labels = marks.map((mark) => (this.log ? (Number.isInteger(mark) ? `1e${mark}` : short(10 ** mark, 2)) : short(mark, 5)));
    const left = Math.min(64, Math.max(...labels.map((label) => context.measureText(label).width), 8) + 8);
    const top = 6, bottom = height - 17, right = width - 8;
    const x = (step) => left + ((step - first) / (last - first)) * (right - left);
    const y = (value) => bottom - ((scaled(value) - low) / (high - low)) * (bottom - top);
    context.lineWidth = 1;
    context.strokeStyle = ink.rule;
    context.fillStyle = ink.quiet;
    context.textAlign = "right";
    context.textBaseline = "middle";
    marks.forEach((mark, n) => {
      const at = Math.round(bottom - ((mark - low) / (high - low)) * (bottom - top)) + 0.5;
      context.beginPath(); context.moveTo(left, at); context.lineTo(right, at); context.stroke();
      context.fillText(labels[n], left - 5, at);
    });
    context.textAlign = "center";
    context.textBaseline = "alphabetic";
    for (const mark of ticks(first, last, Math.max(2, Math.floor((right - left) / 80)))) {
      if (!Number.isInteger(mark)) continue;
      const label = whole(mark), half = context.measureText(label).width / 2;
      context.fillText(label, Math.min(Math.max(x(mark), left + half), right - half), height - 3);
    }
    context.strokeStyle = ink.edge;
    context.beginPath(); context.moveTo(left, bottom + 0.5); context.lineTo(right, bottom + 0.5); context.stroke();
    context.save();
    context.beginPath(); context.rect(left - 1, 0, right - left + 4, bottom + 2); context.clip();
    context.strokeStyle = ink.accent;
    context.lineWidth = 1.6;
    context.lineJoin = "round";
    context.beginPath();
    let drawing = false;
    for (let n = 0; n < count; n++) {
      const at = y(values[n]);
      if (!Number.isFinite(at)) { drawing = false; continue; }
      if (drawing) context.lineTo(x(steps[n]), at); else context.moveTo(x(steps[n]), at);
      drawing = true;
    }
    if (count === 1) context.arc(x(first), y(values[0]), 2, 0, 7);
    context.stroke();
    context.restore();
    let nearest = count - 1;
    if (this.at !== null) {
      const step = first + ((this.at - left) / (right - left)) * (last - first);
      nearest = steps.findIndex((one) => one >= step);
      if (nearest < 0) nearest = count - 1;
      if (nearest > 0 && step - steps[nearest - 1] < steps[nearest] - step) nearest--;
      context.fillStyle = ink.ink;
      context.beginPath(); context.arc(x(steps[nearest]), y(values[nearest]), 3, 0, 7); context.fill();
    }
    const at = this.at === null ? "" : ` at step ${whole(steps[nearest])}`;
    this.last.textContent = `${short(values[nearest], 6)}${at}`;
    this.canvas.setAttribute("aria-label", `${this.name}: ${short(values[count - 1], 6)} at step ${steps[count - 1]}, ${count} values from step ${first}`);
  }
}

class Ranks {
  constructor(panel) {
    this.panel = panel;
    this.pulses = [];
    this.at = null;
    this.canvas = make("canvas", {
      role: "img", "aria-label": "the ranks have not told yet",
      onpointermove: (event) => { this.at = event.offsetX; this.changed(); },
      onpointerleave: () => { this.at = null; this.changed(); },
    });
    this.text = make("div", { class: "quiet num", style: "font-size: 12px; min-height: 38px" });
    const key = (text, colour) => make("span", { style: `--c: ${colour}` }, text);
    this.element = make("section", { class: "ranks", "aria-label": "ranks", hidden: true }, make("h3", {}, "Ranks, time of a step"),
      this.canvas, make("div", { class: "key" }, key("computes", "var(--accent)"), key("waits", "var(--waits)"), key("hpcmagic", "var(--quiet)")),
      this.text);
  }

  take(flat) {
    this.pulses = [];
    for (let n = 0; n + 5 <= flat.length; n += 5) {
      const [rank, step, all, waits, ours] = flat.subarray(n, n + 5);
      this.pulses.push({ rank, step, all, waits, ours, own: Math.max(0, all - waits - ours) });
    }
    this.element.hidden = !this.pulses.length;
    this.element.dataset.ranks = this.pulses.length;
    this.changed();
  }

  changed() { this.dirty = true; this.panel.draw(); }

  paint(ink) {
    this.dirty = false;
    const { pulses } = this, on = surface(this.canvas);
    if (!on || !pulses.length) return;
    const { context, width, height } = on;
    const longest = Math.max(...pulses.map((pulse) => pulse.all)) || 1;
    const each = Math.min(46, width / pulses.length), gap = each > 4 ? Math.min(6, each * 0.2) : 0;
    pulses.forEach((pulse, n) => {
      let top = height - 1;
      for (const [part, colour] of [[pulse.own, ink.accent], [pulse.waits, ink.waits], [pulse.ours, ink.quiet]]) {
        const tall = (part / longest) * (height - 2);
        context.fillStyle = colour;
        context.fillRect(n * each, top - tall, Math.max(1, each - gap), tall);
        top -= tall;
      }
    });
    context.fillStyle = ink.edge;
    context.fillRect(0, height - 1, width, 1);
    const share = (part, whole_) => `${short((100 * part) / (whole_ || 1), 2)}\u00a0%`;
    const own = pulses.map((pulse) => pulse.own), mean = own.reduce((a, b) => a + b, 0) / own.length;
    const imbalance = mean > 0 ? Math.max(...own) / mean - 1 : 0;
    const steps = pulses.map((pulse) => pulse.step), [from, to] = [Math.min(...steps), Math.max(...steps)];
    const ours = Math.max(...pulses.map((pulse) => pulse.ours / (pulse.all || 1)));
    let text = `${pulses.length} rank${pulses.length > 1 ? "s" : ""} at step ${whole(from)}${to > from ? `–${whole(to)}` : ""}; ` +
      `imbalance ${share(imbalance, 1)}; hpcmagic takes ${share(ours, 1)}`;
    this.canvas.setAttribute("aria-label", text);
    const pulse = this.at === null ? null : pulses[Math.floor(this.at / each)];
    if (pulse) {
      text = `rank ${pulse.rank}: step ${whole(pulse.step)}, ${duration(pulse.all)} a step, ` +
        `waits ${share(pulse.waits, pulse.all)}, hpcmagic ${share(pulse.ours, pulse.all)}`;
    }
    this.text.textContent = text;
  }
}

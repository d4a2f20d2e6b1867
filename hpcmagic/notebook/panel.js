// The live panel of a simulation, in the page: panel.py tells it what is new, it tells what a person does.
//
//   news ─► Panel.take ─┬─ Param   a row: slider, number, what became of the last change
//                       ├─ Chart   a curve
//                       ├─ Field   the picture, its colours, zoom, the value under the pointer
//                       └─ Ranks   how they get on
//
// The widget is never displayed: it looks for its place in a cell's output, which holds a picture for the saved
// notebook, and puts itself over it. Everything is drawn here; nothing is fetched from anywhere.

const ACK_MS = 200;
const CURVES_MS = 100;
const STALE_MS = 6000;
const AGAIN_MS = 3000;
const CHARTS = 6;
const EVENTS = 60;

class Panel {
  constructor(model) {
    this.model = model;
    this.place = model.get("place");
    this.page = Math.random().toString(36).slice(2);
    this.count = 0;
    this.seq = this.painted = this.acked = 0;
    this.heard = 0; // when news came
    this.asked = 0;
    this.params = new Map();
    this.curves = new Map();
    this.build();
    this.onnews = (content, buffers) => this.told(content, buffers || []);
    model.on("msg:custom", this.onnews);
    this.watch = new MutationObserver(() => this.settle());
    this.watch.observe(document.body, { childList: true, subtree: true });
    this.timer = setInterval(() => this.tick(), ACK_MS);
    this.onvisible = () => { this.heard = this.heard && Date.now(); };
    document.addEventListener("visibilitychange", this.onvisible);
    this.resized = new ResizeObserver(() => this.redraw());
    this.resized.observe(this.host);
    this.settle();
    this.hello();
  }

  build() {
    this.host = make("div", { "data-lm-suppress-shortcuts": "true", "data-state": "waiting", "data-step": -1, class: "hpcmagic-live" });
    this.shadow = this.host.attachShadow({ mode: "open" });
    this.host.addEventListener("pointerenter", () => { this.inside = true; });
    this.host.addEventListener("pointerleave", () => { this.inside = false; });
    for (const kind of ["keydown", "keyup", "keypress"]) this.host.addEventListener(kind, (event) => event.stopPropagation());
    this.shadow.addEventListener("focusin", (event) => { this.focused = event.target; });
    this.shadow.addEventListener("focusout", () => { if (this.host.isConnected) this.focused = null; });
    const button = (verb, text, act, more = {}) => make("button", { type: "button", "data-verb": verb, onclick: act, ...more }, icon(verb), text);
    this.state = make("span", { class: "state", role: "status" }, "waiting for the kernel …");
    this.step = make("span", { class: "num" });
    this.rate = make("span", { class: "num quiet" });
    this.pause = button("pause", "Pause", () => this.act("pause"));
    this.resume = button("resume", "Resume", () => this.act("resume"), { hidden: true });
    this.one = button("step", "Step", () => this.act("step"), { title: "one step, then pause" });
    this.stop = button("stop", "Stop", () => this.ask(true));
    this.really = make("button", { type: "button", class: "danger", "data-verb": "really-stop", onclick: () => { this.ask(false); this.act("stop"); } }, "Stop it");
    this.sure = make("span", { class: "ask", role: "group", "aria-label": "stop the simulation?", hidden: true, onkeydown: (event) => { if (event.key === "Escape") this.ask(false); } },
      "End the run?", this.really, make("button", { type: "button", onclick: () => this.ask(false) }, "Go on"));
    const close = make("button", { type: "button", class: "bare", "data-verb": "close", "aria-label": "close the panel", title: "close the panel; the simulation runs on", onclick: () => this.send({ kind: "close" }) }, "✕");
    this.bar = make("i");
    this.progress = make("div", { class: "progress", role: "progressbar", "aria-label": "steps", "aria-valuemin": 0 }, this.bar);
    this.notes = make("div");
    this.field = new Field(this);
    this.ranks = new Ranks(this);
    this.rows = make("div");
    this.events = make("ol", { role: "log", "aria-label": "what was changed", tabindex: 0 });
    this.charts = make("div", { class: "charts" });
    this.all = make("button", { type: "button", class: "bare", hidden: true, onclick: () => { this.everything = true; this.arrange(); } });
    this.paramsPart = make("section", { "aria-label": "parameters", hidden: true }, make("h3", {}, "Parameters"), this.rows);
    this.eventsPart = make("section", { class: "changes", "aria-label": "changes", hidden: true }, make("h3", {}, "Changes"), this.events);
    this.curvesPart = make("section", { "aria-label": "curves", hidden: true }, make("h3", {}, "Curves"), this.charts, this.all);
    this.panel = make("section", { class: "panel", "aria-label": "simulation", "data-state": "waiting" },
      make("header", {}, this.state, this.step, this.rate, make("span", { class: "grow" }),
        this.pause, this.resume, this.one, this.stop, this.sure, close),
      this.progress, this.notes,
      make("div", { class: "body" }, make("div", { class: "side" }, this.paramsPart, this.ranks.element, this.eventsPart),
        make("div", { class: "shows" }, this.field.element, this.curvesPart)));
    this.shadow.append(make("style", {}, STYLE), this.panel);
  }

  // Find the place in the output, whenever the notebook has drawn it anew.
  settle() {
    if (this.host.isConnected) return;
    const place = document.querySelector(`.hpcmagic-panel[data-place="${this.place}"]`);
    if (!place) return;
    const focused = this.focused;
    for (const child of place.children) child.style.display = "none";
    place.append(this.host);
    if (focused) focused.focus({ preventScroll: true });
    this.redraw();
  }

  leave() {
    clearInterval(this.timer);
    this.watch.disconnect();
    this.resized.disconnect();
    document.removeEventListener("visibilitychange", this.onvisible);
    this.model.off("msg:custom", this.onnews);
    const place = this.host.parentElement;
    this.host.remove();
    if (place) for (const child of place.children) child.style.display = "";
  }

  send(message) { this.model.send({ ...message, page: this.page }); }

  hello() { this.asked = Date.now(); this.send({ kind: "hello" }); }

  act(verb, more = {}) {
    const id = `${this.page}-${++this.count}`;
    this.send({ kind: "do", id, verb, ...more });
    return id;
  }

  ask(open) {
    this.sure.hidden = !open;
    this.stop.hidden = open;
    (open ? this.really : this.stop).focus();
  }

  tick() {
    const now = Date.now(), visible = document.visibilityState === "visible";
    if (!visible) return;
    if (performance.now() - (this.inked || 0) > 1000) this.draw(); // the theme may have changed
    if (this.painted > this.acked) {
      this.acked = this.painted;
      this.send({ kind: "ack", seq: this.acked, idle: !this.shadow.activeElement && !this.inside });
    }
    if ((!this.heard || now - this.heard > STALE_MS) && now - this.asked > (this.heard ? 3 : 1) * AGAIN_MS) this.hello();
    const stale = this.heard && now - this.heard > STALE_MS;
    if (stale && !this.stale) this.note("stale", `No word from the kernel since ${new Date(this.heard).toLocaleTimeString()}.`, true);
    if (!stale && this.stale) this.note("stale", "");
    this.stale = stale;
  }

  told(message, buffers) {
    if (message.kind === "ready" && !this.heard) this.hello();
    if (message.kind !== "news") return;
    if (!message.full && !this.full) return; // it begins in the middle: what was asked for comes
    this.full = true;
    this.heard = Date.now();
    this.seq = message.seq;
    let next = 0;
    const bytes = () => { const view = buffers[next++]; return new Uint8Array(view.buffer, view.byteOffset, view.byteLength); };
    const numbers = () => new Float64Array(bytes().slice().buffer);
    if (message.full) this.begin(message, bytes());
    if (message.params) this.takeParams(message.params);
    for (const answer of message.answers) this.takeAnswer(answer);
    if (message.events) this.takeEvents(message.events);
    if (message.warnings) this.note("warnings", message.warnings.join("\n"));
    if (message.curves) this.takeCurves(message.curves, numbers());
    if (message.pulses) { this.ranks.take(numbers()); this.setRate(); }
    if (message.picture) this.field.take(message.picture, bytes());
    this.field.setNames(message.fields, message.field);
    this.stand(message);
    this.draw();
  }

  begin(message, maps) {
    if (!this.field.maps.length) this.field.setMaps(message.maps, maps);
    if (message.run !== this.run) {
      this.params.clear();
      this.rows.replaceChildren();
      this.field.picture = null;
    }
    this.run = message.run;
    this.curves.clear();
    this.charts.replaceChildren();
    this.events.replaceChildren();
    this.note("warnings", "");
  }

  takeParams(params) {
    for (const told of params) {
      let param = this.params.get(told.name);
      if (param && param.kind === told.kind) param.take(told);
      else {
        if (param) param.row.remove();
        param = new Param(this, told);
        this.params.set(told.name, param);
        this.rows.append(param.row);
      }
    }
    this.paramsPart.hidden = !this.params.size;
  }

  takeAnswer(answer) {
    const param = this.params.get(answer.name);
    if (answer.verb === "set" && param) param.answer(answer);
    else if (answer.refused) this.note("refused", `${answer.verb} refused: ${answer.refused}`, true);
    else this.note("refused", "");
    this.host.dataset.answered = `${answer.verb} ${answer.step}`;
  }

  takeEvents(events) {
    for (const event of events) {
      const time = new Date(event.time * 1000).toLocaleTimeString();
      this.events.prepend(make("li", { class: event.refused ? "bad" : "", title: time, "data-event": event.number }, event.text));
    }
    while (this.events.children.length > EVENTS) this.events.lastChild.remove();
    this.eventsPart.hidden = false;
  }

  takeCurves(heads, numbers) {
    let at = 0, whole_ = true;
    for (const { name, begin, count } of heads) {
      let chart = this.curves.get(name);
      if (!chart) {
        chart = new Chart(this, name);
        this.curves.set(name, chart);
        this.arrange();
      }
      whole_ = chart.add(begin, numbers.subarray(at, at + count), numbers.subarray(at + count, at + 2 * count)) && whole_;
      at += 2 * count;
    }
    if (!whole_) this.hello();
  }

  arrange() {
    const shown = [...this.curves.values()].slice(0, this.everything ? Infinity : CHARTS);
    for (const chart of shown) if (!chart.element.isConnected) { this.charts.append(chart.element); chart.changed(); }
    this.all.hidden = shown.length === this.curves.size;
    this.all.textContent = `all ${this.curves.size} curves`;
    this.curvesPart.hidden = !this.curves.size;
  }

  stand({ step, steps, paused, over, lost, again, log }) {
    const state = over ? "over" : lost ? "lost" : paused ? "paused" : "running";
    const words = { lost: "cut off", over: `over: ${over}`, paused: "paused", running: "running" };
    if (this.state.textContent !== words[state]) this.state.textContent = words[state];
    this.host.dataset.state = this.panel.dataset.state = state;
    this.host.dataset.step = step;
    this.step.textContent = `step ${whole(step)}${steps ? ` of ${whole(steps)}` : ""}`;
    this.events.title = log ? `written into ${log}` : "";
    this.progress.hidden = !steps;
    if (steps) {
      this.bar.style.width = `${Math.min(100, (100 * (step + 1)) / steps)}%`;
      this.progress.setAttribute("aria-valuemax", steps);
      this.progress.setAttribute("aria-valuenow", step);
    }
    this.live = state === "running";
    const ended = state === "over" || state === "lost";
    for (const control of [this.pause, this.resume, this.one, this.stop]) control.disabled = ended;
    for (const [control, hide] of [[this.pause, paused], [this.resume, !paused]]) {
      const focused = this.shadow.activeElement === control && hide;
      control.hidden = hide;
      if (focused) (paused ? this.resume : this.pause).focus();
    }
    if (this.pause.hidden === this.resume.hidden) this.pause.hidden = !(this.resume.hidden = true);
    if (ended && !this.sure.hidden) { this.sure.hidden = true; this.stop.hidden = false; }
    for (const { row } of this.params.values()) for (const input of row.querySelectorAll("input")) input.disabled = ended;
    this.note("lost", state === "lost" ? `${lost} → ${again ? "It is tried again." : "`%steer` tries again."}` : "", true);
    this.setRate();
  }

  setRate() {
    const pulse = this.ranks.pulses[0];
    this.rate.textContent = this.live && pulse && pulse.all > 0 ? `${short(1 / pulse.all, 3)} steps/s` : "";
  }

  note(name, text, bad = false) {
    const there = this.notes.querySelector(`[data-note="${name}"]`);
    if (!text) { if (there) there.remove(); return; }
    if (there && there.textContent === text) return;
    const note = make("div", { class: bad ? "note bad" : "note", "data-note": name, role: "alert", style: "white-space: pre-line" }, text);
    if (there) there.replaceWith(note); else this.notes.append(note);
  }

  redraw() {
    this.inks = null;
    for (const part of [this.field, this.ranks, ...this.curves.values()]) part.dirty = true;
    this.draw();
  }

  draw() {
    if (this.frame) return;
    this.frame = requestAnimationFrame(() => {
      this.frame = 0;
      if (this.host.isConnected) this.paint();
      this.painted = this.seq;
    });
  }

  paint() {
    const now = performance.now(), ink = this.ink(now);
    if (this.field.dirty) this.field.paint();
    if (this.ranks.dirty) this.ranks.paint(ink);
    const dirty = [...this.curves.values()].filter((chart) => chart.dirty && chart.element.isConnected);
    if (!dirty.length) return;
    if (now - (this.drawn || 0) < CURVES_MS && dirty.every((chart) => chart.at === null)) {
      this.later = this.later || setTimeout(() => { this.later = 0; this.draw(); }, CURVES_MS);
      return;
    }
    this.drawn = now;
    for (const chart of dirty) chart.paint(ink);
  }

  // The theme's colours, looked up now and then: the theme may change.
  ink(now) {
    if (this.inks && now - this.inked < 1000) return this.inks;
    const style = getComputedStyle(this.panel), probe = make("i");
    this.panel.append(probe);
    const colour = (name) => { probe.style.color = `var(--${name})`; return getComputedStyle(probe).color; };
    const found = { font: style.fontFamily };
    for (const name of ["ink", "quiet", "rule", "edge", "accent", "waits", "bad"]) found[name] = colour(name);
    probe.remove();
    if (this.inks && this.inks.ink !== found.ink) setTimeout(() => this.redraw());
    this.inked = now;
    this.inks = found;
    return found;
  }
}

export default {
  initialize({ model }) {
    const panel = new Panel(model);
    return () => panel.leave();
  },
};

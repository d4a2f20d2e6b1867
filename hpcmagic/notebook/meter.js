// The visible meter, in the page: what a session costs and how long it lasts, over everything else.
//
//   beats from meter.py ─► Feed ─► Row, one a session ─► Overlay, one a page
//
// It counts by itself, once a second, so that it lives while the kernel is busy; a beat that is late is a kernel that
// is gone. Two notebooks on one session feed one row. Every widget's code is loaded anew: the overlay is found under a
// symbol. Nothing is fetched from anywhere.

const TICK_MS = 1000;
const WAITS_MS = 1000; // until it is said that the kernel is busy
const HERE_MS = 60000;
const SAID_MS = 20000; // so long an answer stands
const EXTEND_S = 1800;
const SHORT_S = 300; // less time than that is a warning
const FACTS = ["spent", "rate", "left", "runs", "idle waste", "balance", "budget"];
const FOLDED = "hpcmagic.meter.folded";
const STYLE = `
:host { position: fixed; right: 62px; bottom: 34px; z-index: 900; max-width: calc(100vw - 80px); }
* { box-sizing: border-box; margin: 0; padding: 0; }
[hidden] { display: none !important; }
.meter {
  --ink: var(--jp-ui-font-color1, #24292f); --quiet: var(--jp-ui-font-color2, #656d76);
  --paper: var(--jp-layout-color1, #fff); --raised: var(--jp-layout-color2, #f3f4f6);
  --rule: var(--jp-border-color2, #d8dee4); --edge: var(--jp-border-color1, #afb8c1);
  --accent: var(--jp-brand-color1, #1f6feb); --bad: var(--jp-error-color1, #c62828);
  --warn: var(--jp-warn-color1, #b76e00); --good: var(--jp-success-color1, #2e7d32);
  position: relative; width: 330px; max-width: 100%; max-height: 70vh; overflow: auto;
  border: 1px solid var(--edge); border-radius: 8px; background: var(--paper); color: var(--ink);
  box-shadow: 0 2px 10px rgb(0 0 0 / 18%); font: 12px/1.5 var(--jp-ui-font-family, system-ui, sans-serif);
  font-variant-numeric: tabular-nums;
}
.folded { width: auto; }
.row { padding: 8px 12px 10px; }
.row + .row { border-top: 1px solid var(--rule); }
.folded .row { padding: 3px 34px 3px 12px; border: 0; }
.head { display: flex; align-items: center; gap: 0 8px; min-height: 22px; padding-right: 24px; white-space: nowrap; }
.folded .head { padding: 0; }
.state { display: inline-flex; align-items: center; gap: 7px; font-weight: 600; }
.state::before { content: ""; flex: none; width: 9px; height: 9px; border-radius: 50%; background: var(--quiet); }
[data-state="ready"] .state::before { background: var(--good); }
[data-state="pending"] .state::before, [data-state="starting"] .state::before { background: var(--accent); }
[data-state="fallen"] .state::before { background: var(--bad); }
[data-stale="kernel"] .state::before { background: none; border: 2px solid var(--warn); }
[data-busy="true"] .state::before { animation: busy 1.6s ease-in-out infinite; }
@keyframes busy { 50% { opacity: 0.3; } }
@media (prefers-reduced-motion: reduce) { .state::before { animation: none !important; } }
.name { min-width: 0; overflow: hidden; text-overflow: ellipsis; font-weight: 600; }
.quiet { color: var(--quiet); }
.where { flex: none; }
.folded .name { flex: none; max-width: 14ch; }
.folded :is(.where, .facts, .buttons, .sure, .said, .note), .brief { display: none; }
.folded .brief { display: inline; min-width: 0; overflow: hidden; text-overflow: ellipsis; }
.folded .idle:not(.short) { display: none; }
.facts { display: grid; grid-template-columns: auto minmax(0, 1fr); gap: 0 12px; margin-top: 4px; }
.facts dt { color: var(--quiet); }
.facts dd { overflow-wrap: anywhere; text-align: right; }
.facts :is([data-fact="spent"], [data-fact="left"]) { font-weight: 600; }
.warn { color: var(--warn); }
.note { margin-top: 6px; padding: 3px 8px; border-left: 3px solid var(--warn); background: var(--raised);
  white-space: pre-line; overflow-wrap: anywhere; }
.note.bad { border-color: var(--bad); }
.idle { display: flex; align-items: center; gap: 8px; margin-top: 6px; }
.idle span { flex: 1; }
.idle.short { padding-left: 8px; border-left: 3px solid var(--warn); font-weight: 600; }
.buttons, .sure div { display: flex; gap: 8px; margin-top: 8px; }
.sure { margin-top: 8px; padding: 6px 8px; border-left: 3px solid var(--bad); background: var(--raised); }
.said { margin-top: 6px; white-space: pre-line; overflow-wrap: anywhere; }
button { height: 24px; padding: 0 10px; border: 1px solid var(--edge); border-radius: 4px; background: var(--paper);
  color: inherit; font: inherit; cursor: pointer; }
button:hover:not(:disabled) { background: var(--raised); }
button:disabled { opacity: 0.5; cursor: default; }
button:focus-visible { outline: 2px solid var(--accent); outline-offset: 1px; }
button.danger { border-color: var(--bad); background: var(--bad); color: #fff; }
button.danger:hover { background: color-mix(in srgb, var(--bad) 85%, #000) !important; }
button.bare { width: 22px; padding: 0; border-color: transparent; background: none; color: var(--quiet); }
.fold { position: absolute; top: 7px; right: 8px; }
.folded .fold { top: 2px; }
.heard { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
@media print { :host { display: none; } }
`;

function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

function write(element, text) { if (element.textContent !== text) element.textContent = text; }

// Three digits, more only before the point, as cost.amount() does; what counts has all its digits, so as not to twitch.
function amount(number, counts = false) {
  const digits = counts ? 4 : 3;
  if (Math.abs(number) >= 10 ** digits - 0.5) return Math.round(number).toLocaleString("en-US");
  const places = number ? Math.max(0, digits - 1 - Math.floor(Math.log10(Math.abs(number)))) : 0;
  const text = number.toFixed(Math.min(places, 7));
  return counts || !places ? text : text.replace(/\.?0+$/, "");
}

function clock(seconds) {
  const whole = Math.max(0, Math.round(seconds)), minutes = Math.floor(whole / 60);
  if (whole < 60) return `${whole} s`;
  if (minutes < 60) return `${minutes} min ${String(whole % 60).padStart(2, "0")} s`;
  const days = Math.floor(minutes / 1440), hours = Math.floor(minutes / 60) % 24;
  return days ? `${days} d ${hours} h` : `${hours} h ${String(minutes % 60).padStart(2, "0")} min`;
}

const timeOfDay = (date) => new Date(date).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", hour12: false });
const count = (number, what) => `${number} ${what}${number === 1 ? "" : "s"}`;

// What one kernel tells of a session.
class Feed {
  constructor(model, row) {
    this.model = model;
    this.row = row;
    this.reading = null;
    this.heard = this.since = Date.now();
    this.silentMs = 12000;
    this.ontold = (message) => this.told(message);
    model.on("msg:custom", this.ontold);
    this.send({ kind: "hello" });
  }

  send(message) {
    try { this.model.send(message); } catch { /* the kernel is gone: no beat comes either */ }
  }

  told(message) {
    if (message.kind === "ready") { if (!this.reading) this.send({ kind: "hello" }); return; }
    this.heard = this.since = Date.now();
    if (message.kind === "news") {
      this.reading = message.reading;
      this.silentMs = 1000 * message.silent_s; // after so long a beat is late
      this.row.taken(this);
    } else this.row.answered(message);
  }

  stale(now) { return now - this.since > this.silentMs; }

  leave() { this.model.off("msg:custom", this.ontold); }
}

class Row {
  constructor(overlay, session) {
    this.overlay = overlay;
    this.session = session;
    this.feeds = [];
    this.clicks = new Map(); // by id: the timer that says that the kernel is busy
    this.news = {}; // what was announced last
    this.build();
  }

  build() {
    const button = (verb, text, act, more = {}) => make("button", { type: "button", "data-verb": verb, onclick: act, ...more }, text);
    this.state = make("span", { class: "state" });
    this.name = make("span", { class: "name", title: this.session }, this.session);
    this.where = make("span", { class: "where quiet" });
    this.brief = make("span", { class: "brief" });
    this.facts = make("dl", { class: "facts" });
    for (const name of FACTS) this.facts.append(make("dt", {}, name), make("dd", { "data-fact": name }));
    this.note = make("div", { class: "note", "data-note": "stale", hidden: true });
    this.warning = make("div", { class: "note", "data-note": "warning", hidden: true });
    this.ends = make("span");
    this.idle = make("div", { class: "idle", hidden: true }, this.ends, button("keep", "Keep", () => this.act("keep"), { title: "count idle time from now on anew", "aria-label": `keep session ${this.session}` }));
    this.stop = button("stop", "Stop", () => this.ask(true), { "aria-label": `stop session ${this.session}` });
    this.extend = button("extend", "+30 min", () => this.act("extend", { seconds: EXTEND_S }), { "aria-label": `30 minutes more for session ${this.session}` });
    this.buttons = make("div", { class: "buttons" }, this.stop, this.extend);
    this.lost = make("p");
    this.on = button("go-on", "Go on", () => this.ask(false));
    const really = button("really-stop", "Stop it", () => { this.ask(false); this.act("stop"); }, { class: "danger" });
    this.sure = make("div", { class: "sure", role: "group", "aria-label": `stop session ${this.session}?`, hidden: true, onkeydown: (event) => { if (event.key === "Escape") this.ask(false); } }, this.lost, make("div", {}, this.on, really));
    this.said = make("div", { class: "said", hidden: true });
    this.away = button("away", "✕", () => this.goAway(), { class: "bare", "aria-label": `take session ${this.session} out of sight`, title: "out of sight", hidden: true });
    this.element = make("section", { class: "row", role: "group", "aria-label": `session ${this.session}`, "data-session": this.session, "data-state": "unknown" },
      make("div", { class: "head" }, this.state, this.name, this.brief, this.where, this.away),
      this.facts, this.note, this.warning, this.idle, this.buttons, this.sure, this.said);
  }

  drop(feed) {
    feed.leave();
    this.feeds = this.feeds.filter((one) => one !== feed);
    if (this.feeds.length) this.draw(); else this.overlay.remove(this);
  }

  // Who told something last; a kernel that has another reading takes the place of one that is gone.
  get newest() { return this.feeds.filter((one) => one.reading).sort((a, b) => b.heard - a.heard)[0]; }

  taken(feed) {
    const now = Date.now();
    for (const other of this.feeds) if (other !== feed && other.stale(now)) this.drop(other);
    this.overlay.show(this);
    this.draw();
  }

  goAway() {
    const over = this.newest?.reading.state === "ended";
    for (const feed of [...this.feeds]) { if (over) feed.send({ kind: "close" }); this.drop(feed); }
  }

  ask(open) {
    [this.sure.hidden, this.buttons.hidden] = [!open, open];
    if (open) this.overlay.announce(this.lost.textContent);
    (open ? this.on : this.stop).focus();
  }

  act(verb, more = {}) {
    const id = this.overlay.nextId();
    this.clicks.set(id, setTimeout(() => this.say(verb, "waits", this.whyItWaits()), WAITS_MS));
    this.newest?.send({ kind: "do", id, verb, ...more });
  }

  whyItWaits() {
    if (this.element.dataset.stale !== "kernel") return "Waits for the kernel, which is busy …";
    return `Waits for the kernel, which is not heard.\n→ In another notebook: %hpc attach ${this.session}`;
  }

  answered(message) {
    if (!this.clicks.has(message.id)) return; // another page has asked
    clearTimeout(this.clicks.get(message.id));
    if (message.kind === "taken") {
      this.say(message.verb, "taken", { stop: "Is being stopped …", extend: "Asks for 30 min more …" }[message.verb] || "…");
    } else if (message.refused) this.say(message.verb, "refused", `${message.refused}\n→ ${message.mend}`);
    else this.say(message.verb, "done", message.done);
  }

  say(verb, outcome, text) {
    write(this.said, text);
    this.said.hidden = false;
    this.element.dataset.said = `${verb} ${outcome}`;
    if (outcome !== "taken") this.overlay.announce(text);
    clearTimeout(this.silence);
    if (outcome === "done" || outcome === "refused") this.silence = setTimeout(() => { this.said.hidden = true; }, SAID_MS);
  }

  // How things stand now, by what was told last.
  counted(now) {
    const feed = this.newest, told = feed.reading, passed = (now - feed.heard) / 1000;
    const paid = told.state !== "pending" && told.state !== "ended";
    const more = paid ? ((told.rate_per_hour || 0) * passed) / 3600 : 0;
    const plus = (value, by) => (value === undefined ? undefined : value + by);
    const minus = (value) => (value === undefined ? undefined : Math.max(0, value - (paid ? passed : 0)));
    return { ...told, paid,
      spent: plus(told.spent, more), budget_spent: plus(told.budget_spent, more), left_s: minus(told.left_s),
      elapsed_s: (told.elapsed_s || 0) + (paid ? passed : 0), idle_s: plus(told.idle_s, paid && !told.busy ? passed : 0),
      idle_left_s: told.busy ? undefined : minus(told.idle_left_s),
      stale: feed.stale(now) ? "kernel" : told.stale_s > 0 ? "slurm" : "",
      staleSince: feed.stale(now) ? feed.heard : now - 1000 * told.stale_s - (now - feed.heard) };
  }

  draw() {
    if (!this.newest) return;
    const now = Date.now(), one = this.counted(now), { dataset } = this.element;
    const about = one.stale ? "≈ " : "", ended = one.state === "ended";
    const spent = one.spent === undefined ? "" : about + amount(one.spent, true);
    const left = one.left_s === undefined ? "" : about + clock(one.left_s);
    write(this.state, one.state);
    this.state.title = one.busy ? "a cell runs" : "";
    write(this.where, one.job ? `job ${one.job} · ${count(one.ranks || 0, "rank")}` : `${count(one.ranks || 0, "rank")} here`);
    write(this.brief, [one.stale && `stale since ${timeOfDay(one.staleSince)}`, spent && `${spent} ${one.unit}`, left ? `${left} left` : ended ? "" : `for ${clock(one.elapsed_s)}`].filter(Boolean).map((part) => `· ${part}`).join(" "));
    this.setFacts(one, spent, left, now);
    this.setNotes(one);
    this.setIdle(one);
    this.buttons.hidden = ended || !this.sure.hidden;
    if (ended) this.sure.hidden = true;
    this.away.hidden = !(ended || one.stale === "kernel");
    this.extend.hidden = !["pending", "ready", "fallen"].includes(one.state) || one.left_s === undefined;
    write(this.lost, one.state === "pending" && !one.elapsed_s ? `Stop takes job ${one.job} out of the queue.` : `Stop ends ${one.job ? `job ${one.job}` : "the session"}: the variables on ${one.ranks === 1 ? "its rank" : `its ${one.ranks} ranks`} are lost${one.busy ? ", and what runs there" : ""}.`);
    const numbers = { spent: one.spent, left: one.left_s, idle: one.idle_s, idleLeft: one.idle_left_s, ceiling: one.ceiling, rate: one.rate_per_hour };
    for (const [name, value] of Object.entries(numbers)) if (value === undefined) delete dataset[name]; else dataset[name] = value;
    Object.assign(dataset, { busy: Boolean(one.busy), stale: one.stale, feeds: this.feeds.length, silent: this.newest.silentMs / 1000, state: one.state });
    this.announce(one);
  }

  setFacts(one, spent, left, now) {
    const money = one.price === undefined || !spent ? "" : ` (${amount(one.spent * one.price)} ${one.currency || ""})`.replace(" )", ")");
    const sure = one.confirmed ? ", by accounting" : one.state === "ended" && one.job ? ", estimated" : "";
    this.fact("spent", spent && `${spent} ${one.unit}${money}${sure}`);
    const most = one.ceiling === undefined ? "" : `, at most ${amount(one.ceiling)}`;
    this.fact("rate", one.state !== "ended" && one.rate_per_hour !== undefined ? `${amount(one.rate_per_hour)} an hour${most}` : "");
    const until = left && one.paid && !one.stale ? ` · until ${timeOfDay(now + 1000 * one.left_s)}` : "";
    this.fact("left", left && left + until, left && one.paid && one.left_s < SHORT_S);
    this.fact("runs", left || !one.paid ? "" : `${clock(one.elapsed_s)}, no walltime`);
    const share = one.elapsed_s > 0 ? ` (${Math.round(Math.min(100, (100 * one.idle_s) / one.elapsed_s))}%)` : "";
    const waste = one.rate_per_hour === undefined ? "" : `${amount((one.idle_s * one.rate_per_hour) / 3600, true)}, `;
    this.fact("idle waste", one.idle_s === undefined ? "" : `${waste}${clock(one.idle_s)}${share}`);
    this.fact("balance", one.balance === undefined ? "" : `${amount(one.balance)} left${one.balance_whose ? `, ${one.balance_whose}` : ""}`, one.balance <= 0);
    const budget = one.budget === undefined ? undefined : one.budget - (one.budget_spent || 0);
    this.fact("budget", budget === undefined ? "" : `${amount(Math.max(0, budget))} of ${amount(one.budget)} left${one.budget_what ? `, ${one.budget_what}` : ""}`, budget < 0.1 * one.budget);
  }

  fact(name, text, warn = false) {
    const value = this.facts.querySelector(`[data-fact="${name}"]`);
    write(value, text);
    value.hidden = value.previousElementSibling.hidden = !text;
    value.classList.toggle("warn", Boolean(warn));
  }

  setNotes(one) {
    const since = timeOfDay(one.staleSince);
    const stale = { kernel: `Stale since ${since}: the kernel is not heard. What stands here is estimated.`, slurm: `Stale since ${since}: SLURM is not heard. What stands here is estimated.`, "": "" }[one.stale];
    write(this.note, stale);
    this.note.hidden = !stale;
    const reason = one.state === "ready" ? "" : one.reason || "", warning = [reason, one.warning].filter(Boolean).join("\n");
    write(this.warning, warning);
    this.warning.hidden = !warning;
    this.warning.classList.toggle("bad", one.state === "fallen");
  }

  setIdle(one) {
    this.idle.hidden = one.idle_left_s === undefined || one.state === "ended";
    if (this.idle.hidden) return;
    const short = one.idle_left_s < Math.min(SHORT_S, (one.idle_limit_s || Infinity) / 2);
    this.idle.classList.toggle("short", short);
    this.element.dataset.short = short;
    write(this.ends, `idle: ends in ${clock(one.idle_left_s)}`);
  }

  // To those who do not see it: what changes, not every tick.
  announce(one) {
    const news = { state: `${one.state}${one.reason ? `: ${one.reason}` : ""}`, stale: this.note.hidden ? "" : this.note.textContent,
      warning: one.warning || "", short: one.paid && one.left_s < SHORT_S ? "less than 5 minutes left" : "",
      idle: this.idle.hidden || !this.idle.classList.contains("short") ? "" : "ends soon, since no cell runs; Keep keeps it" };
    const said = Object.entries(news).filter(([name, text]) => text && text !== this.news[name]).map(([, text]) => text);
    if (said.length) this.overlay.announce(`Session ${this.session}: ${said.join("; ")}`);
    this.news = news;
  }
}

class Overlay {
  constructor() {
    this.page = Math.random().toString(36).slice(2);
    this.ids = 0;
    this.rows = new Map();
    this.host = make("div", { class: "hpcmagic-meter", "data-lm-suppress-shortcuts": "true", hidden: true });
    for (const kind of ["keydown", "keyup", "keypress"]) this.host.addEventListener(kind, (event) => event.stopPropagation());
    this.heard = make("div", { class: "heard", role: "status", "aria-live": "polite" });
    this.toggle = make("button", { type: "button", class: "fold bare", "data-verb": "fold", onclick: () => this.fold(!this.folded, true) });
    this.list = make("div");
    this.meter = make("section", { class: "meter", role: "region", "aria-label": "hpcmagic's meter" }, this.toggle, this.list, this.heard);
    this.host.attachShadow({ mode: "open" }).append(make("style", {}, STYLE), this.meter);
    document.body.append(this.host);
    this.fold(remembered());
    window.addEventListener("storage", (event) => { if (event.key === FOLDED) this.fold(remembered()); });
    this.ticked = this.told = Date.now();
    setInterval(() => this.tick(), TICK_MS);
  }

  nextId() { return `${this.page}-${++this.ids}`; }

  feed(model) {
    const session = model.get("place");
    if (!this.rows.has(session)) this.rows.set(session, new Row(this, session));
    const row = this.rows.get(session), feed = new Feed(model, row);
    row.feeds.push(feed);
    return () => { if (row.feeds.includes(feed)) row.drop(feed); };
  }

  show(row) {
    if (!row.element.isConnected) this.list.append(row.element);
    this.arrange();
  }

  remove(row) {
    row.element.remove();
    if (this.rows.get(row.session) === row) this.rows.delete(row.session);
    this.arrange();
  }

  arrange() {
    this.host.hidden = !this.list.children.length;
    for (const row of this.rows.values()) row.name.hidden = this.folded && this.list.children.length === 1;
    if (!this.host.isConnected) document.body.append(this.host);
  }

  fold(folded, remember = false) {
    this.folded = folded;
    this.meter.classList.toggle("folded", folded);
    this.host.dataset.folded = folded;
    this.toggle.setAttribute("aria-expanded", !folded);
    this.toggle.setAttribute("aria-label", folded ? "unfold the meter" : "fold the meter");
    this.toggle.title = folded ? "unfold" : "fold to one line";
    write(this.toggle, folded ? "▴" : "▾");
    if (remember) try { localStorage.setItem(FOLDED, folded ? "1" : ""); } catch { /* it is not remembered then */ }
    this.arrange();
  }

  announce(text) { write(this.heard, text); }

  tick() {
    const now = Date.now(), slept = now - this.ticked > 5 * TICK_MS;
    this.ticked = now;
    const here = now - this.told > HERE_MS;
    if (here) this.told = now;
    for (const row of this.rows.values()) {
      for (const feed of row.feeds) {
        if (slept) feed.since = now; // neither did beats come while this computer, or this page, slept
        if (here) feed.send({ kind: "here" });
      }
      row.draw();
      if (row.element.dataset.state === "ended" && row.element.dataset.stale === "kernel") row.goAway(); // nothing more will be said
    }
  }
}

function remembered() {
  try { return localStorage.getItem(FOLDED) === "1"; } catch { return false; }
}

export default {
  initialize({ model }) {
    const key = Symbol.for("hpcmagic.meter");
    globalThis[key] = globalThis[key] || new Overlay();
    return globalThis[key].feed(model);
  },
};

// A parameter: a row with a slider, a number, and what became of the last change.

class Param {
  constructor(panel, told) {
    this.panel = panel;
    this.name = told.name;
    this.kind = told.kind;
    this.pending = null; // the last request, while nothing is known of it
    this.dirty = false; // whether a person is typing
    const id = `p-${told.name}`;
    this.said = make("div", { class: "said", role: "status" });
    if (told.kind === "bool") {
      this.box = make("input", { type: "checkbox", id, onchange: () => this.send(this.box.checked ? "True" : "False") });
    } else {
      this.text = make("input", {
        type: "text", id, spellcheck: "false", autocomplete: "off",
        inputmode: told.kind === "str" ? "text" : "decimal",
        oninput: () => { this.dirty = true; },
        onchange: () => this.typed(),
        onkeydown: (event) => {
          if (event.key === "Escape") { this.dirty = false; this.say("", false); this.sync(); }
        },
      });
    }
    this.slide = make("div", { class: "slide num" });
    this.row = make("div", { class: `param ${told.kind}`, "data-param": told.name },
      make("label", { for: id, title: told.name }, told.name), this.box || this.text, this.slide, this.said);
    this.take(told);
  }

  take(told) {
    const { min, max } = told;
    if (!this.told || this.told.min !== min || this.told.max !== max) this.range(min, max);
    this.told = told;
    this.row.title = `default ${told.default}`;
    this.sync();
  }

  range(min, max) {
    this.slide.replaceChildren();
    this.slider = null;
    this.slide.hidden = true;
    if (this.box || this.kind === "str" || (min === null && max === null)) return;
    this.slide.hidden = false;
    if (min === null || max === null || !(max > min)) {
      this.slide.append(make("span", { style: "grid-column: 1 / -1" }, min === null ? `at most ${short(max)}` : `at least ${short(min)}`));
      return;
    }
    this.min = min; this.max = max;
    this.log = min > 0 && max / min >= 1000;
    const places = this.kind === "int" && max - min <= 10000 && !this.log ? max - min : 1000;
    this.places = places;
    this.slider = make("input", {
      type: "range", min: 0, max: places, step: 1, "aria-label": this.name,
      oninput: () => { this.dirty = false; this.dragged(); },
    });
    this.slide.append(make("span", {}, short(min)), this.slider, make("span", {}, short(max)));
  }

  fromPlace(place) {
    const part = place / this.places;
    let value = this.log ? this.min * (this.max / this.min) ** part : this.min + (this.max - this.min) * part;
    if (this.kind === "int") return String(Math.round(value));
    value = place === this.places ? this.max : place === 0 ? this.min : Number(value.toPrecision(4));
    const text = short(Math.min(this.max, Math.max(this.min, value)), 12);
    return /[.e]/.test(text) ? text : `${text}.0`;
  }

  toPlace(value) {
    const part = this.log ? Math.log(value / this.min) / Math.log(this.max / this.min)
      : (value - this.min) / (this.max - this.min);
    return Math.round(part * this.places);
  }

  dragged() {
    this.shown = this.fromPlace(Number(this.slider.value));
    this.text.value = this.shown;
    this.slider.setAttribute("aria-valuetext", this.shown);
    if (this.waits) return;
    this.waits = requestAnimationFrame(() => { this.waits = 0; this.send(this.shown); });
  }

  typed() {
    if (!this.dirty) return;
    this.dirty = false;
    if (this.text.value !== this.told.value) this.send(this.text.value);
    else { delete this.row.dataset.refused; this.say("", false); } // as it stands: what was refused is taken back
  }

  send(text) {
    this.pending = this.panel.act("set", { name: this.name, text });
    this.say("waits for the next step …", false);
  }

  answer(answer) {
    if (answer.id !== this.pending) return;
    this.pending = null;
    if (answer.refused) {
      this.row.dataset.refused = answer.refused;
      this.say(answer.refused, true);
      if (this.slider) this.place();
      if (this.box) this.sync();
      return;
    }
    delete this.row.dataset.refused;
    this.row.dataset.applied = answer.step;
    this.say(`applied at step ${whole(answer.step)}`, false);
    this.sync();
  }

  say(text, bad) {
    this.said.textContent = text;
    this.said.classList.toggle("bad", bad);
    (this.box || this.text).setAttribute("aria-invalid", bad);
  }

  sync() {
    if (this.pending !== null || this.waits) return;
    this.row.dataset.value = this.told.value;
    if (this.box) this.box.checked = this.told.value === "True";
    else if (!this.dirty && this.text.getAttribute("aria-invalid") !== "true") this.text.value = this.told.value;
    if (this.slider) this.place();
  }

  place() {
    this.slider.value = this.toPlace(Number(this.told.value));
    this.slider.setAttribute("aria-valuetext", this.told.value);
  }
}

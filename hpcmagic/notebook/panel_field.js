// The field: a picture, its colours, zoom, the value under the pointer.

const LEVELS = 254;
const PIXELS = 512;
const MOST_PIXELS = 2048;

class Field {
  constructor(panel) {
    this.panel = panel;
    this.maps = [];
    this.picture = null;
    this.zoom = { scale: 1, x: 0.5, y: 0.5 }; // of the whole, and which part of it lies in the middle
    this.probe = null; // row and column of the picture
    this.frames = 0;
    this.source = document.createElement("canvas");
    this.choice = make("select", { "aria-label": "field", onchange: () => this.view(this.choice.value) });
    this.colours = make("select", { "aria-label": "colours", onchange: () => this.changed() });
    this.range = make("select", { "aria-label": "range", onchange: () => this.ranged() },
      make("option", { value: "auto" }, "auto range"), make("option", { value: "fixed" }, "fixed range"));
    this.low = make("input", { type: "text", "aria-label": "lowest", onchange: () => this.changed() });
    this.high = make("input", { type: "text", "aria-label": "highest", onchange: () => this.changed() });
    this.ends = make("span", { hidden: true, class: "tools", style: "margin: 0" }, this.low, "to", this.high);
    const tool = (text, label, act) => make("button", { class: "bare", "aria-label": label, title: label, onclick: act }, text);
    this.canvas = make("canvas", {
      class: "image", tabindex: 0, role: "img", "aria-label": "the field, no picture yet",
      onpointermove: (event) => this.moved(event),
      onpointerleave: () => { if (!this.drag) this.point(null); },
      onpointerdown: (event) => { this.drag = [event.offsetX, event.offsetY]; this.canvas.setPointerCapture(event.pointerId); },
      onpointerup: () => { this.drag = null; },
      onpointercancel: () => { this.drag = null; },
      ondblclick: () => this.magnify(0),
      onkeydown: (event) => this.key(event),
    });
    this.canvas.addEventListener("wheel", (event) => {
      if (this.panel.shadow.activeElement !== this.canvas) return; // the notebook scrolls until the picture is clicked
      event.preventDefault();
      this.magnify(event.deltaY < 0 ? 1.25 : 0.8, event.offsetX / this.canvas.clientWidth, event.offsetY / this.canvas.clientHeight);
    }, { passive: false });
    this.bar = make("canvas", { "aria-hidden": "true" });
    this.least = make("span", { class: "num" });
    this.most = make("span", { class: "num" });
    this.under = make("div", { class: "under num quiet", role: "status" });
    this.element = make("section", { class: "field", "aria-label": "field", hidden: true, "data-frames": 0 },
      make("div", { class: "title" }, make("h3", {}, "Field"), make("span", { class: "grow" }),
        tool("−", "zoom out", () => this.magnify(0.8)), tool("+", "zoom in", () => this.magnify(1.25)),
        tool("1:1", "the whole field", () => this.magnify(0))),
      make("div", { class: "tools" }, this.choice, this.colours, this.range, this.ends),
      this.canvas, this.scale = make("div", { class: "scale" }, this.least, this.bar, this.most), this.under);
  }

  setMaps(names, bytes) {
    this.maps = names.map((name, n) => bytes.subarray(768 * n, 768 * (n + 1)));
    this.colours.replaceChildren(...names.map((name, n) => make("option", { value: n }, name)));
  }

  setNames(names, chosen) {
    const there = [...this.choice.options].map((option) => option.value);
    if (there.join("\n") !== names.join("\n")) this.choice.replaceChildren(...names.map((name) => make("option", { value: name }, name)));
    if (this.panel.shadow.activeElement !== this.choice && chosen) this.choice.value = chosen;
    this.element.hidden = !names.length;
  }

  view(name) {
    const pixels = Math.min(MOST_PIXELS, Math.ceil((PIXELS * Math.max(1, this.zoom.scale)) / 256) * 256);
    const wish = `${pixels} ${name}`;
    if (wish === this.wish) return;
    this.wish = wish;
    this.panel.send({ kind: "view", field: name, pixels });
  }

  ranged() {
    const fixed = this.range.value === "fixed";
    if (fixed && this.picture) [this.low.value, this.high.value] = this.limits(true).map((end) => short(end));
    this.ends.hidden = !fixed;
    this.changed();
  }

  take(picture, pixels) {
    if (this.picture && this.picture.name !== picture.name) this.zoom = { scale: 1, x: 0.5, y: 0.5 };
    this.picture = picture;
    this.pixels = pixels;
    this.element.dataset.frames = ++this.frames;
    this.element.dataset.step = picture.step;
    this.changed();
  }

  changed() { this.dirty = true; this.panel.draw(); }

  limits(auto = this.range.value === "auto") {
    let { low, high } = this.picture;
    if (!auto) {
      const own = [Number(this.low.value), Number(this.high.value)];
      const good = this.low.value.trim() !== "" && this.high.value.trim() !== "" && own[1] > own[0];
      for (const field of [this.low, this.high]) field.setAttribute("aria-invalid", !good);
      if (good) return own;
    }
    if (Number(this.colours.value) === 1 && low < 0 && high > 0) { high = Math.max(high, -low); low = -high; }
    return [low, high];
  }

  magnify(factor, atX = 0.5, atY = 0.5) {
    const zoom = this.zoom;
    if (!factor) Object.assign(zoom, { scale: 1, x: 0.5, y: 0.5 });
    else {
      const scale = Math.min(64, Math.max(1, zoom.scale * factor));
      zoom.x += (atX - 0.5) * (1 / zoom.scale - 1 / scale);
      zoom.y += (atY - 0.5) * (1 / zoom.scale - 1 / scale);
      zoom.scale = scale;
    }
    this.bound();
    if (this.picture) this.view(this.choice.value);
  }

  bound() {
    const half = 0.5 / this.zoom.scale;
    for (const axis of ["x", "y"]) this.zoom[axis] = Math.min(1 - half, Math.max(half, this.zoom[axis]));
    this.element.dataset.zoom = this.zoom.scale.toFixed(2);
    this.changed();
  }

  moved(event) {
    const { clientWidth: width, clientHeight: height } = this.canvas;
    if (this.drag) {
      this.zoom.x -= (event.offsetX - this.drag[0]) / width / this.zoom.scale;
      this.zoom.y -= (event.offsetY - this.drag[1]) / height / this.zoom.scale;
      this.drag = [event.offsetX, event.offsetY];
      this.bound();
    }
    if (!this.picture) return;
    const row = (this.zoom.y + (event.offsetY / height - 0.5) / this.zoom.scale) * this.picture.rows;
    const column = (this.zoom.x + (event.offsetX / width - 0.5) / this.zoom.scale) * this.picture.columns;
    this.point([Math.floor(row), Math.floor(column)]);
  }

  point(probe) { this.probe = probe; this.changed(); }

  key(event) {
    const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    if (event.key in moves && this.picture) {
      const { rows, columns } = this.picture;
      const [row, column] = this.probe || [rows >> 1, columns >> 1];
      const move = moves[event.key], stride = event.shiftKey ? 10 : 1;
      this.point([Math.min(rows - 1, Math.max(0, row + move[0] * stride)), Math.min(columns - 1, Math.max(0, column + move[1] * stride))]);
    } else if (event.key === "+" || event.key === "=") this.magnify(1.25);
    else if (event.key === "-") this.magnify(0.8);
    else if (event.key === "0") this.magnify(0);
    else if (event.key === "Escape") this.point(null);
    else return;
    event.preventDefault();
  }

  valueAt(row, column) {
    const { rows, columns, low, high } = this.picture;
    if (row < 0 || column < 0 || row >= rows || column >= columns) return null;
    const level = this.pixels[row * columns + column];
    return level === 255 ? NaN : low + (level * (high - low)) / LEVELS;
  }

  paint() {
    this.dirty = false;
    const { picture } = this;
    if (!picture || !picture.rows || !picture.columns || !this.maps.length) return;
    const { rows, columns, stride, shape } = picture;
    const room = this.element.clientWidth, tall = Math.max(48, Math.min(430, (room * rows) / columns));
    const wide = Math.min(room, (tall * columns) / rows < 48 ? 48 : tall <= 48 ? room : (tall * columns) / rows);
    this.canvas.style.width = `${Math.floor(wide)}px`;
    this.canvas.style.height = `${Math.floor(tall)}px`;
    this.scale.style.width = `${Math.floor(Math.max(wide, Math.min(room, 200)))}px`;
    this.colour();
    const on = surface(this.canvas);
    if (!on) return;
    const { context, width, height } = on, { scale, x, y } = this.zoom;
    context.imageSmoothingEnabled = (columns / scale) > width * (window.devicePixelRatio || 1);
    context.drawImage(this.source, (x - 0.5 / scale) * columns, (y - 0.5 / scale) * rows, columns / scale, rows / scale, 0, 0, width, height);
    const size = shape.length ? shape.join(" × ") : "";
    const thin = stride > 1 ? `, every ${stride === 2 ? "2nd" : stride === 3 ? "3rd" : `${stride}th`} value` : "";
    let text = `${picture.name} (${size}${thin}) at step ${whole(picture.step)}`;
    const value = this.probe && this.valueAt(...this.probe);
    if (this.probe && value !== null) {
      const [row, column] = this.probe;
      text = `row ${row * stride}, column ${column * stride}: ${Number.isNaN(value) ? "nothing" : short(value)}`;
      const px = ((column + 0.5) / columns - x) * scale * width + width / 2;
      const py = ((row + 0.5) / rows - y) * scale * height + height / 2;
      context.lineWidth = 1;
      for (const [style, shift] of [["rgba(0,0,0,.55)", 1], ["rgba(255,255,255,.9)", 0]]) {
        context.strokeStyle = style;
        context.strokeRect(Math.round(px) - 4.5 + shift, Math.round(py) - 4.5 + shift, 9, 9);
      }
      this.element.dataset.hover = text;
    } else delete this.element.dataset.hover;
    this.under.textContent = text;
    this.canvas.setAttribute("aria-label", `${text}. Arrow keys move the probe, plus and minus zoom.`);
  }

  colour() {
    const { rows, columns, low, high } = this.picture, { source, pixels } = this;
    const map = this.maps[Number(this.colours.value) || 0], [least, most] = this.limits();
    const palette = new Uint32Array(256);
    for (let level = 0; level <= LEVELS; level++) {
      const value = low + (level * (high - low)) / LEVELS;
      const part = most > least ? (value - least) / (most - least) : 0.5;
      const at = 3 * Math.min(255, Math.max(0, Math.round(part * 255)));
      palette[level] = (255 << 24) | (map[at + 2] << 16) | (map[at + 1] << 8) | map[at]; // little endian
    }
    if (source.width !== columns || source.height !== rows) { source.width = columns; source.height = rows; this.image = null; }
    const context = source.getContext("2d");
    this.image = this.image || context.createImageData(columns, rows);
    const into = new Uint32Array(this.image.data.buffer);
    for (let n = 0; n < into.length; n++) into[n] = palette[pixels[n]];
    context.putImageData(this.image, 0, 0);
    this.least.textContent = short(least);
    this.most.textContent = short(most);
    this.element.dataset.range = `${short(least)} ${short(most)}`;
    const on = surface(this.bar);
    if (!on) return;
    for (let n = 0; n < 256; n++) {
      on.context.fillStyle = `rgb(${map[3 * n]}, ${map[3 * n + 1]}, ${map[3 * n + 2]})`;
      on.context.fillRect((n * on.width) / 256, 0, on.width / 256 + 1, on.height);
    }
  }
}

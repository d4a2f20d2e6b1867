// What the parts of the panel draw with.

const ICONS = {
  pause: "M1 0h3v11H1zM7 0h3v11H7z",
  resume: "M1 0l9 5.5L1 11z",
  step: "M0 0l7 5.5L0 11zM8 0h2.5v11H8z",
  stop: "M1 1h9v9H1z",
};

function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "class") element.className = value;
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 11 11");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("d", ICONS[name]);
  svg.append(path);
  return svg;
}

const whole = (number) => Math.round(number).toLocaleString("en-US");

function short(number, digits = 4) {
  if (!Number.isFinite(number)) return String(number);
  if (number === 0) return "0";
  const size = Math.abs(number);
  if (size >= 1e6 || size < 1e-4) return String(Number(number.toPrecision(digits)).toExponential()).replace("+", "");
  return String(Number(number.toPrecision(digits)));
}

function duration(seconds) {
  for (const [unit, factor] of [["s", 1], ["ms", 1e3]]) {
    if (seconds * factor >= 1) return `${short(seconds * factor, 3)} ${unit}`;
  }
  return `${short(seconds * 1e6, 3)} µs`;
}

// A canvas of the size that it has in the page, in real pixels; null where it has none.
function surface(canvas) {
  const ratio = window.devicePixelRatio || 1;
  const width = canvas.clientWidth, height = canvas.clientHeight;
  if (!width || !height) return null;
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
  }
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  return { context, width, height };
}

function ticks(low, high, most) {
  const rough = (high - low) / most;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= rough * 0.999);
  const found = [];
  for (let n = Math.ceil(low / step - 1e-9); n * step <= high + step * 1e-9; n++) found.push(n * step + 0); // + 0: no -0
  return found.length > 1 || most > 6 ? found : ticks(low, high, most + 1);
}

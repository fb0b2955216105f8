// A widget's frame, its controls and numbers. The model of a widget holds its state; every change of it, from here or
// from Python, redraws.
const SVG_TAGS = new Set("svg g rect path circle text image line polyline".split(" "));

function make(tag, attributes = {}, ...children) {
  const node = SVG_TAGS.has(tag)
    ? document.createElementNS("http://www.w3.org/2000/svg", tag)
    : document.createElement(tag);
  change(node, attributes).append(...children);
  return node;
}

function change(node, attributes) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) node.removeAttribute(name);
    else node.setAttribute(name, value);
  }
  return node;
}

// The widget's outer frame. `draw` runs now and, at most once a screen refresh, after every change of state.
function frame({ model, el }, title, help) {
  const pictures = make("div", { class: "mrw-pictures" });
  const controls = make("div", { class: "mrw-controls" }),
    numbers = make("dl", { class: "mrw-numbers" });
  const note = make("p", { class: "mrw-note", role: "status" });
  const side = make("div", { class: "mrw-side" }, controls, numbers, note);
  const root = make(
    "div",
    { class: "mrw", role: "group", "aria-label": title, "data-lm-suppress-shortcuts": "true" },
    make("div", { class: "mrw-row" }, pictures, side),
    make("p", { class: "mrw-help" }, help),
  );
  root.addEventListener("keydown", (event) => event.stopPropagation()); // JupyterLab would take the arrow keys
  el.append(root);
  const w = { root, pictures, side, controls, model, note, get: (name) => model.get(name) };
  w.set = (name, value) => {
    model.set(name, value);
    model.save_changes();
  };
  // Numbers by name, read out when they change.
  w.numbers = (values) => {
    for (const [name, value] of Object.entries(values)) {
      let cell = numbers.querySelector(`[data-name="${name}"]`);
      if (!cell) {
        cell = make("dd", { "data-name": name });
        numbers.append(make("dt", {}, name), cell);
      }
      if (cell.textContent !== String(value)) cell.textContent = value;
    }
  };
  w.say = (text) => {
    if (note.textContent !== text) note.textContent = text;
  };
  w.keep = (draw) => {
    let waiting = false;
    const later = () => {
      if (waiting) return;
      waiting = true;
      requestAnimationFrame(() => {
        waiting = false;
        draw();
      });
    };
    model.on("change", later);
    draw();
    return () => model.off("change", later);
  };
  return w;
}

const fixed = (value, digits) => Number(value).toFixed(digits);

function slider(w, name, label, { min, max, step, digits = 2, format = (value) => fixed(value, digits), disabled }) {
  const input = make("input", { type: "range", min, max, step, "aria-label": label, "data-name": name, disabled });
  const output = make("output", {});
  const show = () => {
    input.value = w.get(name);
    output.textContent = format(w.get(name));
    input.setAttribute("aria-valuetext", output.textContent);
  };
  input.addEventListener("input", () => w.set(name, Number(input.value)));
  w.model.on(`change:${name}`, show);
  w.controls.append(make("label", { class: "mrw-slider" }, make("span", {}, label), input, output));
  show();
  return input;
}

function toggle(w, name, label) {
  const input = make("input", { type: "checkbox", "aria-label": label, "data-name": name });
  const show = () => (input.checked = w.get(name));
  input.addEventListener("change", () => w.set(name, input.checked));
  w.model.on(`change:${name}`, show);
  w.controls.append(make("label", { class: "mrw-toggle" }, input, make("span", {}, label)));
  show();
  return input;
}

// options: [value, words] pairs. `then` may set more of the state that goes with the choice.
function choice(w, name, label, options, then = () => {}) {
  const select = make("select", { "aria-label": label, "data-name": name });
  options.forEach(([, words], i) => select.append(make("option", { value: i }, words)));
  const show = () => (select.value = options.findIndex(([value]) => value === w.get(name)));
  select.addEventListener("change", () => {
    then(options[select.value][0]);
    w.set(name, options[select.value][0]);
  });
  w.model.on(`change:${name}`, show);
  w.controls.append(make("label", { class: "mrw-choice" }, make("span", {}, label), select));
  show();
  return select;
}

function button(parent, label, words, act) {
  const node = make("button", { type: "button", "aria-label": label }, words);
  node.addEventListener("click", act);
  parent.append(node);
  return node;
}

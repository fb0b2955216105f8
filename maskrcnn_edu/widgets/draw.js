// Pictures in SVG, boxes to drag, cells to point at, charts. COLOURS come from maskrcnn_edu.plots.
// A picture `height` x `width` of its own units, shown `shown` CSS pixels wide or high. Layers keep their order.
function picture(
  w,
  { height, width, url = null, label, shown = 400, sharp = true, parent = w.pictures, title = null },
) {
  const k = Math.min(shown / width, shown / height),
    w_px = width * k,
    h_px = height * k;
  const svg = make("svg", {
    viewBox: `0 0 ${w_px} ${h_px}`,
    role: "group",
    "aria-label": label,
    class: "mrw-picture",
    style: `width:${w_px}px`,
  });
  svg.append(make("rect", { width: w_px, height: h_px, class: "mrw-paper" }));
  const s = { svg, k, height, width };
  s.back = (source) => {
    if (!s.image) {
      s.image = make("image", {
        width: w_px,
        height: h_px,
        preserveAspectRatio: "none",
        class: sharp ? "mrw-sharp" : null,
      });
      svg.children[0].after(s.image);
    }
    s.image.setAttribute("href", source);
  };
  if (url) s.back(url);
  s.layer = (attributes = {}) => svg.appendChild(make("g", attributes));
  s.at = (event) => {
    const edge = svg.getBoundingClientRect();
    return [((event.clientY - edge.top) / edge.height) * height, ((event.clientX - edge.left) / edge.width) * width];
  };
  s.outline = (boxes) =>
    boxes.map(([y1, x1, y2, x2]) => `M${x1 * k} ${y1 * k}H${x2 * k}V${y2 * k}H${x1 * k}Z`).join("");
  const figure = make("figure", { class: "mrw-figure" }, svg);
  if (title) figure.prepend(make("figcaption", {}, title));
  parent.append(figure);
  return s;
}

// Boxes in one colour, over a dark rim so that they show on any picture.
function drawBoxes(layer, s, boxes, colour, { width = 2, dash = null, rim = 0.55, opacity = 1 } = {}) {
  if (!boxes.length) return;
  const d = s.outline(boxes);
  if (rim)
    layer.append(make("path", { d, fill: "none", stroke: "#000", "stroke-opacity": rim, "stroke-width": width + 1.6 }));
  layer.append(
    make("path", {
      d,
      fill: "none",
      stroke: colour,
      "stroke-opacity": opacity,
      "stroke-width": width,
      "stroke-dasharray": dash,
    }),
  );
}

function drawText(layer, s, y, x, words, { colour = null, size = 12, anchor = "start" } = {}) {
  const wide = anchor === "start" ? 0.56 * size * String(words).length : 2; // about; so that it stays in the picture
  layer.append(
    make(
      "text",
      {
        x: Math.max(Math.min(x * s.k, s.width * s.k - wide), 2),
        y: clamp(y * s.k, size, s.height * s.k - 3),
        "font-size": size,
        "text-anchor": anchor,
        class: "mrw-text",
        style: colour ? `fill:${colour}` : null,
      },
      words,
    ),
  );
}

// A dot at each [y, x], all in one path.
function drawDots(layer, s, places, colour, size = 3) {
  const d = places.map(([y, x]) => `M${x * s.k} ${y * s.k}h0`).join("");
  layer.append(
    make("path", { d, stroke: "#000", "stroke-opacity": 0.6, "stroke-width": size + 2, "stroke-linecap": "round" }),
  );
  layer.append(make("path", { d, stroke: colour, "stroke-width": size, "stroke-linecap": "round" }));
}

const words = (box, digits = 0) =>
  `y ${fixed(box[0], digits)} to ${fixed(box[2], digits)}, x ${fixed(box[1], digits)} to ${fixed(box[3], digits)}`;

// A box of the state that the mouse drags and the keys move; its corners, and Shift, change its size.
function dragBox(w, s, name, label, colour, { step = 1, least = 1, digits = 0, tagged = true } = {}) {
  const g = s.layer({
    tabindex: 0,
    role: "application",
    "aria-roledescription": "box to drag",
    class: "mrw-drag",
    "data-name": name,
  });
  const focus = make("path", { class: "mrw-focus" }),
    rim = make("path", { class: "mrw-rim" });
  const line = make("path", { fill: colour, "fill-opacity": 0.12, stroke: colour, "stroke-width": 2.5 });
  const tag = make("text", { class: "mrw-text", "font-size": 13, "font-weight": 600 }, tagged ? label : "");
  const corners = [
    [0, 1],
    [0, 3],
    [2, 1],
    [2, 3],
  ].map((own) => {
    const node = make("rect", {
      width: 10,
      height: 10,
      fill: colour,
      class: "mrw-corner",
      style: `cursor:${own[0] + own[1] === 3 ? "nesw" : "nwse"}-resize`,
    });
    return Object.assign(node, { own });
  });
  g.append(focus, rim, line, tag, ...corners);
  const limit = [s.height, s.width, s.height, s.width];
  const put = (box) =>
    w.set(
      name,
      box.map((value) => Number(value.toFixed(3))),
    );
  const moved = (box, dy, dx) => {
    const y = clamp(dy, -box[0], s.height - box[2]),
      x = clamp(dx, -box[1], s.width - box[3]);
    return [box[0] + y, box[1] + x, box[2] + y, box[3] + x];
  };
  const resized = (box, own, dy, dx) => {
    const next = [...box];
    [dy, dx].forEach((d, axis) => {
      const side = own[axis],
        [low, high] = side < 2 ? [0, box[side + 2] - least] : [box[side - 2] + least, limit[side]];
      next[side] = clamp(box[side] + d, Math.min(low, box[side]), Math.max(high, box[side]));
    });
    return next;
  };
  const grab = (node, act) =>
    node.addEventListener("pointerdown", (event) => {
      event.preventDefault();
      event.stopPropagation();
      g.focus({ preventScroll: true });
      node.setPointerCapture(event.pointerId);
      const start = s.at(event),
        box = w.get(name);
      const move = (e) => {
        const [y, x] = s.at(e),
          whole = (d) => Math.round(d / step) * step;
        put(act(box, whole(y - start[0]), whole(x - start[1])));
      };
      node.addEventListener("pointermove", move);
      node.addEventListener("lostpointercapture", () => node.removeEventListener("pointermove", move), { once: true });
    });
  grab(line, moved);
  corners.forEach((node) => grab(node, (box, dy, dx) => resized(box, node.own, dy, dx)));
  g.addEventListener("keydown", (event) => {
    const way = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!way) return;
    event.preventDefault();
    const [dy, dx] = way.map((d) => d * step * (event.ctrlKey || event.altKey ? 10 : 1));
    put(event.shiftKey ? resized(w.get(name), [2, 3], dy, dx) : moved(w.get(name), dy, dx));
  });
  return () => {
    const box = w.get(name),
      d = s.outline([box]);
    [focus, rim, line].forEach((node) => node.setAttribute("d", d));
    g.setAttribute(
      "aria-label",
      `${label}: ${words(box, digits)}. Arrow keys move it, Shift and arrows change its size.`,
    );
    corners.forEach((node) => change(node, { x: box[node.own[1]] * s.k - 5, y: box[node.own[0]] * s.k - 5 }));
    change(tag, {
      x: clamp(box[1] * s.k + 6, 2, s.width * s.k - 20),
      y: clamp(box[0] * s.k + 15, 14, s.height * s.k - 3),
    });
  };
}

// A cell of a grid that the mouse points at and the keys move: state [row, column].
function pointCell(w, s, name, label, rows, columns, tell) {
  const g = s.layer({
    tabindex: 0,
    role: "application",
    "aria-roledescription": "cell to choose",
    class: "mrw-drag",
    "data-name": name,
  });
  const hit = make("rect", { width: s.width * s.k, height: s.height * s.k, fill: "transparent" });
  const mark = make("rect", { class: "mrw-cell", fill: "none" });
  g.append(hit, mark);
  const size = () => [s.height / rows(), s.width / columns()];
  const put = (row, column) => {
    const next = [clamp(row, 0, rows() - 1), clamp(column, 0, columns() - 1)],
      now = w.get(name);
    if (next[0] !== now[0] || next[1] !== now[1]) w.set(name, next);
  };
  hit.addEventListener("pointermove", (event) => {
    const [y, x] = s.at(event),
      [h, v] = size();
    put(Math.floor(y / h), Math.floor(x / v));
  });
  g.addEventListener("keydown", (event) => {
    const way = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!way) return;
    event.preventDefault();
    put(w.get(name)[0] + way[0], w.get(name)[1] + way[1]);
  });
  return () => {
    const [row, column] = w.get(name),
      [h, v] = size();
    change(mark, { x: column * v * s.k, y: row * h * s.k, width: v * s.k, height: h * s.k });
    g.setAttribute(
      "aria-label",
      `${label} ${row}, ${column}. ${tell ? tell(row, column) : ""} Arrow keys choose another.`,
    );
  };
}

// matplotlib's viridis at five places, between them linear.
const VIRIDIS = [
  [68, 1, 84],
  [59, 82, 139],
  [33, 145, 140],
  [94, 201, 98],
  [253, 231, 37],
];
function heat(value) {
  const place = clamp(Number.isFinite(value) ? value : 0, 0, 1) * 4,
    below = Math.min(Math.floor(place), 3);
  return VIRIDIS[below].map((low, i) => Math.round(low + (place - below) * (VIRIDIS[below + 1][i] - low)));
}

// rows x columns pixels as a picture's URL; `colour(i)` gives [r, g, b] or [r, g, b, alpha] of pixel i, 0..255.
function pixels(rows, columns, colour) {
  const canvas = make("canvas", { width: columns, height: rows }),
    context = canvas.getContext("2d");
  const image = context.createImageData(columns, rows);
  for (let i = 0; i < rows * columns; i++) {
    const [r, g, b, a = 255] = colour(i);
    image.data.set([r, g, b, a], 4 * i);
  }
  context.putImageData(image, 0, 0);
  return canvas.toDataURL();
}

const rgb = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));

// Bytes of the state as numbers; a copy, because a view may not start at a multiple of four.
function numbersOf(view, Kind) {
  return new Kind(view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength));
}

const boxesOf = (flat) =>
  Array.from({ length: flat.length / 4 }, (_, i) => Array.from(flat.subarray(4 * i, 4 * i + 4)));

// Axes of a line chart, with ticks: X and Y turn values into places. `log`: y in powers of ten.
function chart(w, { label, x, y, xLabel, yLabel, log = false, width = 430, height = 300, svg = null, ticks = 5 }) {
  const left = 46,
    bottom = 38,
    top = 10,
    right = 18;
  const node = svg ?? w.pictures.appendChild(make("svg", { class: "mrw-picture", role: "img" }));
  change(node, { viewBox: `0 0 ${width} ${height}`, style: `width:${width}px`, "aria-label": label }).replaceChildren();
  const scale = log ? Math.log10 : (v) => v,
    share = (v, [low, high]) => (v - low) / (high - low || 1);
  const X = (v) => left + share(v, x) * (width - left - right);
  const Y = (v) => height - bottom - share(scale(v), y.map(scale)) * (height - bottom - top);
  const words = (px, py, text, anchor = "middle", extra = {}) =>
    node.append(
      make("text", { x: px, y: py, "font-size": 11, "text-anchor": anchor, class: "mrw-axis", ...extra }, text),
    );
  const places = ([low, high], logarithmic) => {
    if (logarithmic) {
      const powers = [];
      for (let p = Math.ceil(Math.log10(low) - 1e-9); p <= Math.log10(high) + 1e-9; p++) powers.push(10 ** p);
      return powers.length > 1 ? powers : [low, high];
    }
    const rough = (high - low) / ticks,
      power = 10 ** Math.floor(Math.log10(rough || 1));
    const step = power * [1, 2, 5, 10].find((m) => m * power >= rough * 0.999);
    return Array.from(
      { length: Math.floor(high / step + 1e-9) - Math.ceil(low / step - 1e-9) + 1 },
      (_, i) => (Math.ceil(low / step - 1e-9) + i) * step,
    );
  };
  const short = (v) => (Math.abs(v) >= 0.001 || v === 0 ? String(Number(v.toPrecision(3))) : v.toExponential(0));
  for (const v of places(x, false)) {
    node.append(make("line", { x1: X(v), x2: X(v), y1: top, y2: height - bottom, class: "mrw-grid" }));
    words(X(v), height - bottom + 15, short(v));
  }
  for (const v of places(y, log)) {
    node.append(make("line", { x1: left, x2: width - right, y1: Y(v), y2: Y(v), class: "mrw-grid" }));
    words(left - 5, Y(v) + 4, short(v), "end");
  }
  words((left + width - right) / 2, height - 6, xLabel);
  words(0, 0, yLabel, "middle", { transform: `translate(12 ${(top + height - bottom) / 2}) rotate(-90)` });
  const line = (points, colour, attributes = {}) =>
    node.append(
      make("polyline", {
        points: points.map(([px, py]) => `${X(px).toFixed(1)},${Y(py).toFixed(1)}`).join(" "),
        fill: "none",
        stroke: colour,
        "stroke-width": 2,
        ...attributes,
      }),
    );
  return { svg: node, X, Y, line, words, inside: { left, right: width - right, top, bottom: height - bottom }, width };
}

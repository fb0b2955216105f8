// The widgets' small sums: the library's, rounded to float32 where it rounds, so that both decide alike at a threshold
// (tests/test_widgets.py compares them). Boxes are [y1, x1, y2, x2].
const f32 = Math.fround;
const clamp = (x, low, high) => Math.min(Math.max(x, low), high);
const sum = (values) => values.reduce((a, b) => a + b, 0);

const area = (b) => f32(Math.max(f32(b[2] - b[0]), 0) * Math.max(f32(b[3] - b[1]), 0));

function intersection(a, b) {
  const height = f32(Math.min(a[2], b[2]) - Math.max(a[0], b[0]));
  const width = f32(Math.min(a[3], b[3]) - Math.max(a[1], b[1]));
  return f32(Math.max(height, 0) * Math.max(width, 0));
}

const union = (a, b) => f32(f32(area(a) + area(b)) - intersection(a, b));

function iou(a, b) {
  const all = union(a, b);
  return all > 0 ? f32(intersection(a, b) / all) : 0;
}

function giou(a, b) {
  const hull = area([Math.min(a[0], b[0]), Math.min(a[1], b[1]), Math.max(a[2], b[2]), Math.max(a[3], b[3])]);
  return hull > 0 ? iou(a, b) - (hull - union(a, b)) / hull : 0;
}

// The deltas [dy, dx, dh, dw] that turn `reference` into `box`.
function encode(box, reference) {
  const [h, w, rh, rw] = [
    box[2] - box[0],
    box[3] - box[1],
    reference[2] - reference[0],
    reference[3] - reference[1],
  ].map((side) => Math.max(side, 1e-6));
  return [
    ((box[0] + box[2]) / 2 - (reference[0] + reference[2]) / 2) / rh,
    ((box[1] + box[3]) / 2 - (reference[1] + reference[3]) / 2) / rw,
    Math.log(h / rh),
    Math.log(w / rw),
  ];
}

// Indices, best score first; of equal scores the first comes first.
function byScore(scores) {
  return Array.from(scores.keys()).sort((i, j) => scores[j] - scores[i] || i - j);
}

// Greedy NMS -> for each box the index of the box that suppresses it, or -1 if it is kept. With `groups`, boxes
// suppress only boxes of their own group. Stops once `most` are kept: what comes after has -2.
function suppressors(boxes, scores, threshold, groups = null, most = Infinity) {
  const by = new Array(boxes.length).fill(-2),
    kept = new Map(),
    limit = f32(threshold);
  for (const i of byScore(scores)) {
    if (most <= 0) break;
    const group = groups ? groups[i] : 0,
      own = kept.get(group) ?? [];
    const better = own.find((j) => iou(boxes[j], boxes[i]) > limit);
    by[i] = better ?? -1;
    if (better !== undefined) continue;
    own.push(i);
    kept.set(group, own);
    most -= 1;
  }
  return by;
}

// One anchor a ratio, around the corner of a cell.
function cellAnchors(row, column, stride, size, ratios) {
  return ratios.map((ratio) => {
    const [h, w] = [f32((size * Math.sqrt(ratio)) / 2), f32(size / Math.sqrt(ratio) / 2)];
    const [y, x] = [row * stride, column * stride];
    return [f32(y - h), f32(x - w), f32(y + h), f32(x + w)];
  });
}

// 1 positive, 0 negative, -1 neutral, of anchors with the IoUs `best`; `favourite` ones are positive in any case.
function matchLabels(best, favourite, positive, negative, lowQuality) {
  return Array.from(best, (value, i) =>
    value >= f32(positive) || (lowQuality && favourite[i]) ? 1 : value < f32(negative) ? 0 : -1,
  );
}

// A feature map (rows of `columns` values) at a place between its cells' centres.
function bilinear(feature, rows, columns, y, x) {
  const [top, left] = [Math.floor(y), Math.floor(x)];
  const [bottom, right] = [Math.min(top + 1, rows - 1), Math.min(left + 1, columns - 1)];
  const [dy, dx] = [y - top, x - left];
  const at = (row, column) => feature[row * columns + column];
  return (
    (1 - dy) * ((1 - dx) * at(top, left) + dx * at(top, right)) +
    dy * ((1 - dx) * at(bottom, left) + dx * at(bottom, right))
  );
}

// RoIAlign of one channel -> values of the bins x bins, and the samples [y, x, bin, whether it counts] in cells.
// ratio 0: about one sample a cell, 64 a bin at most (MAX_ADAPTIVE_SAMPLES).
function roiAlign(feature, rows, columns, roi, stride, bins, ratio, aligned) {
  const axis = (low, high) => {
    const start = f32(f32(low / stride) - (aligned ? 0.5 : 0)),
      length = f32(f32(high - low) / stride);
    return [start, f32((aligned ? length : Math.max(length, 1)) / bins)];
  };
  const [startY, binY] = axis(roi[0], roi[2]),
    [startX, binX] = axis(roi[1], roi[3]);
  let [down, across] = [ratio, ratio];
  if (ratio === 0) {
    down = clamp(Math.ceil(binY), 0, 64);
    across = Math.min(clamp(Math.ceil(binX), 0, 64), Math.floor(64 / Math.max(down, 1)));
  }
  const values = new Array(bins * bins).fill(0),
    samples = [];
  for (let bin = 0; bin < bins * bins; bin++) {
    for (let k = 0; k < down * across; k++) {
      const y = startY + binY * (Math.floor(bin / bins) + (Math.floor(k / across) + 0.5) / down);
      const x = startX + binX * ((bin % bins) + ((k % across) + 0.5) / across);
      const counts = y >= -1 && y <= rows && x >= -1 && x <= columns;
      const [cy, cx] = [clamp(y, 0, rows - 1), clamp(x, 0, columns - 1)];
      if (counts) values[bin] += bilinear(feature, rows, columns, cy, cx) / (down * across);
      samples.push([y, x, bin, counts]);
    }
  }
  return { values, samples };
}

// RoIPool of one channel -> values of the bins x bins, and each bin's [first row, first column, end row, end column).
function roiPool(feature, rows, columns, roi, stride, bins) {
  const round = (x) => Math.sign(x) * Math.floor(Math.abs(x) + 0.5);
  const axis = (low, high, cells) => {
    const start = round(f32(low / stride)),
      length = Math.max(round(f32(high / stride)) - start + 1, 1);
    const size = f32(length / bins);
    return Array.from({ length: bins }, (_, i) => [
      Math.max(start + Math.floor(f32(i * size)), 0),
      Math.min(start + Math.ceil(f32((i + 1) * size)), cells),
    ]);
  };
  const down = axis(roi[0], roi[2], rows),
    across = axis(roi[1], roi[3], columns);
  const values = [],
    cells = [];
  for (const [top, bottom] of down) {
    for (const [left, right] of across) {
      let most = -Infinity;
      for (let y = top; y < bottom; y++)
        for (let x = left; x < right; x++) most = Math.max(most, feature[y * columns + x]);
      values.push(most === -Infinity ? 0 : most);
      cells.push([top, left, bottom, right]);
    }
  }
  return { values, cells };
}

// A mask (side x side probabilities) resized into its box on an image -> the window's corner, size and probabilities.
// Pixel i lies at (i + .5 - low) / (high - low) * side - .5 of the mask; without the half pixels, at (i - low) / ...
function pasteWindow(mask, side, box, height, width, halfPixel = true) {
  const shift = halfPixel ? 0.5 : 0;
  const axis = (low, high, size) => {
    const first = clamp(Math.floor(low) - 1, 0, size),
      last = clamp(Math.ceil(high) + 1, 0, size),
      taps = [];
    for (let i = first; i < last && high > low; i++) {
      const place = f32(f32(f32(f32(i + shift - f32(low)) / f32(high - low)) * side) - shift),
        below = Math.floor(place);
      taps.push(
        [
          [below, 1 - (place - below)],
          [below + 1, place - below],
        ].filter(([cell]) => cell >= 0 && cell < side),
      );
    }
    return [taps.length ? first : 0, taps];
  };
  const [top, down] = axis(box[0], box[2], height),
    [left, across] = axis(box[1], box[3], width);
  const values = new Float32Array(down.length * across.length);
  down.forEach((rows, y) =>
    across.forEach((columns, x) => {
      let total = 0;
      for (const [row, wy] of rows) for (const [column, wx] of columns) total += wy * wx * mask[row * side + column];
      values[y * across.length + x] = total;
    }),
  );
  return { top, left, height: down.length, width: across.length, values };
}

// COCO's matching: detections of all images, each { image, class, box, score }, best first within an image take the
// free object of their class that they overlap most, if by `threshold` or more. Objects: { image, class, box, crowd };
// a crowd takes any number. -> for each detection the index of its object, or -1.
function matchDetections(detections, objects, threshold) {
  const taken = new Array(objects.length).fill(false),
    matched = new Array(detections.length).fill(-1);
  for (const i of byScore(detections.map((d) => d.score))) {
    const d = detections[i];
    let best = Math.min(threshold, 1 - 1e-10),
      chosen = -1;
    for (const crowd of [false, true]) {
      if (chosen >= 0) break;
      objects.forEach((o, j) => {
        if (o.image !== d.image || o.class !== d.class || o.crowd !== crowd || (taken[j] && !crowd)) return;
        const shared = intersection(d.box, o.box),
          over = crowd ? area(d.box) : union(d.box, o.box);
        const overlap = over > 0 ? shared / over : 0;
        if (overlap >= best) [best, chosen] = [overlap, j];
      });
    }
    matched[i] = chosen;
    if (chosen >= 0) taken[chosen] = true;
  }
  return matched;
}

// To what height and width a family's network resizes a photograph: see maskrcnn_edu/datasets/transforms.py.
function networkSize(rule, height, width, minSize, maxSize) {
  const [short, long] = [Math.min(height, width), Math.max(height, width)];
  const even = (x) => (x % 1 === 0.5 ? 2 * Math.round(x / 2) : Math.round(x)); // as Python rounds a half
  if (rule === "matterport") {
    let scale = Math.max(1, minSize / short);
    if (even(long * scale) > maxSize) scale = maxSize / long;
    return [height, width].map((side) => Math.max(1, even(side * scale)));
  }
  if (rule === "torchvision") {
    const scale = Math.min(minSize / short, maxSize / long);
    return [height, width].map((side) => Math.max(1, Math.floor(side * scale)));
  }
  const scale = minSize / short;
  const sides = height < width ? [minSize, scale * width] : [scale * height, minSize];
  const shrink = Math.min(1, maxSize / Math.max(...sides));
  return sides.map((side) => Math.max(1, Math.floor(side * shrink + 0.5)));
}

// Precision and recall after each detection of one class, best first, and COCO's average precision: the mean, over the
// recalls 0, .01, ... 1, of the best precision at that recall or above. -1 without objects.
function precisionRecall(scores, hits, total) {
  const curve = [];
  let right = 0;
  byScore(scores).forEach((i, rank) => {
    right += hits[i];
    curve.push({ score: scores[i], precision: right / (rank + 1), recall: total ? right / total : 0 });
  });
  const best = curve.map((p) => p.precision);
  for (let i = best.length - 2; i >= 0; i--) best[i] = Math.max(best[i], best[i + 1]);
  // k * .01 and not k / 100: NumPy's linspace, and so pycocotools, rounds that way.
  const at = Array.from(
    { length: 101 },
    (_, k) => best[curve.findIndex((p) => p.recall >= (k < 100 ? k * 0.01 : 1))] ?? 0,
  );
  return { curve, interpolated: at, ap: total ? sum(at) / 101 : -1 };
}

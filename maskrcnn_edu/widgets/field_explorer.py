"""FieldExplorer: which pixels a cell of the backbone can see, which it does see, and what the pyramid adds."""

import base64
import io

import keras
import numpy as np
import traitlets
from PIL import Image

from maskrcnn_edu.detections import padded_size, to_batch
from maskrcnn_edu.errors import InputError
from maskrcnn_edu.plots import picture
from maskrcnn_edu.widgets.base import (
    ORANGE,
    SKY,
    Widget,
    draw_boxes,
    model_and_picture,
    panels,
    photograph,
    picture_url,
    seen,
)  # fmt: skip

SQUARES = 40  # at most so many a side, of one or more pixels, show what a cell answers to
SHADES, HIDDEN = 16, 230  # of a square; opacity, of 255, of what lies over a pixel that does not matter
PIXELS_AT_ONCE = 16 * 128 * 128  # of the images of one gradient
SHARE = 0.9  # of the influence, in the square that `sides` names


class FieldExplorer(Widget):
    """The pixels that a cell of C_k and the same cell of P_k answer to, place by place and level by level.

    The gradient of a cell with respect to the pixels says how much each of them matters. All gradients are taken once,
    here; after that the page needs no model. On two cores that is 3 s for the model that ships (34 s with JAX), and for
    a ResNet-50 on 800 x 1216 pixels 21 s a place: give it few.

    Args:
        model: a trained MaskRCNN; without one, the one that ships.
        image: (H, W, 3); without one, a drawn picture.
        places: so many down and so many across to point at, 1 to 12.

    `level` (0 is the finest) and `place` (row, column) can be read and set; `cell`, `fields` and `sides` follow.
    Raises InputError: no model, no image, no such level or place.
    """

    size = traitlets.List(traitlets.Int()).tag(sync=True)
    picture = traitlets.Unicode().tag(sync=True)
    places = traitlets.Int().tag(sync=True)
    levels = traitlets.List(help="of each: its stride, cells, and views of C and P (_view)").tag(sync=True)
    hidden = traitlets.Int(HIDDEN).tag(sync=True)
    level = traitlets.Int(0).tag(sync=True)
    place = traitlets.List(traitlets.Int(), minlen=2, maxlen=2).tag(sync=True)

    def __init__(self, model=None, image=None, places=8):
        if not isinstance(places, int) or not 1 <= places <= 12:
            raise InputError(f"places is {places!r}; give a whole number from 1 to 12.")
        model, image, _ = model_and_picture(model, image)
        image = photograph(image)
        batch = to_batch([image], padded_size(image, model.config), 1, model.config)
        self._image = seen(batch["image"][0])
        given = np.asarray(model.normalise(batch["image"], batch["image_size"]))
        super().__init__(
            size=list(self._image.shape[:2]), picture=picture_url(self._image), places=places, place=[places // 2] * 2,
            levels=[_level(model, given, k, places) for k in range(2, 2 + len(model.config.stage_blocks))],
        )  # fmt: skip

    @traitlets.validate("level")
    def _known_level(self, proposal):
        if self.levels and not 0 <= proposal["value"] < len(self.levels):
            raise InputError(f"level is {proposal['value']}; the backbone has {len(self.levels)} stages, from 0 on.")
        return proposal["value"]

    @traitlets.validate("place")
    def _known_place(self, proposal):
        if not all(0 <= i < self.places for i in proposal["value"]):
            raise InputError(f"place is {proposal['value']}; there are {self.places} x {self.places}, from 0 on.")
        return proposal["value"]

    @property
    def _number(self):
        return self.place[0] * self.places + self.place[1]

    @property
    def cell(self):
        """Row and column on the level's map."""
        return self.levels[self.level]["cells"][self._number]

    @property
    def fields(self):
        """What the cell of C_k and of P_k can see: boxes in pixels of the input, which may reach past it."""
        return [view["fields"][self._number] for view in self.levels[self.level]["views"]]

    @property
    def sides(self):
        """Sides of the squares around the cell of C_k and of P_k that hold nine tenths of what influences it."""
        return [view["sides"][self._number] for view in self.levels[self.level]["views"]]

    def summary(self):
        k, (c, p) = self.level + 2, self.sides
        return f"cell {tuple(self.cell)}: nine tenths of the influence in {c} pixels for C{k}, in {p} for P{k}"

    def figure(self):
        figure, axes = panels(2, width=7.5, height=4.1)
        stride, (row, column) = self.levels[self.level]["stride"], self.cell
        for ax, view in zip(axes, self.levels[self.level]["views"], strict=True):
            picture(self._faded(view), ax)
            draw_boxes(ax, [view["fields"][self._number]], SKY, 2)
            ax.set(xlim=(0, self.size[1]), ylim=(self.size[0], 0))
            draw_boxes(ax, [[row * stride, column * stride, (row + 1) * stride, (column + 1) * stride]], ORANGE, 2)
            ax.set_title(f"{view['name']}, cell {row}, {column}: nine tenths in {view['sides'][self._number]} pixels")
            ax.title.set_fontsize(10)
        return figure

    def _faded(self, view):
        """The picture where what the cell does not answer to has faded to white."""
        height, width = self.size
        squares, step, (top, left) = view["squares"], view["step"], view["corners"][self._number]
        atlas = Image.open(io.BytesIO(base64.b64decode(view["url"].split(",")[1]))).convert("RGBA").getchannel("A")
        row, column = (i * squares for i in self.place)
        tile = np.asarray(atlas)[row : row + squares, column : column + squares].repeat(step, 0).repeat(step, 1)
        wide = len(tile)
        cover = np.full((height + 2 * wide, width + 2 * wide), HIDDEN, np.float32)
        cover[top + wide : top + 2 * wide, left + wide : left + 2 * wide] = tile
        cover = cover[wide : wide + height, wide : wide + width, None] / 255
        return np.uint8(np.rint(self._image * (1 - cover) + 255 * cover))

    javascript = r"""
function render({ model, el }) {
  const w = frame(
    { model, el },
    "Field explorer: what a cell can see and what it does see",
    "Point at a place, or press Tab and use the arrow keys. Orange: the cell. Blue: the pixels that can reach it. In " +
      "colour: the pixels that it answers to.",
  );
  const [height, width] = w.get("size"),
    levels = w.get("levels"),
    places = w.get("places");
  const sides = [0, 1].map((i) => {
    const s = picture(w, {
      height,
      width,
      url: w.get("picture"),
      label: i ? "What the cell of the pyramid sees" : "What the cell of the backbone sees",
      shown: 310,
      sharp: Math.max(height, width) <= 512,
      title: " ",
    });
    const cover = s.layer({ "pointer-events": "none" });
    const point = pointCell(
      w,
      s,
      "place",
      "Place, row and column",
      () => places,
      () => places,
      (row, column) => {
        const level = levels[w.get("level")];
        return `Cell ${level.cells[row * places + column].join(", ")} of ${level.views[i].name}.`;
      },
    );
    const title = s.svg.parentNode.querySelector("figcaption");
    return { s, cover, point, title, marks: s.layer({ "pointer-events": "none" }) };
  });
  choice(
    w,
    "level",
    "Level",
    levels.map(({ stride, views }, i) => [i, `${views[0].name} and ${views[1].name}: a cell is ${stride} pixels`]),
  );
  return w.keep(() => {
    const { stride, cells, views } = levels[w.get("level")],
      [down, across] = w.get("place"),
      number = down * places + across,
      [row, column] = cells[number];
    sides.forEach(({ s, cover, point, title, marks }, i) => {
      const { name, squares, step, url, corners, fields } = views[i],
        [top, left] = corners[number].map((v) => v * s.k),
        side = squares * step * s.k;
      title.textContent = `${name}, cell ${row}, ${column}`;
      cover.replaceChildren(
        make("path", {
          d: `M0 0H${width * s.k}V${height * s.k}H0ZM${left} ${top}v${side}h${side}v${-side}Z`,
          fill: "#fff",
          "fill-opacity": w.get("hidden") / 255,
          "fill-rule": "evenodd",
          "shape-rendering": "crispEdges",
        }),
        make(
          "svg",
          {
            x: left,
            y: top,
            width: side,
            height: side,
            viewBox: [across, down, 1, 1].map((v) => v * squares).join(" "),
          },
          make("image", { href: url, width: places * squares, height: places * squares, class: "mrw-sharp" }),
        ),
      );
      point();
      const own = { x: column * stride * s.k, y: row * stride * s.k, width: stride * s.k, height: stride * s.k };
      change(s.svg.querySelector(".mrw-cell"), own); // the level's cell, not the place around it
      marks.replaceChildren();
      drawBoxes(marks, s, [fields[number]], SKY, { width: 1.5 });
      drawBoxes(marks, s, [[row * stride, column * stride, (row + 1) * stride, (column + 1) * stride]], ORANGE);
    });
    const extent = ([y1, x1, y2, x2]) => `${y2 - y1} x ${x2 - x1} pixels`;
    const beyond = (field) => fixed(100 - (100 * intersection(field, [0, 0, height, width])) / area(field), 0);
    w.numbers({
      Cell: `${row}, ${column} of ${Math.ceil(height / stride)} x ${Math.ceil(width / stride)}`,
      ...Object.fromEntries(
        views.flatMap(({ name, fields, sides }) => [
          [`${name} can see`, extent(fields[number])],
          [`${name}, beyond the edge`, `${beyond(fields[number])}% of that`],
          [`${name} does see`, `${sides[number]} x ${sides[number]} hold nine tenths of it`],
        ]),
      ),
    });
  });
}
"""


def _level(model, image, k, places):
    """What the widget shows of C_k and P_k; `image` (1, H, W, C) is normalised."""
    config, backbone, stride = model.config, model.backbone, 2**k
    down, across = (((np.arange(places) + 0.5) * side / places // stride).astype(int) for side in image.shape[1:3])
    cells = [[int(row), int(column)] for row in down for column in across]
    outputs = backbone.get_layer(f"res{k}_{config.stage_blocks[k - 2] - 1}_relu").output, backbone.outputs[k - 2]
    fields = zip(*(_fields(config, k, cell) for cell in cells), strict=True)
    views = []
    for letter, output, own in zip("CP", outputs, fields, strict=True):
        network = keras.Model(backbone.inputs, output)
        views.append({"name": f"{letter}{k}", **_view(network, image, k, cells, own, config)})
    return {"stride": stride, "cells": cells, "views": views}


def field_of(config, stage):
    """Side of the receptive field of a cell of C_stage, and the y of the middle of cell 0's (Araujo et al., 2019)."""
    layers = [(7, 2, 3), (3, 2, 0 if config.stem_pool_same else 1)]  # kernel, stride, zeros before the first pixel
    for k, blocks in zip(range(2, stage + 1), config.stage_blocks, strict=False):
        for block in range(blocks):
            stride = 2 if block == 0 and k > 2 else 1
            if config.bottleneck:
                first, second = (stride, 1) if config.stride_in_1x1 else (1, stride)
                layers += [(1, first, 0), (3, second, 1), (1, 1, 0)]
            else:
                layers += [(3, stride, 1), (3, 1, 1)]
    side, step, middle = 1, 1, 0.5
    for kernel, stride, zeros in layers:
        side += (kernel - 1) * step
        middle += ((kernel - 1) / 2 - zeros) * step
        step *= stride
    return side, middle


def _fields(config, k, cell):
    """What a cell of C_k and the same cell of P_k can see: two boxes, which may reach past the image.

    P_k reads the 3 x 3 cells around it, and of every coarser stage those that lie over these.
    """
    boxes = []
    for stage in range(k, 2 + len(config.stage_blocks)):
        side, middle = field_of(config, stage)
        for around in (0, 1):
            low = [middle + 2**stage * ((i - around) >> (stage - k)) - side / 2 for i in cell]
            high = [middle + 2**stage * ((i + around) >> (stage - k)) + side / 2 for i in cell]
            boxes.append(low + high)
    whole = np.array(boxes)
    return [int(v) for v in boxes[0]], [int(v) for v in (*whole[:, :2].min(0), *whole[:, 2:].max(0))]


def _view(network, image, k, cells, fields, config):
    """Of each cell what it can see, what it does see, and in which square: a dict for the state.

    The pictures of what they see, of `squares` x `squares` squares of `step` pixels, lie side by side at `url`.
    """
    corners = np.array(fields)[:, :2]
    most = int((np.array(fields)[:, 2:] - corners).max())
    step = 2 ** max(0, int(np.ceil(np.log2(most / SQUARES))))
    squares, places = -(-most // step), round(len(cells) ** 0.5)
    middles = np.floor(np.array(cells) * 2**k + field_of(config, k)[1]).astype(int)
    tiles, sides = [], []
    for weight, corner, middle in zip(_influence(network, image, cells), corners, middles, strict=True):
        sides.append(_side_of_share(weight, middle))
        top, left = corner + squares * step
        part = np.pad(weight, squares * step)[top : top + squares * step, left : left + squares * step]
        strength = np.cbrt(part.reshape(squares, step, squares, step).mean((1, 3)))  # so that faint parts show
        tiles.append(np.rint((1 - strength / max(strength.max(), 1e-12)) * (SHADES - 1)).astype(np.uint8))
    atlas = np.array(tiles).reshape(places, places, squares, squares).swapaxes(1, 2).reshape(places * squares, -1)
    return {
        "fields": list(fields), "sides": sides, "corners": corners.tolist(), "squares": squares, "step": step,
        "url": _white_of_opacity(atlas),
    }  # fmt: skip


def _influence(network, image, cells):
    """How much each pixel matters to each cell, |d (sum of its channels) / d pixel|: yields (H, W) float32."""
    _, height, width, _ = image.shape
    many = max(1, PIXELS_AT_ONCE // (height * width))
    for first in range(0, len(cells), many):
        rows, columns = np.array(cells[first : first + many]).T
        images = np.repeat(image, len(rows), 0)

        def answer(images, rows=rows, columns=columns):
            feature = network(images, training=False)
            chosen = np.zeros((*feature.shape[:3], 1), "float32")
            chosen[np.arange(len(rows)), rows, columns] = 1
            return keras.ops.sum(feature * chosen)

        yield from np.abs(_gradient(answer, images)).sum(-1)


def _gradient(function, x):
    """The derivative of `function`, a number, with respect to the array x."""
    if keras.backend.backend() == "jax":
        import jax

        return np.asarray(jax.grad(function)(x))
    import tensorflow as tf

    x = tf.convert_to_tensor(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        value = function(x)
    return tape.gradient(value, x).numpy()


def _side_of_share(weight, middle):
    """Side of the square around the pixel `middle` that holds SHARE of `weight` (H, W)."""
    y, x = np.abs(np.arange(weight.shape[0]) - middle[0]), np.abs(np.arange(weight.shape[1]) - middle[1])
    away = np.maximum(y[:, None], x)
    within = np.cumsum(np.bincount(away.ravel(), weight.ravel()))
    return 2 * int(np.searchsorted(within, SHARE * within[-1])) + 1


def _white_of_opacity(shades):
    """An array (H, W) of shades as the data URL of a PNG: white, from transparent (0) to HIDDEN (the last)."""
    written, picture = io.BytesIO(), Image.fromarray(shades, "P")
    picture.putpalette([255] * 3 * SHADES)
    opacity = bytes(round(i * HIDDEN / (SHADES - 1)) for i in range(SHADES))
    picture.save(written, "png", bits=4, transparency=opacity, optimize=True)
    return f"data:image/png;base64,{base64.b64encode(written.getvalue()).decode('ascii')}"

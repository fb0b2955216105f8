"""ResizeExplorer: a photograph of any shape as the networks of the three families get it."""

import numpy as np
import traitlets
from PIL import Image

from maskrcnn_edu.config import Config
from maskrcnn_edu.datasets.transforms import corner, network_size, pad
from maskrcnn_edu.errors import InputError
from maskrcnn_edu.plots import picture
from maskrcnn_edu.widgets.base import Widget, panels, photograph, picture_url, toy

FAMILIES = {"Detectron2": Config.coco(), "torchvision": Config.torchvision(), "The seed": Config.matterport()}
SIDES = 50, 3000  # pixels of a photograph's side
PARTNER = 640, 480  # height and width of the other photograph of the batch


class ResizeExplorer(Widget):
    """Height and width of a photograph to choose; the size, the canvas and the padding that each family gives it.

    Args:
        image: (H, W, 3); of a shape that differs from its own, the middle is shown. Without one, a drawn picture.
        size: height and width at the start; the image's own.
        min_size: what the short side shall become. What the long side may is published: 1333, the seed 1024.

    `height`, `width`, `min_size` and `batch` (whether a photograph of 640 x 480 is in the said batch) can be read and
    set; `sizes`, `canvases`, `factors` and `padding`, each by the family's name, follow. Raises InputError: no image, a
    side below 50 or above 3000.
    """

    picture = traitlets.Unicode().tag(sync=True)
    families = traitlets.List(help="[name, rule, longest side, multiple, whether square] of each").tag(sync=True)
    partner = traitlets.List(traitlets.Int()).tag(sync=True)
    height = traitlets.Int().tag(sync=True)
    width = traitlets.Int().tag(sync=True)
    min_size = traitlets.Int(min=50, max=1024).tag(sync=True)
    batch = traitlets.Bool(False).tag(sync=True)

    def __init__(self, image=None, size=None, min_size=800):
        self._image = toy(size=256)[0] if image is None else photograph(image)
        height, width = self._image.shape[:2] if size is None else size
        if image is None and size is None:
            height, width = 480, 640
        super().__init__(
            picture=picture_url(self._image), height=int(height), width=int(width), min_size=min_size,
            partner=list(PARTNER),
            families=[
                [name, c.resize, c.image_max_size, c.size_divisor, c.resize == "matterport"]
                for name, c in FAMILIES.items()
            ],
        )  # fmt: skip

    @traitlets.validate("height", "width")
    def _possible_side(self, proposal):
        if not SIDES[0] <= proposal["value"] <= SIDES[1]:
            raise InputError(f"{proposal['trait'].name} is {proposal['value']}; give {SIDES[0]} to {SIDES[1]} pixels.")
        return proposal["value"]

    @property
    def sizes(self) -> dict:
        """Height and width to which each family resizes."""
        return {name: network_size(self.height, self.width, c, self.min_size) for name, c in FAMILIES.items()}

    @property
    def canvases(self) -> dict:
        """Height and width of the array that holds the batch: the largest sides, rounded up; the seed's square."""
        found = {}
        for name, c in FAMILIES.items():
            shapes = [(self.height, self.width), *([self.partner] if self.batch else [])]
            sides = np.max([network_size(*shape, c, self.min_size) for shape in shapes], axis=0)
            found[name] = (c.canvas_size,) * 2 if c.resize == "matterport" else tuple(map(c.round_up, sides))
        return found

    @property
    def factors(self) -> dict:
        """What a box's y and x are multiplied by."""
        return {name: (h / self.height, w / self.width) for name, (h, w) in self.sizes.items()}

    @property
    def padding(self) -> dict:
        """Share of the canvas that is no photograph."""
        return {name: float(1 - np.prod(self.sizes[name]) / np.prod(self.canvases[name])) for name in FAMILIES}

    def summary(self):
        said = ", ".join(f"{name} {h} x {w}" for name, (h, w) in self.sizes.items())
        return f"{self.height} x {self.width} pixels become {said}"

    def figure(self):
        figure, axes = panels(3, width=7.5, height=2.9)
        shown, most = self._of_the_shape(), max(side for canvas in self.canvases.values() for side in canvas)
        for ax, (name, config) in zip(axes, FAMILIES.items(), strict=True):
            size, canvas = self.sizes[name], self.canvases[name]
            resized = np.asarray(Image.fromarray(shown).resize((size[1], size[0])))
            picture(pad(resized, *canvas, *corner(size, canvas, config)), ax)
            ax.set(xlim=(0, most), ylim=(most, 0))  # one scale for all
            ax.set_title(
                f"{name}: {size[0]} x {size[1]}\non {canvas[0]} x {canvas[1]}, {self.padding[name]:.1%} black",
                fontsize=9,
            )
        return figure

    def _of_the_shape(self):
        """The middle of the image, as much as fits the chosen shape."""
        height, width = self._image.shape[:2]
        share = min(height / self.height, width / self.width)
        h, w = (max(1, int(side * share)) for side in (self.height, self.width))
        top, left = (height - h) // 2, (width - w) // 2
        return self._image[top : top + h, left : left + w]

    javascript = r"""
function render({ model, el }) {
  const w = frame(
    { model, el },
    "Resize explorer: one photograph, three networks' inputs",
    "Move the sliders, by mouse or with the arrow keys (Page Up and Page Down make larger steps). All three " +
      "canvases are drawn in one scale. Black: padding, which is computed on like everything else.",
  );
  const families = w.get("families"),
    most = Math.max(...families.map(([, , longest, multiple]) => Math.ceil(longest / multiple) * multiple));
  const views = families.map(([name]) => {
    const s = picture(w, { height: most, width: most, label: `The network's input, ${name}`, shown: 205, title: name });
    return { s, canvas: s.layer() };
  });
  slider(w, "height", "Height of photograph", { min: 100, max: 2000, step: 1, format: (v) => `${v} px` });
  slider(w, "width", "Width of photograph", { min: 100, max: 2000, step: 1, format: (v) => `${v} px` });
  slider(w, "min_size", "Short side becomes", { min: 100, max: 1024, step: 1, format: (v) => `${v} px` });
  const [partnerHeight, partnerWidth] = w.get("partner");
  toggle(w, "batch", `one batch with a photograph of ${partnerHeight} x ${partnerWidth}`);
  return w.keep(() => {
    const [height, width, minSize] = ["height", "width", "min_size"].map(w.get);
    const numbers = {},
      limited = [],
      said = [];
    families.forEach(([name, rule, longest, multiple, square], i) => {
      const size = networkSize(rule, height, width, minSize, longest);
      const other = w.get("batch") ? networkSize(rule, partnerHeight, partnerWidth, minSize, longest) : [0, 0];
      const canvas = size.map((side, axis) =>
        square ? longest : Math.ceil(Math.max(side, other[axis]) / multiple) * multiple,
      );
      const [top, left] = square ? size.map((side, axis) => Math.floor((canvas[axis] - side) / 2)) : [0, 0];
      const { s, canvas: layer } = views[i];
      layer.replaceChildren(
        make("rect", { width: canvas[1] * s.k, height: canvas[0] * s.k, fill: "#000" }),
        make("image", {
          href: w.get("picture"),
          x: left * s.k,
          y: top * s.k,
          width: size[1] * s.k,
          height: size[0] * s.k,
          preserveAspectRatio: "xMidYMid slice",
        }),
      );
      const share = 1 - (size[0] * size[1]) / (canvas[0] * canvas[1]);
      numbers[name] = `${size[0]} x ${size[1]} on ${canvas[0]} x ${canvas[1]}: ${fixed(100 * share, 1)}% black`;
      numbers[`Boxes, ${name}`] = `y times ${fixed(size[0] / height, 4)}, x times ${fixed(size[1] / width, 4)}`;
      if (Math.max(...size) >= longest - 1) limited.push(name);
      else if (square && minSize <= Math.min(height, width)) said.push(`${name} leaves this photograph as it is.`);
    });
    w.numbers(numbers);
    if (limited.length) said.unshift(`The long side decides: ${limited.join(", ")}.`);
    w.say(said.join(" "));
  });
}
"""

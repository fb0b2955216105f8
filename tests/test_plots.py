"""What a picture must show: every instance's colour in its place, and captions that can be read."""

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from maskrcnn_edu import plots
from maskrcnn_edu.datasets import ShapesDataset
from maskrcnn_edu.errors import InputError

GREY = np.full((128, 128, 3), 128, np.uint8)


def drawn(ax):
    """The pixels (H, W, 3) in 0..1 of a figure, as it would be saved."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(ax.figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3] / 255


def caption_boxes(ax):
    """x0, y0, x1, y1 of each caption's paper (N, 4), in pixels of the figure."""
    drawn(ax)
    return np.array([text.get_bbox_patch().get_window_extent().extents for text in ax.texts]).reshape(-1, 4)


def overlapping(boxes):
    """Pairs of boxes that share more than half a pixel in both directions."""
    a, b = boxes[:, None], boxes[None]
    shared = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    return np.argwhere(np.triu((shared > 0.5).all(-1), 1))


def in_frame(ax, boxes):
    frame = ax.get_window_extent().extents
    return (boxes[:, :2] >= frame[:2] - 0.5).all() and (boxes[:, 2:] <= frame[2:] + 0.5).all()


def squares(count, side=20, size=128):
    """Boxes (N, 4) in a row from the upper left corner, and their masks."""
    boxes = np.array([[4, 4 + i * (side + 2), 4 + side, 4 + i * (side + 2) + side] for i in range(count)], "f4")
    masks = np.zeros((count, size, size), bool)
    for mask, (y1, x1, y2, x2) in zip(masks, boxes.astype(int), strict=True):
        mask[y1:y2, x1:x2] = True
    return boxes, masks


@pytest.mark.parametrize("index", range(6))
def test_a_shapes_picture_is_coloured_and_captioned(index):
    dataset = ShapesDataset(6)
    boxes, classes, masks = dataset.instances(index)
    ax = plots.instances(
        dataset.image(index), boxes=boxes, classes=classes, masks=masks, class_names=dataset.class_names
    )
    assert [text.get_text() for text in ax.texts] == [dataset.class_names[c] for c in classes]
    papers = caption_boxes(ax)
    assert in_frame(ax, papers) and not len(overlapping(papers))
    # Inside its mask a picture moves towards the instance's colour, and stays the photograph underneath.
    shown, photograph = ax.images[0].get_array() / 255, dataset.image(index) / 255
    for i, mask in enumerate(masks):
        before = np.abs(photograph[mask] - plots.colour(i)).mean()
        assert np.abs(shown[mask] - plots.colour(i)).mean() == pytest.approx((1 - plots.FILL) * before, abs=0.01)
    outside = ~masks.any(0)
    np.testing.assert_array_equal(shown[outside], photograph[outside])


def test_outline_and_box_lie_where_the_pixels_end():
    mask = np.zeros((1, 128, 128), bool)
    mask[0, 30:60, 40:90] = True
    pixels = drawn(plots.instances(GREY, masks=mask, ax=None))
    scale = pixels.shape[0] / 128
    is_edge = np.abs(pixels - plots.colour(0)).max(-1) < 0.1
    y, x = np.nonzero(is_edge)
    np.testing.assert_allclose([y.min(), y.max(), x.min(), x.max()], np.array([30, 60, 40, 90]) * scale, atol=2)
    pixels = drawn(plots.instances(GREY, boxes=[[30, 40, 60, 90]]))
    y, x = np.nonzero(np.abs(pixels - plots.colour(0)).max(-1) < 0.1)
    np.testing.assert_allclose([y.min(), y.max(), x.min(), x.max()], np.array([30, 60, 40, 90]) * scale, atol=2)
    assert not is_edge[int(40 * scale) : int(50 * scale), int(60 * scale) : int(70 * scale)].any()  # the fill is thin


def test_colours_differ():
    colours = np.array([plots.colour(i) for i in range(36)])
    distance = np.abs(colours[:, None] - colours).max(-1) + np.eye(36)
    assert distance.min() > 0.02 and distance[:7, :7].min() > 0.2
    np.testing.assert_array_equal(plots.colour(36), plots.colour(0))


def test_detections_are_a_shorthand():
    boxes, masks = squares(2)
    found = SimpleNamespace(boxes=boxes, classes=np.array([1, 2]), scores=np.float32([0.976, 0.5]), masks=None)
    ax = plots.instances(GREY, found, class_names=["background", "cat", "dog"])
    assert [text.get_text() for text in ax.texts] == ["cat 0.98", "dog 0.50"] and len(ax.patches) == 2
    np.testing.assert_array_equal(ax.images[0].get_array(), GREY)
    found.masks = masks
    ax = plots.instances(GREY, found, classes=[-1, 2])
    assert [text.get_text() for text in ax.texts] == ["class 1 (crowd) 0.98", "class 2 0.50"]
    assert (ax.images[0].get_array()[masks.any(0)] != 128).any(-1).all()


@pytest.mark.parametrize("size", [(128, 128), (1, 1), (480, 640), (20, 400), (400, 20)])
def test_captions_at_the_edges_stay_in_the_frame(size):
    height, width = size
    boxes = [[0, 0, 1, 1], [height - 1, width - 1, height, width], [0, 0, height, width], [-50, -50, 2, 2]]
    ax = plots.instances(
        np.zeros(size),
        boxes=boxes,
        classes=[1] * 4,
        scores=[0.5] * 4,
        class_names=["background", "a $long$ name of it"],
    )
    papers = caption_boxes(ax)
    assert len(papers) and in_frame(ax, papers) and not len(overlapping(papers))
    assert ax.get_xlim() == (0, width) and ax.get_ylim() == (height, 0)


def test_captions_of_one_place_move_apart():
    ax = plots.instances(GREY, boxes=[[50, 50, 60, 60]] * 6, classes=[1] * 6, scores=np.arange(6) / 10)
    papers = caption_boxes(ax)
    assert len(papers) == 6 and not len(overlapping(papers))


def test_no_instances_is_the_picture():
    nothing = SimpleNamespace(
        boxes=np.zeros((0, 4)), classes=np.zeros(0, int), scores=np.zeros(0), masks=np.zeros((0, 128, 128), bool)
    )
    for ax in (plots.instances(GREY, nothing), plots.instances(GREY), plots.instances(GREY, boxes=[], classes=[])):
        assert not ax.texts and not ax.patches
        np.testing.assert_allclose(drawn(ax), 128 / 255, atol=0.01)


def test_two_hundred_instances_stay_readable(rng):
    corner = rng.uniform(0, 250, (200, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(5, 80, (200, 2))], axis=1)
    ax = plots.instances(np.zeros((300, 400, 3), np.uint8), boxes=boxes, classes=np.ones(200, int), scores=np.ones(200))
    papers = caption_boxes(ax)
    assert len(ax.patches) == 200 and len(papers) > 60
    assert in_frame(ax, papers) and not len(overlapping(papers))


@pytest.mark.parametrize("kind", ["grey", "grey_channel", "alpha", "unit", "float", "bool", "int64"])
def test_any_image(kind, rng):
    image = rng.integers(0, 2, (40, 50, 3)).astype(np.uint8) * 255
    grey = image[..., :1]
    given, expected = {
        "grey": (grey[..., 0], grey), "grey_channel": (grey, grey), "bool": (grey[..., 0] > 0, grey),
        "alpha": (np.concatenate([image, grey], -1), image), "unit": (image / 255, image),
        "float": (image.astype("f4"), image), "int64": (image.astype(np.int64), image),
    }[kind]  # fmt: skip
    shown = plots.instances(given).images[0].get_array()
    np.testing.assert_array_equal(shown, np.broadcast_to(expected, (40, 50, 3)))


def test_draws_on_given_axes_and_is_saved(tmp_path):
    from matplotlib.figure import Figure

    figure = Figure((6, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    boxes, masks = squares(3)
    assert plots.instances(GREY, boxes=boxes, masks=masks, classes=[1, 2, 1], ax=right) is right
    assert not left.images and len(right.texts) == 3 and in_frame(right, caption_boxes(right))
    plots.instances(GREY, masks=masks).figure.savefig(tmp_path / "alone.png")
    assert (tmp_path / "alone.png").stat().st_size > 1000


def test_pyplot_and_keras_are_left_alone():
    code = (
        "import sys; sys.argv = ['maskrcnn-edu']; from maskrcnn_edu import plots; import numpy as np;"
        "plots.instances(np.zeros((9, 9)), boxes=[[1, 1, 5, 5]], classes=[1]);"
        "assert not {'keras', 'tensorflow', 'matplotlib.pyplot'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "arrays, says",
    [
        ({"masks": np.ones((1, 128, 127))}, "128 x 128"),
        ({"masks": np.ones((128, 128))}, "masks has shape"),
        ({"boxes": [1, 2, 3, 4]}, "boxes has shape"),
        ({"boxes": [[1, 2, 3, 4]], "classes": [1, 2]}, "1 boxes, 2 classes"),
        ({"boxes": [[1, 2, 3, 4]], "classes": [3], "class_names": ["background", "cat"]}, "class 3"),
    ],
)
def test_what_does_not_match_is_named(arrays, says):
    with pytest.raises(InputError, match=says):
        plots.instances(GREY, **arrays)
    with pytest.raises(InputError, match="image has shape"):
        plots.instances(np.zeros((3, 4, 5)))

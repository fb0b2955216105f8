"""Dataset, Subset, ConcatenatedDataset and read_image."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from maskrcnn_edu.datasets import Dataset, Subset, read_image
from maskrcnn_edu.datasets.dataset import boxes_from_masks
from maskrcnn_edu.errors import InputError


class Blocks(Dataset):
    """Three 20 x 30 images; whatever load_masks should give is handed in."""

    def __init__(self, masks, classes, class_names=("background", "cat", "dog"), image=None, offset=0):
        self.masks, self.classes, self.class_names = masks, classes, list(class_names)
        self.picture = np.zeros((20, 30, 3), np.uint8) if image is None else image
        self.offset = offset

    def __len__(self):
        return 3

    def load_image(self, i):
        return self.picture

    def load_masks(self, i):
        return self.masks, self.classes

    def image_id(self, i):
        return i + self.offset


def two_masks():
    masks = np.zeros((2, 20, 30), bool)
    masks[0, 3:7, 10:12] = True
    masks[1, 19, 29] = True
    return masks


def test_boxes_are_tight_with_exclusive_ends():
    found = Blocks(two_masks(), np.array([1, -2])).instances(0)
    np.testing.assert_array_equal(found.boxes, [[3, 10, 7, 12], [19, 29, 20, 30]])
    assert found.boxes.dtype == np.float32 and found.classes.dtype == np.int32 and found.masks.dtype == bool
    assert found.classes.tolist() == [1, -2]


@settings(max_examples=30, deadline=None)
@given(hnp.arrays(bool, hnp.array_shapes(min_dims=3, max_dims=3, max_side=9)))
def test_box_is_the_extent_of_the_pixels(masks):
    for mask, box in zip(masks, boxes_from_masks(masks), strict=True):
        y, x = np.nonzero(mask)
        expected = [y.min(), x.min(), y.max() + 1, x.max() + 1] if len(y) else [0, 0, 0, 0]
        assert box.tolist() == expected


def test_masks_without_a_pixel_are_dropped():
    masks = two_masks()
    masks[0] = False
    found = Blocks(masks, [1, 2]).instances(0)
    assert found.classes.tolist() == [2] and found.masks.shape == (1, 20, 30)


@pytest.mark.parametrize("nothing", [([], []), (np.zeros((0, 20, 30), bool), np.zeros(0, int))])
def test_an_image_without_objects(nothing):
    found = Blocks(*nothing).instances(1)
    assert found.boxes.shape == (0, 4) and found.masks.shape == (0, 20, 30) and found.classes.shape == (0,)


@pytest.mark.parametrize(
    "masks, classes, words",
    [
        (np.ones((1, 20, 31), bool), [1], "20 x 30"),
        (np.ones((20, 30, 1), bool), [1] * 20, "20 x 30"),
        (np.ones((1, 20, 30), np.uint8), [1], "uint8"),
        (two_masks(), [1, 3], "class id 3"),
        (two_masks(), [-3, 1], "class id -3"),
        (two_masks(), [0, 1], "class id 0"),
        (two_masks(), [1], "2 masks"),
        (two_masks(), [1.0, 2.0], "float64"),
    ],
)
def test_wrong_masks_name_dataset_and_image(masks, classes, words):
    with pytest.raises(InputError, match=r"Blocks image 1 \(id 8\)") as error:
        Blocks(masks, classes, offset=7).instances(1)
    assert words in str(error.value)


@pytest.mark.parametrize(
    "image", [np.zeros((20, 30), np.uint8), np.zeros((20, 30, 3), np.float32), np.zeros((0, 3, 3), np.uint8)]
)
def test_wrong_image_names_dataset_and_image(image):
    with pytest.raises(InputError, match="Blocks image 0.*load_image"):
        Blocks([], [], image=image).image(0)


def test_class_names_must_start_with_background():
    with pytest.raises(InputError, match='"background" first'):
        Blocks(two_masks(), [1, 2], ["cat", "dog", "cow"]).instances(0)


def test_subclass_that_forgets_a_method_cannot_be_made():
    class Half(Dataset):
        def __len__(self):
            return 1

    with pytest.raises(TypeError, match="load_image"):
        Half()


def test_subset_keeps_order_and_ids():
    part = Subset(Blocks(two_masks(), [1, 2], offset=5), [2, 0])
    assert len(part) == 2 and [part.image_id(i) for i in range(2)] == [7, 5]
    assert part.instances(0).classes.tolist() == [1, 2]
    with pytest.raises(InputError, match="index 3"):
        Subset(part.dataset, [3])


def test_sum_merges_classes_by_name():
    pets = Blocks(two_masks(), [1, -2])
    farm = Blocks(two_masks(), [1, -2], ["background", "dog", "cow"], offset=10)
    both = pets + farm
    assert both.class_names == ["background", "cat", "dog", "cow"]
    assert len(both) == 6
    assert both.instances(2).classes.tolist() == [1, -2]
    assert both.instances(3).classes.tolist() == [2, -3]
    assert both.load_masks(5)[1].tolist() == [2, -3]
    assert [both.image_id(i) for i in range(6)] == [0, 1, 2, 10, 11, 12]


def test_sum_makes_ids_unique():
    both = Blocks(two_masks(), [1, 2]) + Blocks(two_masks(), [1, 2], offset=2)
    assert [both.image_id(i) for i in range(6)] == [0, 1, 2, 3, 4, 5]


def test_errors_in_a_sum_name_the_part():
    both = Blocks(two_masks(), [1, 2]) + Subset(Blocks(two_masks(), [1, 9], offset=40), [1])
    with pytest.raises(InputError, match=r"Blocks image 1 \(id 41\)"):
        both.instances(3)


def gradient(dtype, top):
    return np.linspace(0, top, 12 * 8).reshape(12, 8).astype(dtype)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGB", "RGBA", "CMYK", "1"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    file = tmp_path / ("picture.tif" if mode == "CMYK" else "picture.png")
    Image.fromarray(gradient(np.uint8, 255)).convert(mode).save(file)
    image = read_image(file)
    assert image.shape == (12, 8, 3) and image.dtype == np.uint8
    assert image[0, 0].max() < 10 and image[-1, -1].min() > 245


@pytest.mark.parametrize("name", ["picture.png", "picture.tif"])
def test_sixteen_bits_are_scaled_not_cut(tmp_path, name):
    Image.fromarray(gradient(np.uint16, 65535)).save(tmp_path / name)
    image = read_image(tmp_path / name)
    np.testing.assert_allclose(image[..., 0], gradient(float, 255), atol=1)


def test_exif_orientation_is_applied(tmp_path):
    picture = Image.fromarray(gradient(np.uint8, 255))
    exif = picture.getexif()
    exif[0x0112] = 6  # the camera was turned: show it rotated by 90 degrees
    picture.save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "turned.png")[..., 0], np.rot90(gradient(np.uint8, 255), -1))


def test_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"gone\.jpg: there is no such"):
        read_image(tmp_path / "gone.jpg")


@settings(max_examples=40, deadline=None)
@given(kind=st.sampled_from(["png", "jpg", "tif", "gif", "bmp"]), data=st.data())
def test_damaged_files_are_named(tmp_path_factory, kind, data):
    file = tmp_path_factory.mktemp("damaged") / f"picture.{kind}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(file)
    whole = file.read_bytes()
    file.write_bytes(whole[: data.draw(st.integers(0, len(whole) // 2))])
    with pytest.raises(InputError, match=rf"picture\.{kind}: the image cannot be read"):
        read_image(file)

"""CocoDataset: real pictures, every form of mask, and every mistake in a file."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle
from pycocotools.coco import COCO

from maskrcnn_edu.cli import main
from maskrcnn_edu.config import Config
from maskrcnn_edu.datasets import CocoDataset, Subset, loader
from maskrcnn_edu.errors import InputError

SAMPLE = Path(__file__).parents[3] / "shared" / "coco_sample"
needs_sample = pytest.mark.skipif(not SAMPLE.is_dir(), reason=f"needs the COCO sample at {SAMPLE}")

SQUARE = [2, 1, 6, 1, 6, 5, 2, 5]


def annotation(id=1, **changes):
    return {
        "id": id, "image_id": 70, "category_id": 5, "bbox": [2, 1, 4, 4], "segmentation": [SQUARE], "area": 16,
        "iscrowd": 0, **changes,
    }  # fmt: skip


def content(*annotations):
    return {
        "images": [
            {"id": 70, "file_name": "a.png", "height": 10, "width": 8},
            {"id": 3, "file_name": "b.png", "height": 10, "width": 8},
        ],
        "categories": [{"id": 90, "name": "toothbrush"}, {"id": 5, "name": "airplane"}],
        "annotations": list(annotations),
    }


def write(directory, parsed, files=("a.png", "b.png")):
    (directory / "annotations").mkdir()
    (directory / "val2017").mkdir()
    text = parsed if isinstance(parsed, str) else json.dumps(parsed)
    (directory / "annotations" / "instances_val2017.json").write_text(text)
    for name in files:
        Image.fromarray(np.zeros((10, 8, 3), np.uint8)).save(directory / "val2017" / name)
    return directory


def test_every_form_of_mask(tmp_path):
    mask = np.zeros((10, 8), np.uint8, order="F")
    mask[1:5, 2:6] = 1
    packed = rle.encode(mask)["counts"].decode()
    runs = [21, 4, 6, 4, 6, 4, 6, 4, 25]  # down the columns, background first
    dataset = CocoDataset(
        write(
            tmp_path,
            content(
                annotation(1),
                annotation(2, segmentation={"size": [10, 8], "counts": runs}, category_id=90),
                annotation(3, segmentation={"size": [10, 8], "counts": packed}, iscrowd=1),
            ),
        )
    )
    found = dataset.instances(0)
    assert dataset.class_names == ["background", "airplane", "toothbrush"] and dataset.category_ids == [None, 5, 90]
    assert found.classes.tolist() == [1, 2, -1]
    for one in found.masks:
        np.testing.assert_array_equal(one, mask.astype(bool))
    np.testing.assert_array_equal(found.boxes, [[1, 2, 5, 6]] * 3)


def test_images_without_annotations_stay(tmp_path):
    dataset = CocoDataset(write(tmp_path, content(annotation())))
    assert len(dataset) == 2 and dataset.image_id(1) == 3 and dataset.path(1) == tmp_path / "val2017" / "b.png"
    assert len(dataset.instances(1).classes) == 0


def test_only_cocos_own_two_annotations_may_lack_an_area(tmp_path):
    parsed = content(annotation(918, image_id=200365, bbox=[296.65, 388.33, 1.03, 0.0]))
    parsed["images"][0]["id"] = 200365
    assert len(CocoDataset(write(tmp_path, parsed)).instances(0).classes) == 0


def drop(parsed, kind, key):
    del parsed[kind][0][key]
    return parsed


def change(kind, **changes):
    parsed = content(annotation())
    parsed[kind][0].update(changes)
    return parsed


def with_segmentation(segmentation):
    return content(annotation(12, segmentation=segmentation))


@pytest.mark.parametrize(
    "parsed, words",
    [
        ("{", "not valid JSON"),
        ("[]", '"images" is missing'),
        ({"images": [], "categories": []}, '"annotations" is missing'),
        ({"images": {}, "categories": [], "annotations": []}, '"images" is missing'),
        (drop(content(annotation()), "images", "height"), '"height"'),
        (drop(content(annotation()), "categories", "name"), '"name"'),
        (drop(content(annotation(12)), "annotations", "bbox"), '(id 12) has no "bbox"'),
        (drop(content(annotation(12)), "annotations", "id"), 'has no "id"'),
        (change("images", id="x"), "id 'x'"),
        (change("images", width=0), "image 70 has height, width"),
        (change("annotations", id=[1]), "id [1]"),
        (content(annotation(12), annotation(12)), "id 12 comes twice"),
        (content(annotation(12, image_id=71)), "annotation 12 has image_id 71"),
        (content(annotation(12, category_id=6)), "annotation 12 has category_id 6"),
        (content(annotation(12, iscrowd=2)), "annotation 12 has iscrowd 2"),
        (content(annotation(12, bbox=[2, 1, 0, 4])), "annotation 12 has bbox [2, 1, 0, 4] without an area"),
        (content(annotation(12, bbox=[2, 1, 4, -1])), "without an area"),
        (content(annotation(12, bbox=[2, 1, float("nan"), 4])), "annotation 12 has bbox"),
        (content(annotation(12, bbox=[2, 1, float("inf"), 4])), "annotation 12 has bbox"),
        (content(annotation(12, bbox=[2, 1, 4])), "annotation 12 has bbox"),
        (content(annotation(12, bbox=[2, 1, "4", 4])), "annotation 12 has bbox"),
        (content(annotation(12, bbox=[-5, 1, 9, 4])), "annotation 12 has bbox [-5, 1, 9, 4] with a negative"),
        (content(annotation(12, bbox=[9, 1, 4, 4])), "outside its image of 8 x 10 pixels"),
        (content(annotation(12, area=float("nan"))), "annotation 12 has area nan"),
        (content(annotation(12, area=-1)), "annotation 12 has area -1"),
        (content(annotation(12, image_id=[70])), "annotation 12 has image_id [70]"),
        (change("images", file_name="b.png"), "image 3 has the file b.png, which is image 70 already"),
        (change("images", id=3), 'id 3 comes twice in "images"'),
        (change("categories", id=5), 'id 5 comes twice in "categories"'),
        (change("categories", name="airplane"), "category 5 has the name airplane, as category 90"),
        (change("categories", name="background"), "category 90 has name 'background'"),
        (with_segmentation([[*SQUARE[:-1], -3]]), "annotation 12 has a polygon with a negative coordinate, -3"),
        (with_segmentation([]), "annotation 12 has no segmentation"),
        (with_segmentation(None), "annotation 12 has no segmentation"),
        (with_segmentation([[1, 2, 3, 4]]), "annotation 12 has a polygon"),
        (with_segmentation([SQUARE, [*SQUARE, 1]]), "annotation 12 has a polygon"),
        (with_segmentation([[*SQUARE[:-1], float("nan")]]), "annotation 12 has a polygon"),
        (with_segmentation([[*SQUARE[:-1], 1e12]]), "annotation 12 has a polygon far outside"),
        (with_segmentation(SQUARE), "annotation 12 has a polygon"),
        (with_segmentation({"size": [8, 10], "counts": [80]}), "annotation 12 has RLE of size [8, 10]"),
        (with_segmentation({"size": [10, 8], "counts": [81]}), "annotation 12 has RLE counts for 81 pixels"),
        (with_segmentation({"size": [10, 8], "counts": [90, -10]}), "annotation 12 has RLE counts"),
        (with_segmentation({"size": [10, 8]}), "annotation 12 has RLE counts"),
    ],
)
def test_mistakes_are_named(tmp_path, parsed, words):
    with pytest.raises(InputError) as error:
        CocoDataset(write(tmp_path, parsed))
    assert words in str(error.value) and "instances_val2017.json" in str(error.value)


def test_boxes_are_the_files_own_inside_the_image(tmp_path):
    boxes = [[1.5, 1.25, 5, 4.5], [-1.5, 0, 4, 4], [5.5, 7.5, 9, 9]]
    dataset = CocoDataset(write(tmp_path, content(*(annotation(k, bbox=box) for k, box in enumerate(boxes)))))
    np.testing.assert_array_equal(
        dataset.instances(0).boxes, [[1.25, 1.5, 5.75, 6.5], [0, 0, 4, 2.5], [7.5, 5.5, 10, 8]]
    )
    np.testing.assert_array_equal((dataset + dataset).instances(2).boxes, dataset.instances(0).boxes)


def test_training_leaves_out_images_with_nothing_but_crowds(tmp_path):
    parsed = content(annotation(1, iscrowd=1), annotation(2, image_id=3), annotation(3, image_id=3, iscrowd=1))
    dataset = CocoDataset(write(tmp_path, parsed))
    assert [dataset.trains(i) for i in range(2)] == [False, True]
    assert [Subset(dataset, [1, 0]).trains(i) for i in range(2)] == [True, False]


def keypoint_content(*counts):
    """An annotation with so many labelled keypoints on each of the two images."""
    parsed = content(*(
        annotation(k, image_id=(70, 3)[k], keypoints=[1, 1, 2] * n + [0, 0, 0] * (2 - n), num_keypoints=n)
        for k, n in enumerate(counts)
    ))  # fmt: skip
    parsed["categories"] = [{"id": 5, "name": "person", "keypoints": ["nose", "tail"], "skeleton": [[1, 2]]}]
    return parsed


def write_keypoints(directory, parsed):
    write(directory, parsed)
    (directory / "annotations" / "instances_val2017.json").rename(
        directory / "annotations" / "person_keypoints_val2017.json"
    )
    return directory


def test_training_on_keypoints_leaves_out_images_without_one(tmp_path):
    dataset = CocoDataset(write_keypoints(tmp_path, keypoint_content(1, 0)), keypoints=True)
    assert [dataset.trains(i) for i in range(2)] == [True, False]


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"keypoints": [1, 1, 2]}, "keypoints that are not 6 finite numbers"),
        ({"keypoints": [1, 1, 3, 0, 0, 0]}, "visibility is not 0, 1 or 2"),
        ({"keypoints": [1, -9, 2, 0, 0, 0]}, "keypoint with a negative coordinate, -9"),
        ({"num_keypoints": 3}, "num_keypoints 3"),
    ],
)
def test_mistakes_in_keypoints_are_named(tmp_path, changes, words):
    parsed = keypoint_content(1)
    parsed["annotations"][0].update(changes)
    with pytest.raises(InputError, match=f"annotation 0 has .*{words}"):
        CocoDataset(write_keypoints(tmp_path, parsed), keypoints=True)


def test_the_pictures_of_minival_are_in_val2014(tmp_path):
    write(tmp_path, content(annotation()))
    (tmp_path / "val2017").rename(tmp_path / "val2014")
    (tmp_path / "annotations" / "instances_val2017.json").rename(tmp_path / "annotations/instances_minival2014.json")
    dataset = CocoDataset(tmp_path, "minival2014")
    assert dataset.path(0) == tmp_path / "val2014" / "a.png" and dataset.image(0).shape == (10, 8, 3)


def test_pictures_of_other_channels(tmp_path):
    parsed = content(annotation())
    parsed["images"][0]["file_name"] = "a.npy"
    write(tmp_path, parsed, files=("b.png",))
    np.save(tmp_path / "val2017" / "a.npy", np.full((10, 8, 5), 7, np.uint8))
    assert CocoDataset(tmp_path, channels=5).image(0).shape == (10, 8, 5)
    assert CocoDataset(tmp_path, channels=1).image(1).shape == (10, 8, 1)
    with pytest.raises(InputError, match=r"a\.npy: the array is uint8 of shape \(10, 8, 5\)"):
        CocoDataset(tmp_path).image(0)


def faulty(directory):
    """Ten annotations, two of them right, and four images with one picture that is whole."""
    parsed = content(
        annotation(1), annotation(2, bbox=[1, 1, -1, 1]), annotation(3, image_id=9), annotation(3), {"id": 4},
        annotation(5, segmentation=[[1, 2, 3, 4]]), annotation(6, segmentation={"size": [8, 10], "counts": [80]}),
        annotation(7, segmentation={"size": [10, 8], "counts": "oooo111"}), annotation(8, image_id=71),
        annotation(8),
    )  # fmt: skip
    parsed["images"] += [{"id": 71, "file_name": "c.png", "height": 0, "width": 8}, dict(parsed["images"][0])]
    write(directory, parsed)
    picture = directory / "val2017" / "b.png"
    picture.write_bytes(picture.read_bytes()[:40])
    return directory


PROBLEMS = (
    "image 71 has height", 'id 70 comes twice in "images"', "annotation 2 has bbox", "annotation 3 has image_id 9",
    '(id 4) has no "image_id"', "annotation 5 has a polygon", "annotation 6 has RLE of size",
    "annotation 7 has a segmentation that cannot be decoded", "b.png: the image cannot be read",
    'id 8 comes twice in "annotations"',
)  # fmt: skip


def test_check_dataset_prints_every_problem(tmp_path, capsys):
    assert main(["check-dataset", str(faulty(tmp_path))]) == 1
    *lines, summary = capsys.readouterr().out.splitlines()
    for words in PROBLEMS:
        assert sum(words in line for line in lines) == 1, words
    assert len(lines) == len(PROBLEMS)
    assert summary.endswith("10 problems in val2017, in which 4 images and 10 objects are listed.")


def test_check_dataset_of_a_sound_one_and_of_none(tmp_path, capsys):
    assert main(["check-dataset", str(write(tmp_path, content(annotation())))]) == 0
    assert "no problem in val2017, in which 2 images and 1 objects" in capsys.readouterr().out
    assert main(["check-dataset", str(tmp_path / "nowhere")]) == 2
    assert "no such folder" in capsys.readouterr().err
    (tmp_path / "annotations" / "instances_val2017.json").write_text("{")
    assert main(["check-dataset", str(tmp_path)]) == 1
    assert "not valid JSON" in capsys.readouterr().out


def test_the_first_problem_stops_a_dataset_unless_it_may_skip(tmp_path):
    faulty(tmp_path)
    with pytest.raises(InputError, match=r"image 71 has height.*\(7 more: maskrcnn-edu check-dataset lists them\)\.$"):
        CocoDataset(tmp_path)
    dataset = CocoDataset(tmp_path, skip_bad=True)
    assert len(dataset) == 2 and len(dataset.problems) == 8
    batches = loader(dataset, Config.tiny(num_classes=3, batch_size=1), skip_bad=True, training=False)
    with pytest.raises(InputError, match="None of the 2 images"):
        list(batches)
    assert "CocoDataset" not in str(batches.skipped)


def test_broken_compressed_rle_is_named(tmp_path):
    dataset = CocoDataset(write(tmp_path, with_segmentation({"size": [10, 8], "counts": "oooo111"})))
    with pytest.raises(InputError, match="annotation 12 has a segmentation that cannot be decoded"):
        dataset.instances(0)


def test_missing_directory_and_split(tmp_path):
    with pytest.raises(InputError, match=r"nowhere: there is no such folder"):
        CocoDataset(tmp_path / "nowhere")
    write(tmp_path, content())
    with pytest.raises(InputError, match=r"instances_train2017\.json"):
        CocoDataset(tmp_path, "train2017")


def test_missing_image_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"image 3 .*b\.png is missing"):
        CocoDataset(write(tmp_path, content(), files=["a.png"]))


def test_missing_image_folder_is_named(tmp_path):
    write(tmp_path, content(), files=[])
    (tmp_path / "val2017").rmdir()
    with pytest.raises(InputError, match="val2017: there is no such folder"):
        CocoDataset(tmp_path)


def test_image_of_another_size_is_named(tmp_path):
    dataset = CocoDataset(write(tmp_path, content()))
    Image.fromarray(np.zeros((8, 10, 3), np.uint8)).save(dataset.path(0))
    with pytest.raises(InputError, match=r"a\.png.*8 x 10.*10 x 8"):
        dataset.image(0)


def test_checking_is_fast_enough_for_coco(tmp_path):
    write(tmp_path, content(*(annotation(k, segmentation=[SQUARE * 4]) for k in range(50_000))))
    started = time.process_time()
    CocoDataset(tmp_path)
    assert time.process_time() - started < 15  # COCO has 860,000: a few minutes on a slow and busy machine, not hours


@needs_sample
@pytest.mark.parametrize("split, images, objects", [("train2017", 32, 288), ("val2017", 6, 136)])
def test_real_coco(split, images, objects):
    dataset = CocoDataset(SAMPLE, split)
    reference = COCO(dataset.file)
    assert len(dataset) == images and len(dataset.class_names) == 81
    count = 0
    for i in range(len(dataset)):
        found = dataset.instances(i, dataset.image(i).shape[:2])
        count += len(found.classes)
        expected = reference.imgToAnns[dataset.image_id(i)]
        for mask, k, entry in zip(found.masks, found.classes, expected, strict=True):
            np.testing.assert_array_equal(mask, reference.annToMask(entry))
            assert dataset.category_ids[abs(k)] == entry["category_id"] and (k < 0) == entry["iscrowd"]
    assert count == objects

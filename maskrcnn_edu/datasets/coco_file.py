"""A COCO annotation file: read, and everything in it checked before it is used."""

import json
import math
import os

from maskrcnn_edu.errors import InputError

# The two annotations of COCO's own train2017 without any height, area 0.0: (annotation id, image id).
# https://github.com/cocodataset/cocoapi/issues/355. They are skipped; any other box without an area is an error.
WITHOUT_AREA = {(918, 200365), (2206849, 550395)}
# Pixels by which a coordinate may be negative: labelling tools round.
ROUNDING = 2

NEEDED = {
    "images": ("id", "file_name", "height", "width"),
    "categories": ("id", "name"),
    "annotations": ("id", "image_id", "category_id", "bbox", "segmentation", "area", "iscrowd"),
}
KEYPOINTS_NEEDED = {
    "images": (),
    "categories": ("keypoints", "skeleton"),
    "annotations": ("keypoints", "num_keypoints"),
}


def parse(file, labelled=True):
    """The JSON file as a dict with the three lists that COCO's have; not `labelled`, without annotations.

    InputError if that is not what it holds.
    """
    try:
        with open(file, encoding="utf-8") as opened:
            content = json.load(opened)
    except FileNotFoundError:
        if not file.parents[1].is_dir():
            raise InputError(f"{file.parents[1]}: there is no such folder; check the path.") from None
        raise InputError(f"{file}: there is no such annotation file; check the directory and the split.") from None
    except OSError as error:
        raise InputError(f"{file}: the annotation file cannot be read ({error.strerror}).") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: this is not valid JSON ({error}); it may be damaged, so replace it.") from None
    if not labelled and isinstance(content, dict):
        content.setdefault("annotations", [])
    for kind in NEEDED:
        if not isinstance(content, dict) or not isinstance(content.get(kind), list):
            raise InputError(f'{file}: the list "{kind}" is missing; give an instances file in the COCO format.')
    return content


def check(file, folder, content, keypoints=False):
    """What of the parsed file can be used: images, categories, annotations, each {id: entry}; and a list of sentences.

    The sentences say what is wrong with every other entry. What belongs to a wrong image or category is left out
    without a sentence of its own. Raises InputError if there is no folder of images.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder of images; check the directory and the split.")
    problems, owners, names, keypoint_names = [], {}, {}, []
    present = set(os.listdir(folder))  # one look instead of 118,000

    def wrong_image(image):
        return _wrong_sides(image) or _wrong_file(image, folder, present, owners)

    def wrong_category(category):
        return _wrong_name(category, names) or (keypoints and _wrong_names(category, keypoint_names))

    def sound(kind, wrong):
        needed = NEEDED[kind] + (KEYPOINTS_NEEDED[kind] if keypoints else ())
        return _sound(file, kind, content[kind], needed, wrong, problems)

    images, categories = sound("images", wrong_image), sound("categories", wrong_category)
    known = [{_id(entry) for entry in content[kind]} for kind in ("images", "categories")]

    def wrong_annotation(annotation):
        wrong = _wrong_reference(annotation, *known)
        image = images.get(annotation["image_id"]) if not wrong else None
        if wrong or image is None or annotation["category_id"] not in categories:
            return wrong
        if (annotation["id"], annotation["image_id"]) in WITHOUT_AREA:
            return None
        return (
            _wrong_box(annotation["bbox"], image)
            or _wrong_area(annotation)
            or _wrong_segmentation(annotation["segmentation"], image)
            or (keypoints and _wrong_keypoints(annotation, len(keypoint_names)))
        )

    annotations = {
        number: entry
        for number, entry in sound("annotations", wrong_annotation).items()
        if entry["image_id"] in images
        and entry["category_id"] in categories
        and (number, entry["image_id"]) not in WITHOUT_AREA
    }
    return images, categories, annotations, problems


def _sound(file, kind, entries, needed, wrong, problems):
    """The entries that nothing is wrong with, by id; what is wrong with the others goes to `problems`."""
    found, singular = {}, {"images": "image", "categories": "category", "annotations": "annotation"}[kind]
    for position, entry in enumerate(entries):
        flaw = _wrong_keys(entry, needed)
        if flaw:
            problems.append(f'{file}: entry {position} of "{kind}" {flaw}.')
        elif entry["id"] in found:
            problems.append(f'{file}: id {entry["id"]} comes twice in "{kind}"; make ids unique.')
        elif flaw := wrong(entry):
            problems.append(f"{file}: {singular} {entry['id']} {flaw}.")
        else:
            found[entry["id"]] = entry
    return found


def _id(entry):
    """The id of an entry that may be anything."""
    number = entry.get("id") if isinstance(entry, dict) else None
    return number if isinstance(number, int) else None


def _wrong_keys(entry, needed):
    """What is wrong with an entry's keys and its id; None if nothing is, as with all functions below."""
    if not isinstance(entry, dict):
        return f"is {entry!r}; give an object"
    for key in needed:
        if key not in entry:
            return f'(id {entry.get("id")}) has no "{key}"; add it'
    if not isinstance(entry["id"], int):
        return f"has id {entry['id']!r}; give a whole number"
    return None


def _wrong_sides(image):
    sides = image["height"], image["width"]
    if all(isinstance(side, int) and side > 0 for side in sides) and isinstance(image["file_name"], str):
        return None
    return (
        f"has height, width, file_name {sides[0]!r}, {sides[1]!r}, {image['file_name']!r}; "
        "give two positive whole numbers and a string"
    )


def _wrong_file(image, folder, present, owners):
    name = image["file_name"]
    first = owners.setdefault(name, image["id"])
    if first != image["id"]:
        return f"has the file {name}, which is image {first} already; list it once"
    if name not in present and not (folder / name).is_file():
        return f"has no file: {folder / name} is missing; add it or drop the image"
    return None


def _wrong_name(category, names):
    name = category["name"]
    if not isinstance(name, str) or not name or name == "background":
        return f"has name {name!r}; give a word, and not background, which is none"
    if names.setdefault(name, category["id"]) != category["id"]:
        return f"has the name {name}, as category {names[name]}; give each its own"
    return None


def _wrong_reference(annotation, known_images, known_categories):
    """Whether the image and the category are in the file, right or wrong."""
    for key, known in (("image_id", known_images), ("category_id", known_categories)):
        value = annotation[key]
        if not isinstance(value, int) or value not in known:
            kind = "images" if key == "image_id" else "categories"
            return f'has {key} {value!r}, which is not in "{kind}"; add it or drop the annotation'
    if annotation["iscrowd"] not in (0, 1):
        return f"has iscrowd {annotation['iscrowd']!r}; give 0 or 1"
    return None


def _wrong_box(box, image):
    """x, y, width, height. What reaches over the right or lower edge is cut: COCO's minival of 2014 has such boxes."""
    if not _finite(box) or len(box) != 4:
        return f"has bbox {box!r}; give four finite numbers, x, y, width and height"
    if box[2] <= 0 or box[3] <= 0:
        return f"has bbox {box!r} without an area; give a width and height above 0"
    if min(box) < -ROUNDING:
        return f"has bbox {box!r} with a negative coordinate; give pixels of the image"
    if box[0] >= image["width"] or box[1] >= image["height"] or box[0] + box[2] <= 0 or box[1] + box[3] <= 0:
        return f"has bbox {box!r} outside its image of {image['width']} x {image['height']} pixels; correct it"
    return None


def _wrong_area(annotation):
    if not _finite([annotation["area"]]) or annotation["area"] < 0:
        return f"has area {annotation['area']!r}; give the number of its pixels"
    return None


def _wrong_segmentation(segmentation, image):
    if isinstance(segmentation, dict):
        return _wrong_rle(segmentation, image)
    if not isinstance(segmentation, list) or not segmentation:
        return "has no segmentation; give a list of polygons, or RLE"
    # Far outside, pycocotools would walk along every edge, pixel by pixel.
    limit = 10 * max(image["height"], image["width"])
    for polygon in segmentation:
        if not _finite(polygon) or len(polygon) < 6 or len(polygon) % 2:
            return "has a polygon that is not x, y of three points or more; correct or drop it"
        if min(polygon) < -ROUNDING:
            return f"has a polygon with a negative coordinate, {min(polygon)}; give pixels of the image"
        if max(polygon) > limit:
            return "has a polygon far outside the image; give its points in pixels"
    return None


def _wrong_rle(segmentation, image):
    size, counts = [image["height"], image["width"]], segmentation.get("counts")
    if segmentation.get("size") != size:
        return f"has RLE of size {segmentation.get('size')}, but image {image['id']} is {size}; correct one of them"
    if isinstance(counts, str):
        return None  # decoded and checked when it is loaded
    if not isinstance(counts, list) or not all(isinstance(n, int) and n >= 0 for n in counts):
        return "has RLE counts that are neither a string nor a list of whole numbers; correct them"
    if sum(counts) != size[0] * size[1]:
        return f"has RLE counts for {sum(counts)} pixels, but image {image['id']} has {size[0] * size[1]}; correct them"
    return None


def _finite(numbers):
    """A list of finite numbers."""
    try:
        return isinstance(numbers, list) and math.isfinite(sum(numbers))
    except (TypeError, OverflowError):
        return False


def _wrong_names(category, first):
    """A category's keypoints, which are to be those of the `first`, an empty list before."""
    keypoints, skeleton = category["keypoints"], category["skeleton"]
    if not isinstance(keypoints, list) or not keypoints or not all(isinstance(name, str) for name in keypoints):
        return f"has keypoints {keypoints!r}; give a list of names"
    if len(set(keypoints)) < len(keypoints) or keypoints != (first or keypoints):
        return "has a keypoint name twice, or other names than the first category; give all categories the same names"
    known = range(1, len(keypoints) + 1)
    if not isinstance(skeleton, list) or not all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(end, int) and end in known for end in pair)
        for pair in skeleton
    ):
        return f"has a skeleton that is not pairs of numbers from 1 to {len(keypoints)}; correct it"
    first[:] = keypoints
    return None


def _wrong_keypoints(annotation, count):
    """x, y, visibility of `count` keypoints."""
    keypoints, labelled = annotation["keypoints"], annotation["num_keypoints"]
    if not _finite(keypoints) or len(keypoints) != 3 * count:
        return f"has keypoints that are not {3 * count} finite numbers, x, y and visibility of each; correct them"
    if any(visibility not in (0, 1, 2) for visibility in keypoints[2::3]):
        return "has a keypoint whose visibility is not 0, 1 or 2; correct it"
    if min(keypoints, default=0) < -ROUNDING:
        return f"has a keypoint with a negative coordinate, {min(keypoints)}; give pixels of the image"
    if not isinstance(labelled, int) or not 0 <= labelled <= count:
        return f"has num_keypoints {labelled!r}; give how many are labelled, 0 to {count}"
    return None

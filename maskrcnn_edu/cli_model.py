"""The command line's part for models: --model, --logs and --precision, and the model that they name."""

from pathlib import Path

from maskrcnn_edu.config import Config
from maskrcnn_edu.config_values import CHOICES
from maskrcnn_edu.errors import InputError


def add_model(parser):
    parser.add_argument(
        "--model", required=True, metavar="coco|last|PATH|NAME",
        help="Detectron2's COCO weights, the last run under --logs, a .keras or published file, or published weights",
    )  # fmt: skip
    add_logs(parser)


def add_logs(parser):
    parser.add_argument("--logs", metavar="DIR", default="logs", help="where runs are kept (default: %(default)s)")


def add_precision(parser):
    parser.add_argument(
        "--precision", choices=CHOICES["precision"],
        help="what to compute in (default: the model's own); bfloat16 is faster where the processor has it",
    )  # fmt: skip


def path_of(options, run="*"):
    """--model, with `last` as the file of the last run of that name under --logs."""
    from maskrcnn_edu import runs

    return runs.last_run(options.logs, run) / runs.CHECKPOINT if options.model == "last" else options.model


def open_model(name, precision=None, keypoints=False):
    """The model of a .keras file, of a published family's file, of a published name, or of `coco` (--keypoints: of
    persons); in its own precision unless another is given."""
    model = _opened(name, keypoints)
    return model if precision in (None, model.config.precision) else model.in_precision(precision)


def _opened(name, keypoints):
    from maskrcnn_edu import runs
    from maskrcnn_edu.model import MaskRCNN
    from maskrcnn_edu.weights import load, read
    from maskrcnn_edu.weights.published import PUBLISHED
    from maskrcnn_edu.weights.recognise import class_names, config_of
    from maskrcnn_edu.weights.start import coco_weights

    if name == "coco":
        name = coco_weights(Config.detectron2_keypoint() if keypoints else Config.detectron2())
    if name in PUBLISHED:
        if PUBLISHED[name].backbone_only:
            raise InputError(f"{name} is a backbone whose heads have learnt nothing; train with --model {name} first.")
        return MaskRCNN.from_pretrained(name)
    if Path(name).suffix == ".keras" or not Path(name).is_file():
        return runs.load(name)
    tensors = read(name)
    config = config_of(tensors, name)
    model = MaskRCNN(config, class_names(config))
    load(model, tensors)
    return model

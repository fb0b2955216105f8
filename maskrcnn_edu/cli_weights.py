"""The command line's part for published weights: maskrcnn-edu weights list | fetch | convert | inspect."""

from pathlib import Path

from maskrcnn_edu.config import PRESETS
from maskrcnn_edu.errors import InputError

DESCRIPTION = "Published weights: which there are, fetch them, convert them to a .keras file, look into a file."


def add_weights(parser):
    """Gives the parser of `maskrcnn-edu weights` its four commands."""
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _command(commands, "list", _list, "The names, with the average precision that their publishers give.")

    fetch = _command(commands, "fetch", _fetch, "Download a file from its publisher, check it and keep it.")
    fetch.add_argument("name", metavar="NAME", help="a name of weights list")

    convert = _command(commands, "convert", _convert, "Write a .keras file, which train, evaluate and detect take.")
    convert.add_argument("source", metavar="NAME|FILE", help="a name of weights list, or a published file")
    convert.add_argument("--out", required=True, metavar="FILE", help="the .keras file to write")
    convert.add_argument("--preset", choices=PRESETS, help="the settings of a FILE's model (default: told by the file)")

    inspect = _command(commands, "inspect", _inspect, "Show the tensors of a file: names, shapes, dtypes, ranges.")
    inspect.add_argument("source", metavar="NAME|FILE", help="a name of weights list, or a weight file")


def _command(commands, name, run, description):
    parser = commands.add_parser(name, help=description, description=description)
    parser.add_argument("--cache", metavar="DIR", help="where files are kept (default: .keras/maskrcnn_edu at home)")
    parser.set_defaults(run=run)
    return parser


def _list(options):
    from maskrcnn_edu.weights.published import PUBLISHED, cached

    print("AP on COCO in percent, as published. Checksum: what a fetched file is checked against.\n")
    print(f"{'name':<25}{'box':>6}{'mask':>6}{'keyp.':>6}  {'in cache':<10}{'checksum':<17}file")
    for name, entry in PUBLISHED.items():
        scores = "".join(f"{_number(score):>6}" for score in (entry.box_ap, entry.mask_ap, entry.keypoint_ap))
        there = "yes" if cached(name, options.cache).is_file() else "no"
        print(f"{name:<25}{scores}  {there:<10}{entry.checksum[:15].replace(':', ' ') or 'unknown':<17}{entry.file}")
    print(f"\nCache: {cached(name, options.cache).parent}")


def _number(score):
    return "-" if score is None else f"{score:.1f}"


def _fetch(options):
    from maskrcnn_edu.weights import fetch

    print(fetch(options.name, options.cache))


def _convert(options):
    from maskrcnn_edu.commands import import_keras
    from maskrcnn_edu.weights import load, read
    from maskrcnn_edu.weights.published import PUBLISHED, find
    from maskrcnn_edu.weights.recognise import class_names, config_of

    if Path(options.out).suffix != ".keras":
        raise InputError(f"--out is {options.out}; Keras wants a name that ends in .keras.")
    if options.source in PUBLISHED and options.preset:
        raise InputError(f"--preset is for files; {options.source} has its own settings, so leave it out.")
    if options.source in PUBLISHED:
        config = find(options.source).config()
    tensors = read(_path(options))
    if options.source not in PUBLISHED:
        config = config_of(tensors, options.source, options.preset)

    import_keras()
    from maskrcnn_edu import runs
    from maskrcnn_edu.model import MaskRCNN

    model = MaskRCNN(config, class_names(config))
    print(load(model, tensors))
    runs.save(model, options.out)
    print(options.out)


def _inspect(options):
    from maskrcnn_edu.weights import read
    from maskrcnn_edu.weights.recognise import family_of

    path = _path(options)
    tensors = read(path)
    print(f"{path}: {len(tensors)} tensors, {sum(array.size for array in tensors.values())} numbers")
    print(f"family: {family_of(tensors) or 'none that is known'}\n")
    width = max(map(len, tensors))
    for name, array in tensors.items():
        span = f"{array.min():.4g} .. {array.max():.4g}" if array.size else "empty"
        print(f"{name:<{width}}  {str(array.shape):<20}{str(array.dtype):<9}{span}")


def _path(options):
    """The file that NAME|FILE means."""
    from maskrcnn_edu.weights import fetch
    from maskrcnn_edu.weights.published import PUBLISHED

    if options.source not in PUBLISHED:
        if not Path(options.source).is_file():
            raise InputError(
                f"{options.source} is neither a file nor a name of published weights; "
                f"choose one of {', '.join(PUBLISHED)}, or check the path."
            )
        return Path(options.source)
    return fetch(options.source, options.cache)

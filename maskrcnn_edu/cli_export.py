"""The command line's part for export: maskrcnn-edu export."""

from maskrcnn_edu import commands

DESCRIPTION = "Write a model for other runtimes: photographs in, detections out."


def add_export(parser):
    """Gives the parser of `maskrcnn-edu export` its arguments."""
    parser.set_defaults(run=_export)
    parser.add_argument("--logs", metavar="DIR", default="logs", help="where --model last looks (default: %(default)s)")
    parser.add_argument("--model", required=True, metavar="last|PATH|NAME", help="a .keras file, or published weights")
    parser.add_argument("--format", required=True, choices=("saved_model", "onnx", "litert"), help="what to write")
    parser.add_argument("--out", required=True, metavar="PATH", help="a folder for saved_model, else a file")
    parser.add_argument(
        "--size", type=int, nargs=2, metavar=("H", "W"),
        help="height and width of the photographs; litert needs it, the other formats take any",
    )  # fmt: skip


def _export(options):
    commands.check_writable(options.out, folder=options.format == "saved_model")
    commands.import_keras()
    from maskrcnn_edu import runs
    from maskrcnn_edu.export import check
    from maskrcnn_edu.export import export as write

    check(options.out, options.format, options.size)
    path = options.model
    if path == "last":
        path = runs.last_run(options.logs) / runs.CHECKPOINT
    model = commands.open_model(path)
    print(f"Writing {path} as {options.format}; this takes a minute or two.", flush=True)
    write(model, options.out, options.format, options.size)
    print(options.out)

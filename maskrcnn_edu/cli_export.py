"""The command line's part for export: maskrcnn-edu export."""

from maskrcnn_edu import cli_model, commands

DESCRIPTION = "Write a model for other runtimes: photographs in, detections out."


def add_export(parser):
    """Gives the parser of `maskrcnn-edu export` its arguments."""
    parser.set_defaults(run=_export)
    cli_model.add_model(parser)
    parser.add_argument("--format", required=True, choices=("saved_model", "onnx", "litert"), help="what to write")
    parser.add_argument("--out", required=True, metavar="PATH", help="a folder for saved_model, else a file")
    parser.add_argument(
        "--size", type=int, nargs=2, metavar=("H", "W"),
        help="height and width of the photographs; litert needs it, the other formats take any",
    )  # fmt: skip


def _export(options):
    commands.check_writable(options.out, folder=options.format == "saved_model")
    commands.import_keras()
    from maskrcnn_edu.export import check
    from maskrcnn_edu.export import export as write

    check(options.out, options.format, options.size)
    path = cli_model.path_of(options)
    model = cli_model.open_model(path)
    print(f"Writing {path} as {options.format}; this takes a minute or two.", flush=True)
    write(model, options.out, options.format, options.size)
    print(options.out)

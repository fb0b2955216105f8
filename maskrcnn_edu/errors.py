"""The one exception that means: the input is wrong, and here is what to do about it."""


class InputError(ValueError):
    """Bad input from a user: one sentence that names the file, field or argument and what to do.

    The command line prints it and ends with exit code 2; in Python it is a `ValueError`.
    """


class WorkerLost(RuntimeError):
    """Another process of a run on several machines has ended, so that this one cannot go on."""

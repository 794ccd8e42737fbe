"""The one error a person is meant to read."""


class SynthdetError(Exception):
    """One line that names the file or the setting, and says what to do.

    The command line prints it without a traceback and exits with 1. Anything else that
    escapes a command is a bug and shows its traceback.
    """

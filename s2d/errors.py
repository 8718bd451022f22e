"""The one exception that the command line turns into a sentence."""


class InputError(ValueError):
    """Something the user gave cannot be used: says what was expected and what was found.

    The command line prints the message without a traceback and exits with code 2.
    """

"""Errors: those that are the user's have one class, and those of others fit into one line."""


class InputError(ValueError):
    """Something the user gave is wrong: an argument, a setting, a file; the message names it."""


def first_line(error: BaseException) -> str:
    """The first line of what an error says; its kind if it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)

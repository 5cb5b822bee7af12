"""Errors that a user can mend. The command line prints them as one sentence and exits with code 2."""


class UserError(Exception):
    """Bad input: says what is wrong, where, and what to change. Never shown with a traceback."""


class DeadlineExceeded(RuntimeError):
    """A wait outlived its deadline (I4); the message names who was waited for, and for what."""

"""Errors that the command line shows as one sentence, without a traceback."""


class UserError(Exception):
    """Bad input: says what is wrong, where, and what to change. Exit code 2."""


class RunFailed(RuntimeError):
    """The run cannot go on; the message says why. Shown as one sentence, with exit code 1."""


class DeadlineExceeded(RunFailed):
    """A wait outlived its deadline (I4); the message names who was waited for, and for what."""


class BudgetSpent(RunFailed):
    """Too much went wrong (recipe part `budgets`); the run saves what it can, then stops."""

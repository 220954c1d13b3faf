"""Errors that end a command.

Their messages name the file and field, the value found, and the remedy.
"""


class BezoarError(Exception):
    """A stage failed. All finished work stays.

    Exit code 3.
    """

    exit_code = 3


class RecipeError(BezoarError):
    """The recipe, the arguments or the machine does not allow the request.

    Exit code 2.
    """

    exit_code = 2


class RunLocked(RecipeError):
    """Another process is using the run directory."""


class BudgetReached(BezoarError):
    """The next call could exceed `budget_usd`.

    Exit code 4. Raise the budget and run the same command again to resume.
    """

    exit_code = 4


class ReviewNeeded(BezoarError):
    """The recipe asks people to review rows before training.

    Exit code 5. Run the same command again after the review.
    """

    exit_code = 5

"""Errors that end a command: each names the file and field, the value found, and the remedy."""


class BezoarError(Exception):
    """A stage failed; what is done stays. Exit code 3."""

    exit_code = 3


class RecipeError(BezoarError):
    """The recipe, the arguments or the machine cannot do what is asked. Exit code 2."""

    exit_code = 2


class RunLocked(RecipeError):
    """Another process is using the run directory."""


class BudgetReached(BezoarError):
    """The next call could exceed `budget_usd`. Exit code 4; raise the budget and run again to go on."""

    exit_code = 4

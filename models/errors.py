"""The one exception for what a user can put right; the command line prints its sentence and exits with 2."""


class UserError(ValueError):
    """Wrong input. The message is one sentence: what, expected, got, remedy."""

"""The one error a user can cause: every command turns it into one line on stderr and exit code 2."""


class UserError(Exception):
    """A mistake in what the user gave (a name, a path, a file). The message says what to do next."""


class InUse(UserError):
    """A folder that another process holds."""

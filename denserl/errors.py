"""The one exception for a user's mistake. Commands print it without a traceback and exit with status 2."""


class UserError(Exception):
    """Something the user can mend.

    found: what was found and what was expected. fix: the command or change that mends it.
    """

    def __init__(self, found: str, fix: str = ""):
        super().__init__(found, fix)
        self.found, self.fix = found, fix

    def __str__(self) -> str:
        return f"{self.found}\n  fix: {self.fix}" if self.fix else self.found

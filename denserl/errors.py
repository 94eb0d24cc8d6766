"""How a command ends other than well: a user's mistake, or a stop that was asked for. Both are printed without a traceback."""


class UserError(Exception):
    """Something the user can mend; the command exits with status 2.

    found: what was found and what was expected. fix: the command or change that mends it. A name in backticks, as in `lr`, is
    an option, which the command line shows as a flag.
    one_rank: other ranks may not have found the same, so that this one must say it.
    """

    def __init__(self, found: str, fix: str = "", one_rank: bool = False):
        super().__init__(found, fix)
        self.found, self.fix, self.one_rank = found, fix, one_rank

    def __str__(self) -> str:
        return f"{self.found}\n  fix: {self.fix}" if self.fix else self.found


class Stopped(Exception):
    """A run that was asked to stop has finished its step and saved; the command exits with STOPPED_STATUS."""


# EX_TEMPFAIL of sysexits.h: nothing is wrong, the same command with --resume goes on.
STOPPED_STATUS = 75


def require(condition: object, found: str, fix: str) -> None:
    """UserError unless the condition holds."""
    if not condition:
        raise UserError(found, fix)

"""The one exception for mistakes the user can mend, and how other exceptions are quoted."""


class UserError(Exception):
    """The input is at fault, not the program.

    The message is one line, or one line a fault: what is wrong, where (file, line or key), and what to do. The command
    line prints it without a traceback and exits with 2.
    """


def first_line(error: BaseException) -> str:
    """What an exception says, in one line; its class where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]

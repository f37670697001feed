"""The one exception for mistakes the user can mend."""


class UserError(Exception):
    """The input is at fault, not the program.

    The message is one line, or one line a fault: what is wrong, where (file, line or key), and what to do. The command
    line prints it without a traceback and exits with 2.
    """

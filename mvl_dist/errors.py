"""The one exception class for a user's mistake."""


class UserError(Exception):
    """Something the user can mend: says what is wrong, where, and how to mend it, in one line.

    Raised deep in the code and printed once, without a trace, by whatever the user started.
    Every other exception is a defect of this project and keeps its trace.
    """

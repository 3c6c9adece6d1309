"""The errors that are the user's to mend. The standard library only: a board reads this too.

Everything else that is raised is a fault of esbflow, and keeps its traceback.
"""


class UserError(Exception):
    """Base of all refusals and of all that can be missing; its text is the one sentence that the user sees."""


class BadValue(UserError, ValueError):
    """A value, a file or a model that cannot be what it should be; the sentence names it and the fix."""


class NotWritable(UserError, OSError):
    """A file that cannot be written where it should be."""

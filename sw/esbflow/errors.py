"""The errors that are the user's to mend. The standard library only: a board reads this too.

Everything else that is raised is a fault of esbflow, and keeps its traceback.
"""


class UserError(Exception):
    """Base of all refusals and of all that can be missing; its text is the one sentence that the user sees."""


class BadValue(UserError, ValueError):
    """A value, a file or a model that cannot be what it should be; the sentence names it and the fix."""


class NotWritable(UserError, OSError):
    """A file that cannot be written where it should be."""


def reason(error: Exception) -> str:
    """What an exception says, for a sentence that names the file itself: of the system's neither number nor file.

    >>> reason(FileNotFoundError(2, "No such file or directory", "a.npz")), reason(ValueError("odd"))
    ('No such file or directory', 'odd')
    """
    return getattr(error, "strerror", None) or str(error) or type(error).__name__

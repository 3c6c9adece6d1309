"""What to say of a name that is not known."""

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str:
    """"; did you mean X?" for the known name most like `name`, or nothing where none is.

    >>> nearest("base16x61", ["tiny4x4", "base16x16"]), nearest("x", ["tiny4x4"])
    ('; did you mean base16x16?', '')
    """
    found = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {found[0]}?" if found else ""


def no_such(kind: str, name: str, known: Iterable[str]) -> str:
    """The sentence for a name that is not among the known ones.

    >>> no_such("engine", "base16x61", ["tiny4x4", "base16x16"])
    "no engine named 'base16x61'; known: tiny4x4, base16x16; did you mean base16x16?"
    """
    known = list(known)
    return f"no {kind} named {name!r}; known: {', '.join(known)}{nearest(name, known)}"

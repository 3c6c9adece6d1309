"""Tables in hand-written pages: what stands between two marks is written by a command."""

import re

from esbflow.errors import BadValue


def fill(page: str, name: str, content: str, where: str) -> str:
    """The text of a page with what stands between <!-- NAME --> and <!-- end of NAME --> replaced.

    Raises
    ------
    ValueError
        if the marks are not there; `where` is what the page is called then.
    """
    begin, end = _marks(name)
    if begin not in page or end not in page:
        raise BadValue(f"{where} has no {begin} ... {end} to fill")
    return re.sub(f"{begin}.*?{end}", lambda _: f"{begin}\n{content}\n{end}", page, flags=re.DOTALL)


def filled(page: str, name: str) -> str:
    """What stands between the marks; "" if they are not there."""
    found = re.search("{}\n(.*?)\n{}".format(*_marks(name)), page, flags=re.DOTALL)
    return found.group(1) if found else ""


def _marks(name: str) -> tuple:
    return f"<!-- {name} -->", f"<!-- end of {name} -->"

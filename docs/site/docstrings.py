"""How the site reads this project's docstrings: numpydoc sections whose entries are `name : meaning`.

numpydoc has a type behind the colon and the meaning below. Here types stand in signatures, so the meaning follows at once.
"""

import re

from griffe import Extension

TITLE = re.compile(r"^(\w+)\n-+\n", re.MULTILINE)
ENTRY = re.compile(r"^(\w[\w, *.\[\]]*) : ", re.MULTILINE)
DOCTEST = re.compile(r"^>>> .*(?:\n.+)*", re.MULTILINE)
POWER = re.compile(r"`[^`]*`|(?<=[\w)])\*\*(?=[\w(])")
"""2**n is no bold print; what stands between backticks is left as it is."""


class Meanings(Extension):
    """Puts the meaning of each entry below its name, where numpydoc's parser looks for it, and examples into fences."""

    def on_instance(self, *, obj, **_):
        if obj.docstring:
            obj.docstring.value = numpydoc(obj.docstring.value)


def numpydoc(text: str) -> str:
    """The docstring as griffe's parser expects it.

    For that a section goes on until the next title, so paragraphs behind one move in front of all.
    """
    prose, *parts = TITLE.split(_plain(text) + "\n")
    sections = []
    for title, body in zip(parts[::2], parts[1::2]):
        title = {"Members": "Attributes"}.get(title, title)
        if title in ("Parameters", "Attributes"):
            paragraphs = re.split(r"\n\n+", body.rstrip())
            entries = [paragraph for paragraph in paragraphs if ENTRY.match(paragraph) or paragraph.startswith(" ")]
            prose += "\n".join(["", *(paragraph for paragraph in paragraphs if paragraph not in entries), ""])
            body = ENTRY.sub(r"\1\n    ", "\n".join(entries)) + "\n"
        sections.append(f"\n{title}\n{'-' * len(title)}\n{body}")
    return prose + "".join(sections)


def _plain(text: str) -> str:
    parts = re.split(r"(^```.*?^```$)", DOCTEST.sub(lambda found: f"```python\n{found[0]}\n```", text), flags=re.M | re.S)
    return "".join(part if part.startswith("```") else POWER.sub(lambda found: found[0].replace("**", r"\*\*")
                                                                 if found[0] == "**" else found[0], part) for part in parts)

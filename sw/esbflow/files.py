"""Files that are there are whole: written under a temporary name, then renamed."""

import json
from pathlib import Path


def write_whole(path: str | Path, content: str | bytes) -> Path:
    """Write text or bytes; until the last byte is on disk the file is called PATH.part. The folder must exist."""
    path = Path(path)
    temporary = path.with_name(path.name + ".part")
    if isinstance(content, bytes):
        temporary.write_bytes(content)
    else:
        temporary.write_text(content)
    return temporary.replace(path)


def write_json(path: str | Path, content: dict) -> Path:
    """Write a JSON object, indented, by `write_whole`."""
    return write_whole(path, json.dumps(content, indent=2) + "\n")

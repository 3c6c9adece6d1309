"""Files that are there are whole: written under a temporary name, then renamed."""

import contextlib
import errno
import json
import os
from contextlib import contextmanager
from pathlib import Path

from esbflow.errors import NotWritable


@contextmanager
def whole(path: str | Path):
    """The name PATH.part to write to, which becomes PATH if the block ends well and is removed if not.

    Missing folders are made.

    Raises
    ------
    NotWritable
        if PATH is a folder, or a device or pipe, which a renamed file would replace; if the disk is full, or the system
        does not let a file be made there.
    """
    path = Path(path)
    _check_replaceable(path)
    temporary = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(path)
    except (OSError, RuntimeError) as error:
        # Libraries hide it: torch.save raises a RuntimeError of its own.
        reason = _of_the_disk(error) or _of_the_place(error, temporary)
        if reason is None:
            raise
        raise NotWritable(f"{path} cannot be written: {reason}") from None
    finally:
        with contextlib.suppress(NotADirectoryError):
            temporary.unlink(missing_ok=True)


def write_whole(path: str | Path, content: str | bytes) -> Path:
    """Write text or bytes, by `whole`."""
    with whole(path) as temporary:
        if isinstance(content, bytes):
            temporary.write_bytes(content)
        else:
            temporary.write_text(content)
    return Path(path)


def write_json(path: str | Path, content: dict) -> Path:
    """Write a JSON object, indented, by `whole`."""
    return write_whole(path, json.dumps(content, indent=2) + "\n")


def check_writable(path: str | Path) -> Path:
    """Make the folder that `path` lies in, and write and remove a file beside it: hours later would be late to find out.

    Raises
    ------
    NotWritable
        naming the file, if it cannot be written.
    """
    path = Path(path)
    _check_replaceable(path)
    with_probe = path.with_name(f".{path.name}.{os.getpid()}.probe")
    try:
        with_probe.parent.mkdir(parents=True, exist_ok=True)
        with_probe.write_bytes(b"")
    except OSError as error:
        raise NotWritable(f"{path} cannot be written: {error.strerror or error}") from None
    finally:
        with contextlib.suppress(OSError):
            with_probe.unlink()
    return path


def check_folder(folder: str | Path) -> Path:
    """Make a folder, write a file in it, and remove what was made: work that fails later leaves no folder.

    Raises
    ------
    NotWritable
        naming the folder, if that cannot be done.
    """
    folder = Path(folder)
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    if folder.exists() and not folder.is_dir():
        raise NotWritable(f"{folder} is a file; name a folder")
    try:
        check_writable(folder / "file")
    except NotWritable as error:
        raise NotWritable(f"nothing can be written into the folder {folder}: {str(error).rpartition(': ')[2]}") from None
    finally:
        for place in made:
            with contextlib.suppress(OSError):
                place.rmdir()
    return folder


def _check_replaceable(path: Path) -> None:
    if path.is_dir():
        raise NotWritable(f"{path} is a folder; name a file")
    if path.exists() and not path.is_file():
        raise NotWritable(f"{path} is a device or a pipe, not a file; name a file")


def _of_the_place(error: BaseException, temporary: Path) -> str | None:
    """What the system says of the file that was to be made, or of the folders above it."""
    made = [str(place) for place in (temporary, *temporary.parents)]
    return error.strerror if isinstance(error, OSError) and str(error.filename) in made else None


def _of_the_disk(error: BaseException | None) -> str | None:
    """What the system says of a disk or folder that takes no more, if that is behind an exception."""
    full = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS, errno.EIO)
    if isinstance(error, OSError) and error.errno in full:
        return error.strerror or str(error)
    if isinstance(error, RuntimeError) and "inline_container" in str(error):
        return "the disk takes no more"
    return None if error is None else _of_the_disk(error.__context__)

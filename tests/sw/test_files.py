"""Files that appear whole or not at all."""

import errno
import json
import os

import pytest

from esbflow.errors import NotWritable
from esbflow.files import check_folder, check_writable, whole, write_json, write_whole


def test_a_file_appears_when_its_block_ends_and_folders_are_made(tmp_path):
    path = tmp_path / "new" / "folder" / "a.bin"
    with whole(path) as temporary:
        temporary.write_bytes(b"12")
        assert not path.exists()
    assert path.read_bytes() == b"12" and [p.name for p in path.parent.iterdir()] == ["a.bin"]
    assert write_whole(path, "text") == path and path.read_text() == "text"
    assert json.loads(write_json(path, {"a": [1]}).read_text()) == {"a": [1]}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_what_was_there_stays_when_writing_fails(tmp_path, error):
    path = write_whole(tmp_path / "a.txt", "old")
    with pytest.raises(error):
        with whole(path) as temporary:
            temporary.write_text("half")
            raise error
    with pytest.raises(TypeError):
        write_json(path, {"a": {1, 2}})
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_place_that_can_be_written_is_left_as_it_is(tmp_path):
    path = tmp_path / "new" / "file.json"
    assert check_writable(path) == path
    assert not list(tmp_path.glob("new/*")) and not list(tmp_path.glob("new/.*"))
    path.write_text("kept")
    check_writable(path)
    assert path.read_text() == "kept"
    with pytest.raises(NotWritable, match=r"new is a folder; name a file$"):
        check_writable(path.parent)


def test_a_folder_that_was_tried_is_there_only_if_it_was_before(tmp_path):
    assert check_folder(tmp_path / "a" / "b") == tmp_path / "a" / "b" and not list(tmp_path.iterdir())
    (tmp_path / "a").mkdir()
    check_folder(tmp_path / "a" / "b")
    check_folder(tmp_path / "a")
    assert [path.name for path in tmp_path.rglob("*")] == ["a"]


def test_a_place_that_cannot_be_written_is_named_by_who_writes(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotWritable, match=r"file/a\.bin cannot be written: "):
        write_whole(tmp_path / "file" / "a.bin", "text")
    with pytest.raises(NotWritable, match=r"file is a file; name a folder$"):
        check_folder(tmp_path / "file")
    with pytest.raises(NotWritable, match=r"nothing can be written into the folder \S+file/in: "):
        check_folder(tmp_path / "file" / "in")
    with pytest.raises(FileNotFoundError):  # of what is read
        with whole(tmp_path / "a.bin"):
            (tmp_path / "none").read_bytes()


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG])
def test_a_full_disk_names_the_file(tmp_path, number, hidden):
    """torch.save hides it behind an error of its own."""
    with pytest.raises(NotWritable, match=rf"a\.bin cannot be written: {os.strerror(number)}$"):
        with whole(tmp_path / "a.bin") as temporary:
            temporary.write_bytes(b"half")
            try:
                raise OSError(number, os.strerror(number))
            except OSError as error:
                if hidden:
                    raise RuntimeError("unexpected pos 59328 vs 59216")  # noqa: B904
                raise error
    assert not list(tmp_path.iterdir())
    with pytest.raises(FileNotFoundError):
        with whole(tmp_path / "a.bin"):
            (tmp_path / "none").read_bytes()

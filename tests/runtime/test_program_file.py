"""Program files: what loads, and the sentences for what does not."""

import json

import numpy as np
import pytest

from esbflow.runtime.errors import ProgramError
from esbflow.runtime.program_file import load_program


def save(program, path, **arrays):
    meta = np.frombuffer(json.dumps(program.meta).encode(), np.uint8)
    contents = {"meta": meta, "instructions": program.instructions, "weights": program.weights, "table": program.table}
    contents.update(arrays)
    np.savez(path, **{name: array for name, array in contents.items() if array is not None})
    return path


def test_a_saved_program_loads(make_program, tmp_path):
    loaded = load_program(save(make_program(), tmp_path / "p.npz"))
    assert loaded.meta["batch"] == 2 and loaded.config.name == "small8x16" and len(loaded.weights) == 100
    assert loaded.layer_name(1) == "second" and loaded.layer_name(9) == "no such layer"


@pytest.mark.parametrize("keep", [0, 10, 200, 0.5, 0.98])
def test_a_truncated_file_is_refused(make_program, tmp_path, keep):
    path = save(make_program(), tmp_path / "p.npz")
    data = path.read_bytes()
    path.write_bytes(data[:int(len(data) * keep) if 0 < keep < 1 else keep])
    with pytest.raises(ProgramError, match=r"p.npz is not a whole program file .*; compile the network again$"):
        load_program(path)


def test_a_damaged_byte_is_noticed(make_program, tmp_path):
    path = save(make_program(), tmp_path / "p.npz")
    data = bytearray(path.read_bytes())
    place = data.index(bytes(range(40, 60)))  # in the weights
    data[place] ^= 1
    path.write_bytes(data)
    with pytest.raises(ProgramError, match="is not a whole program file"):
        load_program(path)


def test_missing_files_and_members_are_named(make_program, tmp_path):
    with pytest.raises(ProgramError, match=r"^there is no program file .*nothing.npz; make one with `esbflow compile`$"):
        load_program(tmp_path / "nothing.npz")
    with pytest.raises(ProgramError, match=r"is not a whole program file .*weights"):
        load_program(save(make_program(), tmp_path / "p.npz", weights=None))


@pytest.mark.parametrize("change, sentence", [
    ({"version": 1}, "has program version 1 and this driver reads 2; compile the network again"),
    ({"format": "picture"}, "is not a program file; make one with `esbflow compile`"),
])
def test_other_formats_and_versions_are_refused(make_program, tmp_path, change, sentence):
    with pytest.raises(ProgramError, match=f"p.npz {sentence}$"):
        load_program(save(make_program(**change), tmp_path / "p.npz"))


@pytest.mark.parametrize("arrays, sentence", [
    ({"table": np.zeros((3, 256))}, "is not a whole program file \\(table has type float64\\); compile again"),
    ({"instructions": np.zeros((0, 4), np.uint64)}, "has no instructions; compile the network again"),
    ({"weights": np.array([{}], dtype=object)}, "is not a whole program file"),  # a pickle
])
def test_wrong_arrays_are_refused(make_program, tmp_path, arrays, sentence):
    with pytest.raises(ProgramError, match=f"p.npz {sentence}"):
        load_program(save(make_program(), tmp_path / "p.npz", **arrays))


def test_garbage_is_refused(tmp_path):
    path = tmp_path / "p.npz"
    path.write_bytes(np.random.default_rng(1).bytes(5000))
    with pytest.raises(ProgramError, match="is not a whole program file"):
        load_program(path)

"""Who is told what: bad input is one sentence and exit code 2, a fault of ours keeps its traceback."""

import errno
from pathlib import Path

import pytest

import esbflow
import esbhw
import esbsim
from esbflow import cli
from esbflow.commands import zoo
from esbflow.errors import BadValue, UserError

PACKAGES = [Path(package.__file__).parent for package in (esbflow, esbhw, esbsim)]


def raised_in_a_command(monkeypatch, error):
    def run(arguments):
        raise error

    monkeypatch.setattr(zoo, "run", run)
    return cli.main(["zoo"])


@pytest.mark.parametrize("error", [UserError("no such thing"), BadValue("no such thing"),
                                   FileNotFoundError(errno.ENOENT, "no such thing", "model.npz")])
def test_what_the_user_can_mend_is_one_sentence(monkeypatch, capsys, error):
    assert raised_in_a_command(monkeypatch, error) == 2
    said = capsys.readouterr().err
    assert said.startswith("esbflow zoo: ") and "no such thing" in said and len(said.splitlines()) == 1


@pytest.mark.parametrize("error", [ValueError("shapes (3,4) and (5,) not aligned"), KeyError("weight"), TypeError("none"),
                                   OSError("no file is named"), RuntimeError("mat1 and mat2 cannot be multiplied")])
def test_what_the_libraries_raise_in_our_code_is_a_fault_of_ours(monkeypatch, capsys, error):
    with pytest.raises(type(error)):  # Python prints the traceback and ends with 1
        raised_in_a_command(monkeypatch, error)
    assert "this is a fault of esbflow, not of its input; please report it" in capsys.readouterr().err


def test_no_package_refuses_by_a_bare_value_error():
    """It would look like a fault of ours. esbflow.errors has the class for it."""
    bare = [f"{path}: {line}" for package in PACKAGES for path in package.rglob("*.py")
            for line in path.read_text().splitlines() if "raise ValueError(" in line or "raise OSError(" in line]
    assert not bare

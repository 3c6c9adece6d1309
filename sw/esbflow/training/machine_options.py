"""Options of commands that train: on which device, in which precision, compiled or not. Without torch: help is quick."""

import argparse

from esbflow.errors import BadValue


def add_machine(parser: argparse.ArgumentParser) -> None:
    """--device, --precision and --compile."""
    parser.add_argument("--device", help="where to train: cpu (the default), cuda, ...")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32", metavar="FORMAT",
                        help="float32, or bfloat16 for mixed precision")
    parser.add_argument("--compile", action="store_true", help="train through torch.compile")


def said_of_machine(device: str | None, precision: str, compiled: bool) -> dict:
    """What a record's command says of them: those that are not the default's."""
    return {"device": device, "precision": precision if precision != "float32" else None, "compile": compiled}


def usable_device(name: str | None):
    """The torch.device of that name; None is the CPU.

    Raises
    ------
    ValueError
        if torch knows no such device, or has none here.
    """
    import torch

    try:
        device = torch.device(name or "cpu")
        torch.zeros(1, device=device)
    except Exception as error:  # torch has one of its own for each backend that is missing
        reason = " ".join(str(error).split())[:120].rstrip(". ") or type(error).__name__
        raise BadValue(f"this torch cannot use the device {name!r} ({reason}); choose cpu, or install the torch that has it"
                       ) from None
    return device

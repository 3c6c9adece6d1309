"""Options of commands that train: on which device, in which precision, compiled or not. Without torch: help is quick."""

import argparse


def add_machine(parser: argparse.ArgumentParser) -> None:
    """--device, --precision and --compile."""
    parser.add_argument("--device", help="cpu, cuda, ...; where to train (default cpu)")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32",
                        help="bfloat16: mixed precision, for GPUs and for CPUs that multiply bfloat16")
    parser.add_argument("--compile", action="store_true", help="train through torch.compile")


def said_of_machine(device: str | None, precision: str, compiled: bool) -> dict:
    """What a record's command says of them: those that are not the default's."""
    return {"device": device, "precision": precision if precision != "float32" else None, "compile": compiled}

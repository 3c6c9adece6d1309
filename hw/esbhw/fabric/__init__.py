"""Structures of LUTs, carry chains and LUT RAM, each with a plain twin."""

"""Compiled RTL simulation, memory model and the simulated PYNQ board."""

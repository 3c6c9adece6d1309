"""Arithmetic blocks without DSP."""

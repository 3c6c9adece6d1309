"""The engine's gateware, in Amaranth."""

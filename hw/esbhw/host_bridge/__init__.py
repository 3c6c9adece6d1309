"""An engine on an FPGA without a processor: its memory is block RAM, and the host is at the other end of a serial link."""

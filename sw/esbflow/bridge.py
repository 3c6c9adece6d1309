"""The serial link's packets: one description for the gateware on the FPGA and for the driver on the host.

A request is a header and, for a write, its words; each is followed by its CRC. Numbers are little-endian, a CRC is high byte
first. An answer is a status byte, for a read the words, and a CRC over both.

| request | bytes |
|---|---|
| header | opcode `R` or `W`, address (4), number of words (2), CRC (2) |
| words of a write | 4 each, CRC (2) |

The FPGA does what a header says only after its CRC. Words for the memory are written as they come: after a bad CRC the host
sends them again. A word for a register waits for its CRC, so a register write has one word. After a damaged header the FPGA
waits until the line has been quiet, and answers BAD.
"""

import binascii
import struct

READ, WRITE = b"R", b"W"
GOOD, BAD = b"O", b"E"
MEMORY, REGISTERS, BRIDGE = 0x0000_0000, 0x8000_0000, 0xC000_0000
"""Bases of the three address spaces; the highest two bits choose."""
IDENTITY, VERSION = 0x45534255, 1
INFO = ("identity", "version", "memory_bytes", "clock_hz")
"""Words at BRIDGE."""
MOST_WORDS = 4096
"""Words in one packet; 131 ms at 1.25 Mbaud."""


def crc(data: bytes) -> int:
    """CRC-16/XMODEM: polynomial 0x1021, start 0.

    >>> hex(crc(b"123456789"))
    '0x31c3'
    """
    return binascii.crc_hqx(data, 0)


def sealed(data: bytes) -> bytes:
    """`data` and its CRC."""
    return data + crc(data).to_bytes(2, "big")


def read_request(address: int, words: int) -> bytes:
    """The bytes that ask the bridge for `words` 32-bit words from a byte address."""
    return sealed(READ + struct.pack("<IH", address, words))


def write_request(address: int, data: bytes) -> bytes:
    """`data` is a whole number of words."""
    return sealed(WRITE + struct.pack("<IH", address, len(data) // 4)) + sealed(data)

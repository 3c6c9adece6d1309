"""The hardware handoff (.hwh) of an overlay as PYNQ reads it: simulation loads it, and a build by Vivado must agree with it.

Block design: the processor, one engine behind its register port with a memory port for each of the engine's masters, and an
AXI interrupt controller between the engine's `irq` and the processor. The controller is not decoration: PYNQ's parser lists
only interrupt pins that it reaches through one. esbflow.handoff compares two of these files.
"""

from math import ceil
from xml.sax.saxutils import quoteattr

from esbflow.engine_config import EngineConfig
from esbflow.registers import ADDRESS_BITS, REGISTERS, vlnv
from esbhw.boards import BOARDS, Board, port_number, with_ports
from esbhw.interfaces import AXIMM, COMPUTE_CLOCK, SLAVE, masters
from esbhw.ipxact import parameters as engine_parameters

ENGINE, ENGINE_RANGE = "esb_engine_0", 1 << ADDRESS_BITS
CONTROLLER, CONTROLLER_RANGE = "axi_intc_0", 0x1_0000
IO_PLL_MHZ = {"zynq_ultra_ps_e": 1500, "processing_system7": 1000}

_ARCHITECTURE = {"zynq_ultra_ps_e": "zynquplus", "processing_system7": "zynq"}
_VERSION = {"zynq_ultra_ps_e": "3.4", "processing_system7": "5.5"}  # stands for whichever Vivado has


def hwh(config: EngineConfig, board: Board = BOARDS["zcu102"], compute_mhz: int | None = None) -> str:
    """The .hwh text for one engine at its stated clock on a board with a processor.

    `compute_mhz` : of the engine's compute clock, the processor's second fabric clock, if it has one of its own.

    >>> "esb_engine_0" in hwh(EngineConfig("tiny", rows=4, cols=4))
    True
    """
    board = with_ports(board, len(masters(config)))
    modules = "".join((_engine(config, board, compute_mhz), _controller(board),
                       _processing_system(config, board, compute_mhz)))
    device, _, rest = board.part.partition("-")
    return (
        '<?xml version="1.0" encoding="UTF-8" standalone="no"?>\n'
        "<!-- written by esbflow; Vivado had no part in it -->\n"
        '<EDKSYSTEM EDWVERSION="1.2" TIMESTAMP="" VIVADOVERSION="none">\n'
        f'<SYSTEMINFO ARCH="{_ARCHITECTURE[board.processor]}" BOARD="{board.name}" DEVICE="{device}" NAME="esbflow" '
        f'PACKAGE="{rest.partition("-")[0]}" SPEEDGRADE="{rest.partition("-")[2]}"/>\n'
        f"<EXTERNALPORTS/><EXTERNALINTERFACES/>\n<MODULES>{modules}</MODULES>\n</EDKSYSTEM>\n")


def _element(tag: str, content: str = "", **attributes) -> str:
    text = "".join(f" {name}={quoteattr(str(value))}" for name, value in attributes.items())
    return f"<{tag}{text}>{content}</{tag}>\n" if content else f"<{tag}{text}/>\n"


def _module(name, vlnv, parameters, ports, buses, blocks="", memory=""):
    kind = vlnv.split(":")[2]
    content = (
        blocks
        + _element("PARAMETERS", "".join(_element("PARAMETER", NAME=n, VALUE=v) for n, v in parameters.items()))
        + _element("PORTS", ports) + _element("BUSINTERFACES", buses) + memory)
    return _element("MODULE", content, COREREVISION=1, FULLNAME=f"/{name}", HWVERSION=vlnv.split(":")[3], INSTANCE=name,
                    IPTYPE="PERIPHERAL", IS_ENABLE=1, MODCLASS="PERIPHERAL", MODTYPE=kind, NAME=name, VLNV=vlnv)


def _interrupt(name, direction, other, other_port, **attributes):
    link = _element("CONNECTIONS", _element("CONNECTION", INSTANCE=other, PORT=other_port))
    return _element("PORT", link, DIR=direction, NAME=name, SIGIS="INTERRUPT", SIGNAME=f"{name}_{other}", **attributes)


def _bus(name, kind, bus, width=32):
    return _element("BUSINTERFACE", BUSNAME=bus, DATAWIDTH=width, NAME=name, TYPE=kind, VLNV=AXIMM)


def _range(instance, base, size, master, slave, kind, block="reg0"):
    return _element("MEMRANGE", ADDRESSBLOCK=block, BASENAME="C_BASEADDR", BASEVALUE=f"0x{base:08X}", HIGHNAME="C_HIGHADDR",
                    HIGHVALUE=f"0x{base + size - 1:08X}", INSTANCE=instance, IS_DATA="TRUE", IS_INSTRUCTION="TRUE",
                    MASTERBUSINTERFACE=master, MEMTYPE=kind, SLAVEBUSINTERFACE=slave)


def _ps(board):
    return f"{board.processor}_0"


def _register_bus(board):
    return f"ps_{board.register_port}"


def _properties(**values):
    return "".join(_element("PROPERTY", NAME=name, VALUE=value) for name, value in values.items())


def _engine(config, board, compute_mhz):
    def field(register, name, low, width):
        return _element("FIELD", _properties(DESCRIPTION=f"{name} of {register.name}", BIT_OFFSET=low, BIT_WIDTH=width,
                                             ACCESS=register.access), NAME=name)

    registers = "".join(
        _element("REGISTER", _properties(DESCRIPTION=register.description, ADDRESS_OFFSET=register.offset, SIZE=32,
                                         ACCESS=register.access, IS_ENABLED="true")
                 + _element("FIELDS", "".join(field(register, *entry) for entry in register.fields)), NAME=register.name)
        for register in REGISTERS.values())
    block = _element("ADDRESSBLOCK", _element("REGISTERS", registers), ACCESS="", INTERFACE=SLAVE, NAME="reg0",
                     RANGE=ENGINE_RANGE, USAGE="register")
    parameters = engine_parameters(config, compute_mhz) | {"C_S_AXI_ADDR_WIDTH": ADDRESS_BITS}
    ports = list(zip(masters(config), board.memory_ports))
    buses = _bus(SLAVE, "SLAVE", _register_bus(board)) + "".join(
        _bus(master, "MASTER", f"ps_{port}", 128) for master, port in ports)
    ranges = "".join(_range(_ps(board), base, size, master, port, "MEMORY", f"{port}_DDR{i}")
                     for master, port in ports for i, (base, size) in enumerate(board.memory))
    memory = _element("MEMORYMAP", ranges) + _element("PERIPHERALS", _element("PERIPHERAL", INSTANCE=_ps(board)))
    pins = _interrupt("irq", "O", CONTROLLER, "intr", SENSITIVITY="LEVEL_HIGH")
    if compute_mhz:
        pins += _element("PORT", CLKFREQUENCY=compute_mhz * 1_000_000, DIR="I", NAME=COMPUTE_CLOCK, SIGIS="clk",
                         SIGNAME=f"{_ps(board)}_clock_1")
    return _module(ENGINE, vlnv(config), parameters, pins, buses, blocks=_element("ADDRESSBLOCKS", block), memory=memory)


def _controller(board):
    ports = (_interrupt("intr", "I", ENGINE, "irq", LEFT=0, RIGHT=0, SENSITIVITY="LEVEL_HIGH")
             + _interrupt("irq", "O", _ps(board), board.interrupt, SENSITIVITY="LEVEL_HIGH"))
    return _module(CONTROLLER, "xilinx.com:ip:axi_intc:4.1", {"C_NUM_INTR_INPUTS": 1}, ports,
                   _bus(SLAVE, "SLAVE", _register_bus(board)))


def _clocks(config, board, compute_mhz):
    """Parameters of the four fabric clocks; PYNQ's parser wants all of them."""
    parameters, pll = {}, IO_PLL_MHZ[board.processor]
    used = {0: config.clock_mhz, **({1: compute_mhz} if compute_mhz else {})}
    for clock in range(4):
        divisor = max(1.5, pll / used[clock]) if clock in used else 15
        second = ceil(divisor / 63)  # each divides by 1 to 63
        first = round(divisor / second)
        mhz = pll / (first * second)
        if board.processor == "processing_system7":
            parameters.update({
                f"PCW_FPGA_FCLK{clock}_ENABLE": int(clock in used), f"PCW_FCLK{clock}_PERIPHERAL_DIVISOR0": first,
                f"PCW_FCLK{clock}_PERIPHERAL_DIVISOR1": second, f"PCW_FCLK{clock}_PERIPHERAL_CLKSRC": "IO PLL",
                f"PCW_ACT_FPGA{clock}_PERIPHERAL_FREQMHZ": mhz})
        else:
            prefix = f"PSU__CRL_APB__PL{clock}_REF_CTRL__"
            parameters.update({
                f"PSU__FPGA_PL{clock}_ENABLE": int(clock in used), f"{prefix}DIVISOR0": first, f"{prefix}DIVISOR1": second,
                f"{prefix}SRCSEL": "IOPLL", f"{prefix}ACT_FREQMHZ": mhz})
    return parameters


def port_widths(board: Board) -> dict:
    """{parameter of the processor: bits} of the memory ports in use. PYNQ sets the ports' widths by these on UltraScale+."""
    if board.processor == "processing_system7":
        return {f"PCW_{port}_DATA_WIDTH": board.port_bits for port in board.memory_ports} | {
            f"C_{port}_DATA_WIDTH": board.port_bits for port in board.memory_ports}
    return {f"{prefix}{port_number(port)}{'__' if prefix.startswith('PSU') else '_'}DATA_WIDTH": board.port_bits
            for prefix in ("PSU__SAXIGP", "C_SAXIGP") for port in board.memory_ports}


def _processing_system(config, board, compute_mhz):
    parameters = {"C_MAXIGP0_DATA_WIDTH": 32, **port_widths(board), **_clocks(config, board, compute_mhz)}
    places = ((ENGINE, board.registers, ENGINE_RANGE), (CONTROLLER, board.controller, CONTROLLER_RANGE))
    ranges = "".join(_range(name, base, size, board.register_port, SLAVE, "REGISTER") for name, base, size in places)
    memory = _element("MEMORYMAP", ranges) + _element(
        "PERIPHERALS", _element("PERIPHERAL", INSTANCE=ENGINE) + _element("PERIPHERAL", INSTANCE=CONTROLLER))
    buses = _bus(board.register_port, "MASTER", _register_bus(board)) + "".join(
        _bus(port, "SLAVE", f"ps_{port}", board.port_bits) for port in board.memory_ports)
    return _module(_ps(board), f"xilinx.com:ip:{board.processor}:{_VERSION[board.processor]}", parameters,
                   _interrupt(board.interrupt, "I", CONTROLLER, "irq", LEFT=0, RIGHT=0), buses, memory=memory)

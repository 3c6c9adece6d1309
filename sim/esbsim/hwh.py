"""The hardware handoff (.hwh) of the simulated overlay: what Vivado would write, as far as PYNQ reads it.

Block design: the PS, one engine behind HPM0_FPD, and an AXI interrupt controller between the engine's `irq` and
pl_ps_irq0. The controller is not decoration: PYNQ's parser lists only interrupt pins that it reaches through one.
"""

from math import ceil
from xml.sax.saxutils import quoteattr

from esbflow.engine_config import EngineConfig
from esbflow.registers import ADDRESS_BITS, REGISTERS, vlnv

ENGINE, ENGINE_BASE, ENGINE_RANGE = "esb_engine_0", 0xA000_0000, 1 << ADDRESS_BITS
CONTROLLER, CONTROLLER_BASE, CONTROLLER_RANGE = "axi_intc_0", 0xA001_0000, 0x1_0000
PS = "zynq_ultra_ps_e_0"
IO_PLL_MHZ = 1500
RAW_IRQ = 121
"""Linux interrupt number of pl_ps_irq0's first line."""

_SLAVE, _MASTER = "s_axi", "M_AXI_HPM0_FPD"
_AXI = "xilinx.com:interface:aximm:1.0"


def hwh(config: EngineConfig) -> str:
    """The .hwh text for one engine at its stated clock.

    >>> "esb_engine_0" in hwh(EngineConfig("tiny", rows=4, cols=4))
    True
    """
    modules = "".join((_engine(config), _controller(), _processing_system(config)))
    return (
        '<?xml version="1.0" encoding="UTF-8" standalone="no"?>\n'
        "<!-- written by esbsim for the simulated board; Vivado had no part in it -->\n"
        '<EDKSYSTEM EDWVERSION="1.2" TIMESTAMP="" VIVADOVERSION="simulated">\n'
        '<SYSTEMINFO ARCH="zynquplus" BOARD="xilinx.com:zcu102:part0:3.4" DEVICE="xczu9eg" NAME="esbflow_simulated" '
        'PACKAGE="ffvb1156" SPEEDGRADE="-2"/>\n'
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


def _bus(name, kind, width=32):
    return _element("BUSINTERFACE", BUSNAME=f"ps_{_MASTER}", DATAWIDTH=width, NAME=name, TYPE=kind, VLNV=_AXI)


def _properties(**values):
    return "".join(_element("PROPERTY", NAME=name, VALUE=value) for name, value in values.items())


def _engine(config):
    def field(register, name, low, width):
        return _element("FIELD", _properties(DESCRIPTION=f"{name} of {register.name}", BIT_OFFSET=low, BIT_WIDTH=width,
                                             ACCESS=register.access), NAME=name)

    registers = "".join(
        _element("REGISTER", _properties(DESCRIPTION=register.description, ADDRESS_OFFSET=register.offset, SIZE=32,
                                         ACCESS=register.access, IS_ENABLED="true")
                 + _element("FIELDS", "".join(field(register, *entry) for entry in register.fields)), NAME=register.name)
        for register in REGISTERS.values())
    block = _element("ADDRESSBLOCK", _element("REGISTERS", registers), ACCESS="", INTERFACE=_SLAVE, NAME="reg0",
                     RANGE=ENGINE_RANGE, USAGE="register")
    parameters = {name.upper(): value for name, value in config.to_dict().items()}
    parameters.update(HASH=f"{config.hash:016x}", C_S_AXI_ADDR_WIDTH=ADDRESS_BITS)
    return _module(ENGINE, vlnv(config), parameters, _interrupt("irq", "O", CONTROLLER, "intr", SENSITIVITY="LEVEL_HIGH"),
                   _bus(_SLAVE, "SLAVE"), blocks=_element("ADDRESSBLOCKS", block))


def _controller():
    ports = (_interrupt("intr", "I", ENGINE, "irq", LEFT=0, RIGHT=0, SENSITIVITY="LEVEL_HIGH")
             + _interrupt("irq", "O", PS, "pl_ps_irq0", SENSITIVITY="LEVEL_HIGH"))
    return _module(CONTROLLER, "xilinx.com:ip:axi_intc:4.1", {"C_NUM_INTR_INPUTS": 1}, ports, _bus(_SLAVE, "SLAVE"))


def _processing_system(config):
    parameters = {"C_MAXIGP0_DATA_WIDTH": 32, "C_SAXIGP2_DATA_WIDTH": 128}
    for clock in range(4):  # PYNQ's parser wants all four
        divisor = max(1.5, IO_PLL_MHZ / config.clock_mhz) if clock == 0 else 15
        second = ceil(divisor / 63)  # each divides by 1 to 63
        first = round(divisor / second)
        parameters.update({
            f"PSU__FPGA_PL{clock}_ENABLE": int(clock == 0),
            f"PSU__CRL_APB__PL{clock}_REF_CTRL__DIVISOR0": first,
            f"PSU__CRL_APB__PL{clock}_REF_CTRL__DIVISOR1": second,
            f"PSU__CRL_APB__PL{clock}_REF_CTRL__SRCSEL": "IOPLL",
            f"PSU__CRL_APB__PL{clock}_REF_CTRL__ACT_FREQMHZ": IO_PLL_MHZ / (first * second),
        })
    ranges = "".join(
        _element("MEMRANGE", ADDRESSBLOCK="reg0", BASENAME="C_BASEADDR", BASEVALUE=f"0x{base:08X}", HIGHNAME="C_HIGHADDR",
                 HIGHVALUE=f"0x{base + size - 1:08X}", INSTANCE=name, IS_DATA="TRUE", IS_INSTRUCTION="TRUE",
                 MASTERBUSINTERFACE=_MASTER, MEMTYPE="REGISTER", SLAVEBUSINTERFACE=_SLAVE)
        for name, base, size in ((ENGINE, ENGINE_BASE, ENGINE_RANGE), (CONTROLLER, CONTROLLER_BASE, CONTROLLER_RANGE)))
    memory = _element("MEMORYMAP", ranges) + _element(
        "PERIPHERALS", _element("PERIPHERAL", INSTANCE=ENGINE) + _element("PERIPHERAL", INSTANCE=CONTROLLER))
    return _module(PS, "xilinx.com:ip:zynq_ultra_ps_e:3.4", parameters,
                   _interrupt("pl_ps_irq0", "I", CONTROLLER, "irq", LEFT=0, RIGHT=0), _bus(_MASTER, "MASTER"),
                   memory=memory)

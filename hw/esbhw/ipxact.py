"""component.xml of an engine: its IP-XACT description (IEEE 1685-2009, with the extensions that Vivado's catalogue reads).

With it the folder of engine.v is an IP repository: interfaces, address spaces, every register with its fields, and files.
It was checked against the RTL's ports and by independent readers; Vivado was not at hand.
"""

from xml.sax.saxutils import escape

from esbflow.engine_config import AXI_ADDRESS_BITS, AXI_BEAT_BITS, INTERFACE_VERSION, EngineConfig
from esbflow.registers import ADDRESS_BITS, IP_LIBRARY, IP_VENDOR, IP_VERSION, REGISTERS
from esbhw import crossing_constraints
from esbhw.interfaces import AXIMM, SLAVE, interfaces, masters

NAMESPACES = (("xilinx", "http://www.xilinx.com"), ("spirit", "http://www.spiritconsortium.org/XMLSchema/SPIRIT/1685-2009"),
              ("xsi", "http://www.w3.org/2001/XMLSchema-instance"))
FAMILIES = ("zynquplus", "kintexuplus", "virtexuplus", "zynq", "artix7", "kintex7", "virtex7")
MEMORY_MAP, BLOCK = SLAVE, "reg0"
"""One address block: with two, PYNQ renames the core and loses its registers."""


def component(config: EngineConfig, target: str = "xilinx", compute_mhz: int | None = None) -> str:
    """The text of component.xml for an engine whose engine.v and .xdc files lie beside it."""
    top = config.module_name
    name = " ".join(f'xmlns:{prefix}="{address}"' for prefix, address in NAMESPACES)
    buses = "".join(_interface(interface) for interface in interfaces(config, compute_mhz is not None))
    spaces = "".join(_tag("addressSpace", _tag("name", master) + _tag("range", 1 << AXI_ADDRESS_BITS)
                          + _tag("width", AXI_BEAT_BITS)) for master in masters(config))
    block = _tag("addressBlock", _tag("name", BLOCK) + _tag("baseAddress", 0) + _tag("range", 1 << ADDRESS_BITS)
                 + _tag("width", 32) + _tag("usage", "register") + _tag("access", "read-write")
                 + "".join(_register(register) for register in REGISTERS.values()))
    content = (
        _tag("vendor", IP_VENDOR) + _tag("library", IP_LIBRARY) + _tag("name", top) + _tag("version", IP_VERSION)
        + _tag("busInterfaces", buses) + _tag("addressSpaces", spaces)
        + _tag("memoryMaps", _tag("memoryMap", _tag("name", MEMORY_MAP) + block))
        + _model(config, compute_mhz is not None) + _file_sets(compute_mhz is not None)
        + _tag("description", f"esbflow engine {config.name}: {config.rows} x {config.cols} {config.array} array, "
                              f"interface version {INTERFACE_VERSION}, configuration {config.hash:016x}")
        + _tag("parameters", "".join(_parameter(key, value) for key, value in parameters(config, compute_mhz).items()))
        + _extensions(config, target, compute_mhz is not None))
    return f'<?xml version="1.0" encoding="UTF-8"?>\n<spirit:component {name}>\n{content}</spirit:component>\n'


def parameters(config: EngineConfig, compute_mhz: int | None = None) -> dict:
    """What the .hwh says of an engine beside its ports: PYNQ's `description["parameters"]`."""
    return {**{name.upper(): value for name, value in config.to_dict().items()},
            **({"COMPUTE_CLOCK_MHZ": compute_mhz} if compute_mhz else {}),
            "HASH": f"{config.hash:016x}", "INTERFACE_VERSION": INTERFACE_VERSION}


def revision(config: EngineConfig, two_clocks: bool = False) -> int:
    """The core's revision, 31 bits: another one whenever the configuration is, or the number of clocks."""
    return config.hash & 0x7FFFFFFF ^ two_clocks


def _tag(name: str, content, **attributes) -> str:
    text = content if isinstance(content, str) and content.startswith("<") else escape(str(content))
    more = "".join(f' spirit:{key}="{value}"' for key, value in attributes.items())
    return f"<spirit:{name}{more}>{text}</spirit:{name}>\n"


def _reference(tag: str, vlnv: str) -> str:
    vendor, library, name, version = vlnv.split(":")
    return (f'<spirit:{tag} spirit:vendor="{vendor}" spirit:library="{library}" spirit:name="{name}" '
            f'spirit:version="{version}"/>\n')


def _parameter(name: str, value) -> str:
    return _tag("parameter", _tag("name", name) + _tag("value", value, id=f"PARAM_VALUE.{name}", resolve="immediate"))


def _interface(interface) -> str:
    kind = interface.kind
    vendor, library, name, version = kind.split(":")
    abstract = f"{vendor}:{library}:{name}_rtl:{version}"
    if kind != AXIMM:
        mode = f"<spirit:{interface.mode}/>\n"
    elif interface.mode == "slave":
        mode = f'<spirit:slave>\n<spirit:memoryMapRef spirit:memoryMapRef="{MEMORY_MAP}"/>\n</spirit:slave>\n'
    else:
        space = f'<spirit:addressSpaceRef spirit:addressSpaceRef="{interface.name}"/>\n'
        mode = f"<spirit:master>\n{space}</spirit:master>\n"
    maps = "".join(_tag("portMap", _tag("logicalPort", _tag("name", logical))
                                   + _tag("physicalPort", _tag("name", port.name)))
                   for logical, port in interface.pins.items())
    values = "".join(
        _tag("parameter", _tag("name", key) + _tag("value", value, id=f"BUSIFPARAM_VALUE.{interface.name.upper()}.{key}"))
        for key, value in interface.parameters.items())
    return _tag("busInterface", _tag("name", interface.name) + _reference("busType", kind)
                + _reference("abstractionType", abstract) + mode + _tag("portMaps", maps)
                + (_tag("parameters", values) if values else ""))


def _register(register) -> str:
    fields = "".join(_tag("field", _tag("name", name) + _tag("description", f"{name} of {register.name}")
                          + _tag("bitOffset", low) + _tag("bitWidth", width) + _tag("access", register.access))
                     for name, low, width in register.fields)
    return _tag("register", _tag("name", register.name) + _tag("description", register.description)
                + _tag("addressOffset", f"0x{register.offset:X}") + _tag("size", 32) + _tag("access", register.access)
                + fields)


def _model(config: EngineConfig, two_clocks: bool) -> str:
    top = config.module_name
    views = "".join(
        _tag("view", _tag("name", name) + _tag("displayName", name)
             + _tag("envIdentifier", f"verilogSource:vivado.xilinx.com:{kind}") + _tag("language", "verilog")
             + _tag("modelName", top) + _tag("fileSetRef", _tag("localName", f"{name}_fileset")))
        for name, kind in (("synthesis", "synthesis"), ("simulation", "simulation")))
    ports = "".join(_port(port) for interface in interfaces(config, two_clocks) for port in interface.pins.values())
    return _tag("model", _tag("views", views) + _tag("ports", ports))


def _port(port) -> str:
    vector = _tag("vector", _tag("left", port.width - 1) + _tag("right", 0)) if port.width > 1 else ""
    kinds = _tag("wireTypeDefs", _tag("wireTypeDef", _tag("typeName", "wire") + _tag("viewNameRef", "synthesis")
                                      + _tag("viewNameRef", "simulation")))
    default = _tag("driver", _tag("defaultValue", 0)) if port.direction == "in" else ""
    return _tag("port", _tag("name", port.name)
                + _tag("wire", _tag("direction", port.direction) + vector + kinds + default))


def _file_sets(two_clocks: bool) -> str:
    verilog = _tag("file", _tag("name", "engine.v") + _tag("fileType", "verilogSource"))
    clock = _tag("file", _tag("name", "engine_ooc.xdc") + _tag("userFileType", "xdc")
                 + _tag("userFileType", "USED_IN_implementation") + _tag("userFileType", "USED_IN_out_of_context")
                 + _tag("userFileType", "USED_IN_synthesis"))
    if two_clocks:  # after the clocks, which the design around it makes
        clock += _tag("file", _tag("name", crossing_constraints.FILE) + _tag("userFileType", "xdc")
                      + _tag("userFileType", "USED_IN_implementation") + _tag("userFileType", "USED_IN_synthesis")
                      + _tag("define", _tag("name", "processing_order") + _tag("value", "late")))
    return _tag("fileSets", _tag("fileSet", _tag("name", "synthesis_fileset") + verilog + clock)
                + _tag("fileSet", _tag("name", "simulation_fileset") + verilog))


def _extensions(config: EngineConfig, target: str, two_clocks: bool) -> str:
    families = FAMILIES if target == "generic" else FAMILIES[:3]  # LUT6_2, CARRY8 and RAM32M16 are UltraScale's
    listed = "".join(f'<xilinx:family xilinx:lifeCycle="Beta">{family}</xilinx:family>\n' for family in families)
    return ("<spirit:vendorExtensions>\n<xilinx:coreExtensions>\n"
            f"<xilinx:supportedFamilies>\n{listed}</xilinx:supportedFamilies>\n"
            "<xilinx:taxonomies>\n<xilinx:taxonomy>/UserIP</xilinx:taxonomy>\n</xilinx:taxonomies>\n"
            f"<xilinx:displayName>esbflow engine {escape(config.name)}</xilinx:displayName>\n"
            f"<xilinx:coreRevision>{revision(config, two_clocks)}</xilinx:coreRevision>\n"
            "</xilinx:coreExtensions>\n</spirit:vendorExtensions>\n")

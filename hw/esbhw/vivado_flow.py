"""A bitstream by Vivado: writes the Tcl steps' settings, runs the steps, and judges what their reports say.

The steps are hw/esbhw/vivado/{package,design,build}.tcl; all that differs between boards and engines is in settings.tcl,
which is generated. They were run against a model of Vivado's commands (tests/vivado), not against Vivado.
"""

import re
import shutil
from pathlib import Path

from esbflow import children, handoff
from esbflow.engine_config import INTERFACE_VERSION, EngineConfig
from esbflow.errors import BadValue
from esbflow.files import write_json, write_whole
from esbflow.registers import ADDRESS_BITS, IP_LIBRARY, IP_VENDOR, IP_VERSION, REGISTERS
from esbhw import crossing_constraints, generate, ipxact, vivado_reports
from esbhw.boards import Board, port_number, with_ports
from esbhw.flow_error import FlowError
from esbhw.hwh import ENGINE, hwh, port_widths
from esbhw.interfaces import CLOCK, COMPUTE_CLOCK, SLAVE, masters

STEPS = ("package.tcl", "design.tcl", "build.tcl")
SOURCES = Path(__file__).parent / "vivado"
VERSIONS = "2020.2 to 2024.2"
"""Of which Vivado the commands are documented; none of them was at hand."""
DESIGN = "esbflow"


def prepare(config: EngineConfig, board: Board, folder: Path, compute_mhz: int | None = None) -> list:
    """Write everything that Vivado needs into `folder` (made if missing). Returns the paths.

    With `compute_mhz` the engine gets a compute clock of its own, the processor's second fabric clock.

    Raises
    ------
    ValueError
        if the engine has more masters than the board's design has ports to memory.
    """
    if len(masters(config)) > len(board.memory_ports):
        raise BadValue(f"{board.title}'s design has {len(board.memory_ports)} ports to memory and engine {config.name} "
                         f"{len(masters(config))} masters; use an engine with fewer weight_ports or activation_ports")
    board = with_ports(board, len(masters(config)))
    folder = Path(folder)
    paths = [write_whole(folder / name, (SOURCES / name).read_text()) for name in STEPS]
    paths.append(write_whole(folder / "settings.tcl", settings(config, board, compute_mhz)))
    paths += generate.write(config, folder, board.target, compute_mhz)
    paths.append(write_whole(folder / "expected.hwh", hwh(config, board, compute_mhz)))
    paths.append(write_json(folder / "board.json", {"board": board.name, "part": board.part, "clock_mhz": config.clock_mhz,
                                                     **({"compute_clock_mhz": compute_mhz} if compute_mhz else {})}))
    return paths


def settings(config: EngineConfig, board: Board, compute_mhz: int | None = None) -> str:
    """settings.tcl: the array `esb` that the steps read. Paths are relative to the file itself."""
    values = {
        "name": config.name, "module": config.module_name, "hash": f"{config.hash:016x}", "stem": config.name,
        "revision": ipxact.revision(config, compute_mhz is not None),
        "vendor": IP_VENDOR, "library": IP_LIBRARY, "version": IP_VERSION,
        "versions": VERSIONS, "board": board.name, "part": board.part, "licence": board.licence,
        "board_parts": board.board_parts, "processor": board.processor, "design": DESIGN, "cell": ENGINE,
        "slave": SLAVE, "masters": masters(config), "memory_ports": board.memory_ports, "register_port": board.register_port,
        "register_range": 1 << ADDRESS_BITS, "engine_address": f"0x{board.registers:08X}",
        "controller_address": f"0x{board.controller:08X}", "interrupt": board.interrupt, "jobs": 4,
        "saif_scope": f"esbflow_wrapper/esbflow_i/{ENGINE}/inst",
        "registers": [(r.name, f"0x{r.offset:03X}", r.access, r.description, r.fields) for r in REGISTERS.values()],
        "parameters": [item for pair in ipxact.parameters(config, compute_mhz).items() for item in pair],
        "processor_settings": _processor_settings(config, board, compute_mhz), **_processor_pins(board, compute_mhz),
        "clocks": [CLOCK, COMPUTE_CLOCK] if compute_mhz else [CLOCK],
        "constraints": [crossing_constraints.FILE] if compute_mhz else [],
    }
    lines = [f"# {config.name} for {board.title}, interface version {INTERFACE_VERSION}; made by: esbflow bitstream --board "
             f"{board.name} --engine ... --dry-run", "set esb(here) [file dirname [file normalize [info script]]]",
             "set esb(work) [file join $esb(here) work]", "set esb(ip) [file join $esb(work) ip]",
             "set esb(reports) [file join $esb(work) reports]"]
    return "\n".join([*lines, *(f"set esb({name}) {_tcl(value)}" for name, value in values.items()), ""])


def _tcl(value) -> str:
    """A Tcl word: text in braces, a tuple or list as a list of words."""
    if isinstance(value, (tuple, list)):
        return "{" + " ".join(_tcl(item) for item in value) + "}"
    text = str(value)
    if any(letter in text for letter in "{}\\"):
        raise BadValue(f"{text!r} cannot stand in settings.tcl: it has a brace or a backslash")
    return f"{{{text}}}"


def _processor_settings(config, board, compute_mhz) -> list:
    if board.processor == "processing_system7":
        given = {"PCW_USE_M_AXI_GP0": 1, **{f"PCW_USE_{port}": 1 for port in board.memory_ports},
                 **{name: bits for name, bits in port_widths(board).items() if name.startswith("PCW")},
                 "PCW_USE_FABRIC_INTERRUPT": 1, "PCW_IRQ_F2P_INTR": 1, "PCW_EN_CLK0_PORT": 1, "PCW_EN_RST0_PORT": 1,
                 "PCW_FPGA0_PERIPHERAL_FREQMHZ": config.clock_mhz}
        second = {"PCW_FPGA_FCLK1_ENABLE": 1, "PCW_EN_CLK1_PORT": 1, "PCW_FPGA1_PERIPHERAL_FREQMHZ": compute_mhz}
    else:
        ports = [port_number(port) for port in board.memory_ports]
        # The preset switches HPM1 on too; its clock would be unconnected.
        given = {"PSU__USE__M_AXI_GP0": 1, "PSU__USE__M_AXI_GP1": 0, "PSU__USE__M_AXI_GP2": 0,
                 "PSU__MAXIGP0__DATA_WIDTH": 32, **{f"PSU__USE__S_AXI_GP{n}": 1 for n in ports},
                 **{name: bits for name, bits in port_widths(board).items() if name.startswith("PSU")},
                 "PSU__USE__IRQ0": 1, "PSU__FPGA_PL0_ENABLE": 1, "PSU__CRL_APB__PL0_REF_CTRL__FREQMHZ": config.clock_mhz}
        second = {"PSU__FPGA_PL1_ENABLE": 1, "PSU__CRL_APB__PL1_REF_CTRL__FREQMHZ": compute_mhz}
    return [item for name, value in (given | second if compute_mhz else given).items() for item in (f"CONFIG.{name}", value)]


def _processor_pins(board, compute_mhz) -> dict:
    ports = [board.register_port, *board.memory_ports]
    if board.processor == "processing_system7":
        return {"clock_pin": "FCLK_CLK0", "compute_clock_pin": "FCLK_CLK1" if compute_mhz else "",
                "reset_pin": "FCLK_RESET0_N", "clocked_pins": [f"{port}_ACLK" for port in ports]}
    return {"clock_pin": "pl_clk0", "compute_clock_pin": "pl_clk1" if compute_mhz else "", "reset_pin": "pl_resetn0",
            "clocked_pins": [f"{port.replace('_AXI_', 'axi').lower()}_aclk" for port in ports]}


def find_vivado() -> str:
    """The program.

    Raises
    ------
    FlowError
        if it is not on the PATH.
    """
    found = shutil.which("vivado")
    if found is None:
        raise FlowError("Vivado is not installed, or its settings64.sh was not sourced; --dry-run writes every file that it "
                        "needs, and --board ulx3s is built with pip packages alone")
    return found


def run(config: EngineConfig, board: Board, folder: Path, say=print) -> dict:
    """Run the steps in `folder`, which `prepare` has filled. Returns the figures of the reports.

    Raises
    ------
    FlowError
        if a step fails (with its last words and its log), timing is missed, a DSP block is used, or the .hwh of the build is
        not what the driver expects.
    """
    folder, vivado = Path(folder), find_vivado()
    shutil.rmtree(folder / "work", ignore_errors=True)
    for step in STEPS:
        say(f"vivado: {step}")
        log = folder / f"{step}.log"
        options = ["-mode", "batch", "-notrace", "-nojournal", "-log", log.name, "-source", step]
        result = children.run([vivado, *options], folder)
        write_whole(folder / f"{step}.out", result.stdout)
        if result.returncode:
            raise FlowError(f"Vivado stopped in {step}: {_cause(result.stdout, board)}; its log is {log}")
    figures = judge(folder / "work" / "reports")
    said = handoff.differences(handoff.read(folder / "work" / f"{config.name}.hwh"), handoff.read(folder / "expected.hwh"))
    if said:
        raise FlowError(f"the build's .hwh is not what the driver expects: {'; '.join(said)}")
    return figures


def judge(reports: Path) -> dict:
    """Figures of timing.rpt and utilization.rpt.

    Raises
    ------
    FlowError
        if a path is too slow or too fast, or a DSP block is used, by how much.
    """
    figures = {**vivado_reports.timing((Path(reports) / "timing.rpt").read_text()),
               **vivado_reports.utilization((Path(reports) / "utilization.rpt").read_text())}
    if min(figures["wns_ns"], figures["whs_ns"], figures["wpws_ns"]) < 0:
        raise FlowError(f"timing is missed: worst setup slack {figures['wns_ns']} ns, hold {figures['whs_ns']} ns, pulse "
                        f"width {figures['wpws_ns']} ns; ask for a slower clock with --clock-mhz")
    if figures["dsp"]:
        raise FlowError(f"Vivado used {figures['dsp']} DSP blocks, and this engine must have none")
    return figures


def _cause(output: str, board: Board) -> str:
    """The line that says why, in Vivado's words, and for a licence in ours."""
    errors = [line.strip() for line in output.splitlines() if line.startswith("ERROR") or "esbflow: this" in line
              or re.match(r"esbflow: .*(?:failed|gave no|reaches no|found no|has no)", line)]
    last = errors[-1] if errors else (output.strip().splitlines() or ["it said nothing"])[-1]
    if "license" in last.lower():
        return f"there is no licence for {board.part} ({board.licence or 'unexpected: the free edition covers it'}): {last}"
    return last

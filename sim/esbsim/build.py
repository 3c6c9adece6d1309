"""RTL text to a shared library that esbsim.simulator loads, cached by what went into it."""

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import sys
import time
from pathlib import Path

from esbflow import children
from esbhw.cache import cache_folder
from esbsim import toolchain
from esbsim.toolchain import BuildError

HERE = Path(__file__).parent
HARNESS = ("harness.cpp", "memory.h")
TWO_CLOCKS = ("two_clocks.cpp", "two_clocks.h", *HARNESS)
PINS = ("serial_harness.cpp",)
"""Harnesses: of an engine's AXI ports, of one with a compute clock of its own, and of the pins of a board with a serial
line. The first file is compiled."""
RUNTIME = ("verilated.cpp", "verilated_threads.cpp")
TRACE_RUNTIME = ("verilated_vcd_c.cpp",)
JOBS = max(1, min(2, os.cpu_count() or 1))

VERILATE = ("--cc", "-O3", "--no-assert", "--no-timing", "-Wno-fatal",
            "-Wno-lint", "-Wno-style", "--prefix", "Vengine", "--output-split", "100000", "--output-split-cfuncs", "100000")
"""Split late: a vector of the C++ compiler cannot cross from one function into the next."""
ZEROS = ("--x-assign", "fast", "--x-initial", "fast")
RANDOM = ("--x-assign", "unique", "--x-initial", "unique")
"""What is X, or not set at the start: zero, or what the simulator's seed gives."""
COMPILE = ("-std=c++20", "-fcoroutines", "-fPIC", "-DVL_TIME_CONTEXT", "-pthread", "-w")
FAST = tuple(os.environ.get("ESBFLOW_CXXFLAGS", "-O2 -ftree-slp-vectorize").split())
"""For what runs each cycle. With -O1 that compiles in half the time and runs slower: for short runs, such as tests."""
LARGE = ("--output-split", "40000", "--output-split-cfuncs", "3000")
"""For designs whose functions would be too long for the C++ compiler, which takes more than twice as long for twice the
length; few files, since each takes seconds to read the headers. Verilator takes the last of equal options."""
SHORT = 100_000
"""Bytes of a file that is compiled together with other short ones."""
SLOW = ("-O0",)
"""For what runs once: Verilator names these files so, and they are more than half of the code."""


def build(text: str, top: str = "esb_engine", cache_dir: str | Path | None = None, trace: bool = False,
          random: bool = False, harness: tuple = HARNESS, large: bool = False) -> Path:
    """The shared library of a design: from the cache, or built now (seconds to minutes, 2 jobs at most).

    Parameters
    ----------
    text : RTLIL (as amaranth.back.rtlil.convert gives it; flattened here) or Verilog (taken as it is).
    top : name of the top module: ap_clk, ap_rst_n, irq, s_axi_* and any m_axi_<port>_* of 128 data bits; with the harness
        PINS: clock, rx, tx and leds.
    cache_dir : where libraries are kept; None is cache_folder().
    trace : True builds one that can write waves (slower, kept apart).
    random : True builds one in which all that has no value yet is random, by Simulator's `seed`.
    large : True compiles short functions: minutes where long ones take half an hour, for a slower simulation.

    Raises
    ------
    BuildError
        if a tool is missing (saying how to get it), or refuses the design.
    """
    folder = Path(cache_dir) if cache_dir is not None else cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / f"{top}-{_key(text, top, trace, random, harness, large)}.so"
    if _is_whole(library):
        return library
    with _locked(library.with_suffix(".lock")):
        if not _is_whole(library):  # another process may have built it while we waited
            work = folder / f"building-{library.stem}"
            shutil.rmtree(work, ignore_errors=True)  # of a build that was killed: who holds the lock has no other beside it
            work.mkdir()
            try:
                _build(text, top, work.resolve(), folder.resolve(), library, trace, random, harness, large)
            finally:
                shutil.rmtree(work, ignore_errors=True)
    return library


def _is_whole(library: Path) -> bool:
    """Whether a library is there and is what was linked: to load a damaged one would end the process by a signal."""
    try:
        wanted = _hash_file(library).read_text()
        return hashlib.sha256(library.read_bytes()).hexdigest() == wanted
    except OSError:
        return False


def _hash_file(library: Path) -> Path:
    return library.with_suffix(".sha256")


def _key(text: str, top: str, trace: bool, random: bool, harness: tuple, large: bool) -> str:
    digest = hashlib.sha256()
    parts = [text, top, str(trace), *VERILATE, *(RANDOM if random else ZEROS), *COMPILE, *FAST, *SLOW,
             Path(toolchain.__file__).read_text(), toolchain.verilator().version, *toolchain.compiler(),
             *((HERE / name).read_text() for name in harness), *(LARGE if large else ())]
    for part in parts:
        digest.update(hashlib.sha256(part.encode()).digest())
    return digest.hexdigest()[:20]


@contextlib.contextmanager
def _locked(path: Path):
    while True:
        with open(path, "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"another process is building {path.stem}: waiting for it", file=sys.stderr)
                fcntl.flock(file, fcntl.LOCK_EX)
            if not _names(path, file):  # its last holder has removed it: whoever comes now would lock another
                continue
            try:
                yield
            finally:
                path.unlink()
            return


def _names(path: Path, file) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _build(text, top, work, folder, library, trace, random, harness, large):
    progress = _Progress(top)
    progress("flatten")
    verilog = text if _is_verilog(text) else toolchain.flatten(text, top, keep_names=trace)
    (work / "design.v").write_text(verilog)
    if harness is not PINS:
        (work / "ports.h").write_text(_ports_header(verilog, top, trace))
    for name in harness:
        shutil.copy(HERE / name, work)

    progress("verilate")
    binary, root, _ = toolchain.verilator()
    flags = [*VERILATE, *(RANDOM if random else ZEROS), *(LARGE if large else ()), *(["--trace-vcd"] if trace else []),
             "--top-module", top, "--Mdir", "generated"]
    toolchain.run_tool([binary, *flags, "design.v"], work, "Verilator", toolchain.verilator_environment(root))

    progress("compile")
    include = [f"-I{root / 'include'}", f"-I{root / 'include' / 'vltstd'}", f"-I{work / 'generated'}"]
    defines = [f"-DVM_TRACE={int(trace)}", f"-DVM_TRACE_VCD={int(trace)}", "-DVM_COVERAGE=0", "-DVM_SC=0"]
    sources = _joined(work, [work / harness[0], *sorted((work / "generated").glob("*.cpp"))])
    compiler, _ = toolchain.compiler()

    def compile_one(source):
        target = work / (source.name + ".o")
        level = SLOW if source.stem.endswith("Slow") else FAST
        toolchain.run_tool([compiler, *COMPILE, *level, *include, *defines, "-c", source, "-o", target], work,
                           "the C++ compiler")
        return target

    runtime = _runtime_objects(folder, root, include, defines, trace)
    with children.pool(JOBS) as pool:
        objects = list(pool.map(compile_one, sources))
    unfinished = work / "library.so"
    toolchain.run_tool([compiler, "-shared", "-pthread", "-o", unfinished, *objects, *runtime], work, "the linker")
    _hash_file(library).write_text(hashlib.sha256(unfinished.read_bytes()).hexdigest())
    os.replace(unfinished, library)
    progress.done()


def _joined(work: Path, sources: list) -> list:
    """Files to compile, the largest first: the last one to finish decides when all are done.

    Reading the headers takes 2 s for each file, so short ones become one: of what runs each cycle, and of what runs once.
    """
    short = [path for path in sources if path.stat().st_size < SHORT]
    for name, once in (("short.cpp", False), ("shortSlow.cpp", True)):
        parts = [path for path in short if path.stem.endswith("Slow") == once]
        (work / name).write_text("".join(f'#include "{path.relative_to(work)}"\n' for path in parts))
    long = sorted((path for path in sources if path not in short), key=lambda path: -path.stat().st_size)
    return [*long, work / "short.cpp", work / "shortSlow.cpp"]


def _runtime_objects(folder, root, include, defines, trace):
    """Verilator's own C++ files, compiled once for all designs."""
    version = toolchain.verilator().version
    compiler, compiler_version = toolchain.compiler()
    ingredients = (version, str(root), compiler, compiler_version, COMPILE, FAST, trace)
    key = hashlib.sha256(repr(ingredients).encode()).hexdigest()[:16]
    objects = []
    for name in RUNTIME + (TRACE_RUNTIME if trace else ()):
        target = folder / f"{Path(name).stem}-{key}.o"
        if not target.exists():
            unfinished = target.with_suffix(f".{os.getpid()}")
            source = root / "include" / name
            toolchain.run_tool([compiler, *COMPILE, *FAST, *include, *defines, "-c", source, "-o", unfinished], folder,
                               "the C++ compiler")
            os.replace(unfinished, target)
        objects.append(target)
    return objects


def _is_verilog(text: str) -> bool:
    return re.search(r"^\s*endmodule\b", text, re.MULTILINE) is not None


def _ports_header(verilog: str, top: str, trace: bool) -> str:
    """The X-macros with which harness.cpp reaches the top's ports."""
    module = re.search(rf"^module {re.escape(top)}\b.*?^endmodule", verilog, re.MULTILINE | re.DOTALL)
    if not module:
        raise BuildError(f"the design has no module named {top}")
    declared = set(re.findall(r"\b(?:input|output)\b[^;,)]*?\b(\w+)\s*[;,)]", module.group(0)))
    for name in ("ap_clk", "ap_rst_n", "irq", "s_axi_araddr", "s_axi_awaddr"):
        if name not in declared:
            raise BuildError(f"{top} has no port {name}, which the harness drives or reads")
    pattern = r"m_axi_(\w+)_{}addr"
    readers = {m.group(1) for m in (re.fullmatch(pattern.format("ar"), name) for name in declared) if m}
    writers = {m.group(1) for m in (re.fullmatch(pattern.format("aw"), name) for name in declared) if m}
    # A fixed order, so that seeds and port numbers do not depend on how the tools list ports.
    first = ["program", "weights", "activations"]
    names = sorted(readers | writers, key=lambda name: (first.index(name) if name in first else len(first), name))
    def entries(chosen):
        return " ".join(f"X({names.index(name)}, {name})" for name in names if name in chosen)
    header, name = ("two_clocks.h", "TwoClocks") if "compute_clk" in declared else ("Vengine.h", "Vengine")
    return (f'#include "{header}"\n#define ESB_TOP {name}\n#define ESB_TRACE {int(trace)}\n'
            f"#define ESB_PORTS(X) {' '.join(f'X({name})' for name in names)}\n"
            f"#define ESB_READ_PORTS(X) {entries(readers)}\n#define ESB_WRITE_PORTS(X) {entries(writers)}\n")


class _Progress:
    """Lines on stderr, so that nobody takes a long build for a hang."""

    def __init__(self, top: str):
        self._top, self._start = top, time.monotonic()

    def __call__(self, step: str):
        print(f"building the simulator of {self._top}: {step} ({time.monotonic() - self._start:.0f} s)", file=sys.stderr)

    def done(self):
        print(f"built the simulator of {self._top} in {time.monotonic() - self._start:.0f} s", file=sys.stderr)

"""What a design is elaborated for, and modules that are emitted once and instantiated many times."""

from types import SimpleNamespace

from amaranth import ClockSignal, Instance, ResetSignal, Signal
from amaranth.lib.wiring import In

from esbflow.errors import BadValue
from esbflow.suggest import no_such

NAMES = ("generic", "xilinx")


class Target:
    """The device family of one elaboration; Amaranth hands it to every `elaborate` as `platform`.

    Parameters
    ----------
    name : "generic" keeps plain RTL. "xilinx" puts LUT6_2, CARRY8 and RAM32M16 of UltraScale and UltraScale+ where
        inference would waste LUTs; what they compute is proven equal to the plain RTL (esbhw.equivalence).

    Raises
    ------
    ValueError
        for another name, listing the known ones.
    """

    def __init__(self, name: str = "generic"):
        if name not in NAMES:
            raise BadValue(no_such("target", name, NAMES))
        self.name = name
        self.definitions = {}
        """Module name -> component, for every shared module that the design instantiates."""

    def share(self, m, label: str, module: str, make, *arguments) -> SimpleNamespace:
        """Instantiate the component make(*arguments) in `m` as `label`; its module is emitted once, as `module`.

        Equal components must have equal module names and the reverse. The component's members are signals of the
        result. A shared module is not reset with the block around it (ResetInserter does not reach into it).
        """
        if module not in self.definitions:
            self.definitions[module] = make(*arguments)
        component = self.definitions[module]
        members, ports = {}, {}
        for name, member in component.signature.members.items():
            members[name] = signal = Signal(member.shape, name=f"{label}_{name}")
            ports[f"{'i' if member.flow == In else 'o'}_{name}"] = signal
        m.submodules[label] = Instance(module, i_clk=ClockSignal(), i_rst=ResetSignal(), **ports)
        return SimpleNamespace(**members)


def has_primitives(platform) -> bool:
    """Whether this elaboration may instantiate Xilinx primitives."""
    return getattr(platform, "name", None) == "xilinx" and isinstance(platform, Target)


def share(m, platform, label: str, module: str, make, *arguments):
    """`Target.share` where there is a target; elsewhere (a bench's own elaboration) a plain submodule."""
    if isinstance(platform, Target):
        return platform.share(m, label, module, make, *arguments)
    m.submodules[label] = component = make(*arguments)
    return component

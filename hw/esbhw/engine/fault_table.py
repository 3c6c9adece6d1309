"""The faults of an engine, in the order in which they are reported, and where the address and layer of each come from."""

from amaranth import Cat, Module

BUSES = ("fetch", "load", "weights", "store")
ADDRESSES = (*(("burst", unit) for unit in BUSES), *(("run", unit) for unit in BUSES))
"""What ERROR_ADDRESS may be: of the burst that a port awaits, of the run that a splitter refused."""
LAYERS = ("fetch", "load", "weights", "compute", "field", "store")
"""What ERROR_LAYER may be: of the instruction that a unit is at; "field" is a PASS with a wrong field."""


def _fault(code: str, unit: str, address: tuple | None = None, layer: str | None = None) -> tuple:
    return code, unit, ADDRESSES.index(address) if address else None, LAYERS.index(layer) if layer else None


FAULTS = (
    *(_fault("axi_read", unit, ("burst", unit), unit) for unit in BUSES[:3]),
    _fault("axi_write", "store", ("burst", "store"), "store"),
    *(fault for unit in BUSES[:3] for fault in (_fault("axi_protocol", unit, ("burst", unit), unit),
                                                _fault("range", unit, ("run", unit), unit))),
    _fault("range", "store", ("run", "store"), "store"), _fault("opcode", "fetch", None, "fetch"),
    _fault("field", "load", None, "load"), _fault("field", "weights", None, "weights"),
    _fault("field", "compute", None, "field"), _fault("field", "store", None, "store"), _fault("field", "none"),
    _fault("overflow", "compute", None, "compute"), _fault("end", "fetch", None, "fetch"), _fault("aborted", "none"),
    *(_fault("watchdog", unit, ("burst", unit), unit) for unit in ("store", "load", "weights", "fetch")),
    _fault("watchdog", "compute", None, "compute"),
)
"""(code, unit, which address, which layer); of several in one cycle the first is reported."""


def report_faults(m: Module, units, still: dict) -> None:
    """Connects conditions, addresses and layers to the FaultEncoder, and what it finds to Control.

    still : {bus: for each of its ports, whether it was quiescent a cycle ago}
    """
    control, faults = units.control, units.faults
    fetch, load, weights, writer = units.fetch, units.load, units.weights, units.writer
    conditions = _conditions(units, still)
    buses = {"fetch": fetch.port, "load": load, "weights": weights, "store": writer}
    splitters = {"fetch": fetch, "load": load, "weights": weights, "store": writer}
    layers = {"fetch": fetch.layer, "load": load.layer, "weights": weights.layer, "compute": units.sequencer.layer,
              "field": units.sequencer.fault_layer, "store": units.drain.layer}
    m.d.comb += [
        faults.conditions.eq(Cat(conditions[code, unit] for code, unit, *_ in FAULTS)),
        faults.addresses.eq(Cat(buses[name].address if kind == "burst" else splitters[name].fault_address
                                for kind, name in ADDRESSES)),
        faults.layers.eq(Cat(layers[name] for name in LAYERS)),
        *(port.hold.eq(faults.caught) for port in units.ports()),
        control.caught.eq(faults.caught), control.error.eq(faults.error), control.error_unit.eq(faults.error_unit),
        control.error_address.eq(faults.error_address), control.error_layer.eq(faults.error_layer),
    ]
    assert len(conditions) == len(FAULTS)


def _conditions(units, still: dict) -> dict:
    """{(code, unit): the condition} of each of FAULTS."""
    fetch, load, weights, writer, slices = units.fetch, units.load, units.weights, units.writer, units.slices
    bark = units.watchdog.bark
    load_field = load.field_fault | Cat(part.activation_buffer.address_fault
                                        | part.residual_buffer.address_fault for part in slices).any()
    if units.unfolder:
        load_field |= units.unfolder.field_fault | Cat(part.image_buffer.address_fault for part in slices).any()
    return {
        ("axi_read", "fetch"): fetch.port.fault, ("axi_read", "load"): load.axi_fault,
        ("axi_read", "weights"): weights.axi_fault, ("axi_write", "store"): writer.axi_fault,
        ("axi_protocol", "fetch"): fetch.port.protocol, ("axi_protocol", "load"): load.axi_protocol,
        ("axi_protocol", "weights"): weights.axi_protocol,
        ("range", "fetch"): fetch.range_fault, ("range", "load"): load.range_fault,
        ("range", "weights"): weights.range_fault, ("range", "store"): writer.range_fault,
        ("opcode", "fetch"): fetch.opcode_fault,
        ("field", "load"): load_field,
        ("field", "weights"): weights.field_fault | units.slots.address_fault | units.constants.address_fault,
        ("field", "compute"): units.sequencer.field_fault,
        ("field", "store"): units.drain.field_fault | writer.field_fault,
        ("field", "none"): units.tokens.overflow,
        ("overflow", "compute"): Cat(part.accumulators.overflow for part in slices).any(),
        ("end", "fetch"): fetch.end_fault, ("aborted", "none"): units.control.abort,
        # A run that stands still is blamed on the bus that owes an answer, if one does.
        **{("watchdog", name): bark & ~still[name].all() for name in BUSES}, ("watchdog", "compute"): bark,
    }

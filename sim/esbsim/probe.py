"""A small bus master that notes in which cycle each handshake came: what the memory model is measured with."""

from amaranth import Cat, ClockDomain, ClockSignal, Module, Mux, ResetSignal, Signal
from amaranth.back import rtlil
from amaranth.lib.memory import Memory

TOP = "probe"
ID, CONTROL, ADDRESS, BEATS, BURSTS, QUIRKS, SCRATCH, LOG_COUNT, CHECKSUM, LOG = 0, 4, 8, 12, 16, 20, 24, 28, 32, 0x400
READ, WRITE, READ_PROGRAM = 1, 2, 4  # of CONTROL
QUIRK_BITS = {"size": 1, "fixed": 2, "drop": 4, "change": 8, "no_last": 16, "extra_beat": 32, "slow": 64}
EVENTS = ("ar", "rvalid", "rlast", "aw", "w", "bvalid", "program_rvalid", "rerror", "berror", "program_ar")
LOG_ENTRIES = 256


class Probe:
    """Reads or writes BURSTS bursts of BEATS beats from ADDRESS on, asking as early as the bus allows."""

    def __init__(self):
        self.ports = {}

    def port(self, name, width=1, out=True):
        """A port of the top module, as the simulator names it."""
        signal = Signal(width, name=name)
        self.ports[name] = (signal, out)
        return signal

    def module(self) -> Module:
        """The gateware: one master that reads or writes as its registers say, and breaks the rules on request."""
        m = Module()
        m.domains.sync = ClockDomain()
        m.d.comb += [ClockSignal().eq(self.port("ap_clk", out=False)),
                     ResetSignal().eq(~self.port("ap_rst_n", out=False))]
        registers = {offset: Signal(32, name=f"register_{offset}") for offset in (ADDRESS, BEATS, BURSTS, QUIRKS, SCRATCH)}
        quirk = {name: registers[QUIRKS][bit.bit_length() - 1] for name, bit in QUIRK_BITS.items()}
        start, log_address, log_data, log_count = Signal(3), Signal(8), Signal(32), Signal(9)
        checksum, toggle = Signal(32), Signal()
        m.d.sync += toggle.eq(~toggle)
        self.lite(m, registers, start, log_address, log_data, log_count, checksum)
        events = {}

        def address_channel(port, channel, go):
            valid, ready = self.port(f"m_axi_{port}_{channel}valid"), self.port(f"m_axi_{port}_{channel}ready", out=False)
            address, left, waited = self.port(f"m_axi_{port}_{channel}addr", 40), Signal(16), Signal()
            m.d.comb += [
                valid.eq((left != 0) & ~(quirk["drop"] & waited)),
                self.port(f"m_axi_{port}_{channel}len", 8).eq(registers[BEATS] - 1),
                self.port(f"m_axi_{port}_{channel}size", 3).eq(Mux(quirk["size"], 3, 4)),
                self.port(f"m_axi_{port}_{channel}burst", 2).eq(Mux(quirk["fixed"], 0, 1)),
            ]
            m.d.sync += waited.eq(valid & ~ready)
            with m.If(valid & ready):
                m.d.sync += [left.eq(left - 1), address.eq(address + (registers[BEATS] << 4))]
            with m.Elif(valid & quirk["change"]):
                m.d.sync += address.eq(address + 16)
            with m.If(go):
                m.d.sync += [left.eq(registers[BURSTS]), address.eq(registers[ADDRESS] | (1 << 35))]
            return valid & ready

        def reader(port, go):
            data, last = self.port(f"m_axi_{port}_rdata", 128, out=False), self.port(f"m_axi_{port}_rlast", out=False)
            response = self.port(f"m_axi_{port}_rresp", 2, out=False)
            valid, ready = self.port(f"m_axi_{port}_rvalid", out=False), self.port(f"m_axi_{port}_rready")
            left = Signal(16)
            m.d.comb += ready.eq(~quirk["slow"] | toggle)
            with m.If(valid & ready):
                m.d.sync += [left.eq(left - 1), checksum.eq(checksum + data[:32])]
            with m.If(go):
                m.d.sync += left.eq(registers[BURSTS] * registers[BEATS])
            ar = address_channel(port, "ar", go)
            return ar, valid, valid & ready & last, valid & ready & response[1], left

        events["ar"], events["rvalid"], events["rlast"], events["rerror"], reads = reader("activations", start[0])
        events["program_ar"], events["program_rvalid"], _, _, program_reads = reader("program", start[2])

        events["aw"] = address_channel("activations", "aw", start[1])
        wvalid, wready = self.port("m_axi_activations_wvalid"), self.port("m_axi_activations_wready", out=False)
        bvalid, owed, index, answers = self.port("m_axi_activations_bvalid", out=False), Signal(16), Signal(16), Signal(16)
        beat = Signal(32)
        m.d.comb += [
            wvalid.eq(owed != 0),
            self.port("m_axi_activations_wdata", 128).eq(Cat(beat, ~beat)),
            self.port("m_axi_activations_wstrb", 16).eq(0xFFFF),
            self.port("m_axi_activations_wlast").eq((index == registers[BEATS] - 1) & ~quirk["no_last"]),
            self.port("m_axi_activations_bready").eq(1),
        ]
        events["w"], events["bvalid"] = wvalid & wready, bvalid
        events["berror"] = bvalid & self.port("m_axi_activations_bresp", 2, out=False)[1]
        # Data follow their address by a cycle: owed beats are those of accepted bursts.
        m.d.sync += owed.eq(owed + Mux(events["aw"], registers[BEATS] + quirk["extra_beat"], 0) - events["w"])
        with m.If(events["w"]):
            m.d.sync += [beat.eq(beat + 1), index.eq(Mux(index == registers[BEATS] - 1, 0, index + 1))]
        with m.If(bvalid):
            m.d.sync += answers.eq(answers - 1)
        with m.If(start[1]):
            m.d.sync += [answers.eq(registers[BURSTS]), beat.eq(0), index.eq(0)]

        time, started = Signal(16), Signal()
        m.d.sync += time.eq(time + 1)
        with m.If(start.any()):
            m.d.sync += [started.eq(1), log_count.eq(0), time.eq(0), checksum.eq(0)]
        m.d.comb += self.port("irq").eq(started & (reads == 0) & (program_reads == 0) & (answers == 0))
        m.submodules.log = log = Memory(shape=32, depth=LOG_ENTRIES, init=[])
        write, read = log.write_port(), log.read_port()
        happened = Cat(events[name] for name in EVENTS)
        m.d.comb += [write.addr.eq(log_count), write.data.eq(Cat(happened, Signal(16 - len(EVENTS)), time)),
                     write.en.eq(happened.any() & ~log_count[8]), read.addr.eq(log_address), log_data.eq(read.data)]
        with m.If(write.en):
            m.d.sync += log_count.eq(log_count + 1)
        return m

    def lite(self, m, registers, start, log_address, log_data, log_count, checksum):
        """An AXI4-Lite slave that takes one access at a time."""
        def s(name, width=1, out=False):
            return self.port(f"s_axi_{name}", width, out)
        s("awprot", 3), s("arprot", 3), s("wstrb", 4)
        awaddr, wdata, araddr = s("awaddr", 12), s("wdata", 32), s("araddr", 12)
        awvalid, wvalid, bready, arvalid, rready = s("awvalid"), s("wvalid"), s("bready"), s("arvalid"), s("rready")
        awready, wready, arready = s("awready", out=True), s("wready", out=True), s("arready", out=True)
        bvalid, rvalid, rdata = s("bvalid", out=True), s("rvalid", out=True), s("rdata", 32, True)
        bresp, rresp = s("bresp", 2, True), s("rresp", 2, True)
        take, fetch, answer = Signal(), Signal(), Signal()
        m.d.comb += [take.eq(awvalid & wvalid & ~bvalid), awready.eq(take), wready.eq(take),
                     arready.eq(~fetch & ~answer & ~rvalid), log_address.eq(araddr[2:10])]
        m.d.sync += start.eq(0)
        with m.If(bready):
            m.d.sync += bvalid.eq(0)
        with m.If(take):
            m.d.sync += [bvalid.eq(1), bresp.eq(Mux(awaddr == 0xFFC, 2, 0))]
            with m.Switch(awaddr):
                with m.Case(CONTROL):
                    m.d.sync += start.eq(wdata)
                for offset, register in registers.items():
                    with m.Case(offset):
                        m.d.sync += register.eq(wdata)
        m.d.sync += fetch.eq(arvalid & arready & (araddr != 0xFF8))  # 0xFF8 is never answered
        with m.If(rready):
            m.d.sync += rvalid.eq(0)
        with m.If(fetch):
            m.d.sync += [rvalid.eq(1), rresp.eq(Mux(araddr == 0xFFC, 3, 0)), rdata.eq(0)]
            with m.Switch(araddr):
                for offset, value in {ID: 0x50524F42, LOG_COUNT: log_count, CHECKSUM: checksum, **registers}.items():
                    with m.Case(offset):
                        m.d.sync += rdata.eq(value)
                with m.Case("01----------"):
                    m.d.sync += rdata.eq(log_data)


def probe_rtlil() -> str:
    """The probe as RTLIL text."""
    probe = Probe()
    module = probe.module()
    ports = [signal for signal, _ in probe.ports.values()]
    return rtlil.convert(module, name=TOP, ports=ports, emit_src=False)


class ProbeDriver:
    """Starts transfers and reads the log back as {event: [cycles since start]}."""

    def __init__(self, simulator):
        self.simulator = simulator

    def transfer(self, what, address, beats=1, bursts=1, quirks=(), max_cycles=20_000):
        """One transfer of `bursts` of `beats` beats at a byte address; `quirks` name the rules that it breaks."""
        simulator = self.simulator
        for register, value in ((ADDRESS, address), (BEATS, beats), (BURSTS, bursts),
                                (QUIRKS, sum(QUIRK_BITS[name] for name in quirks))):
            simulator.write(register, value)
        simulator.write(CONTROL, what)
        simulator.run(2)  # START has fallen: the interrupt is now that of this transfer
        finished = simulator.run_until_interrupt(max_cycles)
        times = {event: [] for event in EVENTS}
        for i in range(simulator.read(LOG_COUNT)):
            entry = simulator.read(LOG + 4 * i)
            for bit, event in enumerate(EVENTS):
                if entry >> bit & 1:
                    times[event].append(entry >> 16)
        return finished, times

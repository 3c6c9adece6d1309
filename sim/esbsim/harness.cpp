// Verilated engine + clock + AXI4-Lite transactor + one memory model a port, behind a C interface for ctypes.
//
// The build writes ports.h: the top's class name and which m_axi ports it has (ESB_READ_PORTS, ESB_WRITE_PORTS).
#include "memory.h"
#include "ports.h"

#include "verilated.h"
#if ESB_TRACE
#include "verilated_vcd_c.h"
#endif

#include <memory>
#include <sstream>

struct Simulation {
    VerilatedContext context;
    ESB_TOP top;
    Memory memory;
    std::vector<Port> ports;
    uint64_t now = 0;  // rising edges so far
    // AXI4-Lite handshakes of the last cycle
    bool ar = false, r = false, aw = false, w = false, b = false;
    uint32_t read_data = 0;
    unsigned response = 0;
#if ESB_TRACE
    std::unique_ptr<VerilatedVcdC> waves;
    uint64_t waves_from = 0, waves_to = NEVER, period_ps = 0;  // cycles that are written, and how long each of them is
#endif

    // `seed` other than 0: what has no value yet is random, in a library built so.
    Simulation(uint8_t* data, uint64_t size, uint64_t base, int seed) : top(seeded(seed)) {
        context.traceEverOn(ESB_TRACE);
        memory.data = data;
        memory.size = size;
        memory.base = base;
        int index = 0;
#define X(name) ports.emplace_back(memory, index++, #name);
        ESB_PORTS(X)
#undef X
        top.s_axi_wstrb = 15;
        top.s_axi_rready = top.s_axi_bready = 1;
    }
    ~Simulation() { top.final(); }

    VerilatedContext* seeded(int seed) {
        context.randReset(seed ? 2 : 0);
        if (seed) context.randSeed(seed);
        return &context;
    }

    void drive() {
#define X(index, name)                                    \
    top.m_axi_##name##_arready = ports[index].arready;    \
    top.m_axi_##name##_rvalid = ports[index].rvalid;      \
    top.m_axi_##name##_rlast = ports[index].rlast;        \
    top.m_axi_##name##_rresp = ports[index].rresp;        \
    memcpy(&top.m_axi_##name##_rdata[0], ports[index].rdata, BEAT_BYTES);
        ESB_READ_PORTS(X)
#undef X
#define X(index, name)                                    \
    top.m_axi_##name##_awready = ports[index].awready;    \
    top.m_axi_##name##_wready = ports[index].wready;      \
    top.m_axi_##name##_bvalid = ports[index].bvalid;      \
    top.m_axi_##name##_bresp = ports[index].bresp;
        ESB_WRITE_PORTS(X)
#undef X
    }

    void sample() {
#define X(index, name)                                                                                        \
    ports[index].ar = {bool(top.m_axi_##name##_arvalid), top.m_axi_##name##_araddr,                           \
                       top.m_axi_##name##_arlen, top.m_axi_##name##_arsize, top.m_axi_##name##_arburst};      \
    ports[index].rready = top.m_axi_##name##_rready;
        ESB_READ_PORTS(X)
#undef X
#define X(index, name)                                                                                        \
    ports[index].aw = {bool(top.m_axi_##name##_awvalid), top.m_axi_##name##_awaddr,                           \
                       top.m_axi_##name##_awlen, top.m_axi_##name##_awsize, top.m_axi_##name##_awburst};      \
    ports[index].wvalid = top.m_axi_##name##_wvalid;                                                          \
    ports[index].wlast = top.m_axi_##name##_wlast;                                                            \
    ports[index].wstrb = top.m_axi_##name##_wstrb;                                                            \
    ports[index].bready = top.m_axi_##name##_bready;                                                          \
    memcpy(ports[index].wdata, &top.m_axi_##name##_wdata[0], BEAT_BYTES);
        ESB_WRITE_PORTS(X)
#undef X
        ar = top.s_axi_arvalid && top.s_axi_arready;
        r = top.s_axi_rvalid;
        aw = top.s_axi_awvalid && top.s_axi_awready;
        w = top.s_axi_wvalid && top.s_axi_wready;
        b = top.s_axi_bvalid;
        if (r) read_data = top.s_axi_rdata, response = top.s_axi_rresp;
        if (b) response = top.s_axi_bresp;
    }

    void dump(unsigned half) {
#if ESB_TRACE
        if (waves && now >= waves_from && now < waves_to) waves->dump(now * period_ps + half * (period_ps / 2));
#else
        (void)half;
#endif
    }

    // One clock cycle: settle with the slaves' new outputs, look at both sides, rising edge.
    void tick() {
#define X(index, name) ports[index].wvalid = top.m_axi_##name##_wvalid;
        ESB_WRITE_PORTS(X)
#undef X
        for (Port& port : ports) port.offer(now);
        serve(memory, ports);
        drive();
        top.ap_clk = 0;
        top.eval();
        dump(0);
        sample();
        for (Port& port : ports) port.commit(now);
        top.ap_clk = 1;
        top.eval();
        dump(1);
        now++;
    }

    void reset(unsigned cycles) {
        top.ap_rst_n = 0;
        top.s_axi_arvalid = top.s_axi_awvalid = top.s_axi_wvalid = 0;
        for (unsigned i = 0; i < cycles; i++) {
            for (Port& port : ports) port.reset();
            drive();
            top.ap_clk = 0;
            top.eval();
            dump(0);
            top.ap_clk = 1;
            top.eval();
            dump(1);
            now++;
        }
        for (Port& port : ports) port.reset();
        top.ap_rst_n = 1;
    }

    // Both return the response, or -1 if none came within `limit` cycles.
    int read(uint32_t address, uint32_t* value, uint64_t limit) {
        top.s_axi_araddr = address;
        top.s_axi_arvalid = 1;
        for (uint64_t i = 0; i < limit; i++) {
            tick();
            if (ar) top.s_axi_arvalid = 0;
            if (r) {
                *value = read_data;
                return response;
            }
        }
        return -1;
    }
    int write(uint32_t address, uint32_t value, uint64_t limit) {
        top.s_axi_awaddr = address;
        top.s_axi_wdata = value;
        top.s_axi_awvalid = top.s_axi_wvalid = 1;
        for (uint64_t i = 0; i < limit; i++) {
            tick();
            if (aw) top.s_axi_awvalid = 0;
            if (w) top.s_axi_wvalid = 0;
            if (b) return response;
        }
        return -1;
    }
};

static const char* const PORT_NAMES[] = {
#define X(name) #name,
    ESB_PORTS(X)
#undef X
    nullptr};

extern "C" {
Simulation* esb_new(uint8_t* data, uint64_t size, uint64_t base, int seed) {
    return new Simulation(data, size, base, seed);
}
void esb_delete(Simulation* s) { delete s; }
const char* esb_port_name(unsigned index) {
    return index < sizeof PORT_NAMES / sizeof *PORT_NAMES ? PORT_NAMES[index] : nullptr;
}
int esb_can_trace() { return ESB_TRACE; }

void esb_reset(Simulation* s, unsigned cycles) { s->reset(cycles); }
uint64_t esb_cycles(Simulation* s) { return s->now; }
int esb_interrupt(Simulation* s) { return s->top.irq; }
const char* esb_violation(Simulation* s) { return s->memory.violations ? s->memory.violation.c_str() : nullptr; }
uint64_t esb_violations(Simulation* s) { return s->memory.violations; }
void esb_clear_violations(Simulation* s) { s->memory.violations = 0; }

int esb_read(Simulation* s, uint32_t address, uint32_t* value, uint64_t limit) { return s->read(address, value, limit); }
int esb_write(Simulation* s, uint32_t address, uint32_t value, uint64_t limit) { return s->write(address, value, limit); }

// Runs until `cycles` have gone by, the first protocol violation, or (if asked) the interrupt; says how many ran.
uint64_t esb_run(Simulation* s, uint64_t cycles, int until_interrupt) {
    const uint64_t violations = s->memory.violations;
    uint64_t i = 0;
    while (i < cycles && !(until_interrupt && s->top.irq) && s->memory.violations == violations) {
        s->tick();
        i++;
    }
    return i;
}

int esb_set_timing(Simulation* s, unsigned port, uint32_t read_latency, uint32_t write_latency, uint32_t jitter,
                   uint32_t outstanding, uint64_t beats, uint64_t cycles, const uint32_t* stall, uint64_t seed) {
    if (port >= s->ports.size()) return -1;
    Port& p = s->ports[port];
    p.timing.read_latency = read_latency;
    p.timing.write_latency = write_latency;
    p.timing.jitter = jitter;
    p.timing.outstanding = outstanding;
    memcpy(p.timing.stall, stall, sizeof p.timing.stall);
    p.read_budget.set(beats < cycles ? beats : 0, cycles);
    p.write_budget.set(beats < cycles ? beats : 0, cycles);
    p.random.seed(seed);
    return 0;
}
// `bytes` every `cycles` cycles for all ports together; 0: no limit.
void esb_set_shared(Simulation* s, uint64_t bytes, uint64_t cycles) {
    s->memory.shared.set(bytes, cycles * BEAT_BYTES);
    s->memory.turn = 0;
}

void esb_add_fault(Simulation* s, int port, uint64_t low, uint64_t high, unsigned response) {
    s->memory.faults.push_back({port, low, high, uint8_t(response)});
}
void esb_clear_faults(Simulation* s) {
    s->memory.faults.clear();
    for (Port& port : s->ports) port.wrong_last_burst = NEVER;
}
// The channels of the mask (bit 0 AR, R, AW, W, B) answer nothing from cycle `from` on; NEVER releases them.
int esb_set_stall(Simulation* s, int port, unsigned mask, uint64_t from) {
    if (port >= int(s->ports.size())) return -1;
    for (int i = 0; i < int(s->ports.size()); i++)
        for (int channel = 0; channel < CHANNELS; channel++)
            if ((port < 0 || port == i) && mask >> channel & 1) s->ports[i].stall_from[channel] = from;
    return 0;
}
int esb_wrong_last(Simulation* s, unsigned port, uint64_t burst, int early) {
    if (port >= s->ports.size()) return -1;
    s->ports[port].wrong_last_burst = s->ports[port].read_bursts + burst;
    s->ports[port].wrong_last_early = early;
    return 0;
}
int esb_statistics(Simulation* s, unsigned port, uint64_t* counts) {
    if (port >= s->ports.size()) return -1;
    const Port& p = s->ports[port];
    const uint64_t values[] = {p.read_bursts, p.read_beats, p.write_bursts, p.write_beats};
    memcpy(counts, values, sizeof values);
    return 0;
}

// Waves of the cycles first..last-1 (since `esb_new`), of the blocks that `scopes` names (one a line; none: all).
int esb_trace(Simulation* s, const char* path, uint64_t first, uint64_t last, const char* scopes, uint64_t period_ps) {
#if ESB_TRACE
    if (s->waves) s->waves->close();
    s->waves.reset();
    if (!path) return 0;
    s->waves = std::make_unique<VerilatedVcdC>();
    s->waves_from = first;
    s->waves_to = last;
    s->period_ps = period_ps;
    s->top.trace(s->waves.get(), 99);
    // Verilator's outermost scope is TOP. A name that matches nothing would leave values without their signals.
    std::istringstream names(scopes);
    for (std::string name; std::getline(names, name);) s->waves->dumpvars(99, "TOP." + name);
    s->waves->open(path);
    return s->waves->isOpen() ? 0 : -1;
#else
    (void)s, (void)path, (void)first, (void)last, (void)scopes, (void)period_ps;
    return -1;
#endif
}
}

// harness.cpp for an engine with two clocks: cycles and latencies are those of ap_clk. See two_clocks.h.
#include "harness.cpp"

extern "C" void esb_set_clocks(Simulation* s, uint64_t bus, uint64_t compute, uint64_t first) {
    s->top.set_clocks(bus, compute, first);
}

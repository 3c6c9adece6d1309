// AXI4 slave side of one engine port over host memory: timing, stalls, faults and protocol checks.
//
// No Verilator in here. Each clock cycle has two halves: offer() sets what the slave drives, from what it knew before
// the cycle; then the design settles; then commit() sees both sides and updates the model.
//
// Ideal memory (the defaults with a latency of L >= 1): READY is always high; a read burst's first beat is on offer
// exactly L cycles after the cycle of its AR handshake, or one cycle after the previous burst's last beat if that is
// later; beats follow one a cycle in order; B is on offer L cycles after the handshake of the burst's last W beat.
//
// Memory with a shared budget is ideal memory whose R and W beats of all ports go through one arbiter: see serve().
#pragma once

#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <deque>
#include <string>
#include <vector>

constexpr unsigned BEAT_BYTES = 16;
constexpr uint64_t NEVER = ~uint64_t(0);
enum Response : uint8_t { OKAY = 0, SLVERR = 2, DECERR = 3 };
enum Channel { AR, R, AW, W, B, CHANNELS };

struct Random {  // xorshift64*: the same stalls for the same seed on every machine
    uint64_t state = 1;
    void seed(uint64_t value) { state = value * 0x9E3779B97F4A7C15ull | 1; }
    uint32_t next() {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        return uint32_t((state * 0x2545F4914F6CDD1Dull) >> 32);
    }
    bool chance(uint32_t threshold) { return threshold && next() < threshold; }
};

// A budget of `gain` units a cycle from which each beat takes `cost`; gain >= cost never limits one beat a cycle.
struct Budget {
    uint64_t gain = 1, cost = 1, credit = 1;
    bool limited = false;
    void set(uint64_t gain_, uint64_t cost_) {
        gain = gain_;
        cost = cost_;
        credit = cost;
        limited = gain > 0;
    }
    void tick() {
        // Saving up is bounded, so that idle time is not a burst allowance later.
        const uint64_t most = cost + gain - 1;
        credit = credit + gain < most ? credit + gain : most;
    }
    bool enough() const { return !limited || credit >= cost; }
    void take() { if (limited) credit -= cost; }
};

struct Fault {
    int port;  // -1: every port
    uint64_t low, high;  // bytes low <= address < high
    uint8_t response;
};

// What all ports share.
struct Memory {
    uint8_t* data = nullptr;
    uint64_t size = 0, base = 0;
    Budget shared;
    size_t turn = 0;  // channel that the arbiter looks at first: 2 * port for R, 2 * port + 1 for W
    std::vector<Fault> faults;
    uint64_t violations = 0;
    std::string violation;  // the first one

    uint8_t response(int port, uint64_t address) const {
        if (address < base || address - base + BEAT_BYTES > size) return DECERR;
        for (const Fault& fault : faults)
            if ((fault.port < 0 || fault.port == port) && address + BEAT_BYTES > fault.low && address < fault.high)
                return fault.response;
        return OKAY;
    }
    void violate(const char* format, ...) __attribute__((format(printf, 2, 3))) {
        if (violations++) return;
        char text[512];
        va_list arguments;
        va_start(arguments, format);
        vsnprintf(text, sizeof text, format, arguments);
        va_end(arguments);
        violation = text;
    }
};

struct AddressPins {  // driven by the design, AR or AW
    bool valid = false;
    uint64_t address = 0;
    unsigned length = 0, size = 0, burst = 0;
    bool operator==(const AddressPins& o) const {
        return address == o.address && length == o.length && size == o.size && burst == o.burst;
    }
};

struct Timing {
    uint32_t read_latency = 40, write_latency = 40, jitter = 0, outstanding = 0;  // outstanding 0: no limit
    uint32_t stall[CHANNELS] = {};  // chance of a stalled cycle, in units of 2^-32
};

class Port {
  public:
    // -- driven by the model --
    bool arready = false, rvalid = false, rlast = false, awready = false, wready = false, bvalid = false;
    bool read_asks = false, write_asks = false;  // for a beat of the shared budget
    uint8_t rdata[BEAT_BYTES] = {}, rresp = 0, bresp = 0;
    // -- driven by the design; wvalid is known before offer(), as AXI lets no VALID depend on a READY of the same cycle --
    AddressPins ar, aw;
    bool rready = false, wvalid = false, wlast = false, bready = false;
    uint8_t wdata[BEAT_BYTES] = {};
    unsigned wstrb = 0;
    // -- settings --
    Timing timing;
    Budget read_budget, write_budget;
    Random random;
    uint64_t stall_from[CHANNELS] = {NEVER, NEVER, NEVER, NEVER, NEVER};
    uint64_t wrong_last_burst = NEVER;  // counted in read bursts answered since reset
    bool wrong_last_early = false;
    // -- statistics since the last reset --
    uint64_t read_bursts = 0, read_beats = 0, write_bursts = 0, write_beats = 0;

    Port(Memory& memory, int index, const char* name) : memory_(memory), index_(index), name_(name) {}
    const char* name() const { return name_; }

    void reset() {
        arready = rvalid = rlast = awready = wready = bvalid = read_asks = write_asks = false;
        reads_.clear();
        writes_.clear();
        answers_.clear();
        staged_.clear();
        last_ar_ = last_aw_ = AddressPins();
        last_w_valid_ = false;
        expected_beats_ = 0;
        read_bursts = read_beats = write_bursts = write_beats = 0;
    }

    void offer(uint64_t now) {
        read_budget.tick();
        write_budget.tick();
        const bool room = !timing.outstanding || reads_.size() < timing.outstanding;
        arready = room && open(AR, now);
        read_asks = !rvalid && !reads_.empty() && reads_.front().ready_at <= now && open(R, now) && read_budget.enough();

        const bool write_room = !timing.outstanding || answers_.size() + writes_.size() < timing.outstanding;
        awready = write_room && open(AW, now);
        // With AWREADY low and no data owed, data could only overtake its address: make it wait.
        const bool takes = (expected_beats_ || awready) && open(W, now) && write_budget.enough();
        const bool limited = memory_.shared.limited;
        write_asks = limited && takes && wvalid;
        wready = !limited && takes;
        if (!limited && read_asks) grant_read();
        if (!bvalid && !answers_.empty() && answers_.front().ready_at <= now && open(B, now)) offer_answer();
    }

    // The arbiter gives this port's read, or its write, a beat.
    void grant_read() {
        const Burst& burst = reads_.front();
        rvalid = true;
        rresp = memory_.response(index_, burst.address);
        // Data under an error response must not matter: make it conspicuous.
        if (rresp == OKAY) memcpy(rdata, memory_.data + (burst.address - memory_.base), BEAT_BYTES);
        else memset(rdata, 0xEE, BEAT_BYTES);
        rlast = burst.beats == 1;
        if (read_bursts == wrong_last_burst && (wrong_last_early ? burst.beats == burst.length : rlast)) rlast = !rlast;
        read_budget.take();
    }
    void grant_write() { wready = true; }

    void commit(uint64_t now) {
        check_address(ar, last_ar_, "AR", now);
        check_address(aw, last_aw_, "AW", now);
        check_write_data(now);
        if (ar.valid && arready) {
            check_burst(ar, "AR", now);
            reads_.push_back({ar.address, ar.length + 1, ar.length + 1, now + timing.read_latency + jitter()});
        }
        if (rvalid && rready) {
            rvalid = false;
            Burst& burst = reads_.front();
            burst.address += BEAT_BYTES;
            read_beats++;
            if (!--burst.beats) {
                reads_.pop_front();
                read_bursts++;
            }
        }
        if (aw.valid && awready) {
            check_burst(aw, "AW", now);
            writes_.push_back({aw.address, aw.length + 1, aw.length + 1, 0});
            expected_beats_ += aw.length + 1;
        }
        if (wvalid && wready) take_write_beat(now);
        if (bvalid && bready) bvalid = false;
        last_ar_ = ar;
        last_ar_.valid = ar.valid && !arready;  // from here on: an address still waiting
        last_aw_ = aw;
        last_aw_.valid = aw.valid && !awready;
    }

  private:
    struct Burst {
        uint64_t address;
        unsigned beats, length;  // beats left, beats in all
        uint64_t ready_at;
        uint8_t response = OKAY;
    };
    struct Staged {
        uint64_t address;
        unsigned strobe;
        uint8_t data[BEAT_BYTES];
    };

    Memory& memory_;
    int index_;
    const char* name_;
    std::deque<Burst> reads_, writes_, answers_;
    std::deque<Staged> staged_;
    AddressPins last_ar_, last_aw_;
    bool last_w_valid_ = false, last_w_last_ = false;
    uint8_t last_w_data_[BEAT_BYTES] = {};
    uint64_t expected_beats_ = 0;

    bool open(Channel channel, uint64_t now) {
        return now < stall_from[channel] && !random.chance(timing.stall[channel]);
    }
    uint32_t jitter() { return timing.jitter ? random.next() % (timing.jitter + 1) : 0; }

    void take_write_beat(uint64_t now) {
        if (writes_.empty()) return;  // a violation, recorded by check_write_data
        Burst& burst = writes_.front();
        expected_beats_--;
        write_beats++;
        write_budget.take();
        const uint8_t response = memory_.response(index_, burst.address);
        if (response > burst.response) burst.response = response;
        Staged beat{burst.address, response == OKAY ? wstrb : 0, {}};
        memcpy(beat.data, wdata, BEAT_BYTES);
        staged_.push_back(beat);
        burst.address += BEAT_BYTES;
        if (--burst.beats) return;
        burst.ready_at = now + timing.write_latency + jitter();
        answers_.push_back(burst);
        writes_.pop_front();
    }

    // Data reach memory with their B, not before: a reader that does not wait for B finds the old bytes.
    void offer_answer() {
        const Burst burst = answers_.front();
        answers_.pop_front();
        for (unsigned i = 0; i < burst.length; i++) {
            const Staged& beat = staged_.front();
            for (unsigned byte = 0; byte < BEAT_BYTES; byte++)
                if (beat.strobe >> byte & 1) memory_.data[beat.address - memory_.base + byte] = beat.data[byte];
            staged_.pop_front();
        }
        bvalid = true;
        bresp = burst.response;
        write_bursts++;
    }

    // -- protocol checks (AMBA AXI4 specification, sections A3.2 and A3.4) --
    void check_address(const AddressPins& now_pins, const AddressPins& waiting, const char* channel, uint64_t now) {
        if (!waiting.valid) return;
        if (!now_pins.valid)
            memory_.violate("%s port, cycle %llu: %sVALID fell before %sREADY", name_, (unsigned long long)now, channel,
                            channel);
        else if (!(now_pins == waiting))
            memory_.violate("%s port, cycle %llu: %sADDR, LEN, SIZE or BURST changed while %sVALID waited", name_,
                            (unsigned long long)now, channel, channel);
    }

    void check_burst(const AddressPins& pins, const char* channel, uint64_t now) {
        const auto cycle = (unsigned long long)now, address = (unsigned long long)pins.address;
        const unsigned beats = pins.length + 1;
        if (pins.size != 4)
            memory_.violate("%s port, cycle %llu: %sSIZE is %u, not 4 (16 bytes)", name_, cycle, channel, pins.size);
        if (pins.burst != 1)
            memory_.violate("%s port, cycle %llu: %sBURST is %u, not 1 (INCR)", name_, cycle, channel, pins.burst);
        if (pins.address % BEAT_BYTES)
            memory_.violate("%s port, cycle %llu: %sADDR 0x%llx is not a multiple of 16", name_, cycle, channel, address);
        if ((pins.address & 4095) + beats * BEAT_BYTES > 4096)
            memory_.violate("%s port, cycle %llu: the burst of %u beats at %sADDR 0x%llx crosses a 4 KB boundary", name_,
                            cycle, beats, channel, address);
    }

    void check_write_data(uint64_t now) {
        const auto cycle = (unsigned long long)now;
        if (last_w_valid_) {
            if (!wvalid)
                memory_.violate("%s port, cycle %llu: WVALID fell before WREADY", name_, cycle);
            else if (wlast != last_w_last_ || memcmp(wdata, last_w_data_, BEAT_BYTES))
                memory_.violate("%s port, cycle %llu: WDATA or WLAST changed while WVALID waited", name_, cycle);
        }
        last_w_valid_ = wvalid && !wready;
        last_w_last_ = wlast;
        memcpy(last_w_data_, wdata, BEAT_BYTES);
        if (!wvalid || !wready) return;
        unsigned left = 0;  // beats that the current burst still owes, this one included
        if (!writes_.empty()) left = writes_.front().beats;
        else if (aw.valid && awready) left = aw.length + 1;
        if (!left)
            memory_.violate("%s port, cycle %llu: a W beat beyond all bursts announced on AW", name_, cycle);
        else if (wlast != (left == 1))
            memory_.violate("%s port, cycle %llu: WLAST is %u with %u beats of the burst left", name_, cycle,
                            unsigned(wlast), left);
    }
};

// Shares the budget of one cycle among the channels that ask: an R that could put a beat on offer, a W with WVALID. Each gets
// a beat at most. They are served in the order of their numbers, the one behind the channel that was served last first, for
// as long as there is budget for a beat; so nobody waits for more than one beat of each of the others. A cycle in which
// nobody asks begins the order anew, so that a run does not depend on the one before. What is not ready moves no byte and
// is charged none.
inline void serve(Memory& memory, std::vector<Port>& ports) {
    if (!memory.shared.limited) return;
    memory.shared.tick();
    const size_t channels = 2 * ports.size(), first = memory.turn;
    bool asked = false;
    for (size_t i = 0, k = first; i < channels; i++, k = k + 1 == channels ? 0 : k + 1) {
        Port& port = ports[k / 2];
        if (!(k % 2 ? port.write_asks : port.read_asks)) continue;
        asked = true;
        if (!memory.shared.enough()) break;
        memory.shared.take();
        if (k % 2) port.grant_write();
        else port.grant_read();
        memory.turn = k + 1 == channels ? 0 : k + 1;
    }
    if (!asked) memory.turn = 0;
}

// A Verilated board with a clock, a serial line and LEDs, behind a C interface for ctypes. The far end of the line is
// modelled here bit by bit, with a bit time of its own, which need not be the board's.
#include "Vengine.h"
#include "verilated.h"
#if VM_TRACE
#include "verilated_vcd_c.h"
#endif

#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

struct Board {
    VerilatedContext context;
    Vengine top;
    double bit_cycles;
    uint64_t now = 0;
    // host to board
    std::deque<uint8_t> waiting;
    int sent_bits = 10;
    double next_edge = 0;
    uint8_t sending = 0;
    // board to host: sampled in the middle of each bit
    int got_bits = -1;
    double next_sample = 0;
    uint8_t getting = 0;
    std::vector<uint8_t> received;
    uint64_t framing_errors = 0;
#if VM_TRACE
    std::unique_ptr<VerilatedVcdC> waves;
#endif

    explicit Board(double bit_cycles) : top(&context), bit_cycles(bit_cycles) {
        context.traceEverOn(VM_TRACE);
        top.rx = 1;
    }
    ~Board() { top.final(); }

    void host_sends() {
        if (sent_bits == 10) {
            if (waiting.empty()) return;
            sending = waiting.front();
            waiting.pop_front();
            sent_bits = 0;
            next_edge = double(now);
        }
        if (double(now) < next_edge) return;
        top.rx = sent_bits == 0 ? 0 : sent_bits == 9 ? 1 : sending >> (sent_bits - 1) & 1;
        sent_bits++;
        next_edge += bit_cycles;
        if (sent_bits == 10) stop_until = next_edge;
    }
    double stop_until = 0;

    void host_receives() {
        if (got_bits < 0) {
            if (top.tx) return;
            got_bits = 0;
            next_sample = double(now) + 1.5 * bit_cycles;
            return;
        }
        if (double(now) < next_sample) return;
        if (got_bits < 8) {
            getting = uint8_t(getting >> 1 | (top.tx ? 0x80 : 0));
        } else {
            if (top.tx) received.push_back(getting);
            else framing_errors++;
            got_bits = -2;
        }
        got_bits++;
        next_sample += bit_cycles;
    }

    void tick() {
        if (!(sent_bits == 10 && double(now) < stop_until)) host_sends();
        top.clock = 0;
        top.eval();
        dump(0);
        top.clock = 1;
        top.eval();
        dump(1);
        host_receives();
        now++;
    }

    void dump(unsigned half) {
#if VM_TRACE
        if (waves) waves->dump(now * 10 + half * 5);
#else
        (void)half;
#endif
    }
};

extern "C" {
Board* board_create(double bit_cycles) { return new Board(bit_cycles); }
void board_destroy(Board* board) { delete board; }
uint64_t board_now(Board* board) { return board->now; }
unsigned board_leds(Board* board) { return board->top.leds; }
uint64_t board_framing_errors(Board* board) { return board->framing_errors; }
void board_send(Board* board, const uint8_t* data, uint64_t size) {
    board->waiting.insert(board->waiting.end(), data, data + size);
}
// Simulates until `size` bytes have come and all bytes are sent, or `cycles` are over; returns how many bytes there are.
uint64_t board_run(Board* board, uint64_t size, uint64_t cycles) {
    for (uint64_t i = 0; i < cycles && (board->received.size() < size || !board->waiting.empty()); i++) board->tick();
    return board->received.size();
}
uint64_t board_take(Board* board, uint8_t* data, uint64_t size) {
    uint64_t count = board->received.size() < size ? board->received.size() : size;
    for (uint64_t i = 0; i < count; i++) data[i] = board->received[i];
    board->received.erase(board->received.begin(), board->received.begin() + count);
    return count;
}
int board_trace(Board* board, const char* path) {
#if VM_TRACE
    board->waves = std::make_unique<VerilatedVcdC>();
    board->top.trace(board->waves.get(), 99);
    board->waves->open(path);
    return 1;
#else
    (void)board;
    (void)path;
    return 0;
#endif
}
}

// An engine's top with a clock of its own for the arrays, compute_clk, that looks to harness.cpp like one with one clock.
//
// The harness evaluates the top twice in each cycle of ap_clk: with the clock low and the slaves' new outputs set, and with
// the clock high. Edges of compute_clk fall where its period and phase put them: those before ap_clk's rising edge are played
// while ap_clk is low, one at the same time with it. What the slaves see are registers of ap_clk.
#pragma once

#include "Vengine.h"

#include <cstdint>

class TwoClocks : public Vengine {
  public:
    explicit TwoClocks(VerilatedContext* context) : Vengine(context) {}

    // Periods in units of any kind, at least 2; `first` from now to the first rising edge of compute_clk, from 0 on.
    void set_clocks(uint64_t bus, uint64_t compute, uint64_t first) {
        bus_ = bus;
        compute_ = compute;
        edge_ = now_ + first;
        compute_clk = 0;
    }

    void eval() {
        if (!ap_clk) {
            Vengine::eval();
            now_ += bus_;  // of ap_clk's next rising edge
            while (edge_ < now_) play();
            return;
        }
        if (edge_ == now_) {
            compute_clk = 1;
            Vengine::eval();
            compute_clk = 0;
            edge_ += compute_;
        }
        Vengine::eval();
    }

  private:
    uint64_t now_ = 0, bus_ = 2, compute_ = 2, edge_ = 2;

    void play() {
        compute_clk = 1;
        Vengine::eval();
        compute_clk = 0;
        Vengine::eval();
        edge_ += compute_;
    }
};

// One call of A: rows that want experts, and what became of each cell.
#pragma once

#include <cstdint>
#include <vector>

#include "rows_segment.h"

namespace triptych {

// Exactly one of these holds for a cell, and a cell is pending in one shard only.
enum class CellState : std::uint8_t {
    kWaiting,  // to be sent: it is new, its shard was given up, or no slot was free
    kParked,   // no worker that may be asked hosts its expert
    kPending,
    kDone,
};

struct Call {
    bool open = false;
    std::uint64_t id = 0;
    int lane = 0, layer = 0, rows = 0, k = 0;
    std::int32_t out_type = 0;
    int unsent = 0, parked = 0, done = 0;  // cells; parked ones are unsent too
    std::uint8_t attempt = 0;
    std::uint64_t avoid = 0;   // workers that failed this call, a bit each
    bool retry = false;        // something changed for unsent cells
    bool told = true;          // the caller knows how many are parked
    std::vector<std::int32_t> experts;  // [rows · k]
    std::vector<CellState> states;      // [rows · k]
    const float* x = nullptr;           // [rows, hidden], the caller's until `end`
    bool packed = false;                // the next two hold them as they travel
    Buffer<std::uint8_t> rows_out;      // [rows, row_bytes]
    Buffer<float> scales_out;           // [rows, row_scales]
    Buffer<std::uint8_t> cells_in;      // [rows · k, hidden] of out_type

    int cells() const { return rows * k; }
    bool complete() const { return open && done == cells(); }

    void give_up(std::int32_t cell) {
        states[cell] = CellState::kWaiting;
        ++unsent;
    }
};

}  // namespace triptych

// Rows through feed-forward units, whoever asked for them: experts of a mixture, or the one FFN of a
// dense layer.
#pragma once

#include <cstdint>

#include "linear.h"

namespace triptych {

// One expert, or the FFN of a dense layer. Null: it is not here.
struct Unit {
    const Linear *gate_up, *down;
};

enum class RowType : std::int32_t {
    kFloat = 0,
    kBf16 = 1,
    kInt8 = 2,  // a float32 scale per row
    kFp8 = 3,   // e4m3, a float32 scale per 128 columns
};

// Row `row` of a shard goes to expert `expert`.
struct Cell {
    std::uint16_t row, expert;
};

// Some rows of one layer, and the experts that each of them wants.
struct Shard {
    const void* rows;     // [num_rows, hidden]
    const float* scales;  // of kInt8 [num_rows], of kFp8 [num_rows, hidden / 128]; else null
    const Cell* cells;    // [num_cells], sorted by (expert, row); every unit is here
    const std::int32_t* places;  // row of `out` for each cell; null: in the cells' order
    void* out;            // [num_cells, hidden], kFloat or kBf16
    std::int32_t row_type, num_rows, num_cells, out_type;
};

// out[place of (row, expert)] = that expert's FFN of that row. Rows that meet in an expert share its
// weights' way through the caches, and their bits depend on nobody. Runs on all threads of the pool.
// `action`: the gate, an Epilogue::Action.
void run_shards(const Unit* units, int action, const Shard* shards, int count);

// What is added to the residual stream, by row: Σ_j weights[row, j] · cells[row · k + j] + shared[row].
// The sum goes in the order of j, each product fused with it: ids ascend, so that it never depends on
// who answered first.
struct Branch {
    const void* cells;  // [rows · k, size]
    const float* weights;  // [rows, k]; null: k is 1 and the weight too
    const float* shared;   // [rows, size]; null: none
    RowType type;          // of cells: kFloat or kBf16
    std::int32_t k, size;
};

// hidden [rows, size] += scale · the branch.
void combine(const Branch& branch, int rows, float scale, float* hidden);

// out [rows, size] = the branch.
void sum_cells(const Branch& branch, int rows, float* out);

}  // namespace triptych

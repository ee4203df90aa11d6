// Rows as they travel: rounded on one side, brought into a kernel's form on the other.
#pragma once

#include "experts.h"

namespace triptych {

constexpr int kFp8Block = 128;  // columns that share a scale

// Bytes of one row on its way, and how many float32 scales it has beside it.
inline std::size_t row_bytes(std::int32_t type, std::int32_t size) {
    constexpr std::size_t kWidths[] = {4, 2, 1, 1};
    return kWidths[type] * size;
}

inline std::size_t row_scales(std::int32_t type, std::int32_t size) {
    if (type == static_cast<int>(RowType::kInt8)) return 1;
    return type == static_cast<int>(RowType::kFp8) ? (size + kFp8Block - 1) / kFp8Block : 0;
}

// Row `from` of the shard, hidden_size `to.in`, as row `row` of an operand whose tail is clear.
void put_wire_row(Operand& to, int row, const Shard& shard, int from);

// x [rows, size] float32 → out [rows, size] of that type, to nearest even, and its scales (see
// Shard). A scale is the largest magnitude over the type's largest number (127 or 448), and at least
// the smallest normal number. Where a number is not finite the scale is none either.
void quantise_rows(const float* x, int rows, int size, RowType type, void* out, float* scales);

// One row, on this thread.
void quantise_row(const float* x, int size, RowType type, void* out, float* scales);

}  // namespace triptych

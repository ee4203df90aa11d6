// Activations, brought into the form that a kernel reads.
#include <algorithm>

#include "linear.h"

namespace triptych {
namespace {

void put_halves(Operand& operand, int row, const float* values) {
    Bf16* to = operand.half_line(row, 0);
    int column = 0;
    for (; column + kBf16Depth <= operand.in; column += kBf16Depth) {
        store(to, load(values + column));
        store(to + kLanes, load(values + column + kLanes));
        to += kRowTile * kBf16Depth;
    }
    if (column == operand.in) return;
    float rest[kBf16Depth] = {};
    std::memcpy(rest, values + column, (operand.in - column) * sizeof(float));
    store(to, load(rest));
    store(to + kLanes, load(rest + kLanes));
}

}  // namespace

Operand& OperandBuffer::take(const Linear& linear, int rows) {
    Operand& x = operand_;
    x.rows = rows, x.in = linear.in, x.depth = linear.depth;
    x.floats = nullptr, x.halves = nullptr;
    if (linear.kind == Kind::kFloat) {
        x.floats = floats_.take(static_cast<std::size_t>(rows) * x.depth);
        return x;
    }
    const std::size_t size = static_cast<std::size_t>(x.tiles()) * kRowTile * x.depth;
    x.halves = halves_.take(size);
    if (x.depth != x.in) std::memset(x.halves, 0, size * sizeof(Bf16));
    return x;
}

void clear_tail(Operand& operand, int row) {
    if (operand.halves == nullptr) return;
    for (int column = operand.in / kBf16Depth * kBf16Depth; column < operand.depth;
         column += kBf16Depth) {
        std::memset(operand.half_line(row, column), 0, kBf16Depth * sizeof(Bf16));
    }
}

void put_row(Operand& operand, int row, const Bf16* values) {
    for (int column = 0; column < operand.in; column += kBf16Depth) {
        const int count = std::min(operand.in - column, kBf16Depth);
        std::memcpy(operand.half_line(row, column), values + column, count * sizeof(Bf16));
    }
}

void put_row(Operand& operand, int row, const float* values) {
    if (operand.halves != nullptr) return put_halves(operand, row, values);
    std::memcpy(operand.floats + static_cast<std::size_t>(row) * operand.depth, values,
                operand.in * sizeof(float));
}

}  // namespace triptych

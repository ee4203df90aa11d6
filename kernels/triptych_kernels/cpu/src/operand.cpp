// Activations, brought into the form that a kernel reads.
#include <cmath>

#include "linear.h"

namespace triptych {
namespace {

void put_halves(Operand& operand, int row, const float* values) {
    for (int column = 0; column < operand.in; column += kLanes) {
        Bf16* to = operand.half_line(row, column) + column % kBf16Depth;
        if (operand.in - column >= kLanes) {
            store(to, load(values + column));
        } else {
            float rest[kLanes] = {};
            std::memcpy(rest, values + column, (operand.in - column) * sizeof(float));
            store(to, load(rest));
        }
    }
}

// One group of up to 128 values: scale = max |x| / 127, bytes to nearest even.
void put_group(Operand& operand, int row, int group, const float* values) {
    float padded[128] = {};
    const int first = group * operand.group;
    const int count = operand.in - first < operand.group ? operand.in - first : operand.group;
    std::memcpy(padded, values + first, count * sizeof(float));

    // As integers, sizes have the same order, and a NaN is the largest: it becomes the scale.
    VInt largest{};
    for (int i = 0; i < operand.group; i += kLanes) {
        largest = max((VInt)abs(load(padded + i)), largest);
    }
    const std::int32_t bits = max_lanes(largest);
    float scale;
    std::memcpy(&scale, &bits, sizeof scale);
    scale /= 127.0f;
    // Below 2^-126 the inverse would not be finite; whatever is that small is 0 here.
    const V inverse = set1(scale >= 0x1p-126f ? 1.0f / scale : 0.0f);

    const std::size_t tile = row / kRowTile, in_tile = row % kRowTile;
    VInt total{};
    for (int i = 0; i < operand.group; i += kLanes) {
        const VInt whole = to_int(round_whole(load(padded + i) * inverse));
        total += whole;
        const std::size_t block = tile * (operand.depth / kInt8Depth) + (first + i) / kInt8Depth;
        std::int8_t* to =
            operand.bytes + (block * kRowTile + in_tile) * kInt8Depth + i % kInt8Depth;
        typedef std::int8_t Bytes __attribute__((vector_size(16)));
        const Bytes bytes = __builtin_convertvector(whole, Bytes);
        std::memcpy(to, &bytes, sizeof bytes);
    }
    std::uint32_t sum = 0;  // of what is no number it is anything; the scale is NaN then
    for (int lane = 0; lane < kLanes; ++lane) sum += static_cast<std::uint32_t>(total[lane]);
    float* scales =
        operand.scales + (tile * operand.groups() + group) * 2 * kRowTile + in_tile;
    scales[0] = scale;
    scales[kRowTile] = scale * static_cast<float>(static_cast<std::int32_t>(sum));
}

}  // namespace

Operand& OperandBuffer::take(const Linear& linear, int rows) {
    Operand& x = operand_;
    x.kind = linear.kind, x.rows = rows;
    x.in = linear.in, x.group = linear.group, x.depth = linear.depth;
    const std::size_t padded = static_cast<std::size_t>(x.tiles()) * kRowTile;
    switch (linear.kind) {
        case Kind::kFloat:
            x.floats = floats_.take(static_cast<std::size_t>(rows) * x.depth);
            break;
        case Kind::kBf16:
            x.halves = halves_.take(padded * x.depth);
            if (x.depth != x.in) std::memset(x.halves, 0, padded * x.depth * sizeof(Bf16));
            break;
        default:
            x.bytes = bytes_.take(padded * x.depth);
            x.scales = scales_.take(padded * x.groups() * 2);
    }
    return x;
}

void put_row(Operand& operand, int row, const float* values) {
    switch (operand.kind) {
        case Kind::kFloat:
            std::memcpy(operand.floats + static_cast<std::size_t>(row) * operand.depth, values,
                        operand.in * sizeof(float));
            break;
        case Kind::kBf16:
            put_halves(operand, row, values);
            break;
        default:
            for (int group = 0; group < operand.groups(); ++group) {
                put_group(operand, row, group, values);
            }
    }
}

}  // namespace triptych

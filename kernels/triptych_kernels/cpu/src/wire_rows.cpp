#include "wire_rows.h"

#include <algorithm>
#include <limits>

#include "export.h"
#include "memory.h"
#include "norms.h"

namespace triptych {
namespace {

typedef std::int8_t Bytes __attribute__((vector_size(16)));

constexpr float kSmallestNormal = std::numeric_limits<float>::min();
constexpr float kLargestInt8 = 127.0f, kLargestFp8 = 448.0f;

// e4m3fn: a sign, 4 bits of exponent with a bias of 7, 3 of mantissa; no ∞, and NaN has all bits.
constexpr int kMagnitude = 0x7f, kNanFp8 = 0x7f, kLargestBits = 0x7e;
constexpr int kMovedMantissa = 23 - 3, kMovedBias = 127 - 7;
constexpr float kSmallestNormalFp8 = 0x1p-6f, kStepOfSubnormal = 0x1p-9f;

VInt load_bytes(const void* from, int count) {
    Bytes bytes{};
    std::memcpy(&bytes, from, std::min(count, kLanes));
    return __builtin_convertvector(bytes, VInt);
}

void store_bytes(void* to, VInt values, int count) {
    const Bytes bytes = __builtin_convertvector(values, Bytes);
    std::memcpy(to, &bytes, std::min(count, kLanes));
}

V from_fp8(VInt bits) {
    const VInt magnitude = bits & kMagnitude;
    const V normal = (V)((magnitude << kMovedMantissa) + (kMovedBias << 23));
    const V subnormal = from_int(magnitude) * set1(kStepOfSubnormal);
    V value = choose(where_above(VInt{} + 8, magnitude), subnormal, normal);
    value = choose(where_same(magnitude, VInt{} + kNanFp8), set1(std::numeric_limits<float>::quiet_NaN()), value);
    return (V)((VInt)value | ((bits & 0x80) << 24));
}

// |x| ≤ 448, give or take a rounding, or NaN.
VInt to_fp8(V x) {
    const V magnitude = abs(x);
    const VInt bits = (VInt)magnitude;
    const VInt even = (bits >> kMovedMantissa) & 1;
    const VInt rounded = bits + ((1 << (kMovedMantissa - 1)) - 1) + even;
    const VInt normal = (rounded >> kMovedMantissa) - (kMovedBias << 3);
    // As a whole number of steps; eight of them are the smallest normal number, bits and all.
    const V few = min(magnitude, set1(kSmallestNormalFp8)) / set1(kStepOfSubnormal);
    VInt code = choose(where_above(set1(kSmallestNormalFp8), magnitude), to_int(round_whole(few)), normal);
    code = choose(where_above(code, VInt{} + kLargestBits), VInt{} + kLargestBits, code);
    code = choose(where_nan(x), VInt{} + kNanFp8, code);
    return code | (((VInt)x >> 24) & 0x80);
}

// The largest magnitude over `largest`; NaN where a number is not finite.
float scale_of(const float* x, int count, float largest) {
    V best{}, zeros{};
    for (int i = 0; i < count; i += kLanes) {
        const V values = load_some(x + i, count - i);
        best = max(best, abs(values));
        zeros += values * set1(0.0f);
    }
    return std::max(max_lanes(best) / largest, kSmallestNormal) + sum_lanes(zeros);
}

void to_int8(const float* x, int size, std::int8_t* to, float* scale) {
    *scale = scale_of(x, size, kLargestInt8);
    const V limit = set1(kLargestInt8);
    for (int i = 0; i < size; i += kLanes) {
        const V steps = load_some(x + i, size - i) / set1(*scale);
        store_bytes(to + i, to_int(round_whole(max(min(steps, limit), -limit))), size - i);
    }
}

void to_fp8(const float* x, int size, std::uint8_t* to, float* scales) {
    for (int first = 0; first < size; first += kFp8Block, ++scales) {
        const int end = std::min(size, first + kFp8Block);
        *scales = scale_of(x + first, end - first, kLargestFp8);
        for (int i = first; i < end; i += kLanes) {
            store_bytes(to + i, to_fp8(load_some(x + i, end - i) / set1(*scales)), end - i);
        }
    }
}

void to_halves(const float* x, int size, Bf16* to) {
    for (int i = 0; i < size; i += kLanes) store_some(to + i, load_some(x + i, size - i), size - i);
}

// A row of any type as float32 [size].
void decode_row(const Shard& shard, std::size_t row, int size, float* to) {
    const auto* bytes = static_cast<const std::uint8_t*>(shard.rows) + row * size;
    const auto* halves = static_cast<const Bf16*>(shard.rows) + row * size;
    const int blocks = (size + kFp8Block - 1) / kFp8Block;
    for (int i = 0; i < size; i += kLanes) {
        V values;
        switch (static_cast<RowType>(shard.row_type)) {
            case RowType::kInt8:
                values = from_int(load_bytes(bytes + i, size - i)) * set1(shard.scales[row]);
                break;
            case RowType::kFp8:
                values = from_fp8(load_bytes(bytes + i, size - i)) *
                         set1(shard.scales[row * blocks + i / kFp8Block]);
                break;
            default: values = load_some(halves + i, size - i);
        }
        store_some(to + i, values, size - i);
    }
}

}  // namespace

void put_wire_row(Operand& to, int row, const Shard& shard, int from) {
    const std::size_t at = static_cast<std::size_t>(from) * to.in;
    const auto type = static_cast<RowType>(shard.row_type);
    if (type == RowType::kFloat) {
        return put_row(to, row, static_cast<const float*>(shard.rows) + at);
    }
    if (type == RowType::kBf16 && to.halves != nullptr) {
        return put_row(to, row, static_cast<const Bf16*>(shard.rows) + at);
    }
    static thread_local Buffer<float> memory;
    float* values = memory.take(to.in);
    decode_row(shard, from, to.in, values);
    put_row(to, row, values);
}

void quantise_row(const float* x, int size, RowType type, void* out, float* scales) {
    switch (type) {
        case RowType::kFloat: std::memcpy(out, x, size * sizeof(float)); break;
        case RowType::kBf16: to_halves(x, size, static_cast<Bf16*>(out)); break;
        case RowType::kInt8: to_int8(x, size, static_cast<std::int8_t*>(out), scales); break;
        case RowType::kFp8: to_fp8(x, size, static_cast<std::uint8_t*>(out), scales); break;
    }
}

void quantise_rows(const float* x, int rows, int size, RowType type, void* out, float* scales) {
    const std::size_t bytes = row_bytes(static_cast<int>(type), size);
    const std::size_t row_has = row_scales(static_cast<int>(type), size);
    for_rows(rows, [&](int row) {
        quantise_row(x + static_cast<std::size_t>(row) * size, size, type,
                     static_cast<std::uint8_t*>(out) + row * bytes, scales + row * row_has);
    });
}

}  // namespace triptych

extern "C" {

TK_EXPORT void tk_quantise_rows(const float* x, int rows, int size, int type, void* out,
                                float* scales) {
    triptych::quantise_rows(x, rows, size, static_cast<triptych::RowType>(type), out, scales);
}

}  // extern "C"

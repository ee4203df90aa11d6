// What happens to sixteen results after another: bias, residual, gate.
#pragma once

#include "linear.h"

namespace triptych {

// x / (1 + e^−x). A wide division is slow: one step of Newton's from 14 bits leaves an error of
// about two units in the last place.
inline V silu(V x) {
    const V bottom = set1(1.0f) + exp(-x);
#if defined(__AVX512F__)
    const V guess = (V)_mm512_rcp14_ps((__m512)bottom);
    return x * fma(guess, fma(-bottom, guess, set1(1.0f)), guess);
#else
    return x / bottom;
#endif
}

// The tanh approximation.
inline V gelu(V x) {
    const V inner = set1(0.7978845608028654f) * (x + set1(0.044715f) * x * x * x);
    return set1(0.5f) * x * (set1(1.0f) + tanh(inner));
}

inline void store_some(float* to, V value, int count) {
    if (count >= kLanes) return store(to, value);
    float lanes[kLanes];
    store(lanes, value);
    if (count > 0) std::memcpy(to, lanes, count * sizeof(float));
}

// first, second: columns [0, 16) and [16, 32) of the panel. Of a gated layer, whose weight is
// packed with gate and up side by side, these are gate and up of the same 16 columns.
inline void finish(const Linear& linear, const Epilogue& to, int row, int panel, V first, V second) {
    if (linear.bias != nullptr) {
        first += load(linear.bias + panel * kPanel);
        second += load(linear.bias + panel * kPanel + kLanes);
    }
    using Action = Epilogue::Action;
    if (to.action == Action::kStore || to.action == Action::kAdd) {
        const int column = panel * kPanel, left = linear.columns - column;
        float* out = to.out + static_cast<std::size_t>(row) * to.stride + column;
        if (left < kPanel) {
            float sums[kPanel] = {};
            if (to.action == Action::kAdd) std::memcpy(sums, out, left * sizeof(float));
            store_some(out, first + load(sums), left);
            store_some(out + kLanes, second + load(sums + kLanes), left - kLanes);
        } else if (to.action == Action::kAdd) {
            store(out, load(out) + first);
            store(out + kLanes, load(out + kLanes) + second);
        } else {
            store(out, first);
            store(out + kLanes, second);
        }
        return;
    }
    const V gated = (to.action == Action::kSiluMul ? silu(first) : gelu(first)) * second;
    const int column = panel * kLanes;
    if (to.next != nullptr) {
        store(to.next->half_line(row, column) + column % kBf16Depth, gated);
    } else {
        store(to.out + static_cast<std::size_t>(row) * to.stride + column, gated);
    }
}

}  // namespace triptych

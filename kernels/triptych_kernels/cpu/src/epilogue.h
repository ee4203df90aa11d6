// What happens to sixteen results after another: bias, residual, gate.
#pragma once

#include "linear.h"

namespace triptych {

// x / (1 + e^−sx). A wide division is slow: one step of Newton's from 14 bits leaves an error of
// about two units in the last place.
inline V silu(V x, float s = 1.0f) {
    const V bottom = set1(1.0f) + exp(-(set1(s) * x));
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

// gpt-oss: gate ≤ 7 and |up| ≤ 7. NaN stays NaN: `min` and `max` give their second argument then.
inline V clamped_swiglu(V gate, V up) {
    const V limit = set1(7.0f);
    return (max(-limit, min(limit, up)) + set1(1.0f)) * silu(min(limit, gate), 1.702f);
}

inline V gated(Epilogue::Action action, V gate, V up) {
    if (action == Epilogue::Action::kSiluMul) return silu(gate) * up;
    if (action == Epilogue::Action::kGeluMul) return gelu(gate) * up;
    return clamped_swiglu(gate, up);
}

template <class Number>
void store_panel(void* row, int column, int left, V first, V second) {
    Number* to = static_cast<Number*>(row) + column;
    store_some(to, first, left);
    store_some(to + kLanes, second, left - kLanes);
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
    if (to.action == Action::kScatter) {
        const Target& target = to.targets[row];
        const int column = panel * kPanel, left = linear.columns - column;
        if (target.halves) return store_panel<Bf16>(target.row, column, left, first, second);
        return store_panel<float>(target.row, column, left, first, second);
    }
    const V values = gated(to.action, first, second);
    const int column = panel * kLanes;
    if (to.next != nullptr) {
        store(to.next->half_line(row, column) + column % kBf16Depth, values);
    } else {
        store(to.out + static_cast<std::size_t>(row) * to.stride + column, values);
    }
}

}  // namespace triptych

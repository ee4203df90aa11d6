// RMS norms of rows, and what else is done row by row.
#pragma once

#include <algorithm>
#include <cmath>

#include "pool.h"
#include "simd.h"

namespace triptych {

constexpr int kRowsOfTask = 8;

// body(row) for all rows; a few are not worth waking anybody.
template <class Body>
void for_rows(int rows, Body&& body) {
    parallel_for((rows + kRowsOfTask - 1) / kRowsOfTask, [&](int task) {
        const int end = std::min(rows, (task + 1) * kRowsOfTask);
        for (int row = task * kRowsOfTask; row < end; ++row) body(row);
    });
}

inline float value_of(float x) { return x; }
inline float value_of(Bf16 x) { return to_float(x); }

// out may be x.
template <class Number>
void rms_norm(const Number* x, int size, const float* weight, float eps, float* out) {
    V squares{};
    int i = 0;
    for (; i + kLanes <= size; i += kLanes) squares = fma(load(x + i), load(x + i), squares);
    float sum = sum_lanes(squares);
    for (; i < size; ++i) sum = __builtin_fmaf(value_of(x[i]), value_of(x[i]), sum);
    const float factor = 1.0f / std::sqrt(sum / static_cast<float>(size) + eps);
    for (i = 0; i < size; ++i) out[i] = value_of(x[i]) * factor * weight[i];
}

// Rotates two halves (GPT-NeoX), of a head or of its beginning.
inline void rotate_halves(float* head, int dim, const float* cosines, const float* sines) {
    const int half = dim / 2;
    for (int i = 0; i < half; ++i) {
        const float first = head[i], second = head[half + i];
        head[i] = first * cosines[i] - second * sines[i];
        head[half + i] = second * cosines[i] + first * sines[i];
    }
}

}  // namespace triptych

// What sampling needs of sixteen lanes beside simd.h: choices, and an exponential that torch can
// repeat to the bit.
#pragma once

#include <algorithm>
#include <cstdint>

#include "simd.h"

namespace triptych {

using Mask = std::uint32_t;  // bit l: lane l, 16 bits

#if defined(__AVX512F__)
inline Mask above(V a, V b) { return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_GT_OQ); }

inline Mask at_least(V a, V b) { return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_GE_OQ); }

inline Mask equal(V a, V b) { return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_EQ_OQ); }
#else
inline Mask sign_bits(VInt x) {
    __m256 halves[2];
    std::memcpy(halves, &x, sizeof x);
    const int low = _mm256_movemask_ps(halves[0]), high = _mm256_movemask_ps(halves[1]);
    return static_cast<Mask>(low | high << 8);
}

inline Mask above(V a, V b) { return sign_bits(a > b); }

inline Mask at_least(V a, V b) { return sign_bits(a >= b); }

inline Mask equal(V a, V b) { return sign_bits(a == b); }
#endif

// The lanes below `count`.
inline Mask first_lanes(int count) { return count >= kLanes ? 0xFFFFu : (1u << count) - 1; }

// first, first + 1, …
inline VInt count_from(int first) {
    return first + VInt{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
}

inline VInt load(const int* from) {
    VInt values;
    std::memcpy(&values, from, sizeof values);
    return values;
}

// The first min(count, 16) floats, `rest` behind them.
inline V load_some(const float* from, int count, float rest) {
    if (count >= kLanes) return load(from);
    float values[kLanes];
    std::fill(std::copy(from, from + count, values), values + kLanes, rest);
    return load(values);
}

// 2^bits · e^gap for gap in [−30, 0] (others are clamped, a NaN counts as −30), right to an ulp or
// so. Every step is one rounded float32 operation, none is fused, and torch takes the same ones.
inline V scaled_exp(V gap, int bits) {
    gap = min(max(gap, set1(-30.0f)), set1(0.0f));
    const V n = round_whole(gap * set1(0x1.715476p+0f));
    // ln 2 in two parts; n times the first is exact.
    const V r = gap - n * set1(0x1.62e4p-1f) - n * set1(0x1.7f7d1cp-20f);
    V p = set1(0x1.a01a02p-13f);  // 1/5040, and so on down Taylor's series
    for (const float term : {0x1.6c16c2p-10f, 0x1.111112p-7f, 0x1.555556p-5f, 0x1.555556p-3f,
                             0.5f, 1.0f, 1.0f}) {
        p = p * r + set1(term);
    }
    return p * (V)((to_int(n) + (bits + 127)) << 23);
}

}  // namespace triptych

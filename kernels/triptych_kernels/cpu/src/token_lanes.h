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
// Two registers at a time; left to the compiler, comparisons of wider vectors fall apart into single
// numbers.
template <int kHow>
inline Mask compare(V a, V b) {
    __m256 x[2], y[2];
    std::memcpy(x, &a, sizeof a);
    std::memcpy(y, &b, sizeof b);
    const int low = _mm256_movemask_ps(_mm256_cmp_ps(x[0], y[0], kHow));
    const int high = _mm256_movemask_ps(_mm256_cmp_ps(x[1], y[1], kHow));
    return static_cast<Mask>(low | high << 8);
}

inline Mask above(V a, V b) { return compare<_CMP_GT_OQ>(a, b); }

inline Mask at_least(V a, V b) { return compare<_CMP_GE_OQ>(a, b); }

inline Mask equal(V a, V b) { return compare<_CMP_EQ_OQ>(a, b); }
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

// Writes the lanes in `chosen` side by side; returns how many. All sixteen places may be written.
inline int pick(V logits, VInt tokens, Mask chosen, float* to_logits, int* to_tokens) {
#if defined(__AVX512F__)
    const auto mask = static_cast<__mmask16>(chosen);
    _mm512_storeu_ps(to_logits, _mm512_maskz_compress_ps(mask, (__m512)logits));
    _mm512_storeu_si512(to_tokens, _mm512_maskz_compress_epi32(mask, (__m512i)tokens));
    return __builtin_popcount(chosen);
#else
    float logit[kLanes];
    int token[kLanes];
    std::memcpy(logit, &logits, sizeof logit);
    std::memcpy(token, &tokens, sizeof token);
    int count = 0;
    for (Mask rest = chosen; rest != 0; rest &= rest - 1, ++count) {
        to_logits[count] = logit[__builtin_ctz(rest)];
        to_tokens[count] = token[__builtin_ctz(rest)];
    }
    return count;
#endif
}

// 2^bits · e^gap for gap in [−30, 0]; what is lower or a NaN counts as −30. Relative error below
// 4e-6 for the lowest and 3e-7 near 0, where it is 1 exactly. Every step is one rounded float32
// operation, none is fused, and torch takes the same ones.
inline V scaled_exp(V gap, int bits) {
    const V power = max(gap, set1(-30.0f)) * set1(0x1.715476p+0f);
    const V n = round_whole(power);
    const V f = power - n;
    V p = set1(0x1.5bba14p-10f);  // 2^f on [−½, ½]
    p = p * f + set1(0x1.3cea88p-7f);
    p = p * f + set1(0x1.c6b752p-5f);
    p = p * f + set1(0x1.ebf9bcp-3f);
    p = p * f + set1(0x1.62e42ap-1f);
    p = p * f + set1(1.0f);
    return p * (V)((to_int(n) + (bits + 127)) << 23);
}

}  // namespace triptych

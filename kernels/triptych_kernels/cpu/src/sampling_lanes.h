// Sixteen floats at a time, with the same roundings at every instruction level: additions and
// products are never fused, so the torch twins can repeat each bit.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace triptych::lanes {

constexpr int kLanes = 16;
using Mask = std::uint16_t;  // bit l: lane l

inline std::uint32_t bits_of(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

inline float float_of(std::uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

#if defined(__AVX512F__)

struct Floats {
    __m512 v;
};

inline Floats load(const float* from) { return {_mm512_loadu_ps(from)}; }
inline Floats load_some(const float* from, int count, float rest) {
    const auto mask = static_cast<__mmask16>((1u << count) - 1);
    return {_mm512_mask_loadu_ps(_mm512_set1_ps(rest), mask, from)};
}
inline void store(float* to, Floats a) { _mm512_storeu_ps(to, a.v); }
inline Floats splat(float value) { return {_mm512_set1_ps(value)}; }
inline Floats operator+(Floats a, Floats b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Floats operator-(Floats a, Floats b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Floats operator*(Floats a, Floats b) { return {_mm512_mul_ps(a.v, b.v)}; }
// The second operand where the first is not a number; the instructions are defined so.
inline Floats larger(Floats a, Floats b) { return {_mm512_max_ps(a.v, b.v)}; }
inline Floats smaller(Floats a, Floats b) { return {_mm512_min_ps(a.v, b.v)}; }
inline Mask above(Floats a, Floats b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ); }
inline Mask at_least(Floats a, Floats b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_GE_OQ); }
// 2^n · 2^bias for the whole number n that sits in the low bits of `shifted`, see weight_floats.
inline Floats power_of_two(Floats shifted, std::uint32_t bias) {
    const __m512i sum = _mm512_add_epi32(_mm512_castps_si512(shifted.v), _mm512_set1_epi32(bias));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(sum, 23))};
}

#else

struct Floats {
    float v[kLanes];
};

template <class Op>
inline Floats each(Op op) {
    Floats out;
    for (int l = 0; l < kLanes; ++l) out.v[l] = op(l);
    return out;
}

template <class Op>
inline Mask each_bit(Op op) {
    unsigned mask = 0;
    for (int l = 0; l < kLanes; ++l) mask |= static_cast<unsigned>(op(l)) << l;
    return static_cast<Mask>(mask);
}

inline Floats load(const float* from) {
    return each([&](int l) { return from[l]; });
}
inline Floats load_some(const float* from, int count, float rest) {
    return each([&](int l) { return l < count ? from[l] : rest; });
}
inline void store(float* to, const Floats& a) { std::memcpy(to, a.v, sizeof a.v); }
inline Floats splat(float value) {
    return each([&](int) { return value; });
}
inline Floats operator+(const Floats& a, const Floats& b) {
    return each([&](int l) { return a.v[l] + b.v[l]; });
}
inline Floats operator-(const Floats& a, const Floats& b) {
    return each([&](int l) { return a.v[l] - b.v[l]; });
}
inline Floats operator*(const Floats& a, const Floats& b) {
    return each([&](int l) { return a.v[l] * b.v[l]; });
}
inline Floats larger(const Floats& a, const Floats& b) {
    return each([&](int l) { return a.v[l] > b.v[l] ? a.v[l] : b.v[l]; });
}
inline Floats smaller(const Floats& a, const Floats& b) {
    return each([&](int l) { return a.v[l] < b.v[l] ? a.v[l] : b.v[l]; });
}
inline Mask above(const Floats& a, const Floats& b) {
    return each_bit([&](int l) { return a.v[l] > b.v[l]; });
}
inline Mask at_least(const Floats& a, const Floats& b) {
    return each_bit([&](int l) { return a.v[l] >= b.v[l]; });
}
inline Floats power_of_two(const Floats& shifted, std::uint32_t bias) {
    return each([&](int l) { return float_of((bits_of(shifted.v[l]) + bias) << 23); });
}

#endif

// e^gap · 2^scale_bits for gap in [−30, 0] (anything else is clamped, no number counts as −30);
// 1 ulp or so. Every step is one rounded float32 operation, and the torch twin takes the same ones.
inline Floats exp_scaled(Floats gap, int scale_bits) {
    constexpr float kRound = 0x1.8p23f;  // added: the sum's low bits are the nearest whole number
    gap = smaller(larger(gap, splat(-30.0f)), splat(0.0f));
    const Floats shifted = gap * splat(0x1.715476p+0f) + splat(kRound);
    const Floats n = shifted - splat(kRound);
    // ln 2 in two parts; n times the first is exact.
    const Floats r = gap - n * splat(0x1.62e4p-1f) - n * splat(0x1.7f7d1cp-20f);
    Floats p = splat(0x1.a01a02p-13f);  // 1/5040, and so on down Taylor's series
    p = p * r + splat(0x1.6c16c2p-10f);
    p = p * r + splat(0x1.111112p-7f);
    p = p * r + splat(0x1.555556p-5f);
    p = p * r + splat(0x1.555556p-3f);
    p = p * r + splat(0.5f);
    p = p * r + splat(1.0f);
    p = p * r + splat(1.0f);
    return p * power_of_two(shifted, static_cast<std::uint32_t>(scale_bits + 127));
}

}  // namespace triptych::lanes

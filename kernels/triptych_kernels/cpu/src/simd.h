// Sixteen floats at a time, on every level: one AVX-512 register, or two of AVX2.
//
// GCC's vector types do the plain arithmetic. What they lack is here, and each function gives the
// same bits on every level: products are fused with sums exactly where `fma` says so (the build
// forbids the compiler to do it by itself), and nothing calls the C library.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace triptych {

constexpr int kLanes = 16;

typedef float V __attribute__((vector_size(64)));
typedef std::int32_t VInt __attribute__((vector_size(64)));
typedef std::uint16_t VHalf __attribute__((vector_size(32)));

// A bfloat16 as it lies in memory: the upper half of a float.
typedef std::uint16_t Bf16;

inline V load(const float* from) {
    V value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

#if defined(__AVX512F__)

inline void store(float* to, V value) { std::memcpy(to, &value, sizeof value); }

inline V set1(float value) { return (V)_mm512_set1_ps(value); }

// a > b ? a : b, so the second where one is NaN; min likewise.
inline V max(V a, V b) { return (V)_mm512_max_ps((__m512)a, (__m512)b); }

inline V min(V a, V b) { return (V)_mm512_min_ps((__m512)a, (__m512)b); }

#else

// In two stores: of a copy of 64 bytes the compiler makes a round trip over the stack, in pieces of
// eight.
__attribute__((always_inline)) inline void store(float* to, V value) {
    __m256 halves[2];
    std::memcpy(halves, &value, sizeof value);
    _mm256_storeu_ps(to, halves[0]);
    _mm256_storeu_ps(to + 8, halves[1]);
}

inline V set1(float value) {
    return V{value, value, value, value, value, value, value, value,
             value, value, value, value, value, value, value, value};
}

// The compiler makes sixteen scalar steps of a > b ? a : b. And it calls what it could inline: V's of
// two registers are then passed in memory.
__attribute__((always_inline)) inline V max(V a, V b) {
    __m256 x[2], y[2];
    std::memcpy(x, &a, 64);
    std::memcpy(y, &b, 64);
    for (int i = 0; i < 2; ++i) x[i] = _mm256_max_ps(x[i], y[i]);
    std::memcpy(&a, x, 64);
    return a;
}

__attribute__((always_inline)) inline V min(V a, V b) {
    __m256 x[2], y[2];
    std::memcpy(x, &a, 64);
    std::memcpy(y, &b, 64);
    for (int i = 0; i < 2; ++i) x[i] = _mm256_min_ps(x[i], y[i]);
    std::memcpy(&a, x, 64);
    return a;
}

#endif

// a × b + c, rounded once.
__attribute__((always_inline)) inline V fma(V a, V b, V c) {
#if defined(__AVX512F__)
    return (V)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#else
    __m256 x[2], y[2], z[2];
    std::memcpy(x, &a, 64);
    std::memcpy(y, &b, 64);
    std::memcpy(z, &c, 64);
    for (int i = 0; i < 2; ++i) z[i] = _mm256_fmadd_ps(x[i], y[i], z[i]);
    std::memcpy(&c, z, 64);
    return c;
#endif
}

inline V from_int(VInt x) { return __builtin_convertvector(x, V); }

inline VInt to_int(V whole) { return __builtin_convertvector(whole, VInt); }

inline V abs(V x) { return (V)((VInt)x & 0x7fffffff); }

// The sum of all lanes: halves are added, then quarters, then pairs.
inline float sum_lanes(V x) {
    float lanes[kLanes];
    store(lanes, x);
    for (int width = kLanes / 2; width > 0; width /= 2) {
        for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
    }
    return lanes[0];
}

inline float max_lanes(V x) {
#if defined(__AVX512F__)
    return _mm512_reduce_max_ps((__m512)x);
#else
    float lanes[kLanes];
    store(lanes, x);
    for (int width = kLanes / 2; width > 0; width /= 2) {
        for (int i = 0; i < width; ++i) {
            lanes[i] = lanes[i] > lanes[i + width] ? lanes[i] : lanes[i + width];
        }
    }
    return lanes[0];
#endif
}

// Masks: each lane has all bits or none. Of comparisons, of ?: and of shuffles of V's the compiler makes
// sixteen scalar steps on AVX2.
#if defined(__AVX512F__)

inline VInt where_above(V a, V b) { return a > b; }
inline VInt where_at_most(V a, V b) { return a <= b; }
inline VInt where_above(VInt a, VInt b) { return a > b; }
inline VInt where_same(VInt a, VInt b) { return a == b; }
inline VInt where_nan(V x) { return x != x; }
inline VInt choose(VInt mask, VInt a, VInt b) { return mask ? a : b; }
inline bool any(VInt mask) {
    return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) != 0;
}

#else

template <int kHow>
__attribute__((always_inline)) inline VInt where_compared(V a, V b) {
    __m256 x[2], y[2];
    std::memcpy(x, &a, 64);
    std::memcpy(y, &b, 64);
    for (int i = 0; i < 2; ++i) x[i] = _mm256_cmp_ps(x[i], y[i], kHow);
    std::memcpy(&a, x, 64);
    return (VInt)a;
}

__attribute__((always_inline)) inline VInt where_above(V a, V b) { return where_compared<_CMP_GT_OQ>(a, b); }

__attribute__((always_inline)) inline VInt where_at_most(V a, V b) { return where_compared<_CMP_LE_OQ>(a, b); }

__attribute__((always_inline)) inline VInt where_nan(V x) { return where_compared<_CMP_UNORD_Q>(x, x); }

__attribute__((always_inline)) inline VInt where_above(VInt a, VInt b) {
    __m256i x[2], y[2];
    std::memcpy(x, &a, 64);
    std::memcpy(y, &b, 64);
    for (int i = 0; i < 2; ++i) x[i] = _mm256_cmpgt_epi32(x[i], y[i]);
    std::memcpy(&a, x, 64);
    return a;
}

__attribute__((always_inline)) inline VInt where_same(VInt a, VInt b) {
    return ~(where_above(a, b) | where_above(b, a));
}

__attribute__((always_inline)) inline VInt choose(VInt mask, VInt a, VInt b) {
    return (mask & a) | (~mask & b);
}

// Whether some lane of a mask is set.
__attribute__((always_inline)) inline bool any(VInt mask) {
    __m256i halves[2];
    std::memcpy(halves, &mask, 64);
    const __m256i both = _mm256_or_si256(halves[0], halves[1]);
    return !_mm256_testz_si256(both, both);
}

#endif

// Lanes with a NaN among `count` numbers, a multiple of sixteen.
inline VInt where_any_nan(const float* from, int count) {
#if defined(__AVX512F__)
    VInt found{};
    for (int i = 0; i < count; i += kLanes) found |= where_nan(load(from + i));
    return found;
#else
    __m256 halves[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
    for (int i = 0; i < count; i += kLanes) {
        for (int half = 0; half < 2; ++half) {
            const __m256 x = _mm256_loadu_ps(from + i + 8 * half);
            halves[half] = _mm256_or_ps(halves[half], _mm256_cmp_ps(x, x, _CMP_UNORD_Q));
        }
    }
    VInt found;
    std::memcpy(&found, halves, sizeof found);
    return found;
#endif
}

// mask ? a : b
__attribute__((always_inline)) inline V choose(VInt mask, V a, V b) {
    return (V)choose(mask, (VInt)a, (VInt)b);
}

// Whether a > b in some lane. A NaN is not above anything, and hides no other lane.
__attribute__((always_inline)) inline bool any_above(V a, V b) { return any(where_above(a, b)); }

// Rounds to nearest even; a NaN stays one.
inline VHalf to_bf16(V value) {
#if defined(__AVX512BF16__)
    return (VHalf)_mm512_cvtneps_pbh((__m512)value);
#else
    const VInt bits = (VInt)value;
    const VInt rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    const VInt kept = choose(where_nan(value), (bits >> 16) | 0x40, rounded);
    return __builtin_convertvector(kept, VHalf);
#endif
}

inline V from_bf16(VHalf halves) {
    typedef std::uint32_t Words __attribute__((vector_size(64)));
    return (V)(__builtin_convertvector(halves, Words) << 16);
}

inline V load(const Bf16* from) {
    VHalf halves;
    std::memcpy(&halves, from, sizeof halves);
    return from_bf16(halves);
}

inline void store(Bf16* to, V value) {
    const VHalf halves = to_bf16(value);
    std::memcpy(to, &halves, sizeof halves);
}

// The first `count` of sixteen, zeros behind them; all if there are more.
template <class Number>
V load_some(const Number* from, int count) {
    if (count >= kLanes) return load(from);
    Number lanes[kLanes] = {};
    if (count > 0) std::memcpy(lanes, from, count * sizeof(Number));
    return load(lanes);
}

// Likewise: the others stay as they are.
template <class Number>
void store_some(Number* to, V value, int count) {
    if (count >= kLanes) return store(to, value);
    Number lanes[kLanes];
    store(lanes, value);
    if (count > 0) std::memcpy(to, lanes, count * sizeof(Number));
}

inline float to_float(Bf16 half) {
    const std::uint32_t bits = std::uint32_t{half} << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

// Sixteen IEEE half-precision numbers.
inline V load_f16(const std::uint16_t* from) {
#if defined(__AVX512F__)
    return (V)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)from));
#else
    const __m256 halves[2] = {_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)from)),
                              _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(from + 8)))};
    V value;
    std::memcpy(&value, halves, 64);
    return value;
#endif
}

// To the nearest whole number, ties to even, for |x| < 2^22.
inline V round_whole(V x) {
    const V magic = set1(0x1.8p23f);
    return (x + magic) - magic;
}

// 2^x; 0 for x < -126 and for -∞. A polynomial of degree 6 on [-1/2, 1/2], relative error 2e-9
// before rounding.
inline V exp2(V x) {
    const V inside = min(set1(127.0f), max(set1(-126.0f), x));  // in this order a NaN stays one
    const V n = round_whole(inside);
    const V f = inside - n;
    V p = set1(0x1.41fbbcp-13f);
    p = fma(p, f, set1(0x1.5f3e52p-10f));
    p = fma(p, f, set1(0x1.3b2d4cp-7f));
    p = fma(p, f, set1(0x1.c6aee8p-5f));
    p = fma(p, f, set1(0x1.ebfbdcp-3f));
    p = fma(p, f, set1(0x1.62e430p-1f));
    p = fma(p, f, set1(1.0f));
#if defined(__AVX512F__)
    const V power = (V)_mm512_scalef_ps((__m512)p, (__m512)n);
    return (V)_mm512_maskz_mov_ps(
        _mm512_cmp_ps_mask((__m512)x, _mm512_set1_ps(-126.0f), _CMP_NLT_UQ), (__m512)power);
#else
    const V power = (V)((to_int(n) + 127) << 23);
    return choose(where_above(set1(-126.0f), x), V{}, p * power);
#endif
}

// 2^x for x ≤ 0: exactly 0 below −127, NaN for NaN. Degree 6 as above; degree 4 has a relative error
// of 3e-6, for what is rounded to bfloat16 anyway.
template <int kDegree>
__attribute__((always_inline)) inline V exp2_below_zero(V x) {
    static_assert(kDegree == 4 || kDegree == 6);
    x = max(set1(-127.0f), x);
    const V shifted = x + set1(0x1.8p23f);  // its lowest bits are the whole part
    const V f = x - (shifted - set1(0x1.8p23f));
    V p;
    if (kDegree == 6) {
        p = fma(set1(0x1.41fbbcp-13f), f, set1(0x1.5f3e52p-10f));
        p = fma(p, f, set1(0x1.3b2d4cp-7f));
        p = fma(p, f, set1(0x1.c6aee8p-5f));
        p = fma(p, f, set1(0x1.ebfbdcp-3f));
        p = fma(p, f, set1(0x1.62e430p-1f));
    } else {
        p = fma(set1(0x1.3a02ccp-7f), f, set1(0x1.c9fc46p-5f));
        p = fma(p, f, set1(0x1.ec0378p-3f));
        p = fma(p, f, set1(0x1.62e12cp-1f));
    }
    p = fma(p, f, set1(1.0f));
    return (V)((VInt)p + ((VInt)shifted << 23));  // the whole part is added to the exponent
}

inline V exp(V x) { return exp2(x * set1(0x1.715476p+0f)); }

// 1 − 2 / (1 + e^2x): exact to a rounding of 1.
inline V tanh(V x) { return set1(1.0f) - set1(2.0f) / (set1(1.0f) + exp(x + x)); }

}  // namespace triptych

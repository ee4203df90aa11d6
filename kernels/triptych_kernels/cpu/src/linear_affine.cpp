// int4 and int8 weights become bfloat16 when they are used: one kernel for all, with one set of bits
// for any number of rows, and rows that share a step share the unpacking.
#include "linear.h"

namespace triptych {
namespace {

constexpr int kPairs = kBf16Depth / 2;  // rows of a tile, two K each

// Lanes of X and of Y: each column's value twice.
struct Doubled {
    V x, y;
};

Doubled load_doubled(const std::uint16_t* from) {
    const V values = load_f16(from);
#if defined(__AVX512F__)
    const __m512i lower = _mm512_set_epi32(7, 7, 6, 6, 5, 5, 4, 4, 3, 3, 2, 2, 1, 1, 0, 0);
    const __m512i upper = _mm512_add_epi32(lower, _mm512_set1_epi32(8));
    return {(V)_mm512_permutexvar_ps(lower, (__m512)values),
            (V)_mm512_permutexvar_ps(upper, (__m512)values)};
#else
    Doubled result;
    for (int lane = 0; lane < kLanes; ++lane) {
        result.x[lane] = values[lane / 2];
        result.y[lane] = values[8 + lane / 2];
    }
    return result;
#endif
}

inline void store_pair(Bf16* to, V x, V y) {
#if defined(__AVX512BF16__)
    _mm512_storeu_si512(to, (__m512i)_mm512_cvtne2ps_pbh((__m512)y, (__m512)x));
#else
    store(to, x);
    store(to + kLanes, y);
#endif
}

// Nibble `index` of each lane, as a float.
inline V nibbles(VInt words, int index) {
#if defined(__AVX512F__)
    // A table is looked up by exactly the lowest four bits: no mask, no conversion.
    const __m512 table = _mm512_set_ps(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    return (V)_mm512_permutexvar_ps(_mm512_srli_epi32((__m512i)words, 4 * index), table);
#else
    return from_int((words >> (4 * index)) & 15);
#endif
}

inline V bytes(const std::uint8_t* from) {
#if defined(__AVX512F__)
    return (V)_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)from)));
#else
    V lanes;
    for (int lane = 0; lane < kLanes; ++lane) lanes[lane] = from[lane];
    return lanes;
#endif
}

void unpack_int4(const std::uint8_t* from, const Doubled& scale, const Doubled& low, Bf16* tile) {
    for (int upper = 0; upper < 2; ++upper, from += 128) {
        VInt x, y;
        std::memcpy(&x, from, sizeof x);
        std::memcpy(&y, from + 64, sizeof y);
#pragma GCC unroll 8
        for (int pair = 0; pair < kPairs / 2; ++pair, tile += 2 * kLanes) {
            store_pair(tile, fma(scale.x, nibbles(x, pair), low.x),
                       fma(scale.y, nibbles(y, pair), low.y));
        }
    }
}

void unpack_int8(const std::uint8_t* from, const Doubled& scale, const Doubled& low, Bf16* tile) {
    for (int pair = 0; pair < kPairs; ++pair, from += 2 * kLanes, tile += 2 * kLanes) {
        store_pair(tile, fma(scale.x, bytes(from), low.x),
                   fma(scale.y, bytes(from + kLanes), low.y));
    }
}

}  // namespace

void unpack_step(const Linear& linear, int panel, int step, Bf16* tiles) {
    const int steps_of_group = linear.group / kBf16Depth, size = block_bytes(linear.kind);
    const std::size_t bytes = half_bytes(linear);
    const std::uint8_t* at =
        linear.panel(panel) + step / steps_of_group * 2 * bytes;
    for (int half = 0; half < 2; ++half, at += bytes, tiles += kRowTile * kBf16Depth) {
        const Doubled scale = load_doubled(reinterpret_cast<const std::uint16_t*>(at));
        const Doubled low = load_doubled(reinterpret_cast<const std::uint16_t*>(at + 32));
        const std::uint8_t* block = at + kScaleBytes + step % steps_of_group * size;
        // It comes from DRAM, across pages that the CPU's own prefetcher will not cross.
        for (int line = 0; line < size + kScaleBytes; line += 64) {
            _mm_prefetch(reinterpret_cast<const char*>(block) + 4096 + line, _MM_HINT_T0);
        }
        if (linear.kind == Kind::kInt4) {
            unpack_int4(block, scale, low, tiles);
        } else {
            unpack_int8(block, scale, low, tiles);
        }
    }
}

}  // namespace triptych

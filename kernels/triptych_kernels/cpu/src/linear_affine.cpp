// int4 and int8 weights become bfloat16 when they are used: one kernel for all, with one set of bits
// for any number of rows, and rows that share a step share the unpacking.
#include "linear.h"

namespace triptych {
namespace {

constexpr int kPairs = kBf16Depth / 2;  // rows of a tile, two K each

#if defined(__AVX512F__)

// Lanes of X and of Y: each column's value twice.
struct Doubled {
    V x, y;
};

Doubled load_doubled(const std::uint16_t* from) {
    const __m512 values = (__m512)load_f16(from);
    const __m512i lower = _mm512_set_epi32(7, 7, 6, 6, 5, 5, 4, 4, 3, 3, 2, 2, 1, 1, 0, 0);
    const __m512i upper = _mm512_add_epi32(lower, _mm512_set1_epi32(8));
    return {(V)_mm512_permutexvar_ps(lower, values), (V)_mm512_permutexvar_ps(upper, values)};
}

inline void store_pair(Bf16* to, V x, V y) {
#if defined(__AVX512BF16__)
    _mm512_storeu_si512(to, (__m512i)_mm512_cvtne2ps_pbh((__m512)y, (__m512)x));
#else
    store(to, x);
    store(to + kLanes, y);
#endif
}

// Nibble `index` of each lane, as a float. A table is looked up by exactly the lowest four bits: no
// mask, no conversion.
inline V nibbles(VInt words, int index) {
    const __m512 table = _mm512_set_ps(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    return (V)_mm512_permutexvar_ps(_mm512_srli_epi32((__m512i)words, 4 * index), table);
}

inline V bytes(const std::uint8_t* from) {
    return (V)_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)from)));
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

#else

// The same in registers of eight lanes: the compiler takes what is written for sixteen apart into
// scalars where lanes change their width.
constexpr int kQuarters = 4;  // X, then Y

struct Doubled {
    __m256 quarters[kQuarters];
};

Doubled load_doubled(const std::uint16_t* from) {
    const __m256i lower = _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3);
    const __m256i upper = _mm256_setr_epi32(4, 4, 5, 5, 6, 6, 7, 7);
    Doubled result;
    for (int half = 0; half < 2; ++half, from += 8) {
        const __m256 values = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)from));
        result.quarters[2 * half] = _mm256_permutevar8x32_ps(values, lower);
        result.quarters[2 * half + 1] = _mm256_permutevar8x32_ps(values, upper);
    }
    return result;
}

// See to_bf16; each in the lower half of its lane.
inline __m256i rounded(__m256 value) {
    const __m256i bits = _mm256_castps_si256(value), upper = _mm256_srli_epi32(bits, 16);
    const __m256i odd = _mm256_and_si256(upper, _mm256_set1_epi32(1));
    const __m256i sum =
        _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
    const __m256i quiet = _mm256_or_si256(upper, _mm256_set1_epi32(0x40));
    const __m256 is_nan = _mm256_cmp_ps(value, value, _CMP_UNORD_Q);
    return _mm256_blendv_epi8(_mm256_srli_epi32(sum, 16), quiet, _mm256_castps_si256(is_nan));
}

// fma(scale, q, low) of a pair: 32 weights.
inline void store_pair(Bf16* to, const __m256i (&q)[kQuarters], const Doubled& scale,
                       const Doubled& low) {
    __m256i halves[kQuarters];
    for (int i = 0; i < kQuarters; ++i) {
        halves[i] = rounded(
            _mm256_fmadd_ps(scale.quarters[i], _mm256_cvtepi32_ps(q[i]), low.quarters[i]));
    }
    for (int i = 0; i < kQuarters; i += 2) {  // packing keeps lanes of 128 bits apart
        const __m256i packed = _mm256_packus_epi32(halves[i], halves[i + 1]);
        _mm256_storeu_si256((__m256i*)(to + 8 * i), _mm256_permute4x64_epi64(packed, 0xd8));
    }
}

void unpack_int4(const std::uint8_t* from, const Doubled& scale, const Doubled& low, Bf16* tile) {
    for (int upper = 0; upper < 2; ++upper, from += 128) {
        __m256i words[kQuarters], q[kQuarters];
        std::memcpy(words, from, sizeof words);
        for (int pair = 0; pair < kPairs / 2; ++pair, tile += 2 * kLanes) {
            for (int i = 0; i < kQuarters; ++i) {
                q[i] = _mm256_and_si256(words[i], _mm256_set1_epi32(15));
                words[i] = _mm256_srli_epi32(words[i], 4);
            }
            store_pair(tile, q, scale, low);
        }
    }
}

void unpack_int8(const std::uint8_t* from, const Doubled& scale, const Doubled& low, Bf16* tile) {
    for (int pair = 0; pair < kPairs; ++pair, tile += 2 * kLanes) {
        __m256i q[kQuarters];
        for (int i = 0; i < kQuarters; ++i, from += 8) {
            q[i] = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)from));
        }
        store_pair(tile, q, scale, low);
    }
}

#endif

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

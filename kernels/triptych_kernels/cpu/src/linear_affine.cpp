// int4 and int8 weights become bfloat16 when they are used: one kernel for all, with one set of bits
// for any number of rows, and rows that share a step share the unpacking.
#include "linear.h"
#include "products.h"

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

void unpack(Kind kind, const std::uint8_t* from, const Doubled& scale, const Doubled& low,
            Bf16* tile) {
    (kind == Kind::kInt4 ? unpack_int4 : unpack_int8)(from, scale, low, tile);
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

// See to_bf16; in the upper halves of lanes, with something else in the lower ones.
template <bool kFinite>
inline __m256i rounded(__m256 value) {
    const __m256i bits = _mm256_castps_si256(value);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i sum =
        _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
    if (kFinite) return sum;
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256 is_nan = _mm256_cmp_ps(value, value, _CMP_UNORD_Q);
    return _mm256_blendv_epi8(sum, quiet, _mm256_castps_si256(is_nan));
}

// fma(scale, q, low), rounded: the 32 weights of a pair. kFinite: none of them can be a NaN.
template <bool kFinite>
struct Weights {
    __m256i quarters[kQuarters];

    Weights(const __m256i (&q)[kQuarters], const Doubled& scale, const Doubled& low) {
        for (int i = 0; i < kQuarters; ++i) {
            const __m256 value = _mm256_cvtepi32_ps(q[i]);
            quarters[i] = rounded<kFinite>(
                _mm256_fmadd_ps(scale.quarters[i], value, low.quarters[i]));
        }
    }
};

// Calls take(pair, weights) for the pairs of a block, in the order of K.
template <bool kFinite, class Take>
__attribute__((always_inline)) inline void each_pair(Kind kind, const std::uint8_t* from,
                                                     const Doubled& scale, const Doubled& low,
                                                     Take take) {
    __m256i q[kQuarters];
    if (kind == Kind::kInt8) {
        for (int pair = 0; pair < kPairs; ++pair) {
            for (int i = 0; i < kQuarters; ++i, from += 8) {
                q[i] = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)from));
            }
            take(pair, Weights<kFinite>(q, scale, low));
        }
        return;
    }
    for (int first = 0; first < kPairs; first += kPairs / 2, from += 128) {
        __m256i words[kQuarters];
        std::memcpy(words, from, sizeof words);
#pragma GCC unroll 8
        for (int pair = 0; pair < kPairs / 2; ++pair) {
            for (int i = 0; i < kQuarters; ++i) {
                q[i] = _mm256_and_si256(_mm256_srli_epi32(words[i], 4 * pair),
                                        _mm256_set1_epi32(15));
            }
            take(first + pair, Weights<kFinite>(q, scale, low));
        }
    }
}

void unpack(Kind kind, const std::uint8_t* from, const Doubled& scale, const Doubled& low,
            Bf16* tile) {
    each_pair<false>(kind, from, scale, low, [tile](int pair, const Weights<false>& weights) {
        for (int i = 0; i < kQuarters; i += 2) {
            const __m256i one = _mm256_srli_epi32(weights.quarters[i], 16);
            const __m256i other = _mm256_srli_epi32(weights.quarters[i + 1], 16);
            const __m256i packed = _mm256_packus_epi32(one, other);
            Bf16* to = tile + pair * 2 * kLanes + 8 * i;
            // Packing keeps lanes of 128 bits apart.
            _mm256_storeu_si256((__m256i*)to, _mm256_permute4x64_epi64(packed, 0xd8));
        }
    });
}

// The first (0x88) or the second (0xdd) neighbours in K of a pair: columns 0-7 and 8-15, in the
// order 0 1 4 5 2 3 6 7.
template <int kWhich>
struct Halves {
    Reg columns[2];

    explicit Halves(const Weights<true>& weights) {
        for (int i = 0; i < 2; ++i) {
            const __m256 one = _mm256_castsi256_ps(weights.quarters[2 * i]);
            const __m256 other = _mm256_castsi256_ps(weights.quarters[2 * i + 1]);
            const __m256 both = _mm256_shuffle_ps(one, other, kWhich);
            columns[i] = second_of(_mm256_castps_si256(both));
        }
    }
};

inline __m256i in_order() { return _mm256_setr_epi32(0, 1, 4, 5, 2, 3, 6, 7); }

// Sums of few rows, without a detour through memory: unpacking costs as much as the products do.
template <Kind kKind, int kRows>
void sum_few(const Linear& linear, int panel, const float* x, float* to) {
    const std::size_t bytes = half_bytes(linear);
    const int size = block_bytes(kKind);
    for (int half = 0; half < 2; ++half) {
        const std::uint8_t* at = linear.panel(panel) + half * bytes;
        Sums<kRows, 2> sums;
        for (int k = 0; k < linear.depth; at += 2 * bytes) {
            const Doubled scale = load_doubled(reinterpret_cast<const std::uint16_t*>(at));
            const Doubled low = load_doubled(reinterpret_cast<const std::uint16_t*>(at + 32));
            const std::uint8_t* block = at + kScaleBytes;
            for (const int end = k + linear.group; k < end; k += kBf16Depth, block += size) {
                for (int line = 0; line < size + kScaleBytes; line += 64) {
                    _mm_prefetch(reinterpret_cast<const char*>(block) + 4096 + line, _MM_HINT_T0);
                }
                const float* from = x + k;
                each_pair<true>(kKind, block, scale, low, [&](int pair, const Weights<true>& two) {
                    sums.add(from + 2 * pair, linear.depth, Halves<0x88>(two).columns);
                    sums.add(from + 2 * pair + 1, linear.depth, Halves<0xdd>(two).columns);
                });
            }
        }
        for (auto& row : sums.sum) {
            for (Reg& lanes : row) lanes = _mm256_permutevar8x32_ps(lanes, in_order());
        }
        sums.store(to + half * kLanes, kPanel);
    }
}

template <Kind kKind>
void sum_few_of(const Linear& linear, int panel, const float* x, int rows, float* sums) {
    switch (rows) {
        case 1: return sum_few<kKind, 1>(linear, panel, x, sums);
        case 2: return sum_few<kKind, 2>(linear, panel, x, sums);
        case 3: return sum_few<kKind, 3>(linear, panel, x, sums);
        default: return sum_few<kKind, 4>(linear, panel, x, sums);
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
        unpack(linear.kind, block, scale, low, tiles);
    }
}

#if !defined(__AVX512F__)

void sum_few_rows(const Linear& linear, int panel, const float* x, int rows, float* sums) {
    const auto kernel = linear.kind == Kind::kInt4 ? sum_few_of<Kind::kInt4>
                                                   : sum_few_of<Kind::kInt8>;
    kernel(linear, panel, x, rows, sums);
}

#endif

}  // namespace triptych

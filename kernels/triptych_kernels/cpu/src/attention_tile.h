// The two products of attention over one tile, for sixteen lanes.
//
// scores: S[t][lane] = Σ_d key[t][d] · query[d][lane]; weigh: O[d][lane] += Σ_t value[d][t] ·
// weight[t][lane]. The lanes stand on the right of both, so softmax never adds across a vector.
//
// A row of decoding has a few query heads for each KV head, and so uses a few lanes. Where registers
// hold eight floats, scores and weights come eight lanes wide then (kWidth), and the other half of
// both products is saved. Each lane adds up the same numbers in the same order.
#pragma once

#include <type_traits>

#include "amx.h"
#include "kv_cache.h"
#include "memory.h"
#include "products.h"
#include "simd.h"

namespace triptych {

struct Nothing {
    void operator()() const {}
};

// Products one at a time, on every level. Queries are [head_dim][16], weights [128][16].
template <class T>
struct FmaProducts {
    using Element = T;

    static std::size_t query_bytes(int dim) { return sizeof(float) * kLanes * dim; }
    static void configure() {}

    // What many groups of lanes read one after the other: halves are widened once for all of them.
    using Many = FmaProducts<float>;
    static KvTile<float> for_many(const KvTile<T>& tile, int dim, const KvScratch<float>& room) {
        if constexpr (std::is_same_v<T, float>) {
            return tile;
        } else {
            KvTile<float> wide{{}, {}, {}, tile.tokens, tile.parts, tile.key_scales, tile.value_scales};
            for (int part = 0; part < tile.parts; ++part) {
                float* keys = room.keys + part * kPartTokens * dim;
                float* values = room.values + part * kPartTokens * dim;
                widen(tile.keys[part], kPartTokens * dim, keys);
                for (int d = 0; d < dim; ++d) {
                    widen(tile.values[part] + d * tile.value_stride[part], kPartTokens,
                          values + d * kPartTokens);
                }
                wide.keys[part] = keys;
                wide.values[part] = values;
                wide.value_stride[part] = kPartTokens;
            }
            return wide;
        }
    }

    static void put_query(void* queries, int lane, const float* query, int dim) {
        float* to = static_cast<float*>(queries) + lane;
        for (int d = 0; d < dim; ++d) to[d * kLanes] = round(query[d], static_cast<T*>(nullptr));
    }

    static constexpr int kWeightFloats = kTileTokens * kLanes;
    static constexpr int kFewLanes = kRegLanes;

    __attribute__((always_inline)) static V exp2(V x) { return exp2_below_zero<6>(x); }

    // Of the four tokens from `t` on.
    template <int kWidth, std::size_t kCount>
    static void put_weights(float* weights, int t, const V (&four)[kCount]) {
        for (std::size_t i = 0; i < kCount; ++i) store(weights + t * kWidth + i * kLanes, four[i]);
    }

    // Memory answers while products are computed: a fold asks for some lines after every few rows
    // (`between`), at least so many times in scores of a tile, and in all of it.
    static constexpr bool kAsksBetween = true;
    static constexpr int kAsksInScores = 16, kAsks = 56;

    template <int kWidth = kLanes, class Between = Nothing>
    static void scores(const KvTile<T>& tile, int dim, const void* queries, float* scores,
                       Between&& between = {}) {
        const float* q = static_cast<const float*>(queries);
        static thread_local Buffer<float> room;
        constexpr int kCount = kAtOnce<kWidth>;
        float* keys = room.take(static_cast<std::size_t>(kCount) * dim);
        for (int t = 0; t < tile.parts * kPartTokens; t += kCount) {
            const T* from = tile.keys[t / kPartTokens] + t % kPartTokens * dim;
            const float* wide = widened(from, kCount * dim, keys);
            Sums<kCount, kRegs<kWidth>> sums;
            for (int d = 0; d < dim; ++d) sums.add(wide + d, dim, Lanes<kWidth>(q + d * kLanes).of);
            sums.store(scores + t * kWidth, kWidth);
            between();
        }
    }

    template <int kWidth = kLanes, class Between = Nothing>
    static void weigh(const KvTile<T>& tile, int dim, const float* weights, float* out,
                      Between&& between = {}) {
        constexpr int kCount = kAtOnce<kWidth>;
        int d = 0;
        for (; dim - d >= kCount; d += kCount, between()) {
            weigh_rows<kCount, kWidth>(tile, d, weights, out);
        }
        for (; d < dim; ++d) weigh_rows<1, kWidth>(tile, d, weights, out);
    }

  private:
    template <int kWidth>
    static constexpr int kRegs = kWidth / kRegLanes;
    // As many sums as keep the units for products busy.
    template <int kWidth>
    static constexpr int kAtOnce = 8 / kRegs<kWidth>;

    template <int kWidth>
    struct Lanes {
        Reg of[kRegs<kWidth>];
        explicit Lanes(const float* from) {
            for (int i = 0; i < kRegs<kWidth>; ++i) of[i] = reg_load(from + i * kRegLanes);
        }
    };

    template <int kRows, int kWidth>
    static void weigh_rows(const KvTile<T>& tile, int d, const float* weights, float* out) {
        Sums<kRows, kRegs<kWidth>> sums(out + d * kLanes, kLanes);
        if constexpr (std::is_same_v<T, float>) {
            for (int part = 0; part < tile.parts; ++part) {
                const int stride = tile.value_stride[part];
                const float* values = tile.values[part] + d * stride;
                for (int t = 0; t < kPartTokens; ++t, weights += kWidth) {
                    sums.add(values + t, stride, Lanes<kWidth>(weights).of);
                }
            }
        } else {
            alignas(64) float values[kRows * kTileTokens];
            for (int part = 0; part < tile.parts; ++part) {
                const int stride = tile.value_stride[part];
                for (int i = 0; i < kRows; ++i) {
                    widen(tile.values[part] + (d + i) * stride, kPartTokens,
                          values + i * kTileTokens + part * kPartTokens);
                }
            }
            for (int t = 0; t < tile.parts * kPartTokens; ++t) {
                sums.add(values + t, kTileTokens, Lanes<kWidth>(weights + t * kWidth).of);
            }
        }
        sums.store(out + d * kLanes, kLanes);
    }

    // A float in memory is broadcast by its load; a half would take three instructions each time.
    static const float* widened(const float* from, int, float*) { return from; }
    static const float* widened(const Bf16* from, int count, float* to) {
        widen(from, count, to);
        return to;
    }
    static void widen(const Bf16* from, int count, float* to) {
        int i = 0;
        for (; i + kLanes <= count; i += kLanes) store(to + i, load(from + i));
        for (; i < count; ++i) to[i] = to_float(from[i]);
    }
    static float round(float x, const float*) { return x; }
    static float round(float x, const Bf16*) {
        Bf16 halves[kLanes];
        store(halves, set1(x));
        return to_float(halves[0]);
    }
};

#if defined(TK_AMX)

// Tile products, for head sizes that are a multiple of 32. Queries are pairs [head_dim / 2][16][2]
// and weights [64][16][2] of bfloat16.
struct AmxProducts {
    using Element = Bf16;

    static std::size_t query_bytes(int dim) { return sizeof(Bf16) * kLanes * dim; }
    static void configure() { amx::configure(kLanes); }

    using Many = AmxProducts;
    static KvTile<Bf16> for_many(const KvTile<Bf16>& tile, int, const KvScratch<Bf16>&) {
        return tile;
    }

    static void put_query(void* queries, int lane, const float* query, int dim) {
        Bf16* to = static_cast<Bf16*>(queries) + 2 * lane;
        for (int d = 0; d < dim; d += kLanes) {
            Bf16 halves[kLanes];
            store(halves, load(query + d));
            for (int i = 0; i < kLanes; i += 2) {
                std::memcpy(to + (d + i) * kLanes, halves + i, 2 * sizeof(Bf16));
            }
        }
    }

    static constexpr int kWeightFloats = kTileTokens * kLanes / 2;
    static constexpr int kFewLanes = kLanes;  // a tile has no half
    // While scores become weights only: tile products come in few steps.
    static constexpr bool kAsksBetween = false;
    static constexpr int kAsksInScores = 0, kAsks = 32;

    // 2^x for x ≤ 0, 0 for −∞, NaN for NaN: a polynomial of degree 3 on [0, 1), relative error 9e-5,
    // for weights that are rounded to bfloat16 anyway.
    static V exp2(V x) {
        constexpr int kBelow = _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC;
        const V f = (V)_mm512_reduce_ps((__m512)x, kBelow);  // x − floor(x)
        V p = fma(set1(kC3), f, set1(kC2));
        p = fma(p, f, set1(kC1));
        p = fma(p, f, set1(1.0f));
        return (V)_mm512_scalef_ps((__m512)p, (__m512)x);  // × 2^floor(x)
    }

    // Sums 0 and 1 are of 16 tokens each.
    template <int = kLanes, class Between = Nothing>
    static void scores(const KvTile<Bf16>& tile, int dim, const void* queries, float* scores,
                       Between&& = {}) {
        const int stride = dim * static_cast<int>(sizeof(Bf16));
        for (int part = 0; part < tile.parts; ++part, scores += kPartTokens * kLanes) {
            const Bf16* keys = tile.keys[part];
            _tile_zero(0);
            _tile_zero(1);
            for (int d = 0; d < dim; d += kBf16Depth) {
                TK_TILE_LOAD(4, keys + d, stride);
                TK_TILE_LOAD(5, static_cast<const Bf16*>(queries) + d * kLanes, 64);
                _tile_dpbf16ps(0, 4, 5);
                TK_TILE_LOAD(4, keys + kLanes * dim + d, stride);
                _tile_dpbf16ps(1, 4, 5);
            }
            TK_TILE_STORE(0, scores, 64);
            TK_TILE_STORE(1, scores + kLanes * kLanes, 64);
        }
    }

    // Of the four tokens from `t` on.
    template <int>
    static void put_weights(float* weights, int t, const V (&four)[4]) {
        for (int i = 0; i < 4; i += 2) {
            const __m512i halves = (__m512i)_mm512_cvtne2ps_pbh((__m512)four[i + 1], (__m512)four[i]);
            const __m512i interleaved = _mm512_permutexvar_epi16(interleave(), halves);
            _mm512_storeu_si512(weights + (t + i) / 2 * kLanes, interleaved);
        }
    }

    // Sums 0 and 1 are of 16 dimensions each.
    template <int = kLanes, class Between = Nothing>
    static void weigh(const KvTile<Bf16>& tile, int dim, const float* weights, float* out,
                      Between&& = {}) {
        for (int d = 0; d < dim; d += 2 * kLanes, out += 2 * kLanes * kLanes) {
            TK_TILE_LOAD(0, out, 64);
            TK_TILE_LOAD(1, out + kLanes * kLanes, 64);
            for (int part = 0; part < tile.parts; ++part) {
                const int row = tile.value_stride[part];
                const Bf16* values = tile.values[part] + d * row;
                const int stride = row * static_cast<int>(sizeof(Bf16));
                TK_TILE_LOAD(4, values, stride);
                TK_TILE_LOAD(5, weights + part * kPartTokens / 2 * kLanes, 64);
                _tile_dpbf16ps(0, 4, 5);
                TK_TILE_LOAD(4, values + kLanes * row, stride);
                _tile_dpbf16ps(1, 4, 5);
            }
            TK_TILE_STORE(0, out, 64);
            TK_TILE_STORE(1, out + kLanes * kLanes, 64);
        }
    }

  private:
    static constexpr int kBf16Depth = 32;
    static constexpr float kC1 = 0x1.63e65ap-1f, kC2 = 0x1.d23778p-3f, kC3 = 0x1.3baac6p-4f;

    // 0, 16, 1, 17, …: halves from the lower and the upper vector in turn.
    static __m512i interleave() {
        const __m512i low = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
        const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(16));
        return _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
    }
};

#endif

}  // namespace triptych

// The two products of attention over one tile, for sixteen lanes.
//
// scores: S[t][lane] = Σ_d key[t][d] · query[d][lane]; weigh: O[d][lane] += Σ_t value[d][t] ·
// weight[t][lane]. The lanes stand on the right of both, so softmax never adds across a vector.
#pragma once

#include "amx.h"
#include "kv_cache.h"
#include "simd.h"

namespace triptych {

// Products one at a time, on every level. Queries are [head_dim][16], weights [128][16].
template <class T>
struct FmaProducts {
    using Element = T;

    static float widen(float x) { return x; }
    static float widen(Bf16 x) { return to_float(x); }
    static float round(float x, const float*) { return x; }
    static float round(float x, const Bf16*) {
        Bf16 halves[kLanes];
        store(halves, set1(x));
        return to_float(halves[0]);
    }
    static std::size_t query_bytes(int dim) { return sizeof(float) * kLanes * dim; }
    static void configure() {}

    static void put_query(void* queries, int lane, const float* query, int dim) {
        float* to = static_cast<float*>(queries) + lane;
        for (int d = 0; d < dim; ++d) to[d * kLanes] = round(query[d], static_cast<T*>(nullptr));
    }

    static void scores(const KvTile<T>& tile, int dim, const void* queries, float* scores) {
        const float* q = static_cast<const float*>(queries);
        for (int t = 0; t < tile.parts * kPartTokens; t += 8) {
            const T* keys = tile.keys[t / kPartTokens] + t % kPartTokens * dim;
            V sum[8] = {};
            for (int d = 0; d < dim; ++d) {
                const V query = load(q + d * kLanes);
                for (int i = 0; i < 8; ++i) {
                    sum[i] = fma(set1(widen(keys[i * dim + d])), query, sum[i]);
                }
            }
            for (int i = 0; i < 8; ++i) store(scores + (t + i) * kLanes, sum[i]);
        }
    }

    static void put_weights(float* weights, int pair, V even, V odd) {
        store(weights + 2 * pair * kLanes, even);
        store(weights + (2 * pair + 1) * kLanes, odd);
    }

    static void weigh(const KvTile<T>& tile, int dim, const float* weights, float* out) {
        for (int d = 0; d < dim; d += 8) {
            const int rows = dim - d < 8 ? dim - d : 8;
            V sum[8];
            for (int i = 0; i < rows; ++i) sum[i] = load(out + (d + i) * kLanes);
            for (int t = 0; t < tile.parts * kPartTokens; ++t) {
                const int part = t / kPartTokens, stride = tile.value_stride[part];
                const T* values = tile.values[part] + d * stride + t % kPartTokens;
                const V weight = load(weights + t * kLanes);
                for (int i = 0; i < rows; ++i) {
                    sum[i] = fma(set1(widen(values[i * stride])), weight, sum[i]);
                }
            }
            for (int i = 0; i < rows; ++i) store(out + (d + i) * kLanes, sum[i]);
        }
    }
};

#if defined(TK_AMX)

// Tile products, for head sizes that are a multiple of 32. Queries are pairs [head_dim / 2][16][2]
// and weights [64][16][2] of bfloat16.
struct AmxProducts {
    using Element = Bf16;

    static std::size_t query_bytes(int dim) { return sizeof(Bf16) * kLanes * dim; }
    static void configure() { amx::configure_full(); }

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

    static void scores(const KvTile<Bf16>& tile, int dim, const void* queries, float* scores) {
        const Bf16* q = static_cast<const Bf16*>(queries);
        const int stride = dim * static_cast<int>(sizeof(Bf16));
        for (int part = 0; part < tile.parts; ++part, scores += kPartTokens * kLanes) {
            const Bf16* keys = tile.keys[part];
            _tile_zero(0);
            _tile_zero(1);
            for (int d = 0; d < dim; d += kBf16Depth) {
                TK_TILE_LOAD(6, q + d * kLanes, 64);
                TK_TILE_LOAD(4, keys + d, stride);
                _tile_dpbf16ps(0, 4, 6);
                TK_TILE_LOAD(5, keys + kLanes * dim + d, stride);
                _tile_dpbf16ps(1, 5, 6);
            }
            TK_TILE_STORE(0, scores, 64);
            TK_TILE_STORE(1, scores + kLanes * kLanes, 64);
        }
    }

    static void put_weights(float* weights, int pair, V even, V odd) {
        typedef std::uint32_t Words __attribute__((vector_size(64)));
        const Words low = __builtin_convertvector(to_bf16(even), Words);
        const Words high = __builtin_convertvector(to_bf16(odd), Words) << 16;
        store(weights + pair * kLanes, (V)(low | high));
    }

    static void weigh(const KvTile<Bf16>& tile, int dim, const float* weights, float* out) {
        for (int d = 0; d < dim; d += 2 * kLanes, out += 2 * kLanes * kLanes) {
            TK_TILE_LOAD(0, out, 64);
            TK_TILE_LOAD(1, out + kLanes * kLanes, 64);
            for (int part = 0; part < tile.parts; ++part) {
                const int row = tile.value_stride[part];
                const Bf16* values = tile.values[part] + d * row;
                const int stride = row * static_cast<int>(sizeof(Bf16));
                TK_TILE_LOAD(6, weights + part * kPartTokens / 2 * kLanes, 64);
                TK_TILE_LOAD(4, values, stride);
                _tile_dpbf16ps(0, 4, 6);
                TK_TILE_LOAD(5, values + kLanes * row, stride);
                _tile_dpbf16ps(1, 5, 6);
            }
            TK_TILE_STORE(0, out, 64);
            TK_TILE_STORE(1, out + kLanes * kLanes, 64);
        }
    }

  private:
    static constexpr int kBf16Depth = 32;
};

#endif

}  // namespace triptych
